"""Splits that depend on the items alone: not on their order, on the machine or on a random generator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

THREE = {"train": 0.9, "validation": 0.05, "test": 0.05}


def unit(key: bytes) -> float:
    """A number in [0, 1) that is a fixed function of the key, uniform over keys."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64


def hashed(keys: Sequence[bytes], shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Each item goes to a side by the hash of its key; shares must sum to 1. Equal keys go to one side."""
    edges = np.cumsum(list(shares.values()))
    if not np.isclose(edges[-1], 1):
        raise ValueError(f"shares must sum to 1, got {dict(shares)}")
    sides = np.searchsorted(edges[:-1], [unit(key) for key in keys], side="right")
    return {name: np.flatnonzero(sides == index) for index, name in enumerate(shares)}


def validated(train: np.ndarray, test: np.ndarray, keys: Sequence[bytes], share: float = 0.1) -> dict[str, np.ndarray]:
    """An official train/test split with a part of train, chosen by hash, as validation."""
    held = np.array([unit(keys[index]) < share for index in train], dtype=bool)
    return {"train": train[~held], "validation": train[held], "test": test}


def by_position(total: int, shares: Mapping[str, float] = THREE) -> dict[str, np.ndarray]:
    """Stretches [start, stop] of ``total`` items in order, for a `Corpus`."""
    edges = [0, *(round(total * edge) for edge in np.cumsum(list(shares.values())))]
    return {name: np.array([edges[i], edges[i + 1]], dtype=np.int64) for i, name in enumerate(shares)}


def rows(**counts: int) -> dict[str, np.ndarray]:
    """Consecutive rows: rows(train=8, test=2) is 0..7 and 8..9."""
    edges = np.cumsum([0, *counts.values()])
    return {name: np.arange(edges[i], edges[i + 1]) for i, name in enumerate(counts)}
