"""Densities of the time to the next event: everything through log survival, so that tails stay finite.

Parameters are tensors of one batch shape; x broadcasts against it. All is differentiable in the parameters and in x.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


class Density:
    """A density on (0, inf), perhaps defective: then ``mass`` < 1, and with 1 - mass no further event comes at all."""

    name: ClassVar[str] = ""

    def log_prob(self, x: Tensor) -> Tensor:
        """log f(x); -inf at 0 where the density vanishes there."""
        return self.log_hazard(x) + self.log_survival(x)

    def log_survival(self, x: Tensor) -> Tensor:
        """log P(gap > x)."""
        raise NotImplementedError

    def log_hazard(self, x: Tensor) -> Tensor:
        """log of f(x) / P(gap > x)."""
        return self.log_prob(x) - self.log_survival(x)

    def log_cdf(self, x: Tensor) -> Tensor:
        """log P(gap <= x)."""
        return _log1mexp(self.log_survival(x))

    def mass(self) -> Tensor:
        """P(there is a next event)."""
        return torch.exp(self.log_cdf(torch.tensor(math.inf, dtype=torch.float64)))

    def quantile(self, level: Any) -> Tensor:
        """Smallest x with P(gap <= x) >= level; inf where the level is above the mass. No gradient."""
        return self.when(torch.log1p(-torch.as_tensor(level, dtype=torch.float64)))

    def when(self, log_survival: Any) -> Tensor:
        """The x at which log P(gap > x) has fallen to this; inf where it never does. By bisection, no gradient."""
        with torch.no_grad():
            return self._bisected(torch.as_tensor(log_survival, dtype=torch.float64))

    def _bisected(self, goal: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(goal.shape, self.log_survival(torch.ones((), dtype=torch.float64)).shape)
        low, high = torch.full(shape, -120.0, dtype=torch.float64), torch.full(shape, 120.0, dtype=torch.float64)
        never = self.log_survival(torch.exp(high)) > goal
        for _ in range(64):
            middle = (low + high) / 2
            above = self.log_survival(torch.exp(middle)) > goal
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        found = torch.where(never, math.inf, torch.exp(high))
        return torch.where(goal.expand(shape) >= 0, 0.0, found)

    def mean(self) -> Tensor:
        """Mean of the gap, given that there is a next event. By quadrature over quantiles, no gradient."""
        steps, weights = _nodes(400, 0.0, 36.0)  # beyond e^-36 of the mass nothing of a light tail is left
        mass = self.mass()[..., None]
        levels = mass * -torch.expm1(-steps)
        shape = (*mass.shape[:-1], len(steps))
        moved = torch.movedim(levels.expand(shape), -1, 0)
        values = torch.movedim(self.quantile(moved), 0, -1)
        return (values * torch.exp(-steps) * weights).sum(-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count, ..batch) independent draws by inversion; inf says that no event comes."""
        shape = self.log_survival(torch.ones((), dtype=torch.float64)).shape
        return self.quantile(torch.rand((count, *shape), generator=generator, dtype=torch.float64))


class LogNormalMixture(Density):
    """log x = shift + scale z, z a mixture of normals. loc, log_scale, log_weight: (.., components).

    Log weights are normalised here. Survival is a log-sum-exp of log-normal tails, never 1 - a clamped cdf.
    """

    name = "log-normal mixture"

    def __init__(
        self, loc: Any, log_scale: Any, log_weight: Any = None, shift: float = 0.0, scale: float = 1.0
    ) -> None:
        self.loc, self.log_scale = _tensor(loc), _tensor(log_scale)
        if self.loc.dim() == 0:
            self.loc, self.log_scale = self.loc[None], self.log_scale[None]
        weight = torch.zeros_like(self.loc) if log_weight is None else _tensor(log_weight)
        self.log_weight = torch.log_softmax(weight, -1)
        if not scale > 0:
            raise ValueError(f"scale is positive, got {scale}")
        self.shift, self.scale = shift, scale

    def _standard(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_x = torch.log(_tensor(x).to(self.loc.dtype))
        z = (log_x - self.shift) / self.scale
        return log_x, (z[..., None] - self.loc) * torch.exp(-self.log_scale)

    def log_prob(self, x: Tensor) -> Tensor:
        log_x, z = self._standard(x)
        # At x = 0 and inf z is infinite, the density 0, and 0 * inf must not become NaN.
        edge = torch.isinf(log_x)
        z = torch.where(edge[..., None], torch.zeros_like(z), z)
        parts = self.log_weight - 0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi)
        found = torch.logsumexp(parts, -1) - torch.where(edge, 0.0, log_x) - math.log(self.scale)
        return torch.where(edge.expand(found.shape), -math.inf, found)

    def log_survival(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self.log_weight + torch.special.log_ndtr(-self._standard(x)[1]), -1)

    def log_cdf(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self.log_weight + torch.special.log_ndtr(self._standard(x)[1]), -1)

    def _moment(self, power: int) -> Tensor:
        loc, variance = self.shift + self.scale * self.loc, (self.scale * torch.exp(self.log_scale)).square()
        return torch.exp(torch.logsumexp(self.log_weight + power * loc + power**2 * variance / 2, -1))

    def mean(self) -> Tensor:
        return self._moment(1)

    def variance(self) -> Tensor:
        """Variance of the gap."""
        return self._moment(2) - self._moment(1).square()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        shape = self.loc.shape
        component = torch.multinomial(
            torch.exp(self.log_weight).reshape(-1, shape[-1]), count, replacement=True, generator=generator
        ).T.reshape(count, *shape[:-1], 1)
        loc, log_scale = (torch.gather(each.expand(count, *shape), -1, component)[..., 0] for each in self._pair())
        noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype)
        return torch.exp(self.shift + self.scale * (loc + torch.exp(log_scale) * noise))

    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.loc, self.log_scale.expand(self.loc.shape)


