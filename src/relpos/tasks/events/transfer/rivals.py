"""Classical models of a region of few events, which know the source as well: what a network has to beat.

A time model with its marks, and distances apart from them. All are scored on the same window as the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.events.processes import Hawkes, Poisson
from relpos.tasks.events.sequences import Sequences
from relpos.tasks.events.transfer.regions import Prior, Region

LEAST_SHARE = 0.05  # of a mark's rate that is not caused by other events
_LOG_TAU = np.log(2 * np.pi) / 2

POOLED = "Poisson, prior of the source"
ALONE = "Poisson of the target alone"
UPDATED = "Poisson, prior of the source, updated with every event"
STRETCHED = "Hawkes of the source, stretched to the rate"
RATED = "Hawkes of the source, background to the rate"
EXCITED = "Hawkes of the source, background updated with every event"


@dataclass(frozen=True)
class Excitement:
    """What Hawkes processes of the source's regions tell: stretched, of all together with times in mean gaps; alpha and
    beta, means over those of single regions, in the unit of the data."""

    stretched: Hawkes
    alpha: np.ndarray
    beta: float

    @classmethod
    def of(cls, source: Sequences, prior: Prior, progress: Progress | None = None) -> Excitement:
        """Weights of the means: events of the regions. Takes some seconds."""
        regions = [Region(one) for one in source]
        gaps = np.array([region.size(prior, 0, len(region)).gap for region in regions])
        each = np.repeat(gaps, source.lengths)
        even = Sequences(
            **{
                **vars(source),
                **{"times": source.times / each, "start": source.start / gaps, "end": source.end / gaps, "unit": ""},
            }
        )
        steps = len(source) + 1
        _tell(progress, 0, steps)
        stretched = Hawkes.fit(even)
        found = []
        for row, one in enumerate(source):
            _tell(progress, row + 1, steps)
            found.append(Hawkes.fit(one, starts=(1.0,)))
        weights = source.lengths / source.lengths.sum()
        alpha = sum(weight * model.alpha for weight, model in zip(weights, found))
        beta = np.exp(sum(weight * np.log(model.beta) for weight, model in zip(weights, found)))
        _tell(progress, steps, steps)
        return cls(stretched, np.asarray(alpha), float(beta))

    def uncaused(self, rates: np.ndarray) -> np.ndarray:
        """(.., marks) background under which marks have these rates in the long run."""
        found: np.ndarray = np.maximum(rates - rates @ self.alpha.T, LEAST_SHARE * rates)
        return found

    def at(self, rates: np.ndarray) -> Hawkes:
        """With the background to the rates."""
        return Hawkes(self.uncaused(rates), self.alpha, self.beta)


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total, "Hawkes processes of the source")


def scores(region: Region, count: int, cut: float, prior: Prior, excitement: Excitement) -> dict[str, np.ndarray]:
    """(2,) log likelihood after ``cut`` by model: time and mark, distance. count: events that are adapted to."""
    seen, size = region.start(count), region.size(prior, 0, count)
    counts, elapsed = seen.events.count_marks(), region.elapsed(0, count)
    rates = prior.events(count, elapsed) * _shares(counts, prior.marks)
    alone = count / elapsed * _shares(counts, np.ones(len(counts)))
    window, since = region.events, np.array([cut])
    scored = window.times > cut
    stretched = excitement.stretched.log_likelihood(window.scaled(1 / size.gap), since / size.gap)
    times = {
        POOLED: Poisson(rates).log_likelihood(window, since),
        ALONE: Poisson(alone).log_likelihood(window, since),
        UPDATED: updated(region, cut, prior),
        STRETCHED: stretched - scored.sum() * np.log(size.gap),
        RATED: excitement.at(rates).log_likelihood(window, since),
        EXCITED: updated(region, cut, prior, excitement),
    }
    later = region.ways[scored]
    far = _ways(later, *_way(seen.ways, prior))
    own = _ways(later, *_way_alone(seen.ways))
    moving = {ALONE: own, **dict.fromkeys((UPDATED, EXCITED), updated_ways(region, scored, prior))}
    return {name: np.array([float(np.sum(value)), moving.get(name, far)]) for name, value in times.items()}


def _shares(counts: np.ndarray, pseudo: np.ndarray) -> np.ndarray:
    shares: np.ndarray = (counts + pseudo) / (counts + pseudo).sum()
    return shares


def updated(region: Region, cut: float, prior: Prior, excitement: Excitement | None = None) -> float:
    """Log likelihood of time and mark after ``cut`` where rate and shares are posterior means at every moment.

    The rate just before time t is (shape + events so far) / (rate + t), its integral between events a logarithm. With
    an excitement they are those of a Hawkes process, whose background is what events do not cause.
    """
    events = region.events
    times, kinds, start, marks = events.times, events.kinds, float(events.start[0]), len(prior.marks)
    before = np.concatenate([np.zeros((1, marks)), np.cumsum(np.eye(marks)[kinds], 0)])
    shares = (before + prior.marks) / (before + prior.marks).sum(1, keepdims=True)
    if excitement is not None:
        shares = excitement.uncaused(shares)
    total = prior.shape + np.arange(len(times) + 1)
    edges = np.maximum(np.concatenate([[start], times, events.end]), cut) - start + prior.rate
    integral = (total * shares.sum(1) * np.diff(np.log(edges))).sum()
    rates = (total[:-1] / (times - start + prior.rate))[:, None] * shares[:-1]
    if excitement is not None:
        raised = Hawkes(np.zeros(marks), excitement.alpha, excitement.beta)
        rates = rates + raised.intensity(events)
        gaps, last = raised.compensator_from(events, np.array([cut]))
        integral += gaps.sum() + last.sum()
    return float(np.log(rates[np.arange(len(times)), kinds])[times > cut].sum() - integral)


def updated_ways(region: Region, scored: np.ndarray, prior: Prior) -> float:
    """Log likelihood of the ways to scored events, each under what was known before it."""
    return sum(
        _ways(region.ways[[at]], *_way(region.ways[:at], prior)) for at in np.flatnonzero(scored & (region.ways >= 0))
    )


def _way(seen: np.ndarray, prior: Prior) -> tuple[float, float, float]:
    """Share of standing still, mean and deviation of the logarithm of other ways."""
    still = float(prior.still[0] + (seen == 0).sum()) / float(prior.still.sum() + (seen >= 0).sum())
    return (still, *prior.log_way(seen))


def _way_alone(seen: np.ndarray) -> tuple[float, float, float]:
    still = float(0.5 + (seen == 0).sum()) / float(1 + (seen >= 0).sum())
    logs = np.log(seen[seen > 0])
    if len(logs) < 2:
        return still, float(logs.mean()) if len(logs) else 0.0, 1.0
    return still, float(logs.mean()), max(float(logs.std(ddof=1)), 0.1)


def _ways(found: np.ndarray, still: float, mean: float, spread: float) -> float:
    """Log likelihood of ways: of 0 a probability, of others a log-normal density in km."""
    logs = np.log(found[found > 0])
    far = np.log1p(-still) - 0.5 * ((logs - mean) / spread) ** 2 - np.log(spread) - _LOG_TAU - logs
    return float(far.sum() + (found == 0).sum() * np.log(still))


def total(each: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Sums over regions."""
    return {name: np.sum([scores[name] for scores in each], axis=0) for name in each[0]}
