"""A neural intensity of every mark, as a function of the state and of the time since the last event."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks.events.neural.heads import Head
from relpos.tasks.events.neural.history import Scales
from relpos.tasks.events.processes.densities import Density

_STEPS = 60  # of the search for a quantile


class Intensities(Density):
    """The next event under lambda_k(x) = softplus(z_k(x)) / unit, of mark k a time x after the last event.

        z_k(x) = c_k0 + sum_j c_kj exp(-r_j x) + sum_p [ a_kp cos(2 pi x / p) + b_kp sin(2 pi x / p) ]

    coefficients (.., marks, 1 + decays + 2 periods). The compensator is the integral over x of the sum over all marks,
    by Gauss-Legendre quadrature in sqrt(x / gap), which is dense where decays are fast. ``nodes``: how many.
    """

    name = "neural intensity"

    def __init__(
        self, coefficients: Tensor, rates: Tensor, periods: Sequence[float] = (), unit: float = 1.0, nodes: int = 32
    ) -> None:
        self.coefficients, self.rates, self.periods = coefficients, rates, tuple(periods)
        self.unit, self.nodes = unit, nodes
        x, w = np.polynomial.legendre.leggauss(nodes)
        root = torch.from_numpy((x + 1) / 2).to(coefficients.device)
        self._place, self._weight = root.square(), torch.from_numpy(w).to(coefficients.device) * root

    def _level(self, x: Tensor) -> Tensor:
        """(.., marks) z at x (..)."""
        return torch.einsum("...t,...kt->...k", self._basis(x), self.coefficients)

    def _basis(self, x: Tensor) -> Tensor:
        x = x[..., None]
        parts = [torch.ones_like(x), torch.exp(-self.rates * x)]
        if self.periods:
            angle = 2 * math.pi * (x / x.new_tensor(self.periods) % 1.0)
            parts += [angle.cos(), angle.sin()]
        return torch.cat(parts, -1)

    def log_intensities(self, x: Tensor) -> Tensor:
        """(.., marks) log lambda_k, finite however small."""
        z = self._level(x)
        small = z < -30  # there softplus(z) is e^z to 13 digits, and would vanish before its logarithm does
        safe = torch.where(small, torch.zeros_like(z), z)
        return torch.where(small, z, nn.functional.softplus(safe).log()) - math.log(self.unit)

    def bound(self, low: Tensor, high: Tensor) -> Tensor:
        """What the sum of all intensities does not exceed between these times after the last event: each term of z at
        its largest, which for a decay is one of the two ends, for a period its amplitude."""
        count = len(self.rates)
        c = self.coefficients
        decays = c[..., 1 : 1 + count]
        ends = [(decays * torch.exp(-self.rates * x[..., None])[..., None, :]) for x in (low, high)]
        z = c[..., 0] + torch.maximum(*ends).sum(-1)
        if self.periods:
            z = z + torch.hypot(*c[..., 1 + count :].chunk(2, -1)).sum(-1)
        return nn.functional.softplus(z).sum(-1) / self.unit

    def log_hazard(self, x: Tensor) -> Tensor:
        return self.log_intensities(torch.as_tensor(x, dtype=torch.float64)).logsumexp(-1)

    def log_survival(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float64)
        endless = torch.isinf(x)
        reach = torch.where(endless, torch.zeros_like(x), x)
        z = torch.einsum("...nt,...kt->...nk", self._basis(reach[..., None] * self._place), self.coefficients)
        rate = nn.functional.softplus(z).sum(-1) / self.unit
        found = -reach * (rate * self._weight).sum(-1)
        return torch.where(endless.expand(found.shape), -math.inf, found)

    def mass(self) -> Tensor:
        return torch.ones(self.coefficients.shape[:-2], dtype=torch.float64, device=self.coefficients.device)

    def _bisected(self, goal: Tensor) -> Tensor:
        """Newton's steps, and halving of a bracket where one would leave it; over those that have not arrived yet."""
        shape = torch.broadcast_shapes(goal.shape, self.coefficients.shape[:-2])
        goal = goal.to(self.coefficients.device).expand(shape).reshape(-1)
        c = self.coefficients.expand(*shape, *self.coefficients.shape[-2:]).reshape(-1, *self.coefficients.shape[-2:])
        low, high, at = torch.zeros_like(goal), torch.full_like(goal, math.inf), torch.full_like(goal, self.unit)
        left = torch.arange(len(goal), device=goal.device)[(goal < 0) & torch.isfinite(goal)]
        for _ in range(_STEPS):
            if not len(left):
                break
            own = Intensities(c[left], self.rates, self.periods, self.unit, self.nodes)
            x = at[left]
            above = own.log_survival(x) - goal[left]
            low[left] = torch.where(above > 0, x, low[left])
            high[left] = torch.where(above > 0, high[left], x)
            newton = torch.minimum(x + above * torch.exp(-own.log_hazard(x)), 4 * x + self.unit)
            newton = torch.where(newton <= low[left], (low[left] + x) / 2, newton)
            at[left] = torch.where(newton >= high[left], (high[left] + low[left]) / 2, newton)
            left = left[(at[left] - x).abs() > 1e-10 * x]
        found = torch.where(torch.isinf(goal), math.inf, at)
        return torch.where(goal >= 0, 0.0, found).reshape(shape)


