"""A network over events: its likelihood against the definition, what it may not know, clocks, units, pads, and runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relpos.tasks.events import Sequences
from relpos.tasks.events.neural import Following, History, MixtureHead, Scales, Seen, Tape
from relpos.tasks.events.neural.history import channels_of
from relpos.tasks.events.neural.tape import Run
from relpos.tasks.events.processes import Poisson, simulate

MARKS, WIDTH, HOUR = 3, 4, 3600.0
UNIX = 1.6e9
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "bias": {"channels": "position+time+place+profile+mark"},
    "keys and values": {"channels": "position+time+place+profile+mark", "inject": "key+value", "profiles": WIDTH},
    "rotation": {"channels": [{"feature": "time", "encoder": "rotary", "shortest": 0.5, "longest": 40.0}]},
    "lines of time": {"encoding": "time_rope", "clock": "time", "gap": False},
    "index alone": {"encoding": "t5", "gap": False},
}
each = pytest.mark.parametrize("name", CONFIGURATIONS)


class Network(NamedTuple):
    history: History
    head: MixtureHead

    def score(self, tape: Tape, runs: list[Run] | None = None) -> Tensor:
        """(batch, n) what follows each token of whole sequences, or of some runs."""
        seen, following = tape.take(whole(tape) if runs is None else runs)
        return self.head.log_likelihood(self.history(seen), following)

    def total(self, sequences: Sequences, since: Any = None) -> float:
        return self.score(Tape(sequences, since)).sum().item()


def network(name: str = "bias", scales: Scales | None = None, wide: bool = True, **more: Any) -> Network:
    """With every parameter drawn, so that each of them counts; float64 if ``wide``."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"scales": scales, "length": 24, "dim": 16, "depth": 2, "heads": 2}
    history = History(MARKS, **CONFIGURATIONS[name] | sizes | more)
    head = MixtureHead(16, MARKS, 4, scales)
    with torch.no_grad():
        for parameter in [*history.parameters(), *head.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    made = Network(history, head)
    return Network(history.double(), head.double()) if wide else made


def some(counts: tuple[int, ...] = (6, 0, 1, 9), seed: int = 0, end: float = 20.0, **more: Any) -> Sequences:
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.uniform(1, end, count)) for count in counts]
    return Sequences.of(
        times,
        marks=[rng.integers(MARKS, size=count) for count in counts],
        places=[np.c_[rng.uniform(44, 46, count), rng.uniform(-94, -92, count)] for count in counts],
        profiles=[rng.normal(size=(count, WIDTH)) for count in counts],
        window=(1.0, end), mark_count=MARKS, **more,
    )  # fmt: skip


def whole(tape: Tape) -> list[Run]:
    counts = np.diff(tape.offsets)
    return [Run(row, 0, int(count), 0) for row, count in enumerate(counts) if count]


def first_events(one: Sequences, count: int) -> Sequences:
    return one.keep(np.arange(len(one.times)) < count)


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


# ---- what a network may not know


def states_and_scores(net: Network, seen: Seen, following: Following) -> tuple[Tensor, Tensor]:
    states = net.history(seen)
    return states, net.head.log_likelihood(states, following)


@each
@pytest.mark.parametrize("poison", [math.nan, 1e9])
def test_the_future_does_not_reach_back(name: str, poison: float) -> None:
    """What comes after token i moves no bit of the states and scores before it: another mark, whose embedding is NaN or
    enormous, other times, places and profiles; and the event to be scored is in no state that scores it."""
    net = network(name)
    tape = Tape(some((11,)))
    seen, following = tape.take(whole(tape))
    seen.marks[seen.marks == 2] = 1  # so that the poisoned one is nowhere else
    before = states_and_scores(net, seen, following)
    with torch.no_grad():
        net.history.mark.weight[2] = poison
    for i in (0, 4, 10):
        later = slice(i + 1, None)
        changed = Seen(*(part.clone() for part in seen))
        changed.marks[:, later] = 2
        changed.times[:, later] = changed.times[:, later] * 3 + 1e6
        changed.places[:, later] = torch.tensor([-80.0, 170.0]).double()
        changed.profiles[:, later] = 1e9
        after = states_and_scores(net, changed, following)
        assert torch.equal(before[0][:, : i + 1], after[0][:, : i + 1])
        assert torch.equal(before[1][:, : i + 1], after[1][:, : i + 1])
        assert i == 10 or not torch.equal(before[0][:, i + 1 :], after[0][:, i + 1 :])


def test_the_gradient_to_later_times_is_zero() -> None:
    """d log p(event i) / d t_j = 0 for j > i, and not for j <= i."""
    net = network()
    tape = Tape(some((7,)))
    seen, following = tape.take(whole(tape))
    times = seen.times.clone().requires_grad_()
    ends = torch.cat([times[:, 1:], torch.full((1, 1), 20.0, dtype=torch.float64)], 1)
    _, scores = states_and_scores(net, seen._replace(times=times), following._replace(gaps=ends - times))
    for i in range(7):  # token i is followed by event i + 1
        (slope,) = torch.autograd.grad(scores[0, i], times, retain_graph=True)
        assert not slope[0, i + 2 :].any() and slope[0, i].abs() > 1e-9 and slope[0, i + 1].abs() > 1e-9


