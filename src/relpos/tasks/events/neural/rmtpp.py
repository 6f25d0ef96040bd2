"""RMTPP's head: a hazard that rises or falls exponentially with the time since the last event."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from relpos.tasks.events.neural.heads import Head
from relpos.tasks.events.neural.history import Scales
from relpos.tasks.events.processes.densities import Gompertz

_LARGEST = 60.0  # exponent of a hazard: beyond it nothing survives, and gradients would leave float32


class RMTPP(Head):
    """Hazard exp(a + w gap), a and w linear in the state; marks by a softmax of the state (Du et al. 2016).

    With w < 0 the density is defective: with probability 1 - ``density(states).mass()`` no further event ever comes.
    Likelihoods know of that; `forecast` is given that an event comes; draws are inf where none does. w is at most
    1 / unit, since a hazard that grows faster leaves no likelihood to learn from.
    """

    def __init__(self, dim: int, marks: int, scales: Scales | None = None) -> None:
        super().__init__()
        self.marks, self.scales = marks, scales or Scales()
        self.time = nn.Linear(dim, 2)
        nn.init.normal_(self.time.weight, std=0.02)
        nn.init.zeros_(self.time.bias)
        self.mark = nn.Linear(dim, marks)

    def density(self, states: Tensor) -> Gompertz:
        level, slope = self.time(states).to(torch.float64).unbind(-1)
        return Gompertz(level - math.log(self.scales.unit), (1 - nn.functional.softplus(1 - slope)) / self.scales.unit)

    def log_marks(self, states: Tensor, gaps: Tensor) -> Tensor:
        found = self.mark(states).to(torch.float64).log_softmax(-1)
        return found.expand(*torch.broadcast_shapes(gaps.shape, found.shape[:-1]), self.marks)

    def log_prob(self, states: Tensor, gaps: Tensor, marks: Tensor) -> Tensor:
        density = self.density(states)
        chosen = self.log_marks(states, gaps).gather(-1, marks[..., None])[..., 0]
        return density.log_prob(_within(density, gaps)) + chosen

    def log_survival(self, states: Tensor, gaps: Tensor) -> Tensor:
        density = self.density(states)
        return density.log_survival(_within(density, gaps))


def _within(density: Gompertz, gaps: Tensor) -> Tensor:
    """Gaps no longer than float32 gradients can bear: a survival of exp(-e^60) is as good as none."""
    slope = density.w.detach()
    reach = (_LARGEST - density.a.detach().clamp(max=_LARGEST - 1)) / slope.clamp(min=1e-300)
    return torch.where(slope > 0, torch.minimum(gaps, reach), gaps)
