"""Where hidden events are expected, and where to put a given number of them: cells of time, and imputers without nets.

An imputer says how many hidden events of each mark it expects in each cell of time; `place` then puts the same number
of events for all of them where they are most likely to be near a hidden one. All know the share that is hidden.

If any process says how often recorded events come given what was recorded before, hidden ones come share / (1 - share)
times as often, whatever the process, because hiding is by chance. That uses nothing of what comes after.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relpos.tasks.events.processes import Hawkes, PeriodicPoisson, Process
from relpos.tasks.events.sequences import Sequences

Masses = list[np.ndarray]
"""(cells, marks) a sequence: expected hidden events."""


@dataclass(frozen=True)
class Cells:
    """Equal cells of time that cover (start, end] of each sequence. start, end: (count,); width: of a cell."""

    start: np.ndarray
    end: np.ndarray
    width: float

    @property
    def counts(self) -> np.ndarray:
        """(count,) cells of each sequence."""
        return np.maximum(np.ceil((self.end - self.start) / self.width - 1e-9).astype(np.int64), 0)

    def middles(self, row: int) -> np.ndarray:
        """Times of the middles of a sequence's cells."""
        return self.start[row] + self.width * (np.arange(self.counts[row]) + 0.5)

    def of(self, row: int, times: np.ndarray) -> np.ndarray:
        """The cell of each time of a sequence; times outside count to the nearest cell."""
        return np.clip(((times - self.start[row]) / self.width).astype(np.int64), 0, self.counts[row] - 1)

    def count(self, events: Sequences) -> Masses:
        """Events after the start by cell and mark."""
        found = []
        for row, one in enumerate(events):
            table = np.zeros((int(self.counts[row]), events.mark_count))
            later = (one.times > self.start[row]) & (one.times <= self.end[row])
            if len(table):
                np.add.at(table, (self.of(row, one.times[later]), one.kinds[later]), 1.0)
            found.append(table)
        return found


