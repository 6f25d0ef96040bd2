"""Poisson, renewal and Hawkes processes: laws of the window likelihood, recovery of what made the data, calibration."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks.events import Sequences, anchors
from relpos.tasks.events.processes import (
    Hawkes,
    LogNormalMixture,
    NextEvent,
    PeriodicPoisson,
    Poisson,
    Process,
    Renewal,
    crps,
    crps_samples,
    gap_density,
    kolmogorov,
    ks_exponential,
    ks_uniform,
    pit,
    rescaled,
    simulate,
)
from relpos.tasks.events.processes.scan import scan

TABLE = np.random.default_rng(5).uniform(0.2, 1.5, (6, 2))
TRUTH = Hawkes([0.5, 0.3], [[0.3, 0.2], [0.1, 0.4]], 1.5)
PROCESSES: list[Process] = [
    Poisson([0.7, 0.4]),
    PeriodicPoisson(TABLE, 4.0, 0.7),
    Renewal(LogNormalMixture(-0.2, math.log(0.9)), [0.3, 0.7]),
    TRUTH,
    Hawkes([0.5, 1.3], [[0.3, 0.2], [0.1, 0.4]], 0.8, PeriodicPoisson(TABLE, 4.0, 0.7)),
]
NAMES = [f"{each.name}-{index}" for index, each in enumerate(PROCESSES)]


def some(seed: int = 0, counts: tuple[int, ...] = (5, 0, 1, 9), end: float = 20.0) -> Sequences:
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.uniform(1, end, count)) for count in counts]
    marks = [rng.integers(2, size=count) for count in counts]
    return Sequences.of(times, marks=marks, window=(1.0, end), mark_count=2)


def brute(process: Process, events: Sequences, row: int) -> float:
    """Log likelihood of one window by the definition: a sum over pairs, and midpoints of a fine grid."""
    one = events.select([row])
    start, end = float(one.start[0]), float(one.end[0])

    def rates(t: float) -> np.ndarray:
        past = one.times < t
        if isinstance(process, Hawkes):
            found = process.mu * process.background.at(np.array([t]))[0]
            for time, kind in zip(one.times[past], one.kinds[past]):
                found = found + process.alpha[:, kind] * process.beta * math.exp(-process.beta * (t - time))
            return np.asarray(found)
        if isinstance(process, Renewal):
            since = t - (one.times[past][-1] if past.any() else start)
            return np.exp(process.gaps.log_hazard(torch.tensor(since)).numpy()) * process.shares
        assert isinstance(process, Poisson)
        return process.at(np.array([t]))[0]

    seen = sum(math.log(rates(t)[kind]) for t, kind in zip(one.times, one.kinds))
    jumps = 0.7 + 4.0 / 6 * np.arange(-1, 40)  # where the periodic rates of these tests change
    edges = np.unique(np.concatenate([[start], one.times, jumps[(jumps > start) & (jumps < end)], [end]]))
    total = 0.0
    for low, high in pairwise(edges):
        grid = low + (high - low) * (np.arange(40) + 0.5) / 40
        total += sum(rates(t).sum() for t in grid) * (high - low) / 40
    return seen - total


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_the_likelihood_is_that_of_the_definition(process: Process) -> None:
    events = some()
    found = process.log_likelihood(events)
    for row in range(len(events)):
        assert found[row] == pytest.approx(brute(process, events, row), abs=8e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_a_window_may_be_cut_anywhere(process: Process) -> None:
    events = some(1)
    whole = process.log_likelihood(events)
    for cut in (1.0, 4.321, float(events.times[3]), 20.0):
        parts = process.log_likelihood(events.until(cut)) + process.log_likelihood(events, since=cut)
        np.testing.assert_allclose(parts, whole, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_the_future_does_not_reach_back_and_sequences_do_not_touch(process: Process) -> None:
    events = some(2)
    single = np.concatenate([process.log_likelihood(one) for one in events])
    np.testing.assert_allclose(single, process.log_likelihood(events), atol=1e-12)
    later = events.replace(np.arange(len(events.times)), events.offsets)
    later.times[-4:] += 0.001
    later.marks[-4:] = 1 - later.marks[-4:]
    same = slice(0, len(events.times) - 4)
    assert np.array_equal(process.log_intensity(events)[same], process.log_intensity(later)[same])


def test_a_shift_changes_nothing_and_a_unit_only_counts_its_logarithm() -> None:
    events = some(3)
    for by in (1e4, 1e6):
        moved = [TRUTH.log_likelihood(events.shifted(by)), PROCESSES[2].log_likelihood(events.shifted(by))]
        np.testing.assert_allclose(moved[0], TRUTH.log_likelihood(events), atol=1e-6)
        np.testing.assert_allclose(moved[1], PROCESSES[2].log_likelihood(events), atol=1e-6)
    fitted, coarse = Hawkes.fit(events), Hawkes.fit(events.scaled(1 / 60))
    change = len(events.times) * math.log(60)
    assert coarse.log_likelihood(events.scaled(1 / 60)).sum() == pytest.approx(
        fitted.log_likelihood(events).sum() + change, abs=1e-5
    )


def test_gradients_are_those_of_the_likelihood() -> None:
    events = some(4)
    _, d_mu, d_alpha, d_beta = TRUTH.gradient(events)
    mine = np.concatenate([d_mu, d_alpha.ravel(), [d_beta]])
    point = np.concatenate([TRUTH.mu, TRUTH.alpha.ravel(), [TRUTH.beta]])

    def value(at: np.ndarray) -> float:
        return float(Hawkes(at[:2], at[2:6].reshape(2, 2), float(at[6])).log_likelihood(events).sum())

    for index in range(7):
        step = 1e-6 * np.eye(7)[index]
        assert (value(point + step) - value(point - step)) / 2e-6 == pytest.approx(mine[index], rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 70), st.integers(1, 3), st.integers(0, 1000))
def test_the_scan_is_the_loop(n: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    decay, inputs = rng.uniform(0, 1, n), rng.normal(size=(n, width))
    state, expected = np.zeros(width), []
    for a, c in zip(decay, inputs):
        state = a * state + c
        expected.append(state)
    np.testing.assert_allclose(scan(decay, inputs), np.array(expected).reshape(n, width), atol=1e-12)


def test_poisson_counts_and_never_beats_the_truth() -> None:
    events = simulate(Poisson(np.full(3, 1 / 3)), (0, 1500), seed=1)
    best = -(1 + math.log(3))
    error = math.sqrt(1 / len(events.times))
    for model in (Poisson.fit(events), Renewal.fit(events, "weibull"), Hawkes.fit(events)):
        assert model.nats(events) < best + 4 * error
    np.testing.assert_allclose(Poisson.fit(events).rates, events.count_marks() / 1500)


def test_a_periodic_rate_is_found_again_and_drawn_towards_the_others() -> None:
    truth = PeriodicPoisson(TABLE, 4.0, 0.7)
    events = simulate(truth, (0.3, 3000.0), seed=2)
    found = PeriodicPoisson.fit(events, 4.0, 6, 0.7)
    np.testing.assert_allclose(found.table, TABLE, rtol=0.25)
    assert found.log_likelihood(events) > truth.log_likelihood(events)
    few = events.until(30.0)
    pooled = PeriodicPoisson.fit(few, 4.0, 6, 0.7, base=found, strength=1e9)
    share = few.count_marks().sum() / (found.integral(few.end) - found.integral(few.start)).sum()
    np.testing.assert_allclose(pooled.table, found.table * share, rtol=1e-6)


def test_a_hawkes_process_is_found_again() -> None:
    events = simulate(TRUTH, (0, 4000), seed=3)
    found = Hawkes.fit(events)
    errors = found.standard_errors(events)
    for name in ("mu", "alpha", "beta"):
        off = np.abs(getattr(found, name) - getattr(TRUTH, name)) / errors[name]
        assert (off < 3.5).all(), (name, off)
    assert found.log_likelihood(events) >= TRUTH.log_likelihood(events)


@pytest.mark.parametrize("method", ["thinning", "inversion"])
@pytest.mark.parametrize("process", [TRUTH, PROCESSES[4], PROCESSES[1]], ids=["hawkes", "on-background", "periodic"])
def test_residuals_of_the_truth_are_exponential(process: Process, method: str) -> None:
    events = simulate(process, (0, 150), count=3, seed=11, method=method)
    assert ks_exponential(rescaled(process, events)).p > 0.01
    for mark in (0, 1):
        assert ks_exponential(rescaled(process, events, mark)).p > 0.005


@pytest.mark.slow(4)
def test_p_values_of_the_truth_are_uniform_and_a_wrong_model_is_found_out() -> None:
    ps, wrong = [], []
    for seed in range(60):
        events = simulate(Hawkes(0.5, 0.7, 2.0), (0, 150), count=2, seed=seed)
        ps.append(ks_exponential(rescaled(Hawkes(0.5, 0.7, 2.0), events)).p)
        wrong.append(ks_exponential(rescaled(Poisson.fit(events), events)).p)
    assert ks_uniform(ps).p > 0.01
    assert np.median(wrong) < 1e-3


def test_short_windows_lose_nothing_when_they_are_laid_end_to_end() -> None:
    events = simulate(Poisson([1.0]), (0, 0.5), count=4000, seed=0)
    assert ks_exponential(rescaled(Poisson([1.0]), events)).p > 0.01
    assert ks_uniform(pit(Poisson([1.0]), events)).p < 1e-6  # within windows of half a gap, long gaps are missing
    one = rescaled(Poisson([1.0]), Sequences.of([[], [0.4], [], [], [0.1, 0.2]], window=(0.0, 0.5)))
    np.testing.assert_allclose(one, [0.9, 1.2, 0.1])


def test_the_p_value_of_a_distance_is_the_tabled_one() -> None:
    for n, statistic in ((5, 0.563), (10, 0.409), (20, 0.294), (40, 0.210), (100, 0.1340)):
        assert kolmogorov(statistic, n) == pytest.approx(0.05, abs=1e-3)
    assert abs(kolmogorov(0.1, 100) - kolmogorov(0.1, 101)) < 0.01
    assert kolmogorov(0.0, 7) == 1.0 and kolmogorov(1.0, 7) == 0.0


def test_the_next_event_is_forecast_exactly() -> None:
    process = PROCESSES[4]
    history = Sequences.of([[0.4, 1.0, 1.1]], marks=[[0, 1, 0]], window=(0, 2.0), mark_count=2)
    ahead = NextEvent.after(process, history)
    first, kinds = [], []
    for seed in range(700):  # thinning by hand under the rates that it names
        rng, now = np.random.default_rng(seed), 0.0
        while True:
            bound = float(ahead.rates(0.0).sum()) + 5.0
            now += rng.exponential() / bound
            rates = ahead.rates(now)[0]
            if rng.random() * bound < rates.sum():
                break
        first.append(now)
        kinds.append(rng.random() < rates[1] / rates.sum())
    levels = np.exp(ahead.log_cdf(np.array(first)).numpy())
    assert ks_uniform(levels).p > 0.01
    assert ahead.mean().item() == pytest.approx(np.mean(first), rel=0.12)
    assert ahead.mark_probabilities()[0, 1] == pytest.approx(np.mean(kinds), abs=0.06)
    drawn = ahead.sample(4000, torch.Generator().manual_seed(1))[:, 0].numpy()
    assert ks_uniform(np.exp(ahead.log_cdf(drawn).numpy())).p > 0.01
    np.testing.assert_allclose(crps(ahead, 0.3).numpy(), crps_samples(drawn, 0.3), rtol=0.08)


def test_a_forecast_may_say_that_nothing_comes() -> None:
    quiet = Hawkes([0.0], [[0.6]], 1.0)
    ahead = NextEvent(quiet, 0.0, [[1.0]])
    assert ahead.mass().item() == pytest.approx(1 - math.exp(-0.6))
    assert math.isinf(ahead.quantile(0.9).item())
    with pytest.raises(ValueError, match="no event at all"):
        crps(ahead, 1.0)


def test_gaps_have_the_density_that_scores_them() -> None:
    events = some(6)
    for process in (PROCESSES[0], TRUTH):
        ahead = gap_density(process, events)
        gaps, _ = process.compensator(events)
        before = np.concatenate([one.times - np.concatenate([one.start, one.times[:-1]]) for one in events])
        np.testing.assert_allclose(ahead.log_survival(before).numpy(), -gaps.sum(-1), atol=1e-10)


@pytest.mark.parametrize("process", [PROCESSES[2], TRUTH], ids=["renewal", "hawkes"])
def test_intervals_hold_what_they_promise(process: Process) -> None:
    """Those of 90% hold 88 to 92% of the events of another simulation; of a wrong model they do not."""
    events = simulate(process, (0, 2000), seed=21, method="inversion")
    shares = []
    for model in (process, Poisson([0.2, 0.2])):
        levels = np.asarray(pit(model, events))
        shares.append(((levels > 0.05) & (levels < 0.95)).mean())
    assert 0.88 < shares[0] < 0.92 and not 0.88 < shares[1] < 0.92


def test_what_is_fitted_to_simulated_events_simulates_alike() -> None:
    first = simulate(TRUTH, (0, 1500), seed=31)
    found = Hawkes.fit(first)
    second = simulate(found, (0, 1500), seed=32)
    again = Hawkes.fit(second)
    errors = again.standard_errors(second)
    for name in ("mu", "alpha", "beta"):
        assert (np.abs(getattr(again, name) - getattr(found, name)) < 4 * errors[name]).all(), name
    assert ks_exponential(rescaled(found, second)).p > 0.01


@pytest.mark.parametrize("method", ["thinning", "inversion"])
def test_a_history_goes_on_raising_the_rates(method: str) -> None:
    process = Hawkes([0.2, 0.1], [[0.6, 0.1], [0.3, 0.2]], 0.5)
    past = Sequences.of([np.array([1.0, 1.5, 4.0, 4.2, 4.9])], marks=[np.array([0, 1, 1, 0, 0])], window=(0.0, 5.0))
    steps, firsts = [], []
    for seed in range(400):
        drawn = simulate(process, (5.0, 60.0), 1, seed, method, history=past)
        both = Sequences.of(
            [np.append(past.times, drawn.times)], marks=[np.append(past.kinds, drawn.kinds)], window=(0.0, 60.0)
        )
        gaps, _ = process.compensator_from(both, np.array([5.0]))
        steps.append(gaps[len(past.times)].sum())
        firsts.append((drawn.times[0], drawn.kinds[0], process.intensity(both)[len(past.times)]))
    assert ks_exponential(np.array(steps)).p > 0.01
    share = np.array([rates[0] / rates.sum() for _, _, rates in firsts])
    kinds = np.array([kind for _, kind, _ in firsts])
    assert abs((kinds == 0).mean() - share.mean()) < 3 * np.sqrt((share * (1 - share)).mean() / len(share))
    without = [simulate(process, (5.0, 60.0), 1, seed, method).times[0] for seed in range(400)]
    assert np.mean([time for time, _, _ in firsts]) < 5 + 0.8 * np.mean(np.array(without) - 5)


def test_a_history_that_makes_no_sense_is_refused() -> None:
    process, one = Hawkes([0.2], [[0.5]], 1.0), Sequences.of([np.array([1.0, 6.0])], window=(0.0, 7.0))
    with pytest.raises(ValueError, match="come up to the start, 5"):
        simulate(process, (5.0, 9.0), history=one)
    with pytest.raises(ValueError, match="one sequence"):
        simulate(process, (8.0, 9.0), history=Sequences.of([np.array([1.0])] * 2, window=(0.0, 7.0)))
    with pytest.raises(ValueError, match="renewal process is drawn without a history"):
        simulate(Renewal.fit(one, "lognormal"), (8.0, 9.0), method="inversion", history=one)
    with pytest.raises(ValueError, match="mark 2 is unknown"):
        marked = Sequences.of([[1.0, 6.0]], marks=[[0, 2]], window=(0.0, 7.0))
        simulate(Hawkes([0.2, 0.1], np.eye(2) / 2, 1.0), (8.0, 9.0), history=marked)


def test_a_horizon_without_an_event_has_none() -> None:
    """Nothing is put at its end."""
    quiet = simulate(Poisson([0.01]), (0.0, 1.0), count=300, seed=0)
    assert (quiet.lengths == 0).sum() > 280 and not (quiet.times == 1.0).any() and (quiet.end == 1.0).all()


def test_one_seed_gives_the_same_events_and_leaves_others_alone() -> None:
    state = np.random.get_state()[1].copy()
    one, two, other = (simulate(TRUTH, (0, 50), seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(one.times, two.times) and not np.array_equal(one.times[:3], other.times[:3])
    assert np.array_equal(np.random.get_state()[1], state)


def test_what_cannot_be_is_refused() -> None:
    with pytest.warns(UserWarning, match="spectral radius of alpha is 1.100"):
        wild = Hawkes([1.0], [[1.1]], 1.0)
    for call, message in (
        (lambda: simulate(wild, (0, 1)), "explodes"),
        (lambda: simulate(PROCESSES[2], (0, 1)), "inversion"),
        (lambda: simulate(TRUTH, (1, 0)), "start <= end"),
        (lambda: Hawkes([1.0], [[0.5]], -1.0), "beta is a positive number"),
        (lambda: Hawkes([1.0, 1.0], [[0.5]], 1.0), "alpha has the shape"),
        (lambda: Poisson([-1.0]), "not negative"),
        (lambda: Poisson.fit(Sequences.of([[1.0]])), "all windows are empty"),
        (lambda: Renewal.fit(Sequences.of([[1.0, 1.0]], window=(0, 2))), "sequence 0, event 1: the gap is 0"),
        (lambda: TRUTH.log_likelihood(Sequences.of([[1.0]], marks=[[2]], window=(0, 2))), "event 0: mark 2 is unknown"),
        (lambda: TRUTH.log_likelihood(some(), since=99.0), "since must lie within"),
    ):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
            warnings.simplefilter("ignore")
            call()


def test_the_protocol_scores_the_last_fifth_only() -> None:
    events = simulate(TRUTH, (0, 300), count=3, seed=9)
    plan = anchors.protocol(events, least=10, most=2)
    assert len(plan.sequences) == 2 and plan.train.times.max() <= 240
    assert plan.scored == int((plan.sequences.times > 240).sum())
    found = {row.name: row.nats for row in anchors.rows(plan, period=50.0, bins=5)}
    poisson = [Poisson.fit(one) for one in plan.train]
    last = [one.within(240, 300) for one in plan.sequences]
    expected = sum(model.log_likelihood(one)[0] for model, one in zip(poisson, last)) / plan.scored
    assert found["homogeneous Poisson"] == pytest.approx(expected)
    assert found["Hawkes of marks"] > found["homogeneous Poisson"]
