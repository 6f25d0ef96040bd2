"""Metrics on notes: which of them are right, how many there are, whether they keep to the scale and the range.

Notes are (count, 4 or 5) integers with the columns of `Song.notes`: onset and length in ticks, pitch, track (and
velocity, which nothing here reads). `notes_of` reads them off a roll.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relpos.tasks.music.metrics.rolls import as_rolls, onsets, samples
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, PITCHES, TRACK

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)


@dataclass(frozen=True)
class Matches:
    """How many notes of a prediction match the target's. Add two of them to score both as one piece."""

    matched: int
    predicted: int
    target: int

    @property
    def precision(self) -> float:
        """Share of the predicted that is right: 0 where nothing is predicted, NaN where nothing was to be either."""
        return self._share(self.predicted)

    @property
    def recall(self) -> float:
        return self._share(self.target)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN where both sides are empty."""
        both = self.predicted + self.target
        return 2 * self.matched / both if both else float("nan")

    def __add__(self, other: Matches) -> Matches:
        return Matches(self.matched + other.matched, self.predicted + other.predicted, self.target + other.target)

    def _share(self, count: int) -> float:
        if self.predicted + self.target == 0:
            return float("nan")
        return self.matched / count if count else 0.0


def notes_of(roll: np.ndarray, begins: np.ndarray | None = None) -> np.ndarray:
    """Notes of a bool roll (ticks, tracks, 128) or (ticks, tracks * 128), (count, 4) sorted by onset, track, pitch.

    begins: where a note begins (`Song.onsets`); without it notes repeated without a gap are one long note.
    """
    sounding = as_rolls(np.asarray(roll)[None])[0]
    if sounding.dtype != bool:
        raise TypeError(f"notes are read off rolls of bool, got {sounding.dtype}; binarise first")
    starts = onsets(sounding)
    if begins is not None:
        starts = starts | (as_rolls(np.asarray(begins)[None], "begins")[0].astype(bool) & sounding)
    silence = np.zeros_like(sounding[:1])
    ends = sounding & ~np.concatenate([sounding[1:] & ~starts[1:], silence])  # last tick of a note
    first = np.argwhere(starts.transpose(1, 2, 0))  # both sorted by track, pitch, tick: they pair up in this order
    last = np.argwhere(ends.transpose(1, 2, 0))
    notes = np.stack([first[:, 2], last[:, 2] - first[:, 2] + 1, first[:, 1], first[:, 0]], axis=1)
    return notes[np.lexsort((notes[:, PITCH], notes[:, TRACK], notes[:, ONSET]))]


def match_notes(
    prediction: np.ndarray,
    target: np.ndarray,
    tolerance: int = 0,
    length_ratio: float | None = None,
    length_tolerance: int = 1,
) -> Matches:
    """Notes with the target's pitch and track that begin at most ``tolerance`` ticks away, each matched at most once.

    With ``length_ratio`` the end must also lie within max(length_ratio * target's length, length_tolerance) ticks. The
    matching is the largest there is: transcription precision, recall and F1 as in mir_eval, where a pitch is right to
    half a semitone, the tolerance is 50 ms and the ratio 0.2.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance must be at least 0 ticks, got {tolerance}")
    prediction, target = _notes(prediction), _notes(target)
    matched = 0
    there, wanted = _by_voice(prediction), _by_voice(target)
    for key in there.keys() & wanted.keys():
        if length_ratio is None:
            matched += _match_onsets(there[key][:, 0], wanted[key][:, 0], tolerance)
        else:
            matched += _match_spans(there[key], wanted[key], tolerance, length_ratio, length_tolerance)
    return Matches(matched, len(prediction), len(target))


def match_onsets(prediction: np.ndarray, target: np.ndarray, tolerance: int = 0) -> Matches:
    """Ticks at which anything begins, whatever its pitch and track: the rhythm alone."""
    there, wanted = (np.unique(_notes(notes)[:, ONSET]) for notes in (prediction, target))
    return Matches(_match_onsets(there, wanted, tolerance), len(there), len(wanted))


def density_ratio(prediction: np.ndarray, target: np.ndarray, of: str = "cells") -> np.ndarray:
    """(batch,) on-cells, or onsets, of the prediction over those of the target; NaN for a silent target."""
    if of not in ("cells", "onsets"):
        raise ValueError(f'of must be "cells" or "onsets", got {of!r}')
    ratios = []
    for first, second in samples(prediction, target):
        counts = [float((onsets(roll) if of == "onsets" else roll).sum()) for roll in (first, second)]
        ratios.append(counts[0] / counts[1] if counts[1] else np.nan)
    return np.array(ratios)


def polyphony(rolls: np.ndarray) -> np.ndarray:
    """(batch,) mean number of cells that sound together, over the ticks at which any does; NaN for silence."""
    values = []
    for roll in as_rolls(rolls):
        together = (roll > 0).sum((1, 2))
        values.append(together[together > 0].mean() if together.any() else np.nan)
    return np.array(values, dtype=np.float64)


def scale(tonic: int, mode: str = "major") -> np.ndarray:
    """The pitch classes of a key, (12,) bool from C on; the minor is the natural one."""
    steps = {"major": MAJOR, "minor": MINOR}.get(mode)
    if steps is None:
        raise ValueError(f'mode must be "major" or "minor", got {mode!r}')
    held = np.zeros(12, dtype=bool)
    held[(np.array(steps) + tonic) % 12] = True
    return held


def scale_of(notes: np.ndarray) -> np.ndarray:
    """The diatonic scale that holds most of the notes, (12,) bool; of equally good ones the lowest tonic from C on.

    A key and its relative minor have the same scale, so that the mode needs not be known.
    """
    counts = _pitch_classes(notes)
    scales = [scale(tonic) for tonic in range(12)]
    return scales[int(np.argmax([counts[held].sum() for held in scales]))]


def scale_share(notes: np.ndarray, held: np.ndarray) -> float:
    """Share of the notes whose pitch class is in ``held`` (12,), a scale or what a target uses; NaN without notes."""
    held = np.asarray(held, dtype=bool)
    if held.shape != (12,):
        raise ValueError(f"held must be (12,) bool, the pitch classes from C on, got {held.shape}")
    counts = _pitch_classes(notes)
    return float(counts[held].sum() / counts.sum()) if counts.sum() else float("nan")


def pitch_classes(notes: np.ndarray) -> np.ndarray:
    """Which pitch classes the notes use, (12,) bool."""
    return _pitch_classes(notes) > 0


def share_in_range(notes: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """(tracks,) share of the notes of each track within its (lowest, highest) pitch; NaN for a track without notes."""
    notes = _notes(notes)
    if notes.size and notes[:, TRACK].max() >= len(ranges):
        raise ValueError(f"ranges for {len(ranges)} tracks, but the notes have track {notes[:, TRACK].max()}")
    shares = []
    for track, (lowest, highest) in enumerate(ranges):
        pitch = notes[notes[:, TRACK] == track, PITCH]
        shares.append(((pitch >= lowest) & (pitch <= highest)).mean() if pitch.size else np.nan)
    return np.array(shares, dtype=np.float64)


def _notes(notes: np.ndarray) -> np.ndarray:
    notes = np.asarray(notes)
    notes = notes.reshape(-1, 4) if notes.size == 0 else notes
    if notes.ndim != 2 or notes.shape[1] not in (4, 5):
        raise ValueError(f"notes must be (count, 4 or 5): onset, length, pitch, track (velocity); got {notes.shape}")
    return notes.astype(np.int64)


def _pitch_classes(notes: np.ndarray) -> np.ndarray:
    return np.bincount(_notes(notes)[:, PITCH] % 12, minlength=12)


def _by_voice(notes: np.ndarray) -> dict[int, np.ndarray]:
    """(count, 2) onsets and lengths by track and pitch, sorted by onset."""
    voice = notes[:, TRACK] * PITCHES + notes[:, PITCH]
    order = np.lexsort((notes[:, LENGTH], notes[:, ONSET], voice))
    keys, starts = np.unique(voice[order], return_index=True)
    parts = np.split(notes[order][:, [ONSET, LENGTH]], starts[1:]) if len(keys) else []
    return dict(zip(keys.tolist(), parts, strict=True))


def _match_onsets(there: np.ndarray, wanted: np.ndarray, tolerance: int) -> int:
    """Size of the largest matching of two sorted rows: on a line, taking the earliest that will do is optimal."""
    first, second = there.tolist(), wanted.tolist()
    matched = i = j = 0
    while i < len(first) and j < len(second):
        if abs(first[i] - second[j]) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif first[i] < second[j]:
            i += 1
        else:
            j += 1
    return matched


def _match_spans(
    there: np.ndarray, wanted: np.ndarray, tolerance: int, length_ratio: float, length_tolerance: int
) -> int:
    """Size of the largest matching where onset and end must agree: augmenting paths, found breadth first."""
    allowed = [
        np.flatnonzero(
            (np.abs(there[:, 0] - onset) <= tolerance)
            & (np.abs(there.sum(1) - onset - length) <= max(length_ratio * length, length_tolerance))
        ).tolist()
        for onset, length in wanted.tolist()
    ]
    owner: dict[int, int] = {}  # which target note a predicted one is matched with
    matched = 0
    for root in range(len(allowed)):
        reached: dict[int, int] = {}  # the target note from which a predicted one was come to
        queue = [root]
        for note in queue:
            free = None
            for candidate in allowed[note]:
                if candidate not in reached:
                    reached[candidate] = note
                    if candidate not in owner:
                        free = candidate
                        break
                    queue.append(owner[candidate])
            if free is not None:
                holds = {target: candidate for candidate, target in owner.items() if candidate in reached}
                while free is not None:
                    target = reached[free]
                    owner[free] = target
                    free = holds.get(target)
                matched += 1
                break
    return matched
