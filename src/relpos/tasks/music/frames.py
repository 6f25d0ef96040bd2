"""Songs cut into windows of frames: what the piano-roll tasks train on and are judged on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from relpos.tasks.music.song import PITCH, PITCHES, TRACK, Song


@dataclass(frozen=True)
class Frames:
    """Which cells of a piano-roll a network reads or writes: some tracks, pitches low..high of each.

    A frame is a row of bits, track after track.
    """

    tracks: tuple[int, ...]
    low: int
    high: int

    @property
    def width(self) -> int:
        return len(self.tracks) * self.span

    @property
    def span(self) -> int:
        return self.high - self.low + 1

    def of(self, song: Song, start: int, stop: int) -> np.ndarray:
        """(stop - start, width) bool; beyond the end there is silence."""
        return self.cut(song.roll(start, stop, self.tracks))

    def cut(self, roll: np.ndarray) -> np.ndarray:
        """(.., ticks, tracks, 128) to (.., ticks, width)."""
        return roll[..., self.low : self.high + 1].reshape(*roll.shape[:-2], self.width)

    def full(self, frames: np.ndarray) -> np.ndarray:
        """(.., ticks, width) to (.., ticks, tracks, 128), silent outside low..high."""
        roll = np.zeros((*frames.shape[:-1], len(self.tracks), PITCHES), dtype=frames.dtype)
        roll[..., self.low : self.high + 1] = frames.reshape(*frames.shape[:-1], len(self.tracks), self.span)
        return roll

    @classmethod
    def fitting(cls, songs: Sequence[Song], tracks: Sequence[int]) -> Frames:
        """The pitches that occur in these tracks of any song, with two semitones of room. ValueError for none."""
        used = [song.notes[np.isin(song.notes[:, TRACK], tracks), PITCH] for song in songs]
        pitches = np.concatenate(used) if used else np.zeros(0, dtype=np.int64)
        if not len(pitches):
            raise ValueError(f"no song has a note in the tracks {', '.join(map(str, tracks))}")
        return cls(tuple(tracks), max(int(pitches.min()) - 2, 0), min(int(pitches.max()) + 2, PITCHES - 1))


@dataclass(frozen=True)
class Place:
    """Ticks start..start + length - 1 of a song."""

    song: int
    start: int
    length: int

    def parts(self, length: int) -> Iterator[Place]:
        for start in range(self.start, self.start + self.length, length):
            yield Place(self.song, start, length)


def places(
    songs: Sequence[Song], members: Sequence[int], length: int, ahead: int, hop: int | None = None
) -> list[Place]:
    """Windows of `length` ticks of these songs after which `ahead` ticks more exist; `hop` apart, else end to end."""
    return [
        Place(int(index), start, length)
        for index in members
        for start in range(0, songs[index].ticks - length - ahead + 1, hop or length)
    ]


def stacked(songs: Sequence[Song], frames: Frames, at: Sequence[Place], moved: int = 0) -> np.ndarray:
    """(places, length, width) bool, `moved` ticks later."""
    return np.stack([frames.of(songs[p.song], p.start + moved, p.start + moved + p.length) for p in at])


def stacked_labels(songs: Sequence[Song], levels: Sequence[str], at: Sequence[Place]) -> dict[str, np.ndarray]:
    """(places, length) int64 by level."""
    parts: list[Mapping[str, np.ndarray]] = [songs[p.song].labels(p.start, p.start + p.length) for p in at]
    return {level: np.stack([part[level] for part in parts]) for level in levels}
