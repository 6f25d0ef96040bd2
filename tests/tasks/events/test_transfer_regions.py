"""Regions, their sizes, and the classical models that know a source."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks.events.processes import Hawkes, Poisson
from relpos.tasks.events.sequences import Sequences
from relpos.tasks.events.transfer import rivals
from relpos.tasks.events.transfer.regions import UNKNOWN, Prior, Region, joined, ways
from tests.tasks.events.areas import HORIZON, made


@functools.lru_cache
def prior(regions: int = 6) -> Prior:
    return Prior.of(made(tuple(range(20, 20 + 10 * regions, 10))))


def test_ways_are_great_circle_distances_and_standing_still_is_zero() -> None:
    places = [[[10.0, 179.9], [10.0, -179.9], [10.0, -179.9], [-30.0, 5.0]], [[0.0, 0.0]]]
    found = ways(Sequences.of([[1.0, 2.0, 3.0, 4.0], [1.0]], places=places, window=(0, 5)))
    assert found[0] == found[4] == UNKNOWN and found[2] == 0.0
    assert found[1] == pytest.approx(21.90, abs=0.005)
    phi, psi, lam = math.radians(10), math.radians(-30), math.radians(184.9)
    cosine = math.sin(phi) * math.sin(psi) + math.cos(phi) * math.cos(psi) * math.cos(lam)
    assert found[3] == pytest.approx(6371.0088 * math.acos(cosine), rel=1e-9)


def test_the_prior_finds_the_gamma_distribution_that_regions_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 0.1, size=150)
    counts = tuple(rng.poisson(rates * HORIZON).clip(1).tolist())
    found = Prior.of(made(counts))
    assert found.shape == pytest.approx(2.0, rel=0.3)
    assert found.shape / found.rate == pytest.approx(0.2, rel=0.15)
    shares = found.marks / found.marks.sum()
    assert shares[0] == pytest.approx(0.5, abs=0.03) and found.marks.sum() > 50  # all alike: a firm prior
    assert found.still[0] / found.still.sum() == pytest.approx(0.2, abs=0.03)


def test_a_prior_takes_two_regions() -> None:
    with pytest.raises(ValueError, match="at least two of them, got 1"):
        Prior.of(made((30,)))


@given(count=st.integers(1, 200), gap=st.floats(0.01, 100), way=st.floats(0.01, 50))
@settings(max_examples=30, deadline=None)
def test_a_size_lies_between_what_was_seen_and_the_prior(count: int, gap: float, way: float) -> None:
    known = prior()
    typical, seen = known.size(), known.size(count, count * gap, np.full(count, way))
    assert min(typical.gap, gap) * 0.999 <= seen.gap <= max(typical.gap, gap) * 1.001
    assert min(typical.way, way) * 0.999 <= seen.way <= max(typical.way, way) * 1.001
    more = known.size(1000 * count, 1000 * count * gap, np.full(1000 * count, way))
    assert abs(math.log(more.gap / gap)) <= abs(math.log(seen.gap / gap)) + 1e-9
    assert abs(math.log(more.way / way)) <= abs(math.log(seen.way / way)) + 1e-9


def test_the_start_of_a_region_knows_nothing_of_the_rest() -> None:
    region = Region(made((30,)))
    first = region.start(7)
    assert len(first) == 7 and first.events.end[0] == first.events.times[-1] == region.events.times[6]
    assert np.array_equal(first.ways, region.ways[:7])
    assert region.elapsed(0, 7) == region.events.times[6] and region.elapsed(3, 5) == pytest.approx(
        region.events.times[4] - region.events.times[2]
    )
    with pytest.raises(ValueError, match="region 0 has 30 events, so there are not 31 to adapt to"):
        region.start(31)


def test_the_way_of_a_token_is_that_to_the_next_event_and_is_not_among_what_is_seen() -> None:
    region, known = Region(made((9,))), prior()
    journey = region.take(region.tape.runs(16, 8), [known.size()])
    assert journey.seen.profiles[0, :, 0].tolist() == [UNKNOWN, *region.ways]
    assert journey.way[0].tolist() == [UNKNOWN, *region.ways[1:], UNKNOWN]
    assert journey.events == 9
    other = Region(made((4,), 3))
    both = joined([journey, other.take(other.tape.runs(16, 8), [known.size()])])
    assert both.way.shape == (2, 10) and both.events == 13
    assert both.seen.mask.sum(1).tolist() == [10, 5] and not both.following.scored[1, 5:].any()


def integrated(region: Region, cut: float, known: Prior, alpha: np.ndarray, beta: float) -> float:
    """Log likelihood by a sum over fine steps of the intensity as it is defined."""
    times, kinds = region.events.times, region.events.kinds

    def intensity(t: float) -> np.ndarray:
        past = times < t
        shares = (np.bincount(kinds[past], minlength=2) + known.marks) / (past.sum() + known.marks.sum())
        rate = (known.shape + past.sum()) / (known.rate + t) * shares
        rate = np.maximum(rate - alpha @ rate, rivals.LEAST_SHARE * rate)
        return rate + sum(
            alpha[:, kind] * beta * math.exp(-beta * (t - at)) for at, kind in zip(times[past], kinds[past])
        )

    edges = [cut, *times[times > cut], float(region.events.end[0])]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        x, w = np.polynomial.legendre.leggauss(20)
        at = low + (high - low) * (x + 1) / 2
        total -= (high - low) / 2 * sum(weight * intensity(t).sum() for t, weight in zip(at, w))
    return total + sum(math.log(intensity(t)[k]) for t, k in zip(times, kinds) if t > cut)


@pytest.mark.parametrize("excited", [False, True])
def test_a_background_updated_with_every_event_has_the_likelihood_of_its_intensity(excited: bool) -> None:
    region, known = Region(made((20,), 5)), prior()
    alpha, beta = (np.array([[0.3, 0.1], [0.05, 0.2]]), 0.7) if excited else (np.zeros((2, 2)), 1.0)
    cut = float(region.events.times[5])
    how = rivals.Excitement(Hawkes([1.0, 1.0], alpha, beta), alpha, beta) if excited else None
    assert rivals.updated(region, cut, known, how) == pytest.approx(
        integrated(region, cut, known, alpha, beta), abs=1e-6
    )


def test_rivals_without_excitement_are_poisson_processes() -> None:
    region, known = Region(made((20,), 5)), prior()
    nothing = rivals.Excitement(Hawkes([0.5, 0.5], np.zeros((2, 2)), 1.0), np.zeros((2, 2)), 1.0)
    cut = float(region.events.times[5])
    found = rivals.scores(region, 6, cut, known, nothing)
    assert found[rivals.RATED] == pytest.approx(found[rivals.POOLED])
    assert found[rivals.EXCITED] == pytest.approx(found[rivals.UPDATED])
    rate = known.events(6, cut)
    stretched = Poisson([rate / 2, rate / 2]).log_likelihood(region.events, cut)[0]
    assert found[rivals.STRETCHED][0] == pytest.approx(stretched)
    counts = np.bincount(region.events.kinds[:6], minlength=2)
    shares = (counts + known.marks) / (6 + known.marks.sum())
    later = region.events.kinds[6:]
    by_hand = np.log(rate * shares[later]).sum() - rate * (HORIZON - cut)
    assert found[rivals.POOLED][0] == pytest.approx(by_hand)


def test_ways_of_rivals_have_a_density() -> None:
    known = prior()
    still, mean, spread = rivals._way(np.array([UNKNOWN, 0.0, 0.4, 0.7]), known)
    x = torch.linspace(math.log(1e-4), math.log(1e3), 4001, dtype=torch.float64).exp().numpy()
    density = np.exp([rivals._ways(np.array([each]), still, mean, spread) for each in x])
    assert np.trapezoid(density, x) == pytest.approx(1 - still, abs=1e-4)
    assert rivals._ways(np.array([0.0, UNKNOWN]), still, mean, spread) == pytest.approx(math.log(still))