def test_the_time_of_a_request_is_asked_for_by_name() -> None:
    """It counts, reaches no state before it, and no network takes it that was not built for it."""
    tape = Tape(some((8,)))
    seen, following = tape.take(whole(tape))
    asked = seen.times + following.gaps
    event, request = network(), network(query_time="request")
    with pytest.raises(ValueError, match=r'query_time="request" takes the times of the events to come: asked='):
        request.history(seen)
    states = request.history(seen, asked)
    assert torch.equal(event.history(seen, asked), event.history(seen))  # it looks at its own time alone
    assert (states - event.history(seen)).abs().max() > 1e-6
    later = asked.clone()
    later[:, 5:] += 1e6
    changed = request.history(seen, later)
    assert torch.equal(changed[:, :5], states[:, :5]) and not torch.equal(changed[:, 5:], states[:, 5:])
    at_once = request.history(seen, seen.times)
    torch.testing.assert_close(at_once, event.history(seen), rtol=0, atol=1e-12)


def test_a_network_that_looks_both_ways_does() -> None:
    tape = Tape(some((6, 4)))
    seen, _ = tape.take(whole(tape))
    net = network(causal=False)
    states = net.history(seen)
    changed = seen._replace(marks=seen.marks.clone())
    changed.marks[:, 4] = (changed.marks[:, 4] + 1) % MARKS
    assert not torch.equal(net.history(changed)[:, :4], states[:, :4])
    short, _ = tape.take(whole(tape)[1:])
    torch.testing.assert_close(net.history(short)[0], states[1, :5], rtol=0, atol=1e-12)


# ---- clocks and units


@each
@pytest.mark.parametrize("by", [1e4, 1e6, UNIX])
def test_a_shift_of_the_clock_changes_nothing(name: str, by: float) -> None:
    """In float32, as networks run. Times are multiples of 2^-7, so that shifting them is exact."""
    net, events = network(name, wide=False), some()
    events = events.replace(np.arange(len(events.times)), events.offsets, start=np.ones(4), end=np.full(4, 20.0))
    events.times[:] = np.round(events.times * 128) / 128
    near, far = (net.score(Tape(one)) for one in (events, events.shifted(by)))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


def test_absolute_time_and_the_calendar_are_tied_to_the_clock() -> None:
    """The counterpart: such a network does move, by a period of the calendar not."""
    events = some()
    clock, calendar = network(encoding="sinusoidal", clock="time"), network(periods=(24.0, 168.0))
    assert abs(clock.total(events.shifted(100.0)) - clock.total(events)) > 1e-3
    assert abs(calendar.total(events.shifted(5.0)) - calendar.total(events)) > 1e-3
    assert calendar.total(events.shifted(168.0)) == pytest.approx(calendar.total(events), abs=1e-9)


def test_nanoseconds_since_1970() -> None:
    """int64, 1.6e18: what is left of them is to the nanosecond, and scores as if it had begun at 0."""
    since = np.array([10, 1_000_003, 1_000_004, 77_000_000], dtype=np.int64)
    far = np.int64(1_600_000_000_000_000_000)
    marks = [[0, 1, 1, 2]]
    near = Sequences.of([since], marks=marks, mark_count=MARKS, window=(0, 80_000_000), unit="nanoseconds")
    start, end = np.array([far]), np.array([far + 80_000_000])
    late = Sequences.of([since + far], marks=marks, mark_count=MARKS, window=(start, end), unit="nanoseconds")
    net = network(channels="position+time", scales=Scales.of(near))
    assert Scales.of(near) == Scales.of(late)
    torch.testing.assert_close(net.score(Tape(late)), net.score(Tape(near)), rtol=0, atol=1e-9)


@settings(max_examples=15)
@given(st.one_of(st.sampled_from([HOUR, 1 / HOUR, 24 * HOUR, 1e-9]), st.floats(1e-3, 1e4)))
def test_another_unit_costs_its_logarithm_an_event(factor: float) -> None:
    """And nothing else: with the sizes that networks measure time by found in the data, medians scale along."""
    events = some()
    other = events.scaled(factor)
    one, two = (network("keys and values", Scales.of(part)) for part in (events, other))
    change = two.total(other) - one.total(events)
    assert change == pytest.approx(-len(events.times) * math.log(factor), abs=1e-6)
    seen, _ = Tape(events).take(whole(Tape(events)))
    far, _ = Tape(other).take(whole(Tape(other)))
    medians = [net.head.density(net.history(part)).quantile(0.5) for net, part in ((one, seen), (two, far))]
    torch.testing.assert_close(medians[1], medians[0] * factor, rtol=1e-9, atol=0)


