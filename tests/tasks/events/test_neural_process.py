"""Networks as point processes: the likelihood of windows, what a state may know, units, shifts of the clock, draws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from relpos.tasks.events import Sequences
from relpos.tasks.events.neural import HEADS, Following, NeuralProcess, PointNetwork, Scales, Seen, Tape, continuations
from relpos.tasks.events.processes import Poisson, crps, ks_exponential, pit, rescaled, simulate

MARKS = 3


def some(seed: int = 0, counts: tuple[int, ...] = (7, 0, 1, 12), start: float = 1.0, end: float = 20.0) -> Sequences:
    """Times that float64 holds exactly after shifts of up to 2^31."""
    rng = np.random.default_rng(seed)
    times = [np.sort(start + np.round(rng.uniform(0.01, end - start, count) * 1024) / 1024) for count in counts]
    marks = [rng.integers(MARKS, size=count) for count in counts]
    return Sequences.of(times, marks=marks, window=(start, end), mark_count=MARKS, ties="spread")


def network(
    head: str = "mixture", seed: int = 0, encoding: str = "relative_channels", **options: object
) -> PointNetwork:
    """Untrained, with channels and heads that matter."""
    torch.manual_seed(seed)
    options = {"scales": Scales(1.5, -0.4, 1.2), "dim": 16, "depth": 2, "heads": 2, "length": 32, **options}
    found = PointNetwork(MARKS, encoding, head=head, **options)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "bias" in name.rsplit(".", 1)[-1] and "channels" in name:
                weight.normal_()
            if name == "head.time.weight":
                weight.mul_(10)
    return found.eval()


@pytest.mark.parametrize("head", HEADS)
def test_a_window_is_the_sum_of_its_gaps_marks_and_last_silence(head: str) -> None:
    net, events = network(head), some()
    found = NeuralProcess(net, 32).log_likelihood(events)
    for row, one in enumerate(events):
        times = np.concatenate([one.start, one.times])
        states = NeuralProcess(net, 32).states(one)
        total = 0.0
        for i, state in enumerate(states):
            if i < len(one.times):
                gap, mark = torch.tensor(times[i + 1] - times[i]), torch.tensor(one.kinds[i])
                total += float(net.head.log_prob(state, gap, mark))
            else:
                total += float(net.head.log_survival(state, torch.tensor(one.end[0] - times[-1])))
        assert found[row] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_a_window_may_be_split_anywhere(head: str) -> None:
    process, events = NeuralProcess(network(head), 32), some()
    whole = process.log_likelihood(events)
    for cut in (1.0, 4.21, 11.0, float(events.times[3]), 20.0):
        parts = process.log_likelihood(events.until(cut)) + process.log_likelihood(events, since=cut)
        # float32 states of batches of other widths differ in their last digits
        np.testing.assert_allclose(parts, whole, atol=2e-4)


def test_splitting_is_exact_where_states_are_the_same() -> None:
    """In float64 the two parts add up to 1e-9: no head may treat the floor of a gap otherwise than its end."""
    for head in HEADS:
        net = network(head).double()
        net.history.features = lambda seen, own=net.history.features: own(seen).double()  # type: ignore[method-assign]
        process, events = NeuralProcess(net, 32), some()
        process_states = process.log_likelihood(events)
        for cut in (4.21, 11.0):
            parts = process.log_likelihood(events.until(cut)) + process.log_likelihood(events, since=cut)
            np.testing.assert_allclose(parts, process_states, atol=1e-9)


@pytest.mark.parametrize("head", HEADS)
def test_another_unit_changes_n_log_c_and_nothing_else(head: str) -> None:
    c, events = 60.0, some()
    net, other = network(head, periods=(24.0,)), network(head, periods=(24.0 * c,), scales=Scales(1.5 * c, -0.4, 1.2))
    other.load_state_dict(net.state_dict())
    one, two = NeuralProcess(net, 32), NeuralProcess(other, 32)
    longer = events.scaled(c)
    expected = one.log_likelihood(events) - events.lengths * math.log(c)
    np.testing.assert_allclose(two.log_likelihood(longer), expected, atol=1e-4)
    first, second = (each.network.head.forecast(each.states(data))[0] for each, data in ((one, events), (two, longer)))
    torch.testing.assert_close(second, c * first, rtol=1e-5, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_the_future_changes_nothing_bit_for_bit(head: str) -> None:
    net = network(head, channels="position+time+mark")
    tape = Tape(some(counts=(12,)))
    seen, following = tape.take(tape.runs(32, 0))
    own = net.log_likelihood(seen, following)
    for i in (0, 4, 9):
        times, marks = seen.times.clone(), seen.marks.clone()
        times[:, i + 1 :] += torch.linspace(1, 2, times.shape[1] - i - 1)  # token i + 1 is the one that i foretells
        marks[:, i + 1 :] = (marks[:, i + 1 :] + 1) % MARKS
        changed = Seen(marks, times, *seen[2:])
        assert torch.equal(net(changed)[:, : i + 1], net(seen)[:, : i + 1])
        assert torch.equal(net.log_likelihood(changed, following)[:, : i + 1], own[:, : i + 1])
        assert not torch.equal(net(changed)[:, i + 1 :], net(seen)[:, i + 1 :])


@pytest.mark.parametrize("head", HEADS)
def test_no_gradient_of_an_event_reaches_what_comes_later(head: str) -> None:
    net = network(head)
    tape = Tape(some(counts=(9,)))
    seen, following = tape.take(tape.runs(32, 0))
    times = seen.times.clone().requires_grad_()
    gaps = torch.cat([times.diff(dim=1), following.gaps[:, -1:]], 1)
    values = net.log_likelihood(Seen(seen.marks, times, *seen[2:]), Following(gaps, *following[1:]))
    for i in range(values.shape[1] - 1):
        (slope,) = torch.autograd.grad(values[0, i], times, retain_graph=True)
        assert float(slope[0, i + 1].abs()) > 0 and not bool(slope[0, i + 2 :].any())


@pytest.mark.parametrize("shift", [1e4, 1e6, 1.6e9])
def test_a_shift_of_the_clock_changes_nothing_but_for_absolute_time(shift: float) -> None:
    events = some()
    later = events.shifted(shift)
    for head in HEADS:
        process = NeuralProcess(network(head), 32)
        np.testing.assert_array_equal(process.log_likelihood(later), process.log_likelihood(events))
    tied = NeuralProcess(network(encoding="sinusoidal", clock="time"), 32)
    assert np.abs(tied.log_likelihood(later) - tied.log_likelihood(events)).max() > 1e-3
    calendar = NeuralProcess(network(periods=(24.0,)), 32)
    assert np.abs(calendar.log_likelihood(events.shifted(6.0)) - calendar.log_likelihood(events)).max() > 1e-3
    np.testing.assert_allclose(
        calendar.log_likelihood(events.shifted(24.0)), calendar.log_likelihood(events), atol=1e-4
    )


def test_units_of_nanoseconds_lose_their_origin_as_integers() -> None:
    seconds = some(counts=(7, 1, 12))
    near = [np.round(one.times * 1e9).astype(np.int64) for one in seconds]
    window = (np.full(3, 10**9), np.full(3, 20 * 10**9))
    far = [each + 1_600_000_000_000_000_000 for each in near]
    marks, net = [one.kinds for one in seconds], network(scales=Scales(1.5e9, -0.4, 1.2))
    here, there = (
        Sequences.of(times, marks=marks, window=tuple(side + by for side in window), mark_count=MARKS)
        for times, by in ((near, 0), (far, 1_600_000_000_000_000_000))
    )
    assert there.origin == pytest.approx(1.6e18)
    both = [NeuralProcess(net, 32).log_likelihood(each) for each in (here, there)]
    np.testing.assert_allclose(both[1], both[0], atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_brief_training_never_beats_the_truth_on_what_has_no_memory(head: str) -> None:
    """Poisson(1) with uniform marks: no more than -(1 + ln K) nats an event, whatever a label leak would promise."""
    truth = Poisson(np.full(MARKS, 1 / MARKS))
    train, test = simulate(truth, (0, 60), 20, 0), simulate(truth, (0, 200), 10, 1)
    net = network(head, scales=Scales.of(train), depth=1).train()
    tape, optimizer = Tape(train), torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(60):
        seen, following = tape.take(tape.draw(np.random.default_rng(step), 8, 32))
        (-net.log_likelihood(seen, following).sum() / 200).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = NeuralProcess(net, 32).nats(test)
    bound, error = -(1 + math.log(MARKS)), 1 / math.sqrt(len(test.times))
    assert found < bound + 4 * error
    # nor is it far below, or the bound would say nothing
    assert found > truth.nats(test) - 0.15


def long(events: Sequences) -> dict[str, int]:
    return {"length": int(events.lengths.max()) + 1, "history": int(events.lengths.max())}


@pytest.mark.parametrize("head", HEADS)
def test_its_own_draws_are_as_it_says(head: str) -> None:
    net = network(head, 3, length=256)
    empty = Sequences.of([[]] * 40, marks=[[]] * 40, window=(0.0, 1e-9), mark_count=MARKS)
    generator = torch.Generator().manual_seed(5)
    (drawn,) = continuations(net, empty, 25.0, 1, generator, length=256)
    events = replace(drawn.sequences, start=empty.start)
    process = NeuralProcess(net, **long(events))
    test = ks_exponential(rescaled(process, events))
    assert test.count > 200 and test.p > 0.01
    assert ks_exponential(rescaled(Poisson.fit(events), events)).p < test.p
    levels = pit(process, events)
    assert levels.shape == events.times.shape and bool(((levels >= 0) & (levels <= 1)).all())
    again = continuations(net, empty, 25.0, 1, torch.Generator().manual_seed(5), length=256)
    np.testing.assert_array_equal(again[0].sequences.times, drawn.sequences.times)
    assert drawn.log_marks.shape == (len(events.times), MARKS)
    np.testing.assert_allclose(np.exp(drawn.log_marks).sum(-1), 1, atol=1e-9)


def test_intervals_cover_what_they_say() -> None:
    """90% intervals of gaps hold 88 to 92% of many gaps that were drawn from the network."""
    net = network("intensity", 2)
    state = NeuralProcess(net, 32).states(some(counts=(5,)))[-1:]
    gaps, _ = net.head.sample(state.expand(4000, -1), torch.Generator().manual_seed(0))
    low, high = (net.head.density(state).quantile(level) for level in (0.05, 0.95))
    assert 0.88 < float(((gaps > low) & (gaps < high)).double().mean()) < 0.92


def test_scores_of_gaps_are_those_of_their_density() -> None:
    net, events = network("mixture"), some(counts=(4,))
    process = NeuralProcess(net, 32)
    density = process.gaps(events)
    gaps = np.diff(events.times, prepend=events.start[0])
    levels = torch.exp(density.log_cdf(torch.from_numpy(gaps))).detach().numpy()
    np.testing.assert_allclose(levels, pit(process, events), atol=1e-6)
    score = crps(density, gaps)
    # of a forecast that is right, about half the spread; of one that is far off, nearly the distance
    assert score.shape == (4,) and bool((score >= 0).all()) and bool((score < torch.from_numpy(gaps) + 40).all())


@pytest.mark.parametrize("head", HEADS)
def test_the_intensity_over_a_sequence_is_what_the_compensator_sums_up(head: str) -> None:
    process, events = NeuralProcess(network(head), 32), some(counts=(6,))
    edges = np.concatenate([events.start, events.times, events.end])
    total = process.compensator(events)
    expected = np.concatenate([total[0][:, 0], total[1][:, 0]])
    for low, high, value in zip(edges[:-1], edges[1:], expected):
        x, w = np.polynomial.legendre.leggauss(400)
        root = (x + 1) / 2
        grid = low + (high - low) * root**2
        rates = process.intensity_at(events, 0, grid).sum(-1)
        assert float((rates * w * root).sum() * (high - low)) == pytest.approx(value, rel=2e-3, abs=1e-6)
    rates = process.intensity_at(events, 0, events.times)
    chosen = np.log(rates[np.arange(6), events.kinds])
    np.testing.assert_allclose(chosen, process.log_intensity(events), atol=1e-5)


def test_continuations_begin_where_the_window_ends() -> None:
    net, events = network("mixture"), some()
    draws = continuations(net, events, 6.0, 3, torch.Generator().manual_seed(1))
    assert len(draws) == 3
    for draw in draws:
        found = draw.sequences
        assert found.start.tolist() == events.end.tolist() and found.end.tolist() == (events.end + 6).tolist()
        assert bool((found.times >= np.repeat(found.start, found.lengths)).all())
        assert bool((found.times <= np.repeat(found.end, found.lengths)).all())
    assert not np.array_equal(draws[0].sequences.times, draws[1].sequences.times)
    with pytest.raises(ValueError, match="a horizon above 0"):
        continuations(net, events, 0.0)


def test_what_a_process_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="head is one of mixture, rmtpp, intensity, got 'flow'"):
        PointNetwork(2, head="flow")
    with pytest.raises(ValueError, match="told nothing of the event to come"):
        PointNetwork(2, query_time="request")
    with pytest.raises(ValueError, match="mark 2 is unknown to a model of 2 marks"):
        two = PointNetwork(2, dim=8, depth=1)
        NeuralProcess(two).log_likelihood(Sequences.of([[1.0, 2.0]], marks=[[0, 2]], window=(0, 3), mark_count=3))
