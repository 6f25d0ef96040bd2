"""The exponential Hawkes process: every event raises the rates, and what it raised decays."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from relpos.tasks.events.processes.base import Process, previous
from relpos.tasks.events.processes.poisson import Poisson, positive
from relpos.tasks.events.processes.scan import minimise, scan
from relpos.tasks.events.sequences import Sequences

_BIG = 30.0  # largest exponent of a fitted parameter


class Hawkes(Process):
    """lambda_i(t) = mu_i b_i(t) + sum_j alpha_ij sum over past events of mark j of beta exp(-beta (t - t_k)).

    mu: (marks,); alpha: (marks, marks), alpha[i, j] = expected number of events of mark i that one of mark j causes;
    beta: the decay, one for all pairs, in 1 / unit of time; background: b, a `Poisson` or `PeriodicPoisson` of as many
    marks, 1 throughout where it is left out. A spectral radius of alpha of 1 or more explodes and is warned about.
    Of events at one time, the later in the order of the input is caused by the earlier.
    """

    name = "Hawkes"

    def __init__(self, mu: Any, alpha: Any, beta: float, background: Poisson | None = None) -> None:
        self.mu = positive(np.atleast_1d(mu), "mu", 1)
        self.alpha = positive(np.atleast_2d(alpha), "alpha", 2)
        self.marks = len(self.mu)
        if self.alpha.shape != (self.marks, self.marks):
            raise ValueError(f"alpha has the shape ({self.marks}, {self.marks}) as mu says, got {self.alpha.shape}")
        if not (np.isfinite(beta) and beta > 0):
            raise ValueError(f"beta is a positive number, got {beta}")
        self.beta = float(beta)
        self.background = Poisson(np.ones(self.marks)) if background is None else background
        if self.background.marks != self.marks:
            raise ValueError(f"the background has {self.background.marks} marks, mu has {self.marks}")
        self.parameters = self.marks + self.marks**2 + 1 + (0 if background is None else background.parameters)
        if self.radius >= 1:
            warnings.warn(
                f"the spectral radius of alpha is {self.radius:.3f}: at 1 and above the number of events explodes",
                stacklevel=2,
            )

    @property
    def radius(self) -> float:
        """Spectral radius of alpha, the mean number of direct offspring of an event in the long run."""
        return float(np.abs(np.linalg.eigvals(self.alpha)).max())

    def states(self, sequences: Sequences) -> np.ndarray:
        """(events, marks) S: sum over the past events of each mark of exp(-beta (t_i - t_k)), just before event i."""
        return _states(sequences, self.marks, self.beta)[0]

    def intensity(self, sequences: Sequences) -> np.ndarray:
        """(events, marks) intensities just before each event."""
        raised = self.beta * self.states(sequences) @ self.alpha.T
        return self.mu * self.background.at(sequences.times) + raised

    def intensity_at(self, sequences: Sequences, row: int, times: np.ndarray) -> np.ndarray:
        """(n, marks) intensities of sequence ``row`` at any times, just before an event where one is there."""
        one = sequences.select([row])
        times = np.asarray(times, dtype=np.float64)
        last = np.searchsorted(one.times, times, side="left") - 1
        after = _after(one, self.states(one), self.marks)
        since = (
            np.exp(-self.beta * (times - one.times[np.maximum(last, 0)])) if len(one.times) else np.zeros(len(times))
        )
        state = after[np.maximum(last, 0)] * since[:, None] if len(one.times) else np.zeros((len(times), self.marks))
        state[last < 0] = 0.0
        return self.mu * self.background.at(times) + self.beta * state @ self.alpha.T

    def log_intensity(self, sequences: Sequences) -> np.ndarray:
        self._known(sequences)
        with np.errstate(divide="ignore"):
            return np.log(self.intensity(sequences)[np.arange(len(sequences.times)), sequences.kinds])

    def compensator(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        return self.compensator_from(sequences, sequences.start)

    def compensator_from(self, sequences: Sequences, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, before, final = np.repeat(since, sequences.lengths), previous(sequences), sequences.latest
        after = _after(sequences, self.states(sequences), self.marks)  # just after each event
        held = np.zeros_like(after)  # just after the event before, 0 before the first
        held[1:] = after[:-1]
        filled = sequences.lengths > 0
        held[sequences.firsts] = 0.0
        ending = np.zeros((len(sequences), self.marks))
        ending[filled] = after[sequences.offsets[1:][filled] - 1]
        gaps = self._raised(held, before, np.maximum(before, floor), np.maximum(sequences.times, floor))
        last = self._raised(ending, final, np.maximum(final, since), sequences.end)
        base_gaps, base_last = self.background.compensator_from(sequences, since)
        return self.mu * base_gaps + gaps, self.mu * base_last + last

    def _raised(self, state: np.ndarray, origin: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Integral from start to stop of what a state at ``origin`` raises."""
        decayed = np.exp(-self.beta * (start - origin)) * -np.expm1(-self.beta * (stop - start))
        return (state * decayed[:, None]) @ self.alpha.T

    def gradient(self, sequences: Sequences) -> tuple[float, np.ndarray, np.ndarray, float]:
        """(log likelihood, d/d mu, d/d alpha, d/d beta) over all windows, in O(events x marks^2)."""
        self._known(sequences)
        kinds, beta = sequences.kinds, self.beta
        states, slopes = _states(sequences, self.marks, beta)
        base = self.background.at(sequences.times)[np.arange(len(kinds)), kinds]
        rows = self.alpha[kinds]
        rate = self.mu[kinds] * base + beta * (rows * states).sum(-1)
        left = np.repeat(sequences.end, sequences.lengths) - sequences.times
        fading = np.exp(-beta * left)
        one = _one_hot(kinds, self.marks)
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = 1.0 / rate
            caused = one.T @ -np.expm1(-beta * left)  # of events of mark j, the share that has had its effect
            gaps, last = self.background.compensator_from(sequences, sequences.start)
            exposure = gaps.sum(0) + last.sum(0)
            value = np.log(rate).sum() - self.mu @ exposure - (self.alpha @ caused).sum()
            d_mu = one.T @ (weight * base) - exposure
            d_alpha = (one * weight[:, None]).T @ states * beta - caused
            d_beta = (weight * (rows * (states + beta * slopes)).sum(-1)).sum()
            d_beta -= (self.alpha.sum(0)[kinds] * left * fading).sum()
        return float(value), d_mu, d_alpha, float(d_beta)

    @classmethod
    def fit(
        cls,
        sequences: Sequences,
        background: Poisson | None = None,
        starts: tuple[float, ...] = (0.3, 1.0, 10.0),
        start: Hawkes | None = None,
    ) -> Hawkes:
        """Maximum likelihood by L-BFGS on the logarithms, from several decays: multiples of the mean rate of events.

        The likelihood is not convex in beta, hence several starts; the best end is taken. A decay slower than the
        longest window would be a trend and not an effect of events: 1 / beta is at most that long.
        """
        marks = sequences.mark_count
        counts = sequences.count_marks()
        total = float((sequences.end - sequences.start).sum())
        if not total > 0 or not counts.sum() > 0:
            raise ValueError("a Hawkes process needs a window with start < end and at least one event")
        base = Poisson(np.ones(marks)) if background is None else background
        gaps, last = base.compensator(sequences)
        mu = np.maximum(counts, 0.5) * 0.7 / np.maximum(gaps.sum(0) + last.sum(0), 1e-300)
        speed = counts.sum() / total
        slowest = 1.0 / float((sequences.end - sequences.start).max())
        begins = [(mu, np.full((marks, marks), 0.3 / marks), speed * factor) for factor in starts]
        if start is not None:
            begins = [(start.mu, np.maximum(start.alpha, 1e-6), start.beta)]
        best: tuple[float, np.ndarray] | None = None
        for mu, alpha, beta in begins:
            point = np.log(np.concatenate([mu, alpha.ravel(), [max(beta - slowest, 1e-3 * beta)]]))
            found = minimise(lambda x: _negative(x, sequences, marks, base, slowest), point)
            value = _negative(found, sequences, marks, base, slowest)[0]
            if best is None or value < best[0]:
                best = (value, found)
        assert best is not None
        return _unpacked(best[1], marks, background, slowest)

    def standard_errors(self, sequences: Sequences) -> dict[str, np.ndarray]:
        """Of mu, alpha and beta: roots of the diagonal of the inverse observed information; NaN where it is none."""
        point = np.concatenate([self.mu, self.alpha.ravel(), [self.beta]])
        size = len(point)
        hessian = np.empty((size, size))
        for index in range(size):
            step = 1e-5 * max(abs(point[index]), 1e-3)
            sides = [self._gradient_at(point + sign * step * np.eye(size)[index], sequences) for sign in (1, -1)]
            hessian[index] = (sides[0] - sides[1]) / (2 * step)
        covariance = np.linalg.pinv(-(hessian + hessian.T) / 2)
        with np.errstate(invalid="ignore"):
            errors = np.sqrt(np.diag(covariance))
        k = self.marks
        return {"mu": errors[:k], "alpha": errors[k:-1].reshape(k, k), "beta": errors[-1]}

    def _gradient_at(self, point: np.ndarray, sequences: Sequences) -> np.ndarray:
        k = self.marks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = Hawkes.__new__(Hawkes)
            other.mu, other.alpha, other.beta = point[:k], point[k:-1].reshape(k, k), float(point[-1])
            other.marks, other.background = k, self.background
        _, d_mu, d_alpha, d_beta = other.gradient(sequences)
        return np.concatenate([d_mu, d_alpha.ravel(), [d_beta]])