class IntensityHead(Head):
    """Intensities linear in the state under a softplus: see `Intensities`; the state gives the coefficients.

    decays    time constants, from a tenth of the unit to a hundred units, by equal factors
    periods   lengths of rhythms within a gap, in the unit of the data: with a state that knows the calendar, the
              intensity can follow the clock while nothing happens
    nodes     of the quadrature; see `quadrature` for what they cost
    """

    def __init__(
        self,
        dim: int,
        marks: int,
        decays: int = 6,
        periods: Sequence[float] = (),
        nodes: int = 32,
        scales: Scales | None = None,
    ) -> None:
        super().__init__()
        if decays < 1 or nodes < 2 or any(not p > 0 for p in periods):
            raise ValueError(f"decays >= 1, nodes >= 2, periods > 0; got {decays}, {nodes}, {periods}")
        self.marks, self.scales, self.nodes, self.periods = marks, scales or Scales(), nodes, tuple(map(float, periods))
        constants = torch.logspace(-1, 2, decays, dtype=torch.float64) * self.scales.unit
        self.register_buffer("rates", 1 / constants, persistent=False)
        self.terms = 1 + decays + 2 * len(self.periods)
        self.time = nn.Linear(dim, marks * self.terms)
        nn.init.normal_(self.time.weight, std=0.02)
        nn.init.zeros_(self.time.bias)
        with torch.no_grad():  # at first half an event a unit
            self.time.bias.view(marks, -1)[:, 0] = math.log(math.expm1(0.5 / marks))

    def density(self, states: Tensor) -> Intensities:
        found = self.time(states).to(torch.float64).unflatten(-1, (self.marks, self.terms))
        assert isinstance(self.rates, Tensor)
        return Intensities(found, self.rates.double(), self.periods, self.scales.unit, self.nodes)

    def log_rates(self, states: Tensor, gaps: Tensor) -> Tensor:
        return self.density(states).log_intensities(gaps)

    def log_marks(self, states: Tensor, gaps: Tensor) -> Tensor:
        return self.log_rates(states, gaps).log_softmax(-1)

    def log_prob(self, states: Tensor, gaps: Tensor, marks: Tensor) -> Tensor:
        density = self.density(states)
        chosen = density.log_intensities(gaps).gather(-1, marks[..., None])[..., 0]
        return chosen + density.log_survival(gaps)

    def log_survival(self, states: Tensor, gaps: Tensor) -> Tensor:
        return self.density(states).log_survival(gaps)