def place(masses: Masses, cells: Cells, budget: int, tolerance: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(times, marks) of a sequence each, sorted: ``budget`` events of all sequences together.

    One after the other goes where most hidden events are expected within the tolerance, and takes one expected event
    away from there; its mark is the likeliest there. Of equally good cells the first is taken.
    """
    reach = max(round(tolerance / cells.width), 1)
    marks = masses[0].shape[1] if masses else 1
    pad = np.zeros((2 * reach + 1, marks))  # so that no window reaches into the next sequence
    flat = np.concatenate([pad, *(part for mass in masses for part in (mass, pad))])
    free = np.concatenate([[False] * len(pad), *(([True] * len(mass) + [False] * len(pad)) for mass in masses)])
    begins = np.cumsum([len(pad), *(len(mass) + len(pad) for mass in masses)])[:-1]
    worth = np.where(free, _worth(flat.sum(1), reach), -1.0)
    chosen = np.zeros(min(budget, int(free.sum())), dtype=np.int64)
    kinds = np.zeros_like(chosen)
    for index in range(len(chosen)):
        at = int(worth.argmax())
        near = slice(at - reach, at + reach + 1)
        chosen[index], kinds[index], free[at] = at, flat[near].sum(0).argmax(), False
        total = float(flat[near].sum())
        flat[near] *= max(total - 1.0, 0.0) / max(total, 1e-300)
        wide = slice(max(at - 3 * reach, 0), at + 3 * reach + 1)
        inner = slice(max(at - 2 * reach, 0), at + 2 * reach + 1)
        fresh = _worth(flat[wide].sum(1), reach)[inner.start - wide.start :][: len(worth[inner])]
        worth[inner] = np.where(free[inner], fresh, -1.0)
    found = []
    for row, (begin, mass) in enumerate(zip(begins, masses)):
        own = np.flatnonzero((chosen >= begin) & (chosen < begin + len(mass)))
        own = own[np.argsort(chosen[own], kind="stable")]
        times = cells.start[row] + cells.width * (chosen[own] - begin + 0.5)
        found.append((np.minimum(times, cells.end[row]), kinds[own]))
    return found


def _worth(values: np.ndarray, reach: int) -> np.ndarray:
    """Sums over ``reach`` cells to both sides; where they are equal, what is nearer counts more."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))

    def sums(cells: int) -> np.ndarray:
        found: np.ndarray = total[np.minimum(at + cells + 1, len(values))] - total[np.maximum(at - cells, 0)]
        return found

    return sums(reach) + 1e-4 * sums(reach // 2) + 1e-6 * values


def evenly(
    recorded: Sequences, since: np.ndarray, budget: int, medians: np.ndarray, marks: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The median-gap imputer: n events at equal distances in a gap of n thresholds or more, and less than n + 1.

    The threshold is a multiple of ``medians`` (count,), the sequence's usual gap, found so that at most ``budget``
    events come out; marks (count,): the mark that they get.
    """
    low, high = 0.0, 1e6
    for _ in range(60):
        factor = (low + high) / 2
        total = sum(int(_fits(one, since[i], factor * medians[i])[1].sum()) for i, one in enumerate(recorded))
        low, high = (factor, high) if total > budget else (low, factor)
    found = []
    for row, one in enumerate(recorded):
        edges, counts = _fits(one, since[row], high * medians[row])
        times = [edges[i] + (edges[i + 1] - edges[i]) * np.arange(1, n + 1) / (n + 1) for i, n in enumerate(counts)]
        joined = np.concatenate([*times, np.zeros(0)])
        found.append((joined, np.full(len(joined), marks[row])))
    return found


def _fits(one: Sequences, since: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the gaps of one sequence after ``since``, and how many thresholds fit into each gap."""
    edges = np.concatenate([[since], one.times[one.times > since], [float(one.end[0])]])
    return edges, np.floor(np.diff(edges) / max(threshold, 1e-12)).clip(max=1e6).astype(np.int64)


def thinned(model: Hawkes | PeriodicPoisson, factor: float) -> Hawkes | PeriodicPoisson:
    """The model where ``factor`` times as large a share of events is recorded as where it was fitted.

    Rates scale by it. A Hawkes process does not stay one when it is thinned; to first order, a recorded event has that
    many times as many recorded offspring, and what comes without a recorded cause makes up for the rest.
    """
    if isinstance(model, PeriodicPoisson):
        return PeriodicPoisson(model.table * factor, model.period, model.phase)
    one = np.eye(model.marks)
    alpha = model.alpha * factor
    mu = factor * (one - alpha) @ np.linalg.solve(one - model.alpha, model.mu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Hawkes(np.maximum(mu, 0.0), alpha, model.beta, model.background)


def expected(models: Sequence[Process], recorded: Sequences, cells: Cells, share: float) -> Masses:
    """share / (1 - share) times the intensity of recorded events, given those before: `Hawkes` or `Poisson` models."""
    odds = share / (1 - share)
    return [odds * cells.width * _rates(model, recorded, row, cells.middles(row)) for row, model in enumerate(models)]


def _rates(model: Process, recorded: Sequences, row: int, times: np.ndarray) -> np.ndarray:
    if isinstance(model, Hawkes):
        with np.errstate(over="ignore", invalid="ignore"):  # before the first event, where nothing has been raised
            return model.intensity_at(recorded, row, times)
    rates: np.ndarray = model.at(times)  # type: ignore[attr-defined]
    return rates


def both_ways(
    models: Sequence[Hawkes], backwards: Sequence[Hawkes], recorded: Sequences, cells: Cells, share: float
) -> Masses:
    """What recorded events before and after a time raise there, together, on what comes without a cause.

    backwards: fitted to `mirrored` sequences. The sum is scaled, one factor for all, to as many as are expected at all.
    """
    turned, odds = mirrored(recorded), share / (1 - share)
    masses = []
    for row, (model, other) in enumerate(zip(models, backwards)):
        times = cells.middles(row)
        late = _rates(other, turned, row, -times[::-1])[::-1] - other.mu * other.background.at(-times)
        masses.append(odds * cells.width * (_rates(model, recorded, row, times) + np.maximum(late, 0.0)))
    later = recorded.times > np.repeat(cells.start, recorded.lengths)
    total = sum(float(mass.sum()) for mass in masses)
    return [mass * (odds * later.sum() / max(total, 1e-300)) for mass in masses]


def mirrored(sequences: Sequences) -> Sequences:
    """Time turned round: what was last comes first."""
    order = np.concatenate([np.arange(b, a, -1) - 1 for a, b in zip(sequences.offsets[:-1], sequences.offsets[1:])])
    turned = sequences.replace(order.astype(np.int64), sequences.offsets, start=-sequences.end, end=-sequences.start)
    return turned.replace(np.arange(len(order)), turned.offsets, times=-turned.times)
