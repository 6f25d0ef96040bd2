"""A song of any make as the network sees it: at most four parts, the highest first, and back.

The network is trained on music in one to four parts of one range or another. So of a song

* drums are left out (they go on by repetition, see `compose`);
* tracks are ordered by their mean pitch, highest first, and where there are more than four, those that lie nearest to
  each other are read as one part;
* a part that lies outside the range of the training music is moved by octaves, for the network's eyes only;
* a meter that training did not have is read as one that it had, of equally long bars, where there is one (6/8 as 3/4).

What comes back is put into the tracks and octaves it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from relpos.tasks.music.roll import RANGES
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, Song
from relpos.tasks.music.tokens import whole

PARTS = 4
KNOWN_METERS = ((4, 4), (3, 4))
_MIDDLE = (46.0, 76.0)  # mean pitches of the parts of the training music lie between
_VOICES = {"soprano": 0, "alto": 1, "tenor": 2, "bass": 3}
_WIDER = 4  # semitones that a part may go beyond what it has played


@dataclass(frozen=True)
class Part:
    """One part: the tracks it is made of, and the habits that sampling keeps it to.

    low, high   pitches, both included; shift: semitones (octaves) that the network sees it moved by
    single      one note at a time; voices: the most notes struck together
    seamless    it never rests, so that a note follows at once where one ends
    velocity    of new notes
    """

    tracks: tuple[int, ...]
    low: int
    high: int
    shift: int = 0
    single: bool = True
    voices: int = 1
    seamless: bool = False
    velocity: int = 80


@dataclass(frozen=True)
class View:
    """A song as the network sees it (tracks are parts, no drums) and the parts that lead back."""

    song: Song
    parts: tuple[Part, ...]


def view(song: Song) -> View:
    """The song in at most four parts. ValueError where it holds nothing but drums."""
    groups = _grouped(song)
    parts = tuple(_part(song, tracks) for tracks in groups)
    place = np.full(len(song.tracks), -1)
    for index, part in enumerate(parts):
        place[list(part.tracks)] = index
    notes = song.notes.copy()
    notes[:, TRACK] = place[song.notes[:, TRACK]]
    notes = notes[notes[:, TRACK] >= 0]
    notes[:, PITCH] = folded(notes[:, PITCH] + np.array([part.shift for part in parts])[notes[:, TRACK]])
    notes = notes[np.lexsort((notes[:, PITCH], notes[:, TRACK], notes[:, ONSET]))]
    seen = replace(
        song,
        tracks=tuple(f"part {i + 1}" for i in range(len(parts))),
        notes=notes,
        meters=tuple((tick, *known_meter(n, d, song.ticks_per_quarter)) for tick, n, d in song.meters),
        programs=(),
        drums=(),
    )
    return View(seen, parts)


def octaves(mean: float, low: float, high: float) -> int:
    """The least shift by octaves, in semitones, that brings a mean pitch between two an octave or more apart."""
    if mean < low:
        return 12 * math.ceil((low - mean) / 12)
    return -12 * math.ceil((mean - high) / 12) if mean > high else 0


def folded(pitches: np.ndarray) -> np.ndarray:
    """The pitches, those outside of 0..127 moved into it by octaves."""
    over = -(-np.maximum(pitches - 127, 0) // 12) - -(-np.maximum(-pitches, 0) // 12)
    return pitches - 12 * over


def known_meter(numerator: int, denominator: int, ticks_per_quarter: int) -> tuple[int, int]:
    """A meter of the training music with bars as long, or the meter itself where there is none."""
    ticks = numerator * 4 * ticks_per_quarter / denominator
    for known in KNOWN_METERS:
        if whole(*known, ticks_per_quarter) == ticks:
            return known
    return numerator, denominator


def home(view: View, notes: np.ndarray, song: Song) -> np.ndarray:
    """New notes (count, 5) of the parts as notes of the song's tracks, at their own octave.

    Where a part is made of several tracks, a note goes to the one whose last notes lie nearest.
    """
    result = notes.copy()
    centres = {t: float(own[-16:].mean()) for t in range(len(song.tracks)) if len(own := _pitches(song, (t,)))}
    for index, part in enumerate(view.parts):
        chosen = notes[:, TRACK] == index
        result[chosen, PITCH] -= part.shift
        tracks = np.array(part.tracks)
        far = np.abs(result[chosen, PITCH][:, None] - np.array([centres[t] for t in part.tracks])[None])
        result[chosen, TRACK] = tracks[far.argmin(1)] if len(far) else 0
    return result


def _grouped(song: Song) -> list[tuple[int, ...]]:
    """Tracks of each part, highest part first."""
    means = {t: float(own.mean()) for t in range(len(song.tracks)) if len(own := _pitches(song, (t,)))}
    means = {t: mean for t, mean in means.items() if t not in song.drums}
    if not means:
        raise ValueError(f"{song.name} has no notes but those of drums: there is nothing to go on with")
    groups: list[tuple[int, ...]] = [(t,) for t in sorted(means, key=lambda t: (-means[t], t))]
    while len(groups) > PARTS:
        centre = [float(np.mean([means[t] for t in group])) for group in groups]
        near = int(np.argmin([a - b for a, b in pairwise(centre)]))
        groups[near : near + 2] = [groups[near] + groups[near + 1]]
    return groups


def _pitches(song: Song, tracks: Sequence[int]) -> np.ndarray:
    return song.notes[np.isin(song.notes[:, TRACK], tracks), PITCH]


def _part(song: Song, tracks: tuple[int, ...]) -> Part:
    notes = song.notes[np.isin(song.notes[:, TRACK], tracks)]
    low, high = int(notes[:, PITCH].min()) - _WIDER, int(notes[:, PITCH].max()) + _WIDER
    voice = _VOICES.get(song.tracks[tracks[0]].strip().lower().rstrip(".")) if len(tracks) == 1 else None
    if voice is not None:
        low = min(RANGES[voice][0], low + _WIDER)
        high = max(RANGES[voice][1], high - _WIDER)
    shift = octaves(float(notes[:, PITCH].mean()), *_MIDDLE)
    low, high = max(low, 0, -shift), min(high, 127, 127 - shift)
    _, counts = np.unique(notes[:, ONSET], return_counts=True)
    ends = notes[:, ONSET] + notes[:, LENGTH]
    overlap = (ends[:-1] > notes[1:, ONSET]).mean() if len(notes) > 1 else 0.0
    single = overlap < 0.02
    span = int(ends.max() - notes[0, ONSET])
    silent = span - _covered(notes)
    return Part(
        tracks=tracks,
        low=low + shift,
        high=high + shift,
        shift=shift,
        single=bool(single),
        voices=1 if single else max(int(np.percentile(counts, 95)), 2),
        seamless=bool(single and silent <= 0.04 * span),
        velocity=int(np.median(notes[-32:, 4])),
    )


def _covered(notes: np.ndarray) -> int:
    """Ticks in which something sounds."""
    first = notes[:, ONSET].min()
    sounding = np.zeros(int((notes[:, ONSET] + notes[:, LENGTH]).max() - first) + 1, dtype=np.int64)
    np.add.at(sounding, notes[:, ONSET] - first, 1)
    np.add.at(sounding, notes[:, ONSET] + notes[:, LENGTH] - first, -1)
    return int((np.cumsum(sounding) > 0).sum())
