"""Sets of songs by name, or from a folder, split by piece."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relpos.tasks.music.song import Song

NAMES = ("chorales", "pop909", "toy")
SPLIT_SEED = 0
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Songs:
    """songs; split: their places in "train", "validation" and "test"; source: where they come from, in words.

    skipped: what was wrong with files that were left out.
    """

    songs: list[Song]
    split: dict[str, np.ndarray]
    source: str
    skipped: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that every song has."""
        first = self.songs[0].levels if self.songs else {}
        return tuple(name for name in first if all(name in song.levels for song in self.songs))

    @property
    def sources(self) -> dict[str, str]:
        """Where the labels of each level come from; several sources are set apart by semicolons."""
        names = dict.fromkeys(name for song in self.songs for name in song.levels)
        return {n: "; ".join(dict.fromkeys(s.levels[n].source for s in self.songs if n in s.levels)) for n in names}

    @property
    def from_target(self) -> tuple[str, ...]:
        """The levels that were computed from what a task may have to predict, in any of the songs."""
        names = dict.fromkeys(name for song in self.songs for name in song.levels)
        return tuple(n for n in names if any(n in s.levels and s.levels[n].from_target for s in self.songs))

    def side(self, name: str) -> list[Song]:
        """The songs on one side of the split."""
        if name not in self.split:
            raise ValueError(f"unknown split {name!r}: choose one of {', '.join(self.split)}")
        return [self.songs[index] for index in self.split[name].tolist()]


def load(name: str | Path, ticks: int = 4, progress: Progress | None = None, **options: Any) -> Songs:
    """The set "chorales", "pop909" (``path``: where it lies), "toy", or the MIDI files of a folder.

    Other options go to the reader: those of `pop909.load`, `toy.make` or `folder.load`; ``seed`` of the split of a
    folder is ``split_seed``. Songs of one group lie on one side; POP909 keeps the published split where that lies
    beside it. ValueError for an unknown name or a set that is empty.
    """
    if name == "chorales":
        return _chorales(ticks, progress, **options)
    if name == "pop909":
        return _pop909(ticks, progress, **options)
    if name == "toy":
        return _toy(ticks, **options)
    if not Path(name).is_dir():
        raise ValueError(f"unknown set of songs {str(name)!r}: choose one of {', '.join(NAMES)}, or name a folder")
    return _folder(Path(name), ticks, progress, **options)


def split_by_group(songs: Sequence[Song], seed: int = SPLIT_SEED, share: float = 0.1) -> dict[str, np.ndarray]:
    """Places of the songs in "train", "validation" and "test", about 80/10/10; a group lies on one side as a whole.

    Groups go in order of a hash of their name and the seed, so that a song more moves few of the others. With fewer
    than three groups test or validation are empty.
    """
    groups = [song.group or song.name for song in songs]
    sizes, left = Counter(groups), sorted(set(groups), key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    side: dict[str, str] = {}
    for name in ("test", "validation"):
        room, taken = max(round(share * len(songs)), 1), []
        for group in left:
            if sizes[group] <= room:
                taken.append(group)
                room -= sizes[group]
        taken = taken or sorted(left, key=sizes.__getitem__)[:1]
        side |= dict.fromkeys(taken[: len(left) - 1], name)
        left = [group for group in left if group not in side]
    where = np.array([side.get(group, "train") for group in groups])
    return {name: np.flatnonzero(where == name) for name in ("train", "validation", "test")}


def _chorales(ticks: int, progress: Progress | None) -> Songs:
    from relpos.tasks.music import chorales_songs, collection, tunes

    if ticks != 4:
        raise ValueError(f"the chorales lie on a grid of 4 ticks a quarter, got {ticks}")
    songs = chorales_songs.load(progress)
    group = np.array([int(song.group.removeprefix("tune ")) for song in songs])
    split = tunes.split(group, collection.SPLIT_SEED)
    return Songs(songs, split, f"{len(songs)} four-part chorales of J. S. Bach, from music21")


def _pop909(ticks: int, progress: Progress | None, path: str | Path | None = None, **options: Any) -> Songs:
    from relpos.tasks.music import pop909, pop909_files

    if path is None:
        raise ValueError("POP909 does not come with the package: say where it lies with path=")
    songs = pop909.load(path, ticks, progress=progress, **options)
    if not songs:
        raise ValueError(f"{path} has no song with all its label files: take missing='unlabelled'")
    published = pop909_files.published_split(Path(path))
    if published is None:
        split, rule = split_by_group(songs), "split by piece"
    else:
        number = np.array([int(song.name) for song in songs])
        split = {side: np.flatnonzero(np.isin(number, members)) for side, members in published.items()}
        rule = "the published split"
    return Songs(songs, split, f"{len(songs)} songs of POP909, {rule}")


def _toy(ticks: int, **options: Any) -> Songs:
    from relpos.tasks.music import toy

    made = toy.make(**{"count": 20} | options, ticks=ticks)
    return Songs(made.songs, split_by_group(made.songs), f"{len(made.songs)} invented songs")


def _folder(root: Path, ticks: int, progress: Progress | None, split_seed: int = SPLIT_SEED, **options: Any) -> Songs:
    from relpos.tasks.music import folder

    songs, skipped = folder.load(root, ticks, progress=progress, **options)
    source = f"{len(songs)} MIDI files of {root}" + (f", {len(skipped)} unreadable" if skipped else "")
    return Songs(songs, split_by_group(songs, split_seed), source, tuple(skipped))
