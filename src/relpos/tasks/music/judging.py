"""What the piano-roll tasks judge by: prepared songs, targets, metrics, baselines, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from relpos.tasks.base import Artifact, Metric
from relpos.tasks.music import chords
from relpos.tasks.music.baselines import Baseline, Window, fitted
from relpos.tasks.music.frames import Frames, Place, stacked
from relpos.tasks.music.metrics import cross_entropy, evaluate
from relpos.tasks.music.metrics.binarise import binarise
from relpos.tasks.music.metrics.table import AS_PRINTED
from relpos.tasks.music.song import Song

METRICS = (
    Metric("cell", "cross-entropy of a cell", higher_is_better=False, unit="millinats", format=".2f", scale=1000),
    Metric("f1", "F1 of notes", unit="%", format=".1f", scale=100),
    Metric("onset_f1", "F1 of onsets", unit="%", format=".1f", scale=100),
    Metric("density", "density ratio", format=".2f", best=1.0),
    Metric("cs", f"chroma similarity ({AS_PRINTED['cs']})", format=".1f"),
    Metric("ssmd", f"self-similarity distance ({AS_PRINTED['ssmd']})", higher_is_better=False, format=".1f"),
    Metric("gs", f"grooving similarity ({AS_PRINTED['gs']})", format=".1f"),
    Metric("ndd", f"note density distance ({AS_PRINTED['ndd']})", higher_is_better=False, format=".1f"),
    Metric("mse", "share of wrong cells", higher_is_better=False, unit="%", format=".2f", scale=100),
)
"""Years in brackets: whose definition it is. Those behind the figures that the papers of 2025 and 2026 print."""


@dataclass(frozen=True)
class Prepared:
    """Songs, their split, the windows of each side, and which bits are read and written.

    ahead   how many ticks later the frame lies that a tick writes
    """

    songs: Sequence[Song]
    split: Mapping[str, np.ndarray]
    windows: Mapping[str, list[Place]]
    read: Frames
    written: Frames
    source: str
    ahead: int
    ticks: int
    _fitted: dict[str, Baseline] = field(default_factory=dict)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """(width,), the share of training ticks at which each bit that is written is on; never 0 or 1."""
        on, ticks = np.full(self.written.width, 0.5), 1.0
        for index in self.split["train"]:
            song = self.songs[index]
            on += self.written.of(song, 0, song.ticks).sum(0)
            ticks += song.ticks
        return on / ticks

    def log_odds(self) -> np.ndarray:
        """(width,) float32: the logits that a network's output starts at."""
        return np.log(self.frequencies / (1 - self.frequencies)).astype(np.float32)

    def targets(self, at: Sequence[Place]) -> np.ndarray:
        """(places, length, width) bool."""
        return stacked(self.songs, self.written, at, self.ahead)

    def judge(self, roll: np.ndarray, at: Sequence[Place], nats: float) -> dict[str, float]:
        """The task's metrics of binarised frames (places, length, width); nats: mean loss of a tick."""
        row = self._scores({"it": roll}, at)["it"]
        return {"cell": nats / self.written.width, **row}

    def _scores(self, rolls: Mapping[str, np.ndarray], at: Sequence[Place]) -> dict[str, dict[str, float]]:
        full = {name: self.written.full(roll) for name, roll in rolls.items()}
        rows = evaluate(full, self.written.full(self.targets(at)), ticks_per_quarter=self.ticks)
        wanted = [metric.name for metric in METRICS if metric.name != "cell"]
        return {name: {key: float(np.nan_to_num(row[key])) for key in wanted} for name, row in rows.items()}

    def baselines(self, at: Sequence[Place]) -> dict[str, dict[str, float]]:
        """What needs no network, on the same ticks; see `relpos.tasks.music.baselines`. A loss where there is one."""
        if not self._fitted:
            length = max(self.songs[0].ticks_per_quarter * 16, 1)
            train = [Place(int(i), start, length) for i in self.split["train"]
                     for start in range(0, self.songs[i].ticks - length - self.ahead + 1, length)]  # fmt: skip
            self._fitted.update(fitted(self._windows(train)))
        windows, target = list(self._windows(at)), self.targets(at)
        rolls, losses = {}, {}
        for name, baseline in self._fitted.items():
            rolls[name] = self.written.cut(np.stack([self._tracks(baseline.roll(w)) for w in windows]))
            probability = self.written.cut(np.stack([self._tracks(baseline.probabilities(w)) for w in windows]))
            losses[name] = cross_entropy(probability, target)
        rows = self._scores(rolls, at)
        return {self._said(name): self._losses(name, losses[name]) | row for name, row in rows.items()}

    def _unfair(self, name: str) -> bool:
        """Whether a baseline sees what the networks do not."""
        return self._fitted[name].sees_past and not self.ahead

    def _said(self, name: str) -> str:
        return name + (" (sees the target's past)" if self._unfair(name) else "")

    def _losses(self, name: str, cell: float) -> dict[str, float]:
        """No loss for one that sees more than the networks: theirs is never to be held against it."""
        return {} if self._unfair(name) else {"loss": cell * self.written.width, "cell": cell}

    def _tracks(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), len(self.written.tracks), -1)

    def _windows(self, at: Sequence[Place]) -> Iterator[Window]:
        """What a baseline is shown: pitches that frames leave out are left out here too."""
        for place in at:
            song, start = self.songs[place.song], place.start + self.ahead
            read = self.read.full(self.read.of(song, place.start, place.start + place.length))
            target = self.written.full(self.written.of(song, start, start + place.length))
            before = self.written.full(self.written.of(song, place.start, start)) if self.ahead else None
            labels = song.labels(start, start + place.length)
            bar = song.ticks_per_quarter * 4 * song.meters[0][1] // song.meters[0][2]
            phase = int(song.labels(start, start + 1)["beat"][0]) if "beat" in song.levels else start
            yield Window(
                read.reshape(place.length, -1), target.reshape(place.length, -1), labels, ticks_per_bar=bar,
                ticks_per_beat=song.ticks_per_quarter, chords=chroma_table(song), roots=roots_of(song),
                before=None if before is None else before.reshape(self.ahead, -1), phase=phase % song.ticks_per_quarter,
            )  # fmt: skip


