"""Style of a groove as histograms of its notes, and how alike two are: the metrics of SPE's groove continuation.

Notes are (count, 3) integers: onset in ticks, pitch, duration in ticks, of **one track**; `Song.notes[:, [ONSET, PITCH,
LENGTH]]` gives them. Bins are a sixth of a beat; they are found in whole numbers, so that no onset falls beside its bin
by rounding. The last bin of an axis takes its upper edge in, as numpy's do. Histograms hold counts.
"""

from __future__ import annotations

import numpy as np

BINS_PER_BEAT = 6
INTERVALS = 20


def time_pitch_histogram(notes: np.ndarray, ticks_per_beat: int, max_beats: int = 4) -> np.ndarray:
    """Pairs of notes by interval and time from one to the other, (41, 24): rows -20..20 semitones.

    A pair counts where the second begins less than ``max_beats`` after the first; notes that begin together count both
    ways; wider intervals fall out.
    """
    onset, pitch, _ = _columns(notes, ticks_per_beat)
    order = np.argsort(onset, kind="stable")
    onset, pitch = onset[order], pitch[order]
    begin = np.searchsorted(onset, onset, side="left")
    count = np.searchsorted(onset, onset + max_beats * ticks_per_beat, side="left") - begin
    first = np.repeat(np.arange(len(onset)), count)
    second = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(begin, count)
    kept = first != second
    first, second = first[kept], second[kept]
    interval = pitch[second] - pitch[first] + INTERVALS
    time = (onset[second] - onset[first]) * BINS_PER_BEAT // ticks_per_beat
    return _count(interval, time, (2 * INTERVALS + 1, max_beats * BINS_PER_BEAT))


def onset_duration_histogram(
    notes: np.ndarray, ticks_per_beat: int, beats_per_bar: int = 4, max_beats: int = 2, as_released: bool = False
) -> np.ndarray:
    """Notes by onset within the bar and duration, (beats_per_bar * 6, max_beats * 6); longer notes fall out.

    ``as_released``: the released code bins the onset, which it has in ticks, as if it were in beats. So only notes that
    begin in the first ticks of a bar are counted, those at ticks 0, 1, 2, 3 and, by the closed edge, 4 of a bar of 4.
    """
    onset, _, duration = _columns(notes, ticks_per_beat)
    long = _closed(duration, ticks_per_beat, max_beats)
    return _count(
        _in_bar(onset, ticks_per_beat, beats_per_bar, as_released),
        long,
        (beats_per_bar * BINS_PER_BEAT, max_beats * BINS_PER_BEAT),
    )


def onset_pitch_histogram(
    notes: np.ndarray, ticks_per_beat: int, beats_per_bar: int = 4, as_released: bool = False
) -> np.ndarray:
    """Notes by onset within the bar and pitch, (beats_per_bar * 6, 128): for drums, where a pitch is an instrument."""
    onset, pitch, _ = _columns(notes, ticks_per_beat)
    return _count(
        _in_bar(onset, ticks_per_beat, beats_per_bar, as_released), pitch, (beats_per_bar * BINS_PER_BEAT, 128)
    )


def style_profile(
    notes: np.ndarray, ticks_per_beat: int, drums: bool = False, beats_per_bar: int = 4, as_released: bool = False
) -> dict[str, np.ndarray]:
    """The histograms of a track by name: "onset-pitch" of drums, "time-pitch" and "onset-duration" of all others."""
    if drums:
        return {"onset-pitch": onset_pitch_histogram(notes, ticks_per_beat, beats_per_bar, as_released)}
    onset = onset_duration_histogram(notes, ticks_per_beat, beats_per_bar, as_released=as_released)
    return {"time-pitch": time_pitch_histogram(notes, ticks_per_beat), "onset-duration": onset}


def histogram_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two histograms, 0 to 1; NaN where one is empty."""
    lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return float((first * 1.0 * second).sum()) / lengths if lengths else float("nan")


def style_similarity(
    continuation: np.ndarray,
    reference: np.ndarray,
    ticks_per_beat: int,
    ticks: int | None = None,
    parts: int = 4,
    drums: bool = False,
    beats_per_bar: int = 4,
    as_released: bool = False,
) -> dict[str, np.ndarray]:
    """How alike ``parts`` equal spans of time of a continuation are to the whole reference, (parts,) by histogram.

    ticks: the continuation's length (default: the end of its last note). Onsets count from the beginning of a bar, in
    both; a note belongs to the span in which it begins (the released code counts one on the border twice).
    """
    options = {"drums": drums, "beats_per_bar": beats_per_bar, "as_released": as_released}
    onset, _, duration = _columns(continuation, ticks_per_beat)
    ticks = int((onset + duration).max(initial=0)) if ticks is None else ticks
    part = np.minimum(onset * parts // max(ticks, 1), parts - 1)
    whole = style_profile(reference, ticks_per_beat, **options)
    spans = [
        style_profile(np.asarray(continuation)[part == index], ticks_per_beat, **options) for index in range(parts)
    ]
    return {name: np.array([histogram_similarity(span[name], whole[name]) for span in spans]) for name in whole}


def _columns(notes: np.ndarray, ticks_per_beat: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    notes = np.asarray(notes)
    notes = notes.reshape(-1, 3) if notes.size == 0 else notes
    if notes.ndim != 2 or notes.shape[1] != 3:
        raise ValueError(f"notes must be (count, 3): onset, pitch, duration; got {notes.shape}")
    if ticks_per_beat < 1:
        raise ValueError(f"ticks_per_beat must be at least 1, got {ticks_per_beat}")
    notes = notes.astype(np.int64)
    if (notes[:, 0] < 0).any():
        raise ValueError(f"onsets count from the beginning of a bar, at tick 0; got {notes[:, 0].min()}")
    return notes[:, 0], notes[:, 1], notes[:, 2]


def _closed(ticks: np.ndarray, ticks_per_beat: int, max_beats: int) -> np.ndarray:
    """Bin of a time, that at the upper edge in the last one."""
    bins = ticks * BINS_PER_BEAT // ticks_per_beat
    return np.where(ticks == max_beats * ticks_per_beat, max_beats * BINS_PER_BEAT - 1, bins)


def _in_bar(onset: np.ndarray, ticks_per_beat: int, beats_per_bar: int, as_released: bool) -> np.ndarray:
    return _closed(onset % (beats_per_bar * ticks_per_beat), 1 if as_released else ticks_per_beat, beats_per_bar)


def _count(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    return np.bincount(row[inside] * shape[1] + column[inside], minlength=shape[0] * shape[1]).reshape(shape)
