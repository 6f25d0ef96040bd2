"""What needs no network: the predictions that every table of music models must hold beside them.

    silence       nothing sounds
    marginal      how often each row sounds
    persistence   each row goes on as it was a tick ago, with its own odds of switching; **sees the true past**
    copy-a-bar    each row as it was a bar ago, with its own odds; sees the true past
    chord-block   the pitch classes of the chord label, struck as a block on every beat
    chord-table   how often each row sounds under each chord label

A model of next ticks that does not beat persistence has learnt to repeat; one that is given chord labels and does not
beat the chord block renders a chart worse than a rule does. Labels that were read off the target make the last two see
it, as they make a model see it.

All are `fit` on windows, one pass, memory of a few counts a row, and give `probabilities` (so that a cross-entropy is
defined) and a binarised `roll` for the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from relpos.tasks.music.song import PITCHES

_SEEN = 0.5  # added to the counts of on and of off: no probability is 0 or 1 for want of data
_WEIGHT = 8.0  # ticks that the marginal counts for in the table of a chord


@dataclass(frozen=True)
class Window:
    """A part of a piece as a task sees it.

    roll    (ticks, rows) bool, what is given; target (ticks, target rows) bool, what is asked for, rows = tracks * 128
    levels  labels by name, (ticks,) integers, those at the ticks of the target
    before  (ticks before, target rows) bool, the target's past, if it has one: for next ticks the first of ``roll``
    phase   ticks from the last beat to the first of the window
    chords  (labels, 12) bool, the pitch classes of each label of the level "chord"
    """

    roll: np.ndarray
    target: np.ndarray
    levels: Mapping[str, np.ndarray] = field(default_factory=dict)
    ticks_per_bar: int = 64
    ticks_per_beat: int = 16
    chords: np.ndarray | None = None
    before: np.ndarray | None = None
    phase: int = 0

    def __post_init__(self) -> None:
        for name in ("roll", "target"):
            cells = getattr(self, name)
            if cells.ndim != 2 or cells.dtype != bool:
                raise ValueError(f"{name} must be (ticks, rows) of bool, got {cells.shape} of {cells.dtype}")
        if len(self.roll) != len(self.target):
            raise ValueError(f"roll has {len(self.roll)} ticks and target {len(self.target)}; they must be the same")
        if self.before is not None and (self.before.ndim != 2 or self.before.shape[1] != self.target.shape[1]):
            raise ValueError(f"before must be (ticks, {self.target.shape[1]}), got {self.before.shape}")
        for name, labels in self.levels.items():
            if labels.shape != (len(self.target),):
                raise ValueError(f"the level {name!r} has {labels.shape} labels for {len(self.target)} ticks")

    def past(self, ticks: int) -> tuple[np.ndarray, np.ndarray]:
        """The target ``ticks`` earlier, (ticks, rows) bool, and at which ticks it is known, (ticks,) bool."""
        before = np.zeros((0, self.target.shape[1]), dtype=bool) if self.before is None else self.before
        history = np.concatenate([before, self.target])
        index = np.arange(len(self.target)) + len(before) - ticks
        return history[index.clip(0)] & (index >= 0)[:, None], index >= 0

    def chord_labels(self) -> np.ndarray:
        if "chord" not in self.levels:
            raise ValueError(
                f"this baseline needs the level 'chord', the window has {sorted(self.levels) or 'no levels'}; "
                "leave it out or give chord labels"
            )
        return self.levels["chord"]


class Baseline:
    """One of the rules above. `fit` returns itself; silence and chord-block have nothing to fit but may be."""

    name: ClassVar[str]
    sees_past: ClassVar[bool] = False
    needs_chords: ClassVar[bool] = False

    def fit(self, windows: Iterable[Window]) -> Baseline:
        return self

    def probabilities(self, window: Window) -> np.ndarray:
        """(ticks, target rows) float64, the probability that each cell is on."""
        raise NotImplementedError

    def roll(self, window: Window) -> np.ndarray:
        """(ticks, target rows) bool, for the metrics: what is more probable than not."""
        return self.probabilities(window) > 0.5


class Silence(Baseline):
    """Probability 0, so that its cross-entropy is infinite wherever anything sounds."""

    name = "silence"

    def probabilities(self, window: Window) -> np.ndarray:
        return np.zeros(window.target.shape)


class Marginal(Baseline):
    name = "marginal"

    def __init__(self) -> None:
        self._on: np.ndarray | None = None
        self._ticks = 0

    def fit(self, windows: Iterable[Window]) -> Marginal:
        self._on, self._ticks = None, 0
        for window in windows:
            self.add(window)
        return self

    def add(self, window: Window) -> None:
        on = window.target.sum(0)
        self._on = on if self._on is None else self._on + on
        self._ticks += len(window.target)

    @property
    def frequencies(self) -> np.ndarray:
        """(target rows,), each row's share of ticks at which it sounds."""
        if self._on is None:
            raise ValueError("this baseline has seen nothing: fit it on windows first")
        return (self._on + _SEEN) / (self._ticks + 2 * _SEEN)

    def probabilities(self, window: Window) -> np.ndarray:
        return np.broadcast_to(self.frequencies, window.target.shape).copy()


