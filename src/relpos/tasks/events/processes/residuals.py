"""Is a model right? By its true compensator, any process turns into one of rate 1: time rescaling, and tests of it."""

from __future__ import annotations

import math
from collections.abc import Sequence as IterableOf
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from relpos.tasks.events.processes.base import Process, previous
from relpos.tasks.events.processes.densities import Density, _nodes
from relpos.tasks.events.processes.hawkes import Hawkes, _after
from relpos.tasks.events.processes.poisson import Poisson
from relpos.tasks.events.processes.renewal import Renewal
from relpos.tasks.events.sequences import Sequences

Models = IterableOf[Process]


@dataclass(frozen=True)
class KS:
    """A Kolmogorov-Smirnov test: largest distance of two distribution functions, its p-value, how many values."""

    statistic: float
    p: float
    count: int


def rescaled(process: Process | Models, sequences: Sequences, mark: int | None = None) -> np.ndarray:
    """(events,) gaps after time rescaling, exponential of mean 1 and independent where the model is right.

    The rescaled windows are laid end to end, so that what each window cuts off is not lost: a process of rate 1 has no
    memory. process: one for all, or one a sequence; mark: of the events of this mark alone, by its own intensity.
    """
    gaps, last = _compensators(process, sequences)
    chosen = slice(None) if mark is None else [mark]
    within, rest = gaps[:, chosen].sum(-1), last[:, chosen].sum(-1)
    carried = np.zeros(len(within))
    filled = np.flatnonzero(sequences.lengths > 0)
    if len(filled):
        total = np.concatenate([[0.0], np.cumsum(rest)])
        before = np.concatenate([[0], filled[:-1]])  # rests of the windows since the last one with events
        carried[sequences.offsets[:-1][filled]] = total[filled] - np.where(filled == filled[0], 0.0, total[before])
    steps = within + carried
    if mark is None:
        return steps
    there = np.cumsum(steps)[sequences.kinds == mark]
    return np.diff(there, prepend=0.0)


