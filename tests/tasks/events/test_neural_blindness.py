"""What a network over events may not know, and what changes nothing: the future, the zero of the clock, units, pads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relpos.tasks.events import Sequences
from relpos.tasks.events.neural import Following, Scales, Seen, Tape
from relpos.tasks.events.neural.tape import Run
from tests.tasks.events.networks import (
    HOUR,
    MARKS,
    UNIX,
    WIDTH,
    Network,
    each,
    network,
    some,
    whole,
)

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