class Weibull(Density):
    """P(gap > x) = exp(-(x / e^log_scale)^(e^log_shape)); shape 1 is exponential, below 1 bursty."""

    name = "Weibull"

    def __init__(self, log_scale: Any, log_shape: Any = 0.0) -> None:
        self.log_scale, self.log_shape = _tensor(log_scale), _tensor(log_shape)

    def log_survival(self, x: Tensor) -> Tensor:
        return -torch.exp(torch.exp(self.log_shape) * (torch.log(_tensor(x)) - self.log_scale))

    def log_hazard(self, x: Tensor) -> Tensor:
        shape = torch.exp(self.log_shape)
        log_x = torch.log(_tensor(x))
        bent = torch.where(shape == 1, torch.zeros_like(log_x * shape), (shape - 1) * (log_x - self.log_scale))
        return self.log_shape - self.log_scale + bent

    def mean(self) -> Tensor:
        return torch.exp(self.log_scale + torch.lgamma(1 + torch.exp(-self.log_shape)))


class LogLogistic(Density):
    """P(gap > x) = 1 / (1 + (x / e^log_scale)^(e^log_shape)): a heavy tail, with no mean where the shape is up to 1."""

    name = "log-logistic"

    def __init__(self, log_scale: Any, log_shape: Any = 0.0) -> None:
        self.log_scale, self.log_shape = _tensor(log_scale), _tensor(log_shape)

    def _log_odds(self, x: Tensor) -> Tensor:
        return torch.exp(self.log_shape) * (torch.log(_tensor(x)) - self.log_scale)

    def log_survival(self, x: Tensor) -> Tensor:
        return -torch.nn.functional.softplus(self._log_odds(x))

    def log_cdf(self, x: Tensor) -> Tensor:
        return -torch.nn.functional.softplus(-self._log_odds(x))

    def log_hazard(self, x: Tensor) -> Tensor:
        return self.log_shape - torch.log(_tensor(x)) + self.log_cdf(x)

    def mean(self) -> Tensor:
        turn = math.pi * torch.exp(-self.log_shape)
        return torch.where(self.log_shape > 0, torch.exp(self.log_scale) * turn / torch.sin(turn), math.inf)


class Gompertz(Density):
    """RMTPP's density: hazard exp(a + w x). With w < 0 it is defective, mass 1 - exp(-e^a / |w|)."""

    name = "Gompertz"

    def __init__(self, a: Any, w: Any) -> None:
        self.a, self.w = torch.broadcast_tensors(_tensor(a), _tensor(w))

    def log_hazard(self, x: Tensor) -> Tensor:
        return self.a + self.w * _tensor(x)

    def log_survival(self, x: Tensor) -> Tensor:
        x = _tensor(x)
        z = self.w * x
        small = z.abs() < 1e-5
        safe = torch.where(small, torch.ones_like(z), z)
        # expm1(z) / z, with its series where z is small; its limit at x = inf is taken apart
        ratio = torch.where(small, 1 + z / 2 + z.square() / 6, torch.expm1(safe) / safe)
        endless = torch.isinf(x) & (self.w < 0)
        limit = torch.exp(self.a) / torch.where(self.w < 0, -self.w, torch.ones_like(self.w))
        finite = torch.exp(self.a) * torch.where(torch.isinf(x), torch.ones_like(x), x) * ratio
        return -torch.where(endless, limit, torch.where(torch.isinf(x), math.inf, finite))

    def log_prob(self, x: Tensor) -> Tensor:
        survival = self.log_survival(x)
        dead = torch.isinf(survival)
        return torch.where(dead, survival, self.log_hazard(x) + torch.where(dead, torch.zeros_like(survival), survival))

    def when(self, log_survival: Any) -> Tensor:
        with torch.no_grad():
            hazard = -torch.as_tensor(log_survival, dtype=torch.float64) * torch.exp(-self.a)
            scaled = self.w * hazard
            flat = self.w.abs() < 1e-12
            w = torch.where(flat, torch.ones_like(self.w), self.w)
            found = torch.log1p(scaled.clamp(min=-1)) / w
            return torch.where(flat, hazard, torch.where(scaled <= -1, math.inf, found))


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.to(torch.float64)
    return torch.as_tensor(np.asarray(value, dtype=np.float64))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends."""
    near = x > -math.log(2)
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


def _nodes(count: int, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on (start, stop)."""
    x, w = np.polynomial.legendre.leggauss(count)
    half = (stop - start) / 2
    return torch.from_numpy(start + half * (x + 1)), torch.from_numpy(half * w)