class Echo(Baseline):
    """Each row as it was some ticks ago, with the odds that one that was off, or on, is on now."""

    sees_past = True

    def __init__(self) -> None:
        self._marginal = Marginal()
        self._counts: np.ndarray | None = None

    def delay(self, window: Window) -> int:
        raise NotImplementedError

    def fit(self, windows: Iterable[Window]) -> Echo:
        self._marginal, self._counts = Marginal(), None
        for window in windows:
            self._marginal.add(window)
            past, known = window.past(self.delay(window))
            now, past = window.target[known], past[known]
            was, both = past.sum(0), (past & now).sum(0)
            counts = np.stack(
                [len(past) - was, now.sum(0) - both, was, both]
            )  # off before, then on; on before, then on
            self._counts = counts if self._counts is None else self._counts + counts
        return self

    def probabilities(self, window: Window) -> np.ndarray:
        marginal = self._marginal.frequencies
        assert self._counts is not None
        off, off_on, on, on_on = self._counts
        # a row seen on too seldom stays near an even chance; it then counts for little
        rise, stay = (off_on + _SEEN) / (off + 2 * _SEEN), (on_on + _SEEN) / (on + 2 * _SEEN)
        past, known = window.past(self.delay(window))
        return np.where(known[:, None], np.where(past, stay, rise), marginal)

    def roll(self, window: Window) -> np.ndarray:
        """The past itself, whatever the odds: silence where it is not known."""
        return window.past(self.delay(window))[0]


class Persistence(Echo):
    name = "persistence"

    def delay(self, window: Window) -> int:
        return 1


class CopyBar(Echo):
    name = "copy-a-bar"

    def delay(self, window: Window) -> int:
        return window.ticks_per_bar


class ChordBlock(Baseline):
    """The chord's pitch classes in the octave from ``lowest``, struck on every ``every``-th beat and held to the tick
    before the next stroke, so that each stroke has an onset. Probabilities 0 and 1; a new label waits for the next
    beat.

    In a target of several tracks the last one plays.
    """

    name = "chord-block"
    needs_chords = True

    def __init__(self, lowest: int = 48, every: int = 1) -> None:
        if not 0 <= lowest <= PITCHES - 12 or every < 1:
            raise ValueError(f"lowest must be 0 to {PITCHES - 12} and every at least 1, got {lowest} and {every}")
        self.lowest, self.every = lowest, every

    def probabilities(self, window: Window) -> np.ndarray:
        return self.roll(window).astype(np.float64)

    def roll(self, window: Window) -> np.ndarray:
        labels = window.chord_labels()
        if window.chords is None:
            raise ValueError("the window does not say which pitches its chord labels mean: give it chords=(labels, 12)")
        ticks, rows = window.target.shape
        length = window.ticks_per_beat * self.every
        place = (np.arange(ticks) + window.phase) % length
        struck = np.maximum(np.arange(ticks) - place, 0)
        classes = np.asarray(window.chords, dtype=bool)[labels[struck]]
        held = (place < length - 1) if length > 1 else np.ones(ticks, dtype=bool)
        roll = np.zeros((ticks, rows), dtype=bool)
        pitches = rows - PITCHES + self.lowest + np.arange(12)
        roll[:, pitches] = np.roll(classes, -self.lowest % 12, axis=1) & held[:, None]
        return roll


class ChordTable(Baseline):
    """Share of the ticks of each chord label at which each row sounds; a label seldom seen leans on the marginal."""

    name = "chord-table"
    needs_chords = True

    def __init__(self) -> None:
        self._marginal = Marginal()
        self._on = np.zeros((0, 0))
        self._ticks = np.zeros(0)

    def fit(self, windows: Iterable[Window]) -> ChordTable:
        self._marginal, self._on, self._ticks = Marginal(), np.zeros((0, 0)), np.zeros(0)
        for window in windows:
            self._marginal.add(window)
            labels = window.chord_labels()
            if labels.size == 0:
                continue
            if labels.min() < 0:
                raise ValueError(f"chord labels must be at least 0, got {labels.min()}")
            self._widen(int(labels.max()) + 1, window.target.shape[1])
            starts = np.flatnonzero(np.diff(labels, prepend=-1))
            sums = np.add.reduceat(window.target, starts, axis=0, dtype=np.float64)
            np.add.at(self._on, labels[starts], sums)
            np.add.at(self._ticks, labels[starts], np.diff(starts, append=len(labels)))
        return self

    def probabilities(self, window: Window) -> np.ndarray:
        marginal, labels = self._marginal.frequencies, window.chord_labels()
        known = (labels >= 0) & (labels < len(self._on))
        index = np.where(known, labels, 0)
        on = np.where(known[:, None], self._on[index], 0.0)
        ticks = np.where(known, self._ticks[index], 0.0)[:, None]
        return (on + _WEIGHT * marginal) / (ticks + _WEIGHT)

    def _widen(self, labels: int, rows: int) -> None:
        extra = labels - len(self._on)
        if extra > 0:
            on = self._on if self._on.size else np.zeros((0, rows))
            self._on = np.concatenate([on, np.zeros((extra, rows))])
            self._ticks = np.concatenate([self._ticks, np.zeros(extra)])


BASELINES: dict[str, type[Baseline]] = {
    kind.name: kind for kind in (Silence, Marginal, Persistence, CopyBar, ChordBlock, ChordTable)
}


def fitted(windows: Iterable[Window], names: Iterable[str] | None = None) -> dict[str, Baseline]:
    """The baselines by name, fitted on windows that are read once; by default all that the windows have labels for."""
    held = list(windows)
    if not held:
        raise ValueError("no windows to fit the baselines on")
    chords = all("chord" in window.levels for window in held)
    block = chords and all(window.chords is not None for window in held)
    chosen = (
        list(names)
        if names is not None
        else [
            name
            for name, kind in BASELINES.items()
            if not kind.needs_chords or (block if kind is ChordBlock else chords)
        ]
    )
    unknown = [name for name in chosen if name not in BASELINES]
    if unknown:
        raise ValueError(f"there is no baseline {unknown[0]!r}; there are {', '.join(BASELINES)}")
    return {name: BASELINES[name]().fit(held) for name in chosen}