def _unpacked(point: np.ndarray, marks: int, background: Poisson | None, slowest: float) -> Hawkes:
    """point: logarithms of mu, alpha and of what beta is above the slowest decay."""
    values = np.exp(np.clip(point, -_BIG, _BIG))
    return Hawkes(values[:marks], values[marks:-1].reshape(marks, marks), slowest + float(values[-1]), background)


def _negative(
    point: np.ndarray, sequences: Sequences, marks: int, background: Poisson, slowest: float
) -> tuple[float, np.ndarray]:
    """Minus the log likelihood an event, of logarithms of the parameters, and its gradient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the way an explosive process may be tried
        model = _unpacked(point, marks, background, slowest)
    value, d_mu, d_alpha, d_beta = model.gradient(sequences)
    scale = -1.0 / max(len(sequences.times), 1)
    gradient = np.concatenate([d_mu * model.mu, (d_alpha * model.alpha).ravel(), [d_beta * (model.beta - slowest)]])
    gradient[np.abs(point) >= _BIG] = 0.0
    return value * scale, gradient * scale


def _one_hot(kinds: np.ndarray, marks: int) -> np.ndarray:
    one = np.zeros((len(kinds), marks))
    one[np.arange(len(kinds)), kinds] = 1.0
    return one


def _states(sequences: Sequences, marks: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """S and its derivative by beta, (events, marks) each."""
    gaps = sequences.times - previous(sequences)
    decay = np.exp(-beta * gaps)
    decay[sequences.firsts] = 0.0  # nothing reaches into the next sequence
    before = np.zeros((len(gaps), marks))
    before[1:] = _one_hot(sequences.kinds, marks)[:-1]
    states = scan(decay, decay[:, None] * before)
    earlier = np.zeros_like(states)
    earlier[1:] = states[:-1]
    slopes = scan(decay, -(gaps * decay)[:, None] * (earlier + before))
    return states, slopes


def _after(sequences: Sequences, states: np.ndarray, marks: int) -> np.ndarray:
    return states + _one_hot(sequences.kinds, marks)