def _compensators(process: Process | Models, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(process, Process):
        sequences.require_marks(process.marks)
        return process.compensator(sequences)
    if len(process) != len(sequences):
        raise ValueError(f"there are {len(process)} processes for {len(sequences)} sequences")
    parts = [_compensators(model, one) for model, one in zip(process, sequences)]
    return np.concatenate([gaps for gaps, _ in parts]), np.concatenate([last for _, last in parts])


def ks_exponential(gaps: np.ndarray) -> KS:
    """Tests that the values are exponential of mean 1."""
    return ks_uniform(-np.expm1(-np.asarray(gaps, dtype=np.float64)))


def ks_uniform(values: Any) -> KS:
    """Tests that the values are uniform on 0..1. ValueError where there is none, or one is outside."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    if n == 0 or not (ordered[0] >= 0 and ordered[-1] <= 1):
        raise ValueError(f"a test of uniformity needs values in 0..1, got {n} of them")
    steps = np.arange(n + 1) / n
    statistic = float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))
    return KS(statistic, kolmogorov(statistic, n), n)


def kolmogorov(statistic: float, n: int) -> float:
    """P(distance >= statistic) of n values: exact up to n = 100 (Marsaglia, Tsang, Wang 2003), then Stephens' formula.

    Stephens (1970) puts sqrt(n) + 0.12 + 0.11 / sqrt(n) for sqrt(n) in the limit law, which is right to 0.002 there.
    """
    if not 0 < statistic < 1:
        return float(statistic <= 0)
    if n <= 100:
        return min(max(1.0 - _marsaglia(statistic, n), 0.0), 1.0)
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * statistic
    if x < 0.3:  # the series below alternates there; the law is 1 to 9 digits
        return 1.0
    return min(max(2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)), 0.0), 1.0)


def _marsaglia(statistic: float, n: int) -> float:
    """P(distance < statistic) as an entry of the n-th power of a matrix."""
    k = math.ceil(n * statistic)
    m, h = 2 * k - 1, k - n * statistic
    matrix = np.array([[1.0 if i - j + 1 >= 0 else 0.0 for j in range(m)] for i in range(m)])
    for i in range(m):
        matrix[i, 0] -= h ** (i + 1)
        matrix[m - 1, i] -= h ** (m - i)
    matrix[m - 1, 0] += (2 * h - 1) ** m if 2 * h > 1 else 0.0
    for i in range(m):
        for j in range(m):
            if i - j + 1 > 0:
                matrix[i, j] /= math.factorial(i - j + 1)
    power = np.linalg.matrix_power(matrix, n)
    return float(power[k - 1, k - 1]) * math.exp(math.lgamma(n + 1) - n * math.log(n))


class NextEvent(Density):
    """The time from now to the next event of a Hawkes or Poisson process, given what happened: exact.

    now: (n,) times; state: (n, marks), S of `Hawkes.states` at those times, just after events there; zero if left out.
    """

    name = "next event"

    def __init__(self, process: Hawkes | Poisson, now: Any = 0.0, state: Any = None) -> None:
        if isinstance(process, Poisson):
            process = Hawkes(np.ones(process.marks), np.zeros((process.marks, process.marks)), 1.0, process)
        self.process = process
        self.now = np.atleast_1d(np.asarray(now, dtype=np.float64))
        zero = np.zeros((len(self.now), process.marks))
        self.state = zero if state is None else np.atleast_2d(np.asarray(state, dtype=np.float64))
        if len(self.now) == 1 and len(self.state) > 1:
            self.now = np.repeat(self.now, len(self.state))
        self.raised = self.process.beta * self.state @ process.alpha.T
        self.origin = process.background.integral(self.now)

    @classmethod
    def after(cls, process: Hawkes | Poisson, sequences: Sequences) -> NextEvent:
        """From the end of each window on, given all its events."""
        if isinstance(process, Poisson):
            return cls(process, sequences.end)
        state, filled = np.zeros((len(sequences), process.marks)), sequences.lengths > 0
        after = _after(sequences, process.states(sequences), process.marks)
        state[filled] = after[sequences.offsets[1:][filled] - 1]
        return cls(process, sequences.end, state * np.exp(-process.beta * (sequences.end - sequences.latest))[:, None])

    def _flat(self, x: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        values = np.asarray(x, dtype=np.float64)
        shape = np.broadcast_shapes(values.shape, self.now.shape)
        return np.broadcast_to(values, shape), shape

    def log_survival(self, x: Any) -> torch.Tensor:
        values, shape = self._flat(x)
        finite = np.where(np.isfinite(values), values, 0.0)
        ends = (self.now + finite).reshape(-1)
        base = self.process.background.integral(ends).reshape(*shape, -1) - self.origin
        total = base @ self.process.mu - self.raised.sum(-1) / self.process.beta * np.expm1(-self.process.beta * finite)
        endless = np.inf if (self.process.mu * self.process.background.bound()).sum() > 0 else 0.0
        limit = endless + self.raised.sum(-1) / self.process.beta
        return torch.from_numpy(-np.where(np.isfinite(values), total, limit))

    def rates(self, x: Any) -> np.ndarray:
        """(.., marks) intensities a time x from now, given that nothing happens in between."""
        values, shape = self._flat(x)
        base = self.process.background.at((self.now + values).reshape(-1)).reshape(*shape, -1)
        return base * self.process.mu + self.raised * np.exp(-self.process.beta * values)[..., None]

    def log_hazard(self, x: Any) -> torch.Tensor:
        return torch.from_numpy(np.log(self.rates(x).sum(-1)))

    def mark_probabilities(self) -> np.ndarray:
        """(n, marks) of the next event's mark, given that there is one: an integral over its time."""
        steps, weights = _nodes(200, 0.0, 36.0)
        levels = self.mass()[..., None] * -torch.expm1(-steps)
        times = self.quantile(levels.T).numpy()
        rates = self.rates(times)
        shares = rates / rates.sum(-1, keepdims=True)
        weight = (torch.exp(-steps) * weights).numpy()
        found = (shares * weight[:, None, None]).sum(0)
        return found / found.sum(-1, keepdims=True)


def pit(process: Process, sequences: Sequences) -> np.ndarray:
    """(events,) P(gap up to the one seen | history): uniform where the model is right and windows are long.

    Of short windows long gaps are missing, as the window cuts them off; `rescaled` has no such fault.
    """
    return -np.expm1(-process.compensator(sequences)[0].sum(-1))


def crps(density: Density, x: Any) -> torch.Tensor:
    """Continuous ranked probability score of a density for what came, in the unit of x; smaller is better.

    The integral of (P(gap <= y) - [x <= y])^2 over y, by quadrature over quantiles. ValueError where the density has
    no full mass, since the score is then infinite.
    """
    if bool((density.mass() < 1 - 1e-9).any()):
        raise ValueError("the density leaves room for no event at all: its score is infinite; score a horizon instead")
    seen = torch.as_tensor(np.asarray(x), dtype=torch.float64)
    below = torch.exp(density.log_cdf(seen))
    above = torch.exp(density.log_survival(seen))
    nodes, weights = _nodes(128, 0.0, 1.0)
    parts = []
    for v, w in zip(nodes, weights):
        bent = v**3  # nodes are dense at both ends of the levels
        early = density.quantile(below * bent)
        late = density.quantile(1 - above * bent)
        parts.append(w * 3 * v**2 * (below**2 * bent * (seen - early) + above**2 * bent * (late - seen)))
    return 2 * torch.stack(parts).sum(0)


def crps_samples(samples: Any, x: Any) -> np.ndarray:
    """The same from draws (count, ..), by E|X - x| - E|X - X'| / 2, without bias over pairs of different draws."""
    drawn = np.sort(np.asarray(samples, dtype=np.float64), axis=0)
    n = len(drawn)
    if n < 2 or not np.isfinite(drawn).all():
        raise ValueError(f"the score needs at least two finite draws, got {n}")
    rank = (2 * np.arange(1, n + 1) - n - 1).reshape(n, *[1] * (drawn.ndim - 1))
    return np.abs(drawn - np.asarray(x)).mean(0) - (rank * drawn).sum(0) / (n * (n - 1))


def gap_density(process: Process, sequences: Sequences) -> Density:
    """The density of the gap before each event (events,), given what came before it."""
    if isinstance(process, Renewal):
        return process.gaps
    before = previous(sequences)
    if isinstance(process, Poisson):
        return NextEvent(process, before)
    if not isinstance(process, Hawkes):
        raise TypeError(f"no density of gaps for a {type(process).__name__}")
    after = _after(sequences, process.states(sequences), process.marks)
    state = np.zeros_like(after)
    state[1:] = after[:-1]
    state[sequences.firsts] = 0.0
    return NextEvent(process, before, state)
