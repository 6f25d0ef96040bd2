"""The chorales as prepared data: read once, cached, split by tune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from relpos.tasks import cache
from relpos.tasks.music import corpus, tunes
from relpos.tasks.music.piece import Piece, pack, unpack
from relpos.tasks.music.roll import encode, shifts

_KIND = "four-part chorales, 4 ticks a quarter"
_FORMAT = "1"
SPLIT_SEED = 0


@dataclass(frozen=True)
class Collection:
    """Pieces with their tokens, tune groups, split and the transpositions that training may use."""

    pieces: list[Piece]
    tokens: list[np.ndarray]
    group: np.ndarray
    split: dict[str, np.ndarray]
    shifts: list[list[int]]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Collection:
        """ValueError where names are not unique or a side of the split stays empty."""
        if len({piece.name for piece in pieces}) != len(pieces):
            raise ValueError("names of pieces must be unique: rename those that occur twice")
        group = tunes.groups(pieces)
        split = tunes.split(group, SPLIT_SEED)
        empty = [name for name, side in split.items() if not len(side)]
        if empty:
            raise ValueError(f"{len(pieces)} pieces of {group.max() + 1} tunes are too few: {empty} would be empty")
        return cls(list(pieces), [encode(p) for p in pieces], group, split, [shifts(p) for p in pieces])


def load(progress: Callable[[int, int, str], None] | None = None) -> list[Piece]:
    """The chorales from the cache, read from music21 first where needed (about half a minute on two cores).

    ModuleNotFoundError where neither the cache nor music21 is there.
    """
    header = {"kind": _KIND, "format": _FORMAT}
    version = music21_version()
    if version:
        header["music21"] = version
    return unpack(cache.cached("chorales", header, lambda: pack(corpus.read_all(corpus.score_paths(), 2, progress))))


def music21_version() -> str:
    """The installed version, "" where music21 is not installed."""
    try:
        return metadata.version("music21")
    except metadata.PackageNotFoundError:
        return ""
