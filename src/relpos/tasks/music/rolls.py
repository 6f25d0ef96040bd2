"""Notes out of a piano-roll: the inverse of `Song.roll` and `Song.onsets`."""

from __future__ import annotations

import numpy as np

from relpos.tasks.music.song import PITCHES


def notes(roll: np.ndarray, onsets: np.ndarray | None = None, velocity: int = 80) -> np.ndarray:
    """(count, 5) int64 as in `Song`, from bool (ticks, tracks, 128): what sounds and, where known, what begins.

    With onsets every note comes back. Without them a pitch that is struck again while it sounds becomes one long note.
    An onset where nothing sounds is no note.
    """
    if roll.ndim != 3 or roll.shape[2] != PITCHES or (onsets is not None and onsets.shape != roll.shape):
        other = "" if onsets is None else f" and onsets {onsets.shape}"
        raise ValueError(f"a roll is (ticks, tracks, {PITCHES}), onsets the same, got {roll.shape}{other}")
    ticks, tracks, _ = roll.shape
    sounding = np.zeros((tracks, PITCHES, ticks + 1), dtype=bool)  # a silent tick ends every row
    sounding[..., :ticks] = np.moveaxis(roll.astype(bool), 0, 2)
    begins = sounding.copy()
    begins[..., 1:] &= ~sounding[..., :-1]
    if onsets is not None:
        begins[..., :ticks] |= np.moveaxis(onsets.astype(bool), 0, 2) & sounding[..., :ticks]
    first, ends = np.flatnonzero(begins), np.flatnonzero(begins | ~sounding)
    length = ends[np.searchsorted(ends, first, side="right")] - first
    track, rest = np.divmod(first, PITCHES * (ticks + 1))
    pitch, onset = np.divmod(rest, ticks + 1)
    found = np.stack([onset, length, pitch, track, np.full(len(first), velocity)], axis=1).astype(np.int64)
    return found[np.lexsort((pitch, track, onset))]
