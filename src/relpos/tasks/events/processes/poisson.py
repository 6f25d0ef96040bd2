"""Poisson processes: of a constant rate, and of a rate that repeats, such as by hour of the week."""

from __future__ import annotations

from typing import Any

import numpy as np

from relpos.tasks.events.processes.base import Process, previous
from relpos.tasks.events.sequences import Sequences

_EDGE = 1e-7  # of a part: what is nearer to an edge is on it


class Poisson(Process):
    """Events at a constant rate for each mark, whatever happened before. rates: (marks,), events a unit of time."""

    name = "Poisson"

    def __init__(self, rates: Any) -> None:
        self.rates = positive(rates, "rates", 1)
        self.marks = self.parameters = len(self.rates)

    @classmethod
    def fit(cls, sequences: Sequences, pseudo: float = 0.0) -> Poisson:
        """Maximum likelihood: counts over exposure. pseudo: events added to each mark, so that none is impossible."""
        counts = sequences.count_marks() + pseudo
        return cls(counts / _exposure(sequences))

    def log_intensity(self, sequences: Sequences) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(self.rates)[sequences.kinds]

    def compensator(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        return self.compensator_from(sequences, sequences.start)

    def compensator_from(self, sequences: Sequences, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor = np.repeat(since, sequences.lengths)
        gaps = np.maximum(sequences.times, floor) - np.maximum(previous(sequences), floor)
        return gaps[:, None] * self.rates, (sequences.end - np.maximum(sequences.latest, since))[:, None] * self.rates

    def bound(self) -> np.ndarray:
        """(marks,) rates that are never exceeded."""
        return self.rates

    def at(self, times: np.ndarray) -> np.ndarray:
        """(n, marks) rates at the times."""
        return np.broadcast_to(self.rates, (len(times), self.marks))

    def integral(self, times: np.ndarray) -> np.ndarray:
        """(n, marks) integral of the rates from a fixed origin to the times; differences of it are what counts."""
        return np.asarray(times, dtype=np.float64)[:, None] * self.rates


class PeriodicPoisson(Poisson):
    """Rates that are constant within each of equal bins of a period, and repeat. rates: (bins, marks).

    period: its length in the unit of the times (168 for a week in hours); phase: a time at which bin 0 begins. For
    hours of the local week give times in local time, or the phase of local Monday, 0 o'clock.
    """

    name = "periodic Poisson"

    def __init__(self, rates: Any, period: float, phase: float = 0.0) -> None:
        self.table = positive(rates, "rates", 2)
        check_period(period)
        self.period, self.phase = float(period), float(phase)
        self.marks, self.parameters = self.table.shape[1], self.table.size
        self.width = self.period / len(self.table)
        self._edges = np.concatenate([np.zeros((1, self.marks)), np.cumsum(self.table, 0)]) * self.width

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        sequences: Sequences,
        period: float,
        bins: int,
        phase: float = 0.0,
        base: PeriodicPoisson | None = None,
        strength: float = 0.0,
    ) -> PeriodicPoisson:
        """Counts over exposure, bin by bin; with ``strength``, drawn towards ``base`` scaled to these events.

        The rate of a cell is (count + strength * p) / (exposure + strength * p / prior), the mean under a gamma prior
        worth strength * p events, where p is the share of the prior's events that fall into the cell. Without a base,
        the prior is the constant rate of each mark. With strength 0 it is the maximum likelihood.
        """
        counts, exposure = _binned(sequences, period, bins, phase)
        flat = np.broadcast_to(sequences.count_marks() / exposure.sum(), counts.shape)
        prior = flat if base is None else base.table * (counts.sum() / max((base.table * exposure).sum(), 1e-300))
        share = prior * exposure / max(float((prior * exposure).sum()), 1e-300)
        pseudo = strength * share
        weight = np.divide(pseudo, prior, out=np.zeros_like(pseudo), where=prior > 0)
        below = exposure + weight
        return cls(np.divide(counts + pseudo, below, out=prior.copy(), where=below > 0), period, phase)

    def log_intensity(self, sequences: Sequences) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(self.table)[_bins(sequences.times, self.period, len(self.table), self.phase), sequences.kinds]

    def compensator_from(self, sequences: Sequences, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor = np.repeat(since, sequences.lengths)
        ends, starts = np.maximum(sequences.times, floor), np.maximum(previous(sequences), floor)
        last = self.integral(sequences.end) - self.integral(np.maximum(sequences.latest, since))
        return self.integral(ends) - self.integral(starts), last

    def bound(self) -> np.ndarray:
        return self.table.max(0)

    def at(self, times: np.ndarray) -> np.ndarray:
        return self.table[_bins(np.asarray(times, dtype=np.float64), self.period, len(self.table), self.phase)]

    def integral(self, times: np.ndarray) -> np.ndarray:
        turns = (np.asarray(times, dtype=np.float64) - self.phase) / self.period
        whole = np.floor(turns)
        place = (turns - whole) * len(self.table)
        cell = np.minimum(place.astype(np.int64), len(self.table) - 1)
        within = self._edges[cell] + ((place - cell) * self.width)[:, None] * self.table[cell]
        return whole[:, None] * self._edges[-1] + within


def positive(values: Any, name: str, axes: int) -> np.ndarray:
    """The values as float64. ValueError where one is negative or not finite, or the number of axes is another."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes or not array.size:
        raise ValueError(f"{name} have {axes} axes, got the shape {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"{name} are finite and not negative, got {array.ravel()[:8]}")
    return array


def check_period(period: float) -> None:
    if not 0 < period < np.inf:
        raise ValueError(f"a period is a positive number, got {period}")


def _exposure(sequences: Sequences) -> float:
    total = float((sequences.end - sequences.start).sum())
    if not total > 0:
        raise ValueError("all windows are empty: give the window in which events were observed, with start < end")
    return total


def _bins(times: np.ndarray, period: float, bins: int, phase: float) -> np.ndarray:
    """Of each time its part of the period. A time on an edge is in the part that begins there, rounded or not."""
    place = np.mod(times - phase, period) * (bins / period)
    edge = np.rint(place)
    return np.where(np.abs(place - edge) < _EDGE, edge, np.floor(place)).astype(np.int64) % bins


def _binned(sequences: Sequences, period: float, bins: int, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """(bins, marks) counts and (bins, 1) time observed."""
    _exposure(sequences)
    check_period(period)
    counts = np.zeros((bins, sequences.mark_count))
    np.add.at(counts, (_bins(sequences.times, period, bins, phase), sequences.kinds), 1.0)
    clock = PeriodicPoisson(np.eye(bins), period, phase)
    exposure = (clock.integral(sequences.end) - clock.integral(sequences.start)).sum(0)
    return counts, np.maximum(exposure, 0.0)[:, None]
