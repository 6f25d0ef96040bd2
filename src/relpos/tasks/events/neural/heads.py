"""What comes next, from a state: the density of the gap and the probabilities of the mark."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.tasks.events.neural.history import Scales
from relpos.tasks.events.neural.tape import Following
from relpos.tasks.events.processes.densities import Density, LogNormalMixture


class Head(nn.Module):
    """States (.., dim) to the time and mark of the next event; gaps (..) float64 in the unit of the data.

    log_prob       log density of (gap, mark), per unit of time: log f(gap) + log p(mark | gap)
    log_survival   log probability that no event comes within the gap
    Both float64. A subclass gives those two; `density` where the gap has one on its own.
    """

    marks: int

    def log_prob(self, states: Tensor, gaps: Tensor, marks: Tensor) -> Tensor:
        raise NotImplementedError

    def log_survival(self, states: Tensor, gaps: Tensor) -> Tensor:
        raise NotImplementedError

    def log_marks(self, states: Tensor, gaps: Tensor) -> Tensor:
        """(.., marks) log probabilities of the mark of an event that comes after these gaps."""
        raise NotImplementedError

    def density(self, states: Tensor) -> Density:
        raise NotImplementedError

    def log_rates(self, states: Tensor, gaps: Tensor) -> Tensor:
        """(.., marks) log intensity of each mark a time ``gaps`` after the last event, given that none has come."""
        return self.density(states).log_hazard(gaps)[..., None] + self.log_marks(states, gaps)

    @torch.no_grad()
    def forecast(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Median gap (..) and probabilities of the mark (.., marks), both given that there is a next event.

        Marks are averaged over the gaps at the levels .1, .3, .5, .7, .9, as the true gap is not known.
        """
        density = self.density(states)
        levels = torch.tensor([0.5, 0.1, 0.3, 0.7, 0.9], dtype=torch.float64, device=states.device)
        mass = density.mass()
        gaps = density.quantile(levels.view(-1, *[1] * mass.dim()) * mass)
        among = self.log_marks(states.expand(len(levels), *states.shape), gaps).exp().mean(0)
        return gaps[0], among

    @torch.no_grad()
    def sample(
        self, states: Tensor, generator: torch.Generator | None = None, floor: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A draw of the gap and mark for each state, independent of each other; inf and -1 where no event ever comes.

        By inversion of the survival of the gap, then of its mark. floor: (..) time that is known to have been silent.
        """
        density = self.density(states)
        shape = states.shape[:-1]
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64).to(states.device)
        goal = torch.log1p(-drawn)
        if floor is not None:
            goal = goal + self.log_survival(states, floor)
        gaps = density.when(goal)
        if floor is not None:
            gaps = torch.maximum(gaps, floor)
        return gaps, self.sample_marks(states, gaps, generator)

    @torch.no_grad()
    def sample_marks(self, states: Tensor, gaps: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..) a mark drawn for each gap, -1 where that is inf."""
        finite = torch.isfinite(gaps)
        p = self.log_marks(states, torch.where(finite, gaps, torch.ones_like(gaps))).exp()
        place = torch.rand(gaps.shape, generator=generator, dtype=torch.float64).to(gaps.device)
        found = (p.cumsum(-1) <= place[..., None] * p.sum(-1, keepdim=True)).sum(-1).clamp(max=self.marks - 1)
        return torch.where(finite, found, -torch.ones_like(found))

    def log_likelihood(self, states: Tensor, following: Following) -> Tensor:
        """(batch, n) float64: what follows each token, 0 where it is not scored. Their sum is the log likelihood.

        An event: log f(gap) + log p(mark), less the log survival of the floor; silence: log survival less that.
        ValueError for gaps of 0 where they have no density.
        """
        coming = following.scored & (following.marks >= 0)
        silent = following.scored & (following.marks < 0)
        total = torch.zeros_like(following.gaps)
        found = self.log_prob(states[coming], following.gaps[coming], following.marks[coming])
        self._refuse_ties(found, following.gaps[coming])
        total[coming] = found
        if bool(silent.any()):
            total[silent] = self.log_survival(states[silent], following.gaps[silent])
        begun = following.scored & (following.floors > 0)
        if bool(begun.any()):
            total[begun] = total[begun] - self.log_survival(states[begun], following.floors[begun])
        return total

    def _refuse_ties(self, found: Tensor, gaps: Tensor) -> None:
        tied = (gaps == 0) & torch.isinf(found.detach())
        if bool(tied.any()):
            raise ValueError(
                f"{int(tied.sum())} events come at the very time of the token before them, where the density of "
                f"{type(self).__name__} is 0 and its logarithm infinite. Read the data with ties='spread' or 'first', "
                "and give windows that begin before the first event; or score marks alone (log_marks)"
            )


class MixtureHead(Head):
    """A mixture of log-normal densities of the gap (Shchur et al. 2020), marks by a softmax that also sees the gap.

    The mixture is over (log gap - middle - log unit) / spread, so that its numbers start near 0 and 1 in any unit.
    """

    def __init__(self, dim: int, marks: int, components: int = 8, scales: Scales | None = None) -> None:
        super().__init__()
        self.marks, self.components, self.scales = marks, components, scales or Scales()
        self.time = nn.Linear(dim, 3 * components)
        nn.init.normal_(self.time.weight, std=0.02)
        with torch.no_grad():
            # apart from each other at the start, else all components stay one
            self.time.bias[:components] = torch.linspace(-1.5, 1.5, components)
            self.time.bias[components:] = 0.0
        hidden = 2 * dim
        self.mark = nn.Sequential(nn.Linear(dim + 1, hidden), nn.GELU(), nn.Linear(hidden, marks))

    def density(self, states: Tensor) -> LogNormalMixture:
        loc, log_scale, weight = self.time(states).to(torch.float64).split(self.components, -1)
        shift = self.scales.middle + torch.log(torch.tensor(self.scales.unit, dtype=torch.float64)).item()
        return LogNormalMixture(loc, log_scale.clamp(-5, 5), weight, shift, self.scales.spread)

    def log_marks(self, states: Tensor, gaps: Tensor) -> Tensor:
        known = self.scales.log_gap(gaps).to(states.dtype)[..., None]
        return self.mark(torch.cat([states, known], -1)).to(torch.float64).log_softmax(-1)

    def log_prob(self, states: Tensor, gaps: Tensor, marks: Tensor) -> Tensor:
        chosen = self.log_marks(states, gaps).gather(-1, marks[..., None])[..., 0]
        return self.density(states).log_prob(gaps) + chosen

    def log_survival(self, states: Tensor, gaps: Tensor) -> Tensor:
        return self.density(states).log_survival(gaps)