def test_hours_are_seconds() -> None:
    """The library's own conversion of units, which changes the sizes along with the times."""
    events = some(unit="seconds").scaled(HOUR, "seconds")
    hours, days = events.to_unit("hours"), events.to_unit("days")
    nats = [network(scales=Scales.of(one)).total(one) / len(one.times) for one in (events, hours, days)]
    assert nats[1] - nats[0] == pytest.approx(math.log(HOUR), abs=1e-7)
    assert nats[2] - nats[1] == pytest.approx(math.log(24), abs=1e-7)


def test_sizes_come_from_the_gaps_within_sequences() -> None:
    sizes = Scales.of(Sequences.of([[0.0, 1.0, 3.0, 3.0, 7.0], [100.0, 102.0]]))
    logs = np.log(np.array([1.0, 2.0, 4.0, 2.0]) / 2.0)
    assert (sizes.unit, sizes.middle) == (2.0, pytest.approx(logs.mean())) and sizes.spread == pytest.approx(logs.std())
    assert Scales.of(Sequences.of([[0.0, 2.0, 4.0]])).spread == 0.1  # of equal gaps, so that nothing is divided by 0
    assert torch.isfinite(sizes.log_gap(torch.tensor([0.0, 1e-12, 1e12]).double())).all()


# ---- pads and batches


@each
def test_pads_change_nothing(name: str) -> None:
    """Any number of them, whatever they hold: NaN where that can be, else other marks, times, places and profiles."""
    net = network(name)
    tape = Tape(some((6,)))
    (seen, following) = tape.take(whole(tape))
    states, scores = states_and_scores(net, seen, following)
    with torch.no_grad():
        net.history.mark.weight[2] = math.nan if not bool((seen.marks == 2).any()) else net.history.mark.weight[2]
    for count in (1, 5, 40):
        ends = {"marks": torch.full((1, count), 2), "times": seen.times[:, -1:] + torch.arange(1, count + 1) * 1e5,
                "mask": torch.zeros(1, count, dtype=torch.bool), "places": torch.full((1, count, 2), -33.0).double(),
                "profiles": torch.full((1, count, WIDTH), 1e6).double()}  # fmt: skip
        wide = Seen(*(torch.cat([part, ends[field]], 1) for field, part in seen._asdict().items()))
        unknown = torch.full((1, count), math.nan).double()
        more = {"gaps": unknown, "marks": torch.full((1, count), 1), "floors": unknown,
                "scored": torch.zeros(1, count, dtype=torch.bool)}  # fmt: skip
        after = Following(*(torch.cat([part, more[field]], 1) for field, part in following._asdict().items()))
        found = states_and_scores(net, wide, after)
        torch.testing.assert_close(found[0][:, :7], states, rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1][:, :7], scores, rtol=0, atol=1e-12)
        assert not found[1][:, 7:].any()


@each
def test_one_sequence_is_its_row_of_a_batch(name: str) -> None:
    """Also the empty one, and gradients to the parameters are sums over the sequences."""
    net, events = network(name), some()
    batch = net.score(Tape(events))
    leaves = [*net.history.parameters(), *net.head.parameters()]
    totals = torch.autograd.grad(batch.sum(), leaves)
    parts = [torch.zeros_like(leaf) for leaf in leaves]
    for row, one in enumerate(events):
        alone = net.score(Tape(one))
        torch.testing.assert_close(alone[0], batch[row, : alone.shape[1]], rtol=0, atol=1e-12)
        assert not batch[row, alone.shape[1] :].any()
        found = torch.autograd.grad(alone.sum(), leaves, allow_unused=True)
        parts = [part if g is None else part + g for part, g in zip(parts, found)]
    for total, part in zip(totals, parts):
        torch.testing.assert_close(total, part, rtol=1e-9, atol=1e-9)


def test_windows_without_events_and_sequences_without_a_start() -> None:
    net, events = network(), some((0, 5))
    empty = net.score(Tape(events))[0]
    seen, _ = Tape(events).take([Run(0, 0, 1, 0)])
    silence = net.head.log_survival(net.history(seen)[0, 0], torch.tensor(19.0).double())
    assert float(empty.sum()) == pytest.approx(float(silence), abs=1e-12) and empty.ne(0).sum() == 1
    tape = Tape(events, start=False)
    found = net.score(tape)
    assert found.shape == (1, 5) and found.ne(0).all() and len(whole(tape)) == 1
    nothing = Tape(some((0, 0)), start=False)
    assert len(nothing) == 0 and nothing.runs(4, 0) == []
    with pytest.raises(ValueError, match="no token"):
        nothing.draw(np.random.default_rng(0), 3, 4)
    with pytest.raises(ValueError, match="no run"):
        nothing.take([])


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
