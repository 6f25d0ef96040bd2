"""OTD and T-mAP against brute force over all matchings, and by hand."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relpos.tasks.events.metrics import Foretold, otd, t_map
from relpos.tasks.events.metrics.horizon import heaviest_matching

Events = tuple[np.ndarray, np.ndarray]


def drawn(rng: np.random.Generator, most: int = 4, marks: int = 2) -> Events:
    count = int(rng.integers(most + 1))
    return np.sort(rng.uniform(0, 5, count)), rng.integers(marks, size=count)


def brute_otd(one: Events, other: Events, insert: float, delete: float) -> float:
    """The least over all ways to pair some events of one with as many of the other."""
    best = np.inf
    n, m = len(one[0]), len(other[0])
    for size in range(min(n, m) + 1):
        for kept in combinations(range(n), size):
            for onto in permutations(range(m), size):
                pairs = list(zip(kept, onto))
                if any(one[1][i] != other[1][j] for i, j in pairs):
                    continue
                cost = sum(abs(one[0][i] - other[0][j]) for i, j in pairs)
                best = min(best, cost + delete * (n - size) + insert * (m - size))
    return best


@given(st.integers(0, 10**6), st.sampled_from([(1.0, 1.0), (0.3, 1.2)]))
def test_otd_is_the_best_of_all_ways(seed: int, costs: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    one, other = drawn(rng), drawn(rng)
    assert otd(*one, *other, *costs) == pytest.approx(brute_otd(one, other, *costs))


def test_otd_by_hand() -> None:
    nothing = np.zeros(0), np.zeros(0, dtype=np.int64)
    two = np.array([1.0, 2.0]), np.array([0, 1])
    assert otd(*two, *two) == 0
    assert otd(*two, *nothing) == 2 and otd(*nothing, *two, insert=3.0) == 6
    assert otd(*two, np.array([1.5, 2.0]), np.array([0, 1])) == 0.5
    assert otd(*two, np.array([1.0, 2.0]), np.array([1, 0])) == 2, "either moves by 1, onto its own mark"
    assert otd(*two, np.array([4.0]), np.array([0])) == 3, "farther than 2 it is cheaper to delete and insert"
    with pytest.raises(ValueError, match="rise"):
        otd(np.array([2.0, 1.0]), np.array([0, 0]), *two)


@given(st.integers(0, 10**6))
def test_the_heaviest_matching_is_that_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 5, 2)
    allowed, weights = rng.random((rows, columns)) < 0.4, rng.normal(size=rows)
    raised = weights - weights.min() + 1.0
    best, taken = 0.0, frozenset()
    for size in range(1, min(rows, columns) + 1):
        for kept in combinations(range(rows), size):
            for onto in permutations(range(columns), size):
                if all(allowed[i, j] for i, j in zip(kept, onto)) and raised[list(kept)].sum() > best:
                    best, taken = raised[list(kept)].sum(), frozenset(kept)
    assert frozenset(np.flatnonzero(heaviest_matching(allowed, weights)).tolist()) == taken


def case(times: list[float], scores: list[list[float]], came: list[float], marks: list[int]) -> Foretold:
    return Foretold(
        10.0,
        10 + np.array(times),
        np.array(scores).reshape(-1, 2),
        10 + np.array(came),
        np.array(marks, dtype=np.int64),
    )


def test_t_map_by_hand() -> None:
    # of mark 0: the surest is off by 3, the next is right, one that came is never found
    one = case([4.0, 1.0], [[0.9, 0.0], [0.8, 0.0]], [1.2, 7.0], [0, 0])
    assert t_map([one], 8, [0.5]) == pytest.approx((1 / 2) * (1 / 2) / 2)
    assert t_map([one], 8, [0.5], weighted=True) == pytest.approx(1 / 4)
    assert t_map([one], 8, [0.1]) == 0
    # within 3 both are matched: precision 1 at either recall
    assert t_map([one], 8, [3.0]) == pytest.approx(0.5)
    assert t_map([one], 8, [3.0], as_released=True) == 0
    assert t_map([one], 8, [0.1, 3.0]) == pytest.approx(0.25)
    # what comes at or after the horizon does not count, of either side
    assert t_map([one], 4.0, [0.5], weighted=True) == pytest.approx(1.0)
    # a second case shares the ranking: a miss that is surer than the hit halves precision
    other = case([2.0], [[0.85, 0.0]], [], [])
    assert t_map([one, other], 8, [0.5]) == pytest.approx((1 / 3) * (1 / 2) / 2)


def test_t_map_gives_an_event_to_the_surer_of_two() -> None:
    one = case([1.0, 1.1], [[0.2, 0.0], [0.9, 0.0]], [1.0], [0])
    assert t_map([one], 8, [0.5], weighted=True) == 1.0
    # but makes room where both can be matched
    two = case([1.0, 1.4], [[0.9, 0.0], [0.2, 0.0]], [0.7, 1.2], [0, 0])
    assert t_map([two], 8, [0.35], weighted=True) == 1.0


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="a horizon above 0"):
        t_map([case([], [], [], [])], 0.0, [1.0])
    assert t_map([case([], [], [], [])], 1.0, [1.0]) == 0.0
