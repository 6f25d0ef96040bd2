"""A piece of music on a grid of 16th notes: what every reader hands over and every music task takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

TICKS_PER_QUARTER = 4
SILENT = -1
VOICES = ("soprano", "alto", "tenor", "bass")


@dataclass(frozen=True)
class Piece:
    """A piece of ``ticks`` 16th notes in ``voices`` voices, highest voice first.

    name: unique within a collection (the file's name, as ``bwv269``); number: the catalogue number or "";
    riemenschneider: number in that collection or 0; title: the hymn's title or "".
    pitch: (ticks, voices) int16, the MIDI number that sounds, ``SILENT`` for a rest.
    onset: (ticks, voices) bool, whether that pitch is struck here and not held from the tick before.
    fermata: (ticks, voices) bool, at the onset of a note that carries one; in a chorale it ends a phrase.
    beat: (ticks,) int16, ticks since the start of the bar; a pick-up counts from where it lies in a whole bar.
    bar: (ticks,) int16, bars since the first one; a bar that a repeat sign cuts in two is one bar.
    meter: (ticks, 2) int16, the time signature in force.
    sharps: of the first key signature, flats negative.
    """

    name: str
    number: str
    riemenschneider: int
    title: str
    sharps: int
    pitch: np.ndarray
    onset: np.ndarray
    fermata: np.ndarray
    beat: np.ndarray
    bar: np.ndarray
    meter: np.ndarray

    @property
    def ticks(self) -> int:
        return int(self.pitch.shape[0])


_TEXTS = ("name", "number", "title")
_NUMBERS = ("riemenschneider", "sharps")
_GRIDS = tuple(f.name for f in fields(Piece) if f.name not in (*_TEXTS, *_NUMBERS))


def pack(pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """Arrays that hold the pieces end to end, for one npz file; ``unpack`` is the inverse."""
    arrays = {key: np.array([getattr(p, key) for p in pieces], dtype=np.str_) for key in _TEXTS}
    arrays |= {key: np.array([getattr(p, key) for p in pieces], dtype=np.int16) for key in _NUMBERS}
    arrays |= {key: np.concatenate([getattr(p, key) for p in pieces]) for key in _GRIDS}
    arrays["ticks"] = np.array([p.ticks for p in pieces], dtype=np.int64)
    return arrays


def unpack(arrays: dict[str, np.ndarray]) -> list[Piece]:
    """The pieces that ``pack`` stored; KeyError or ValueError where the arrays do not fit together."""
    ticks = arrays["ticks"]
    ends = np.cumsum(ticks)
    for key in _GRIDS:
        if len(arrays[key]) != ends[-1]:
            raise ValueError(f"array {key!r} has {len(arrays[key])} ticks, the pieces have {ends[-1]}")
    grids = {key: np.split(arrays[key], ends[:-1]) for key in _GRIDS}
    return [Piece(**_fields(arrays, grids, i)) for i in range(len(ticks))]


def _fields(arrays: dict[str, np.ndarray], grids: dict[str, list[np.ndarray]], i: int) -> dict[str, Any]:
    texts = {key: str(arrays[key][i]) for key in _TEXTS}
    numbers = {key: int(arrays[key][i]) for key in _NUMBERS}
    return texts | numbers | {key: grids[key][i] for key in _GRIDS}
