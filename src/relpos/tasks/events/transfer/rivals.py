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

    def at(self, rates: np.ndarray) -> Hawkes:
        """With the background under which each mark has its rate in the long run."""
        mu = np.maximum(rates - self.alpha @ rates, LEAST_SHARE * rates)
        return Hawkes(mu, self.alpha, self.beta)


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
    }
    later = region.ways[scored]
    far = _ways(later, *_way(seen.ways, prior))
    own = _ways(later, *_way_alone(seen.ways))
    moving = {ALONE: own, UPDATED: updated_ways(region, scored, prior)}
    return {name: np.array([float(np.sum(value)), moving.get(name, far)]) for name, value in times.items()}


def _shares(counts: np.ndarray, pseudo: np.ndarray) -> np.ndarray:
    shares: np.ndarray = (counts + pseudo) / (counts + pseudo).sum()
    return shares


def updated(region: Region, cut: float, prior: Prior) -> float:
    """Log likelihood of time and mark after ``cut`` where rate and shares are posterior means at every moment.

    The rate just before time t is (shape + events so far) / (rate + t), its integral between events a logarithm.
    """
    times, kinds, start = region.events.times, region.events.kinds, float(region.events.start[0])
    marks = len(prior.marks)
    before = np.concatenate([np.zeros((1, marks)), np.cumsum(np.eye(marks)[kinds], 0)])
    edges = np.maximum(np.concatenate([[start], times, region.events.end]), cut) - start + prior.rate
    total = prior.shape + np.arange(len(times) + 1)
    integral = (total * np.diff(np.log(edges))).sum()
    shares = (before + prior.marks) / (before + prior.marks).sum(1, keepdims=True)
    rate = np.log(total[:-1] / (times - start + prior.rate)) + np.log(shares[np.arange(len(times)), kinds])
    return float(rate[times > cut].sum() - integral)


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
