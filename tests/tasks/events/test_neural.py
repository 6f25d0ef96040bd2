"""A network over events: its likelihood against the definition, runs of tokens, densities, bad input, learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks.events import Sequences
from relpos.tasks.events.neural import History, MixtureHead, Scales, Tape
from relpos.tasks.events.neural.history import channels_of
from relpos.tasks.events.neural.tape import Run
from relpos.tasks.events.processes import Poisson, simulate
from tests.tasks.events.networks import (
    MARKS,
    WIDTH,
    Network,
    each,
    first_events,
    network,
    some,
)

# ---- the likelihood of a window


@each
def test_the_likelihood_is_that_of_the_definition(name: str) -> None:
    """Event by event, each from a network that was given nothing but what came before; then the silence to the end."""
    net, events = network(name), some()
    found = net.score(Tape(events)).sum(-1).detach()
    for row, one in enumerate(events):
        before, total = float(one.start[0]), 0.0
        for i in range(len(one.times) + 1):
            seen, _ = Tape(first_events(one, i)).take([Run(0, 0, i + 1, 0)])
            state, ends = net.history(seen)[0, -1], one.end[0] if i == len(one.times) else one.times[i]
            gap = torch.tensor(ends - before)
            if i == len(one.times):
                total += net.head.log_survival(state, gap).item()
            else:
                density = net.head.density(state)
                mark = net.head.log_marks(state, gap)[one.kinds[i]]
                total += (density.log_hazard(gap) + density.log_survival(gap) + mark).item()
                before = ends
        assert float(found[row]) == pytest.approx(total, abs=1e-9)


@settings(max_examples=25)
@given(st.one_of(st.floats(1.0, 20.0), st.integers(0, 15).map(lambda i: float(some().times[i]))))
def test_a_window_may_be_cut_anywhere(cut: float) -> None:
    net, events = network(), some()
    parts = net.total(events.until(cut)) + net.total(events, since=cut)
    assert parts == pytest.approx(net.total(events), abs=1e-9)


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 11), st.booleans(), st.one_of(st.none(), st.floats(1.0, 20.0)))
def test_runs_score_every_token_once(length: int, history: int, start: bool, since: float | None) -> None:
    tape = Tape(some(), since, start)
    history = min(history, length - 1)
    times = np.zeros(len(tape), dtype=int)
    for run in tape.runs(length, history):
        first = tape.offsets[run.row]
        assert run.begin <= run.scored < run.end <= np.diff(tape.offsets)[run.row] and run.end - run.begin <= length
        assert run.scored - run.begin == min(history, run.scored)
        _, following = tape.take([run])
        times[first + run.begin : first + run.end] += following.scored[0].numpy()
    assert np.array_equal(times, tape.scored.astype(int))


def test_events_at_one_time_are_scored_after_any_beginning() -> None:
    events = Sequences.of([[1.0, 2.0, 2.0, 3.0, 3.0]], window=(0.0, 4.0))
    for since, wanted in ((None, 6), (0.0, 6), (1.0, 5), (1.5, 5), (2.0, 3), (3.0, 1)):
        tape = Tape(events, since)
        assert (int(tape.scored.sum()), tape.events) == (wanted, wanted - 1), since
        assert not tape.floors[2:].any() or since == 3.0


def test_long_sequences_in_runs_are_long_sequences() -> None:
    """With all of the past as history, and with too little of it."""
    net, tape = network(), Tape(some((14,)))
    once, runs = net.score(tape), tape.runs(15, 14)
    torch.testing.assert_close(net.score(tape, runs).sum(), once.sum(), rtol=0, atol=1e-9)
    short = net.score(tape, tape.runs(6, 3))
    assert short.ne(0).sum() == 15 and abs(float(short.sum() - once.sum())) > 1e-6


def test_what_a_tape_holds() -> None:
    events = some((2, 0))
    with_start, without = Tape(events), Tape(events, start=False)
    assert len(with_start) == 4 and with_start.marks.tolist() == [MARKS, *events.kinds, MARKS]
    assert with_start.times.tolist() == [1.0, *events.times, 1.0] and with_start.events == 2
    assert with_start.places[0].tolist() == events.places[0].tolist() and not with_start.profiles[0].any()
    np.testing.assert_allclose(with_start.gaps, [*np.diff([1.0, *events.times, 20.0]), 19.0])
    assert with_start.next_marks.tolist() == [*events.kinds, -1, -1]
    assert without.offsets.tolist() == [0, 2, 2] and without.next_marks.tolist() == [int(events.kinds[1]), -1]
    assert without.events == 1  # nothing stands before the first
    assert [run.row for run in without.draw(np.random.default_rng(0), 50, 3)] == [0] * 50
    bare = Tape(Sequences.of([[1.0], [2.0, 3.0]], window=(0, 4)))
    assert bare.places.shape == (5, 0) and bare.marks.tolist() == [1, 0, 1, 0, 0]
    assert len(Tape(Sequences.of([]))) == 0 and Tape(Sequences.of([])).runs(4, 1) == []


@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(0, 25), st.integers(0, 99))
def test_draws_stay_inside(length: int, history: int, seed: int) -> None:
    tape = Tape(some())
    counts = np.diff(tape.offsets)
    runs = tape.draw(np.random.default_rng(seed), 40, length, history)
    again = tape.draw(np.random.default_rng(seed), 40, length, history)
    assert len(runs) == 40 and runs == again
    for run in runs:
        assert 0 <= run.begin < run.end <= counts[run.row] and run.end - run.begin == min(length, counts[run.row])
        assert run.scored == run.begin + (history if run.begin else 0)
    seen, following = tape.take(runs)
    assert seen.times.diff(dim=1).min() >= 0 if seen.times.shape[1] > 1 else True
    assert not following.scored[~seen.mask].any()


@pytest.mark.parametrize(("counts", "length"), [((30, 2), 8), ((9, 2, 4), 20), ((40, 0, 11), 12)])
def test_draws_reach_every_token_about_as_often(counts: tuple[int, ...], length: int) -> None:
    """Those of short sequences too, so that the mean over draws is the mean over tokens; but near the ends."""
    tape = Tape(some(counts))
    found = np.zeros(len(tape))
    for run in tape.draw(np.random.default_rng(0), 3000, length):
        found[tape.offsets[run.row] + run.begin : tape.offsets[run.row] + run.end] += 1
    assert found.min() > 0.5 * np.median(found) and found.max() < 2 * np.median(found)


# ---- densities


def test_a_mixture_integrates_to_one_and_its_marks_too() -> None:
    """50 states; by the trapezoid rule in log time."""
    scales = Scales(7.0, -0.3, 1.6)
    head = network(scales=scales).head
    states = 0.4 * torch.randn(50, 1, 16, dtype=torch.float64)
    x = torch.exp(torch.linspace(-120, 120, 1 << 14, dtype=torch.float64)) * scales.unit
    density = torch.exp(head.density(states).log_prob(x)) * x
    torch.testing.assert_close(torch.trapezoid(density, x.log()), torch.ones(50).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(head.density(states).mass()[:, 0], torch.ones(50).double(), rtol=0, atol=1e-12)
    at = torch.tensor([[1e-9, 0.3, 1e9]]).double().expand(50, 3)
    every = [head.log_prob(states.expand(50, 3, 16), at, torch.full((50, 3), mark)) for mark in range(MARKS)]
    torch.testing.assert_close(torch.logsumexp(torch.stack(every), 0), head.density(states).log_prob(at))


def test_survival_falls_at_the_rate_of_the_hazard() -> None:
    head = network().head
    states = torch.randn(50, 16, dtype=torch.float64)
    gaps = torch.logspace(-3, 3, 50, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(head.log_survival(states, gaps).sum(), gaps)
    torch.testing.assert_close((-slope).log(), head.density(states).log_hazard(gaps), rtol=1e-6, atol=1e-6)
    assert head.log_survival(states, torch.zeros(50).double()).abs().max() < 1e-12


@pytest.mark.parametrize("gap", [1e-12, 1e-3, 1e12])
def test_the_far_ends_are_finite_with_their_gradients(gap: float) -> None:
    """In time and in every parameter, for an event and for silence; whole sequences with such gaps."""
    net = network("keys and values")
    leaves = [*net.history.parameters(), *net.head.parameters()]
    events = Sequences.of([[gap, 2 * gap, 3 * gap]], marks=[[0, 1, 2]], window=(0.0, 5 * gap), mark_count=MARKS,
                          places=[[[45.0, -93.0]] * 3], profiles=[np.eye(3, WIDTH)])  # fmt: skip
    found = net.score(Tape(events))
    assert torch.isfinite(found).all() and found.ne(0).all()
    gradients = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
    assert all(g is None or torch.isfinite(g).all() for g in gradients) and sum(g is not None for g in gradients) > 20


def test_ties_are_read_and_refused_where_they_have_no_density() -> None:
    """Equal times are finite in the states; their density is told, with what to do."""
    net = network()
    events = Sequences.of([[2.0, 2.0, 2.0, 5.0]], marks=[[0, 1, 2, 0]], window=(1.0, 6.0), mark_count=MARKS,
                          places=[[[45.0, -93.0]] * 4], profiles=[np.ones((4, WIDTH))])  # fmt: skip
    seen, following = Tape(events).take([Run(0, 0, 5, 0)])
    states = net.history(seen)
    gradients = torch.autograd.grad(states.sum(), list(net.history.parameters()))
    assert torch.isfinite(states).all() and all(torch.isfinite(g).all() for g in gradients)
    assert torch.isfinite(net.head.log_marks(states, following.gaps)).all()
    with pytest.raises(ValueError, match=r"2 events come at the very time .*ties='spread'"):
        net.head.log_likelihood(states, following)
    unwindowed = Sequences.of([[2.0, 3.0]])
    with pytest.raises(ValueError, match=r"1 events come .*windows that begin before the first event"):
        Network(History(1, dim=16), MixtureHead(16, 1)).score(Tape(unwindowed))
    apart = Sequences.of([[2.0, 2.0, 2.0, 5.0]], window=(1.0, 6.0), ties="spread")
    assert torch.isfinite(Network(History(1, dim=16), MixtureHead(16, 1)).score(Tape(apart))).all()


# ---- bad input

WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: History(2, clock="year"), 'clock is "index" or "time", got \'year\''),
    (lambda: History(2, query_time="grid"), 'query_time is "event" or "request"'),
    (lambda: History(2, channels="position+age"), "channels are names out of position, time, place, profile, mark"),
    (lambda: History(2, channels=" + "), "channels are names out of"),
    (lambda: History(2, inject="query"), "inject is one or several of key, value, bias"),
    (lambda: History(2, periods=(24.0, 0.0)), "periods are positive numbers"),
    (lambda: History(2, "no_such_encoding"), "no_such_encoding"),
    (lambda: channels_of("", "bias", Scales(), 5), "joined by"),
    (lambda: Scales.of(Sequences.of([[1.0], [2.0, 2.0]])), "there is no gap above 0"),
    (lambda: Tape(some()).runs(4, 4), "0 <= history < length, got 4 and 4"),
    (lambda: Tape(some()).runs(4, -1), "0 <= history < length"),
    (lambda: Tape(some(), since=99.0), "since must lie within the window of every sequence; sequence 0"),
    (lambda: network(channels="place").score(Tape(Sequences.of([[1.0]], window=(0, 2)))), "position 'place', which is"),
    (lambda: network(profiles=5).score(Tape(some())), "the width 5 here; those of these events 4"),
    (lambda: network(profiles=5).score(Tape(Sequences.of([[1.0]], window=(0, 2)))), "those of these events none"),
    (lambda: network().score(Tape(Sequences.of([[1.0]], marks=[[4]], window=(0, 2)))), "of 3 marks reads 0..2, and 3"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_what_is_wrong_is_said(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---- learning


@pytest.mark.slow(6)
def test_noise_is_not_beaten_and_nearly_reached() -> None:
    """A Poisson process of rate 1 with 3 equal marks: no network scores above -(1 + log 3) nats an event by more than
    chance on data of its own, which every leak of times or marks would; one that learned comes near."""
    learn, test = (simulate(Poisson(np.full(3, 1 / 3)), (0, 100), count=15, seed=seed) for seed in (1, 2))
    torch.manual_seed(0)
    scales = Scales.of(learn)
    history, head = History(3, scales=scales, dim=16, depth=1, length=32), MixtureHead(16, 3, 4, scales)
    net, tape, rng = Network(history, head), Tape(learn), np.random.default_rng(0)
    optimizer = torch.optim.Adam([*history.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(120):
        seen, following = tape.take(tape.draw(rng, 16, 32, 4))
        loss = -head.log_likelihood(history(seen), following).sum() / following.scored.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tape = Tape(test)
    with torch.no_grad():
        nats = float(net.score(tape, tape.runs(64, 16)).sum()) / tape.events
    best, error = -(1 + math.log(3)), 1 / math.sqrt(tape.events)
    assert best - 0.1 < nats < best + 4 * error
