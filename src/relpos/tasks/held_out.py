"""Sides of a data set for training and judging, with a validation side where its makers drew none."""

from __future__ import annotations

from typing import Any

import numpy as np

SHARE = 0.1
SEED = 0


def sides(data: Any) -> dict[str, np.ndarray]:
    """Indices of "train", "validation" and "test" of a `relpos.tasks.data` set that has examples.

    Where it has no validation side, a tenth of its training side, drawn with a fixed seed, becomes one.
    """
    train, test = data.rows("train"), data.rows("test")
    if "validation" in data.split:
        return {"train": train, "validation": data.rows("validation"), "test": test}
    order = np.random.default_rng(SEED).permutation(len(train))
    held = max(1, round(SHARE * len(train)))
    return {"train": np.sort(train[order[held:]]), "validation": np.sort(train[order[:held]]), "test": test}


def origin(card: Any) -> str:
    """One sentence on where the data comes from."""
    packages = ", ".join(f"{each['package']} {each['version']} ({each['client']})" for each in card.packages)
    parts = (f"{card.name}: {card.title}", card.origin, packages and f"out of {packages}", card.licence)
    return "; ".join(part for part in parts if part)