def chroma_table(song: Song) -> np.ndarray | None:
    """(labels, 12) bool, the pitch classes of each chord label; None where the song's chords have no names."""
    level = song.levels.get("chord")
    return None if level is None or not level.names else _classes(level.names)


def roots_of(song: Song) -> np.ndarray | None:
    """(labels,) the roots of the chord labels; None as above."""
    level = song.levels.get("chord")
    return None if level is None or not level.names else np.array([chords.root(name) for name in level.names])


@lru_cache(maxsize=16)
def _classes(names: tuple[str, ...]) -> np.ndarray:
    return np.stack([chords.classes(name) for name in names])


def best_threshold(probability: np.ndarray, target: np.ndarray, thresholds: Sequence[float]) -> float:
    """The threshold with the best F1 of cells."""

    def f1(threshold: float) -> float:
        on = binarise(probability, threshold)
        return 2 * float((on & target).sum()) / max(float(on.sum() + target.sum()), 1.0)

    return max(thresholds, key=f1)


def pictures(data: Prepared, place: Place, probability: np.ndarray, directory: Path) -> list[Artifact]:
    """One PNG: what is right, and below it what the network expects at every tick, track by track."""
    from matplotlib.figure import Figure

    target = data.targets([place])[0]
    count = len(data.written.tracks)
    figure = Figure(figsize=(11, 1.9 * count + 1), dpi=110, layout="constrained")
    lanes = figure.subplots(count, 2, squeeze=False, sharex=True, sharey=True)
    song = data.songs[place.song]
    for row, track in enumerate(data.written.tracks):
        pitches = slice(row * data.written.span, (row + 1) * data.written.span)
        for lane, image, title in zip(lanes[row], (target, probability), ("the music", "the network"), strict=True):
            lane.imshow(
                image[:, pitches].T, origin="lower", aspect="auto", cmap="Greys", vmin=0, vmax=1,
                interpolation="nearest",
                extent=(0, place.length / data.ticks, data.written.low - 0.5, data.written.high + 0.5),
            )  # fmt: skip
            lane.set_title(f"{song.tracks[track]}: {title}", fontsize=9, loc="left")
    for lane in lanes[-1]:
        lane.set_xlabel("quarters")
    figure.suptitle(f"{song.name}, from quarter {place.start / data.ticks:g}: every tick has seen the real past")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "teacher-forced.png"
    figure.savefig(path)
    return [Artifact(path, "image", "A test window and what the network expects of it, teacher-forced")]
