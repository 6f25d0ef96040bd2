"""Matching of imputed to hidden events, the score of a rate, placing, and the imputers without networks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks.events import Sequences
from relpos.tasks.events.imputers import Cells, both_ways, evenly, expected, mirrored, place, thinned
from relpos.tasks.events.metrics.recovery import Recovery, match, rate_score, recovery
from relpos.tasks.events.processes import Hawkes, PeriodicPoisson, Poisson, simulate

times = st.lists(st.floats(0, 6), max_size=5).map(lambda x: np.sort(np.array(x, dtype=np.float64)))


def test_recovery_by_hand() -> None:
    found = recovery(
        np.array([1.0, 2.0, 5.0, 9.0]), np.array([0, 1, 0, 0]), np.array([1.5, 2.25, 7.0]), np.array([0, 0, 1]), 0.5
    )
    assert (found.matched, found.imputed, found.hidden) == (2, 4, 3)
    assert found.precision == 0.5 and found.recall == pytest.approx(2 / 3) and found.f1 == pytest.approx(4 / 7)
    assert found.time_error == pytest.approx(0.375)  # 0.5 and 0.25
    assert found.mark_accuracy == 0.5


def test_each_event_is_matched_once_and_the_larger_assignment_wins_over_the_nearer() -> None:
    # the nearest pair (2.0, 2.1) would leave 1.0 and 3.0 alone
    pairs = match(np.array([1.2, 2.0]), np.array([2.1, 2.9]), 1.0)
    assert pairs.tolist() == [[0, 0], [1, 1]]
    assert match(np.array([1.0, 1.1, 1.2]), np.array([1.16]), 1.0).tolist() == [[2, 0]]
    assert match(np.zeros(0), np.array([1.0]), 1.0).shape == (0, 2)


def test_sums_of_recoveries_and_empty_ones() -> None:
    none = Recovery(0, 0, 3, 0.0, 0)
    assert none.precision == none.recall == none.f1 == 0.0
    assert math.isnan(none.time_error) and math.isnan(none.mark_accuracy)
    both = none + Recovery(1, 2, 1, 0.25, 1)
    assert (both.matched, both.imputed, both.hidden, both.time_error) == (1, 2, 4, 0.25)


@settings(max_examples=60, deadline=None)
@given(times, times, st.floats(0.1, 3))
def test_matching_is_the_best_of_all_assignments(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    pairs = match(a, b, tolerance)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    own = (len(pairs), -np.abs(a[pairs[:, 0]] - b[pairs[:, 1]]).sum())
    best = (0, 0.0)
    for size in range(1, min(len(a), len(b)) + 1):
        for left in itertools.combinations(range(len(a)), size):
            for right in itertools.permutations(range(len(b)), size):
                far = np.abs(a[list(left)] - b[list(right)])
                if (far <= tolerance).all():
                    best = max(best, (size, -float(far.sum())))
    assert own[0] == best[0] and own[1] == pytest.approx(best[1])


def test_matching_refuses_what_is_not_sorted() -> None:
    with pytest.raises(ValueError, match="hidden events are finite times in rising order"):
        match(np.array([1.0]), np.array([2.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match="tolerance"):
        match(np.array([1.0]), np.array([2.0]), -1.0)


def test_the_score_of_a_rate_is_highest_for_the_true_one() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.0, 0.4, (5000, 2))
    counts = rng.poisson(truth).astype(np.float64)
    own = rate_score([truth], [counts], 0.25, floor=0.0)
    by_hand = ((counts * np.log(truth / 0.25)).sum() - truth.sum()) / counts.sum()
    assert own == pytest.approx(by_hand)
    for other in (1.3 * truth, 0.7 * truth, np.full_like(truth, truth.mean()), truth[:, ::-1], truth[::-1]):
        assert rate_score([other], [counts], 0.25, floor=0.0) < own
    with pytest.raises(ValueError, match="no hidden event"):
        rate_score([truth], [np.zeros_like(counts)], 0.25)


def cells(*spans: tuple[float, float], width: float = 0.25) -> Cells:
    start, end = np.array(spans).T
    return Cells(start, end, width)


def test_placing_by_hand() -> None:
    own = cells((0.0, 10.0), (5.0, 8.0))
    masses = [np.zeros((40, 2)), np.zeros((12, 2))]
    masses[0][8, 1] = 0.9  # around 2.1
    masses[0][9, 0] = 0.2
    masses[0][30, 0] = 0.5  # around 7.6
    masses[1][4, 0] = 0.7  # around 6.1
    placed = place(masses, own, 3, 0.5)
    assert [len(times) for times, _ in placed] == [2, 1]
    assert placed[0][0] == pytest.approx([2.125, 7.625])
    assert placed[0][1].tolist() == [1, 0] and placed[1][1].tolist() == [0]
    assert placed[1][0] == pytest.approx([6.125])


def test_where_two_are_expected_two_are_placed() -> None:
    masses = [np.zeros((40, 1)), np.zeros((40, 1))]
    masses[0][10, 0] = 1.9
    masses[1][20, 0] = 0.6
    placed = place(masses, cells((0.0, 10.0), (0.0, 10.0)), 2, 0.5)
    assert [len(times) for times, _ in placed] == [2, 0]
    assert len(place(masses, cells((0.0, 10.0), (0.0, 10.0)), 500, 0.5)[0][0]) == 40  # no more than cells


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 60))
def test_placing_spends_the_budget_inside_the_windows(seed: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    own = cells((0.0, 10.1), (3.0, 3.0), (-2.0, 5.0))
    masses = [rng.uniform(0, 0.3, (int(count), 2)) for count in own.counts]
    placed = place(masses, own, budget, 1.0)
    assert sum(len(times) for times, _ in placed) == budget
    for row, (found, marks) in enumerate(placed):
        assert (np.diff(found) > 0).all() and len(marks) == len(found)
        assert ((found > own.start[row]) & (found <= own.end[row])).all()


def test_cells_count_events() -> None:
    events = Sequences.of([[0.1, 1.0, 2.4, 2.6]], marks=[[0, 1, 1, 0]], window=(0.0, 3.0))
    table = cells((1.0, 3.0), width=0.5).count(events)[0]
    assert table.tolist() == [[0, 0], [0, 0], [0, 1], [1, 0]]  # what is at the start does not count


def test_events_at_equal_distances_in_long_gaps() -> None:
    recorded = Sequences.of([[1.0, 2.0, 8.0]], window=(0.0, 12.0))
    placed = evenly(recorded, np.array([1.0]), 3, np.array([1.0]), np.array([0]))
    # gaps of 1, 6 and 4 hold 3 events at a threshold just above 2: two in the second, one in the third
    assert placed[0][0] == pytest.approx([4.0, 6.0, 10.0])
    assert len(evenly(recorded, np.array([1.0]), 0, np.array([1.0]), np.array([0]))[0][0]) == 0


def test_hidden_events_come_by_the_odds_of_the_recorded_ones() -> None:
    truth = Poisson([0.8, 0.4])
    recorded = Sequences.of([[1.0, 2.0]], marks=[[0, 1]], window=(0.0, 100.0), mark_count=2)
    own = cells((0.0, 100.0))
    masses = expected([truth], recorded, own, 0.5)
    assert masses[0].sum(0) == pytest.approx([80, 40])
    assert expected([truth], recorded, own, 0.1)[0].sum() == pytest.approx(120 / 9)


def test_a_thinned_process_has_the_thinned_rate() -> None:
    model = Hawkes([0.5, 0.3], [[0.3, 0.2], [0.1, 0.4]], 1.5)
    less = thinned(model, 0.6)
    assert isinstance(less, Hawkes)

    def rate(x: Hawkes) -> np.ndarray:
        return np.linalg.solve(np.eye(2) - x.alpha, x.mu)

    assert rate(less) == pytest.approx(0.6 * rate(model))
    same = thinned(model, 1.0)
    assert isinstance(same, Hawkes) and same.mu == pytest.approx(model.mu)
    table = PeriodicPoisson(np.array([[1.0], [2.0]]), 24.0)
    assert thinned(table, 0.5).at(np.array([1.0, 13.0])).ravel() == pytest.approx([0.5, 1.0])


def test_mirroring_twice_changes_nothing() -> None:
    events = simulate(Hawkes([0.5, 0.3], [[0.3, 0.2], [0.1, 0.4]], 1.5), window=(0, 30), seed=1, count=3)
    turned = mirrored(events)
    assert (
        turned.start == pytest.approx(-events.end) and (np.concatenate([np.diff(x.times) for x in turned]) >= 0).all()
    )
    back = mirrored(turned)
    assert back.times == pytest.approx(events.times) and (back.kinds == events.kinds).all()


def test_looking_both_ways_finds_hidden_events_of_a_hawkes_process_better() -> None:
    truth = Hawkes([0.05], [[0.7]], 2.0)
    whole = simulate(truth, window=(0, 1500), seed=3)
    gone = np.random.default_rng(0).random(len(whole.times)) < 0.3
    recorded, hidden = whole.keep(~gone), whole.keep(gone)
    own = Cells(recorded.start, recorded.end, 0.25)
    forth, back = (Hawkes.fit(each, starts=(10.0,)) for each in (recorded, mirrored(recorded)))
    rows = {
        "poisson": expected([Poisson.fit(recorded)], recorded, own, 0.3),
        "forth": expected([forth], recorded, own, 0.3),
        "both": both_ways([forth], [back], recorded, own, 0.3),
    }
    counts = own.count(hidden)
    budget = round(len(recorded.times) * 3 / 7)
    scores = {name: rate_score(masses, counts, 0.25) for name, masses in rows.items()}
    assert scores["poisson"] + 0.2 < scores["forth"] and scores["forth"] + 0.1 < scores["both"]
    f1 = {}
    for name, masses in rows.items():
        (at, marks), *_ = place(masses, own, budget, 1.0)
        f1[name] = recovery(at, marks, hidden.times, hidden.kinds, 1.0).f1
    assert f1["poisson"] < f1["forth"] < f1["both"]
    assert sum(mass.sum() for mass in rows["both"]) == pytest.approx(len(recorded.times) * 3 / 7, rel=0.02)
