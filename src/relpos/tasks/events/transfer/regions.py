"""Regions: where events happen, how fast and how far apart, and what known regions say of one hardly seen yet.

The size of a region is the unit that a network measures it in: the mean time between its events, and the geometric mean
of the way from one event to the next. Of a region with few events both are drawn towards what other regions have, as
far as these differ among each other (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relpos.positions import EARTH_RADIUS_KM
from relpos.tasks.events.neural import Following, Seen, Tape
from relpos.tasks.events.neural.tape import Run
from relpos.tasks.events.processes.base import Since
from relpos.tasks.events.processes.scan import minimise
from relpos.tasks.events.sequences import Sequences

UNKNOWN = -1.0  # of a distance: there is no event before


@dataclass(frozen=True)
class Size:
    """gap: mean time between events, in the unit of the data; way: geometric mean of the distances, in km."""

    gap: float
    way: float


def ways(sequences: Sequences) -> np.ndarray:
    """(events,) great-circle km from the event before; `UNKNOWN` for the first of a sequence."""
    if sequences.places is None:
        raise ValueError("distances take places: give the sequences latitudes and longitudes")
    latitude, longitude = np.radians(sequences.places).T
    flat = np.cos(latitude)
    points = np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], -1)
    chord = np.sqrt((np.diff(points, axis=0, prepend=points[:1]) ** 2).sum(-1))
    found = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1.0))
    # Rounding of the points, some 1e-9 km, must not make a way of standing still.
    found[np.concatenate([[False], (np.diff(sequences.places, axis=0) == 0).all(1)])] = 0.0
    found[sequences.firsts] = UNKNOWN
    return found


@dataclass(frozen=True)
class Prior:
    """What the regions of the source say of another.

    shape, rate       of a gamma distribution of a region's events an hour (or another unit of time)
    middle, between   mean and standard deviation of a region's mean logarithm of distance; within: of single logarithms
    marks             (marks,) of a Dirichlet distribution of a region's shares of marks
    still             (2,) likewise: of standing still, and of moving on
    """

    shape: float
    rate: float
    middle: float
    between: float
    within: float
    marks: np.ndarray
    still: np.ndarray

    @classmethod
    def of(cls, sequences: Sequences) -> Prior:
        """By maximum likelihood, distances by moments. ValueError for fewer than two regions."""
        if len(sequences) < 2:
            raise ValueError(f"a prior over regions takes at least two of them, got {len(sequences)}")
        shape, rate = _gamma(sequences.lengths, sequences.end - sequences.start)
        counts = np.stack([one.count_marks() for one in sequences])
        found = [ways(one) for one in sequences]
        still = np.stack([[np.sum(each == 0), np.sum(each > 0)] for each in found]).astype(np.float64)
        logs = [np.log(each[each > 0]) for each in found]
        logs = [each for each in logs if len(each)]
        within = float(np.sqrt(sum(((x - x.mean()) ** 2).sum() for x in logs) / max(sum(len(x) for x in logs), 1)))
        within = max(within, 0.05)
        means = np.array([each.mean() for each in logs])
        noise = np.mean([within**2 / len(each) for each in logs])
        between = float(np.sqrt(max(means.var() - noise, 0.01**2)))
        return cls(shape, rate, float(means.mean()), between, within, _dirichlet(counts), _dirichlet(still))

    def events(self, count: float, elapsed: float) -> float:
        """Events a unit of time of a region of which ``count`` were seen in ``elapsed``: the posterior mean."""
        return (self.shape + count) / (self.rate + elapsed)

    def log_way(self, distances: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of what the logarithm of the next distance above 0 may be."""
        logs = np.log(distances[distances > 0])
        precision = 1 / self.between**2 + len(logs) / self.within**2
        mean = (self.middle / self.between**2 + logs.sum() / self.within**2) / precision
        return float(mean), float(np.sqrt(self.within**2 + 1 / precision))

    def size(self, count: float = 0.0, elapsed: float = 0.0, distances: np.ndarray | None = None) -> Size:
        """Of a region of which so much was seen; of nothing: the typical one."""
        mean, _ = self.log_way(np.zeros(0) if distances is None else distances)
        return Size(1 / self.events(count, elapsed), float(np.exp(mean)))


