"""The network of the task: time, mark and distance of a region's next event, measured in units of the region.

    f(gap, mark, way | history) = f(gap) p(mark | gap) f(way),   each from the state of a causal Transformer

Gap and way are mixtures of log-normal densities, the way with a share of standing still (way 0). The state is read from
marks, gaps and ways, and from relative channels: lags, times and distances between events.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.tasks.events.neural import History, MixtureHead, Scales
from relpos.tasks.events.processes.densities import LogNormalMixture
from relpos.tasks.events.transfer.regions import Journey

EXPONENTIAL = Scales(1.0, -0.5772, 1.2825)
"""Mean and deviation of the logarithm of gaps that come at random, in units of their mean: known without any data."""
SPREAD = 0.7  # of logarithms of distances, in units of their geometric mean
STILL = -3.0  # log odds of standing still, at the start
PARTS = ("time", "mark", "distance")
UNITS = ("source", "region", "region+size")
SIZED = 2.0  # the logarithm of a size is told up to this: about what differs between the regions of a source


class TravelHead(MixtureHead):
    """Besides time and mark the way to the next event: with some probability 0, else a mixture of log-normals."""

    def __init__(self, dim: int, marks: int, components: int, ways: int) -> None:
        super().__init__(dim, marks, components, EXPONENTIAL)
        self.ways = ways
        self.distance = nn.Linear(dim, 3 * ways + 1)
        nn.init.normal_(self.distance.weight, std=0.02)
        with torch.no_grad():
            self.distance.bias[:ways] = torch.linspace(-1.0, 1.0, ways) if ways > 1 else 0.0
            self.distance.bias[ways:-1] = 0.0
            self.distance.bias[-1] = STILL

    def log_way(self, states: Tensor, way: Tensor) -> Tensor:
        """(..) log density of the way; of 0: log probability."""
        loc, log_scale, weight, still = self.distance(states).to(torch.float64).split([*[self.ways] * 3, 1], -1)
        log_odds = still[..., 0]
        moved = LogNormalMixture(loc, log_scale.clamp(-5, 5), weight, 0.0, SPREAD)
        stands = way <= 0
        far = nn.functional.logsigmoid(-log_odds) + moved.log_prob(torch.where(stands, 1.0, way))
        return torch.where(stands, nn.functional.logsigmoid(log_odds), far)


class Traveller(nn.Module):
    """Events of regions to the log likelihood of what follows each.

    units       "source": times and distances are read in gap and way of the typical region of the source, ``typical``,
                whatever the region; "region": in its own mean gap and way; "region+size": so, and the network is also
                told how its gap compares with the typical one, as far as `SIZED`
    channels, inject, dim, depth, heads and further options: as in `History`
    """

    def __init__(
        self,
        marks: int,
        encoding: str,
        *,
        typical: tuple[float, float],
        units: str = "region+size",
        channels: Any = "position+time+place",
        length: int = 64,
        dim: int = 32,
        components: int = 4,
        ways: int = 2,
        **options: Any,
    ) -> None:
        super().__init__()
        if units not in UNITS:
            raise ValueError(f"units is one of {', '.join(UNITS)}, got {units!r}")
        self.units, self.typical = units, tuple(typical)
        given: dict[str, Any] = {
            "profiles": 3 + (units == "region+size"),
            "scales": EXPONENTIAL,
            "length": length,
            "dim": dim,
        }
        self.history = History(marks, encoding, channels=channels, **given, **options)
        self.head = TravelHead(dim, marks, components, ways)

    def measured(self, journey: Journey) -> Journey:
        """In the units that the network reads; `Journey.sizes` are what was divided by."""
        if self.units == "source":
            sizes = torch.tensor(self.typical, dtype=torch.float64, device=journey.sizes.device)
            sizes = sizes.expand_as(journey.sizes)
        else:
            sizes = journey.sizes
        gap, way = sizes[:, :1], sizes[:, 1:]
        seen, following = journey.seen, journey.following
        middle = seen.places[:, :1]
        places = middle + (seen.places - middle) / way[..., None] if seen.places.shape[-1] else seen.places
        seen = seen._replace(times=seen.times / gap, places=places, profiles=_divided(seen.profiles, way[..., None]))
        following = following._replace(gaps=following.gaps / gap, floors=following.floors / gap)
        return Journey(seen, following, _divided(journey.way, way), sizes)

    def states(self, measured: Journey) -> Tensor:
        """(batch, n, dim) of what `measured` gives."""
        seen = measured.seen
        features = _features(seen.profiles[..., 0])
        if self.units == "region+size":
            told = (measured.sizes[:, :1] / self.typical[0]).log().clamp(-SIZED, SIZED)
            features = torch.cat([features, told[:, None].expand(-1, features.shape[1], -1)], -1)
        states: Tensor = self.history(seen._replace(profiles=features))
        return states

    def forward(self, journey: Journey) -> Tensor:
        """(batch, n, 3) float64: log likelihood of the time, the mark and the way of what follows each token, in the
        units of the data; 0 where it is not scored, or not known. Their sum is that of the window."""
        measured = self.measured(journey)
        return self.likelihood(measured, self.states(measured))

    def likelihood(self, measured: Journey, states: Tensor) -> Tensor:
        """As `forward`, from what `measured` and `states` give."""
        following = measured.following
        coming = following.scored & (following.marks >= 0)
        moved = coming & (measured.way >= 0)
        # Silence of no length says nothing, and its logarithm would spoil the gradient.
        silent = following._replace(scored=following.scored & ((following.marks >= 0) | (following.gaps > 0)))
        mark, way = torch.zeros_like(following.gaps), torch.zeros_like(following.gaps)
        mark[coming] = self.head.log_marks(states[coming], following.gaps[coming]).gather(
            -1, following.marks[coming][:, None]
        )[:, 0]
        way[moved] = self.head.log_way(states[moved], measured.way[moved])
        time = self.head.log_likelihood(states, silent) - mark
        # Densities are by unit: a gap of the data is so many units long.
        time = time - coming * measured.sizes[:, :1].log()
        way = way - (moved & (measured.way > 0)) * measured.sizes[:, 1:].log()
        return torch.stack([time, mark, way], -1)

    def nats(self, journey: Journey) -> Tensor:
        """Scalar: minus the log likelihood, an event."""
        return an_event(self(journey), journey)


def an_event(likelihood: Tensor, journey: Journey) -> Tensor:
    """Scalar: minus the sum, an event that is scored."""
    return -likelihood.sum() / max(journey.events, 1)


def _divided(ways: Tensor, unit: Tensor) -> Tensor:
    """Ways in the unit; what is unknown stays so."""
    return torch.where(ways > 0, ways / unit, ways)


def _features(came: Tensor) -> Tensor:
    """(.., 3) of the way to a token: its logarithm, whether it was 0, whether it is known."""
    log = torch.where(came > 0, came, 1.0).log() / SPREAD
    return torch.stack([log, (came == 0).to(log.dtype), (came >= 0).to(log.dtype)], -1)
