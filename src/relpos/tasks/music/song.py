"""A piece in any number of tracks: notes, and labels of its structure on a grid of ticks.

What every music reader hands over and every task but the four-voice ones (see `piece`) takes. Notes are kept as a
list, so that memory is linear in the music; a piano-roll is made of a part of it when it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

PITCHES = 128
ONSET, LENGTH, PITCH, TRACK, VELOCITY = range(5)  # columns of `Song.notes`


@dataclass(frozen=True)
class Level:
    """One kind of structural label: an integer for every tick, and where it was had from.

    values       (ticks,) int64
    names        what the integers mean, by integer; () where they are numbers (a pitch, a bar)
    source       in words: "fermatas of the score", "annotation by hand", "estimated by self-similarity"
    from_target  whether it was computed from what an accompaniment is to be (chords read off it): a table that uses
                 such a level says so
    from_melody  whether it was computed from the melody, also from what of it is still to come: honest where the melody
                 is given, not where it is to be predicted
    """

    values: np.ndarray
    names: tuple[str, ...] = ()
    source: str = "given"
    from_target: bool = False
    from_melody: bool = False


@dataclass(frozen=True)
class Song:
    """notes: (count, 5) int64, columns onset and length in ticks (length >= 1), pitch 0..127, track, velocity 1..127;
    sorted by onset, track, pitch.

    name    unique within a collection; group: equal for pieces that must stay on one side of a split (harmonisations of
            a tune, versions of a song); "" stands for the name
    ticks   length of the grid; ticks_per_quarter: its resolution
    tracks  names of the tracks; drums: which of them hold drums
    levels  structure by name: "bar", "beat", "section", "phrase", "chord", "melody", "tempo", ..
    tempos  (tick, quarters a minute) from tick 0 on; meters (tick, numerator, denominator) likewise. The tick of a
            meter is the beginning of a bar
    """

    name: str
    ticks: int
    ticks_per_quarter: int
    tracks: tuple[str, ...]
    notes: np.ndarray
    levels: Mapping[str, Level] = field(default_factory=dict)
    tempos: tuple[tuple[int, float], ...] = ((0, 120.0),)
    meters: tuple[tuple[int, int, int], ...] = ((0, 4, 4),)
    programs: tuple[int, ...] = ()
    drums: tuple[int, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        if self.ticks < 0 or self.ticks_per_quarter < 1:
            raise ValueError(
                f"{self.name}: ticks {self.ticks} and ticks a quarter {self.ticks_per_quarter} are too few"
            )
        if self.notes.ndim != 2 or self.notes.shape[1] != 5:
            raise ValueError(f"{self.name}: notes have five columns, got an array {self.notes.shape}")
        for name, level in self.levels.items():
            if level.values.shape != (self.ticks,):
                raise ValueError(
                    f"{self.name}: the level {name!r} has {level.values.shape} labels for {self.ticks} ticks; "
                    "give one a tick"
                )

    def roll(self, start: int = 0, stop: int | None = None, tracks: Sequence[int] | None = None) -> np.ndarray:
        """What sounds in ticks start..stop-1, bool (stop - start, tracks, 128); beyond the end there is silence."""
        return self._rolls(start, stop, tracks)[0]

    def onsets(self, start: int = 0, stop: int | None = None, tracks: Sequence[int] | None = None) -> np.ndarray:
        """Where a note begins, as `roll`: what tells repeated notes from long ones."""
        return self._rolls(start, stop, tracks)[1]

    def _rolls(self, start: int, stop: int | None, tracks: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
        stop = self.ticks if stop is None else stop
        chosen = range(len(self.tracks)) if tracks is None else tracks
        row = {track: index for index, track in enumerate(chosen)}
        sounding = np.zeros((max(stop - start, 0), len(row), PITCHES), dtype=bool)
        begins = np.zeros_like(sounding)
        first, last = self.notes[:, ONSET], self.notes[:, ONSET] + self.notes[:, LENGTH]
        for onset, length, pitch, track, _ in self.notes[(first < stop) & (last > start)].tolist():
            if track not in row:
                continue
            sounding[max(onset - start, 0) : onset + length - start, row[track], pitch] = True
            if onset >= start:
                begins[onset - start, row[track], pitch] = True
        return sounding, begins

    def labels(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """(stop - start,) int64 by level; the last label goes on beyond the end."""
        index = np.arange(start, stop).clip(0, max(self.ticks - 1, 0))
        return {name: level.values[index] for name, level in self.levels.items()}