class Journey(NamedTuple):
    """Runs of regions. The profiles of ``seen`` are the ways to the tokens, (batch, n, 1), below 0 where unknown.

    way     (batch, n) float64: km from each token to the event after it; below 0 where none is known
    sizes   (batch, 2) float64: the gap and the way of the `Size` of each run's region
    """

    seen: Seen
    following: Following
    way: Tensor
    sizes: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything in a row, as a batch; `of` is the inverse."""
        return (*self.seen, *self.following, self.way, self.sizes)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Journey:
        return cls(Seen(*tensors[:5]), Following(*tensors[5:9]), tensors[9], tensors[10])

    def rows(self, which: slice) -> Journey:
        """Some of the runs."""
        return Journey.of([each[which] for each in self.tensors()])

    @property
    def events(self) -> int:
        """Events that are scored."""
        return int((self.following.scored & (self.following.marks >= 0)).sum())


def joined(journeys: Sequence[Journey]) -> Journey:
    """Runs of several regions as one batch; pads repeat the last token and are neither seen nor scored."""
    longest = max(each.way.shape[1] for each in journeys)
    return Journey.of([torch.cat(parts) for parts in zip(*(_padded(each, longest) for each in journeys))])


def _padded(journey: Journey, length: int) -> tuple[Tensor, ...]:
    lack = length - journey.way.shape[1]
    columns = [torch.cat([x, x[:, -1:].expand(-1, lack, *x.shape[2:])], 1) for x in journey.tensors()[:-1]]
    longer = Journey.of([*columns, journey.sizes])
    real = (torch.arange(length) < length - lack).to(longer.seen.mask)
    hidden = longer.following.scored & real
    return Journey(
        longer.seen._replace(mask=longer.seen.mask & real), longer.following._replace(scored=hidden), *longer[2:]
    ).tensors()


class Region:
    """One region: its events, the ways between them and its tape. since: as for `Tape`, scored is what comes after."""

    def __init__(self, one: Sequences, since: Since = None) -> None:
        if len(one) != 1:
            raise ValueError(f"a region is one sequence, got {len(one)}")
        self.name, self.events = one.ids[0] if one.ids else "region", one
        self.ways = ways(one)
        leaving = np.append(self.ways[1:], UNKNOWN)[: len(self.ways)]
        self.tape = Tape(Sequences(**{**vars(one), "profiles": np.stack([self.ways, leaving], -1)}), since)

    def __len__(self) -> int:
        """Events."""
        return len(self.events.times)

    def elapsed(self, first: int, last: int) -> float:
        """Time in which events first .. last - 1 came: since the event before, or since the start of the window."""
        times = self.events.times
        begin = times[first - 1] if first else self.events.start[0]
        return float(times[last - 1] - begin) if last > first else 0.0

    def size(self, prior: Prior, first: int, last: int) -> Size:
        """As events first .. last - 1 tell it."""
        return prior.size(last - first, self.elapsed(first, last), self.ways[first:last])

    def start(self, count: int) -> Region:
        """The first events and no more, in a window that ends with the last of them."""
        if not 0 < count <= len(self):
            raise ValueError(f"{self.name} has {len(self)} events, so there are not {count} to adapt to")
        return Region(self.events.until(self.events.times[count - 1]))

    def take(self, runs: list[Run], sizes: list[Size]) -> Journey:
        """Some runs, and the size of the region as it is known at each."""
        seen, following = self.tape.take(runs)
        began = seen.marks == self.events.mark_count  # the start of a window stands nowhere
        came, way = (torch.where(began | ~seen.mask, UNKNOWN, each) for each in seen.profiles.unbind(-1))
        known = torch.tensor([[each.gap, each.way] for each in sizes], dtype=torch.float64)
        return Journey(seen._replace(profiles=came[..., None]), following, way, known)


def _gamma(counts: np.ndarray, exposure: np.ndarray) -> tuple[float, float]:
    """Shape and rate under which counts over exposures are likeliest: each is negative binomial."""
    n, t = torch.from_numpy(counts.astype(np.float64)), torch.from_numpy(exposure)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        shape_rate = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        a, b = shape_rate.exp()
        each = torch.lgamma(a + n) - torch.lgamma(a) + a * (b / (b + t)).log() - n * (b + t).log()
        return _value(-each.sum(), shape_rate)

    mean = float(counts.sum() / exposure.sum())
    shape, rate = np.exp(minimise(objective, np.log([1.0, 1.0 / mean])).clip(-30, 15))
    return float(shape), float(rate)


def _dirichlet(counts: np.ndarray) -> np.ndarray:
    """(kinds,) under which (regions, kinds) counts are likeliest; at most worth 1000 events a kind."""
    found = torch.from_numpy(counts)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        logs = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        a = logs.exp()
        each = torch.lgamma(a.sum()) - torch.lgamma(a.sum() + found.sum(1))
        parts = (torch.lgamma(a + found) - torch.lgamma(a)).sum(1)
        # A weak pull to one event a kind: else regions that are all alike have no finite answer.
        return _value(-(each + parts).sum() + 0.01 * logs.square().sum(), logs)

    shares = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * counts.shape[1])
    return np.exp(minimise(objective, np.log(counts.shape[1] * shares)).clip(-7, np.log(1000)))


def _value(value: Tensor, point: Tensor) -> tuple[float, np.ndarray]:
    value.backward()  # type: ignore[no-untyped-call]
    assert point.grad is not None
    return float(value.detach()), point.grad.numpy()
