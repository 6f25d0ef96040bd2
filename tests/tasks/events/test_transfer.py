"""The network of the task transfer, the ways to adapt it, and the task itself."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from relpos.tasks import Task, get
from relpos.tasks.events.sequences import Sequences
from relpos.tasks.events.transfer import methods
from relpos.tasks.events.transfer.network import Traveller, an_event
from relpos.tasks.events.transfer.regions import Journey, Prior, Region, Size, joined
from relpos.tasks.events.transfer.task import GAIN, GROUP, PRICE, Transfer, untied
from tests.tasks.events.areas import fresh, made, task

SMALL: dict[str, Any] = {"dim": 8, "depth": 1, "heads": 2, "length": 16}
USUAL = Size(4.0, 0.3)


def network(seed: int = 0, **options: Any) -> Traveller:
    """With tables that say something."""
    torch.manual_seed(seed)
    found = Traveller(2, "relative_channels", typical=(5.0, 0.5), **{**SMALL, **options})
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if ".channels." in name:
                parameter.normal_(std=0.5)
    return found


def journey(one: Sequences, size: Size = USUAL, since: float | None = None, tokens: int = 64) -> Journey:
    region = Region(one, since)
    runs = region.tape.runs(tokens, tokens // 2)
    return region.take(runs, [size] * len(runs))


# ---- the network


@given(stretch=st.floats(1e-3, 1e3))
@settings(max_examples=5, deadline=None)
def test_in_units_of_the_region_another_clock_changes_the_likelihood_by_its_logarithm_alone(stretch: float) -> None:
    own, moved = (network(units=units) for units in ("region", "source"))
    here, there = journey(made((12,))), journey(made((12,)).scaled(stretch), Size(4.0 * stretch, 0.3))
    with torch.no_grad():
        expected = own(here).sum() - here.events * math.log(stretch)
        assert float(own(there).sum()) == pytest.approx(float(expected), abs=1e-3)
        if abs(math.log(stretch)) > 0.5:
            assert abs(float(moved(there).sum() - moved(here).sum()) + here.events * math.log(stretch)) > 1e-3


def test_other_ways_change_the_likelihood_by_their_logarithms_alone() -> None:
    one = made((12,))
    middle = one.places[0]
    wide = Sequences(**{**vars(one), "places": middle + (one.places - middle) * 3})
    model = network(units="region")
    near, far = journey(one, Size(4.0, 0.3)), journey(wide, Size(4.0, 0.9))
    moves = int((near.way > 0).sum())
    with torch.no_grad():
        # degrees are not quite kilometres: tripled ones are so only about
        assert float(model(far).sum() - model(near).sum()) == pytest.approx(-moves * math.log(3), abs=2e-2)


def test_the_network_is_told_the_size_only_where_asked_and_only_up_to_a_bound() -> None:
    one = made((12,))
    for units, differs in (("region", False), ("region+size", True)):
        model = network(units=units)
        with torch.no_grad():
            states = [
                model.states(model.measured(journey(one.scaled(c), Size(4.0 * c, 0.3)))) for c in (1.0, 3.0, 1e3, 1e4)
            ]
        assert (not torch.allclose(states[0], states[1], atol=1e-5)) == differs
        assert torch.allclose(states[2], states[3], atol=1e-5)


def test_an_event_is_scored_without_itself_and_without_what_follows() -> None:
    one, model = made((9,)), network()
    later = {"times": one.times.copy(), "marks": one.kinds.copy(), "places": one.places.copy()}
    later["times"][7:] += 0.25 * (one.end[0] - one.times[-1])
    later["marks"][7:] = 1 - later["marks"][7:]
    later["places"][7:] += 0.01
    with torch.no_grad():
        first, second = (model(journey(each))[0] for each in (one, Sequences(**{**vars(one), **later})))
        states = [model.states(model.measured(journey(each)))[0] for each in (one, Sequences(**{**vars(one), **later}))]
    assert torch.equal(first[:7], second[:7])  # tokens: the start, then events 0 to 5, which tell of events 0 to 6
    assert torch.equal(states[0][:8], states[1][:8]) and not torch.allclose(states[0][8:], states[1][8:])
    assert not torch.allclose(first[7], second[7])


def test_windows_split_and_silence_counts() -> None:
    one, model = made((12,)), network()
    cut = float(one.times[4] + one.times[5]) / 2
    with torch.no_grad():
        whole = model(journey(one)).sum()
        parts = model(journey(one.until(cut))).sum() + model(journey(one, since=cut)).sum()
        longer = model(journey(Sequences(**{**vars(one), "end": one.end + 50.0}))).sum()
    assert float(whole) == pytest.approx(float(parts), abs=1e-4)
    assert float(longer) < float(whole) - 1e-3


def test_the_next_event_has_a_density() -> None:
    model = network()
    states = torch.randn(5, 8)
    x = torch.logspace(-8, 8, 4001, dtype=torch.float64)
    ways = model.head.log_way(states[:, None].expand(-1, len(x), -1), x).exp()
    still = model.head.log_way(states, torch.zeros(5)).exp()
    assert torch.allclose(torch.trapezoid(ways, x) + still, torch.ones(5, dtype=torch.float64), atol=1e-5)
    gaps = model.head.density(states[:, None]).log_prob(x).exp()
    assert torch.allclose(torch.trapezoid(gaps, x), torch.ones(5, dtype=torch.float64), atol=1e-5)
    marks = model.head.log_marks(states, torch.ones(5, dtype=torch.float64)).exp()
    assert torch.allclose(marks.sum(-1), torch.ones(5, dtype=torch.float64))


def test_time_and_mark_are_those_of_the_head() -> None:
    model, one = network(), journey(made((9,)))
    measured = model.measured(one)
    with torch.no_grad():
        states = model.states(measured)
        both = model.head.log_likelihood(states, measured.following).sum() - one.events * math.log(4.0)
        parts = model(one).sum((0, 1))
    assert float(parts[0] + parts[1]) == pytest.approx(float(both), abs=1e-4)
    assert float(parts[2]) != 0.0


def test_pads_and_the_end_at_an_event_change_nothing() -> None:
    model, region = network(), Region(made((12,)))
    short = region.start(5)
    alone = short.take(short.tape.runs(16, 8), [Size(4.0, 0.3)])
    other = journey(made((11,), 2), Size(2.0, 0.5))
    both = joined([alone, other])
    parts = model(both).sum((1, 2))
    assert torch.allclose(parts, torch.stack([model(alone).sum(), model(other).sum()]), atol=1e-4)
    model.nats(alone).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_units_are_known_words() -> None:
    with pytest.raises(ValueError, match="units is one of source, region, region\\+size, got 'hours'"):
        network(units="hours")


# ---- ways to adapt


def test_every_parameter_is_of_one_group() -> None:
    names = [name for name, _ in network(depth=2).named_parameters()]
    for name in names:
        groups = [group for group in methods.GROUPS if group != "all" if _fits(name, methods.GROUPS[group])]
        assert len(groups) == 1, (name, groups)


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for pattern in patterns)


def changed(before: Traveller, after: Traveller) -> set[str]:
    """The groups in which something differs."""
    old, new = before.state_dict(), after.state_dict()
    names = [name for name in old if not torch.equal(old[name], new[name])]
    return {group for group in methods.GROUPS if group != "all" for name in names if _fits(name, methods.GROUPS[group])}


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("zero-shot", set()),
        ("ours", {"marks"}),
        ("head", {"marks", "flows"}),
        ("fine-tune", {"marks", "items", "flows", "body", "tables"}),
        ("meta", {"marks", "items", "flows", "body", "tables"}),
    ],
)
def test_a_method_changes_what_it_says(name: str, groups: set[str]) -> None:
    found = task()
    model = found.model("relative_channels", transfer=name, **SMALL)
    before = copy.deepcopy(model)
    adapted, _ = found.adapted(model, found.regions("test")[0], 6)
    assert changed(before.network, adapted) == groups
    assert changed(before.network, model.network) == set()


def test_scratch_takes_nothing_of_the_source() -> None:
    found = fresh()
    weights = []
    for shift in (0.0, 1.0):
        torch.manual_seed(3)
        model = found.model("relative_channels", transfer="scratch", **SMALL)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(shift)
        found._prior = Prior(5.0, 1.0 + shift, shift, 1.0, 1.0, np.ones(2), np.ones(2))
        weights.append(found.adapted(model, found.regions("test")[0], 6)[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_options_change_a_method() -> None:
    found = task()
    model = found.model("relative_channels", transfer="ours", reset="marks+tables", freeze="none", **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    begun, report = model.begin()
    assert changed(model.network, begun) == {"marks", "tables"} and report.frozen == ()
    held = found.model("relative_channels", transfer="head", adapt_pull=1e8, adapt_rate=1e-3, adapt_steps=30, **SMALL)
    free = found.model("relative_channels", transfer="head", adapt_rate=1e-3, adapt_steps=30, **SMALL)
    far = []
    for each in (held, free):
        adapted, _ = found.adapted(each, found.regions("test")[0], 6)
        far.append(max(float((a - b).detach().norm()) for a, b in zip(adapted.parameters(), each.network.parameters())))
    assert far[0] < far[1] / 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer": "axolotl"}, "transfer is one of scratch, zero-shot, fine-tune, head, ours, meta, got 'axolotl'"),
        (
            {"reset": "items+heads"},
            "reset takes tables, flows, marks, items, body, all joined by",
        ),
        ({"adapt_steps": -1}, "adapt_steps is a whole number, 0 or more, got -1"),
        ({"adapt_rate": 0.0}, "adapt_rate lies between 0 and 1"),
        ({"adapt_pull": -1.0}, "adapt_pull is a number, 0 or more"),
        ({"units": "hours"}, "units is one of"),
    ],
)
def test_a_wrong_option_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task().model("relative_channels", **options)


def test_meta_learning_takes_the_slope_after_the_steps_for_that_before() -> None:
    model = network(units="region")
    region = Region(made((40,)))
    runs = region.tape.draw(np.random.default_rng(0), GROUP, 16, 4)
    group = region.take(runs, [Size(5.0, 0.3)] * GROUP)
    loss = methods.outer(model, group, GROUP, 7, 0.1)
    loss.backward()
    support = methods.beginning(group.rows(slice(0, 1)), 7)
    assert support.way.shape == (1, 7) and support.events < group.rows(slice(0, 1)).events
    plain = dict(model.named_parameters())
    by_hand = {name: value.detach() for name, value in plain.items()}
    for _ in range(methods.INNER):
        at = {name: value.clone().requires_grad_() for name, value in by_hand.items()}
        slopes = torch.autograd.grad(
            an_event(functional_call(model, at, (support,)), support), list(at.values()), allow_unused=True
        )
        size = math.sqrt(sum(float(s.square().sum()) for s in slopes if s is not None))
        by_hand = {
            name: value if s is None else value - 0.1 / max(size, 1.0) * s
            for (name, value), s in zip(by_hand.items(), slopes)
        }
    at = {name: value.clone().requires_grad_() for name, value in by_hand.items()}
    query = group.rows(slice(1, GROUP))
    expected = an_event(functional_call(model, at, (query,)), query)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    expected.backward()
    for name, value in plain.items():
        if value.grad is not None:
            assert torch.allclose(value.grad, at[name].grad, atol=1e-5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batches of at least 4 runs, got 2"):
        methods.outer(model, group.rows(slice(0, 2)), GROUP, 7, 0.1)


# ---- the task


def test_sides_are_regions_of_the_busiest_area_and_quiet_ones_elsewhere() -> None:
    found = task()
    assert isinstance(found, Task) and isinstance(get("transfer"), Transfer)
    told = json.loads(json.dumps(found.describe()))
    assert told["source area"] == "busy" and list(told["regions"]["source"].values()) == [30, 60, 40]
    assert list(told["regions"]["test"].values()) == [18, 20]
    assert list(told["regions"]["validation"].values()) == [30, 27]
    assert told["scored"] == {"validation": 24 + 21, "test": 12 + 14}
    other = fresh(source="quiet", under=41)
    assert [len(region) for region in other.regions("source")] == [30, 27]
    assert [len(region) for region in other.regions("test")] == [30, 40]


def test_batches_are_a_function_of_step_and_seed() -> None:
    found = task()
    first, again, other = (found.batch(step, 1, 8) for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other))
    journey = Journey.of(first)
    assert len(journey.sizes) == 8 and journey.way.shape[1] <= found.tokens and journey.events > 0
    model = found.model("relative_channels", transfer="meta", **SMALL)
    assert bool(found.loss(model, first).isfinite())


def test_a_size_is_of_what_came_before_the_run() -> None:
    found = task()
    region = found.regions("source")[1]
    assert found._size(region, 21, 6) == region.size(found.prior, 14, 20)  # token 21 is event 20
    assert found._size(region, 0, 6) == found._size(region, 3, 6) == region.size(found.prior, 0, 6)
    assert found._size(region, 0, 1000) == region.size(found.prior, 0, 60)


def test_adapting_sees_the_known_events_alone() -> None:
    found = task()
    region = found.regions("test")[0]
    times = region.events.times.copy()
    times[6:] = np.linspace(times[5] + 1, region.events.end[0] - 1, len(times) - 6)
    other = Region(Sequences(**{**vars(region.events), "times": times, "marks": 1 - region.events.kinds}), times[5])
    other.events.marks[:6] = region.events.kinds[:6]  # type: ignore[index]
    other = Region(other.events, times[5])
    model = found.model("relative_channels", transfer="fine-tune", units="region", **SMALL)
    (one, size), (two, same) = (found.adapted(model, each, 6) for each in (region, other))
    assert size == same and all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not np.allclose(found.score(one, region, size), found.score(two, other, same))


def test_an_evaluation_scores_the_same_at_every_length_and_leaves_the_network_alone() -> None:
    found = task()
    model = found.model("relative_channels", transfer="ours", **SMALL)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    told: list[str] = []
    with torch.no_grad():
        results = [found.evaluate(model, "test", n, lambda _, __, text: told.append(text)) for n in found.lengths]
        again = found.evaluate(model, "test", 6)
        checked = found.evaluate(model, "validation", 6)
    assert {each.count for each in results} == {26} and again == results[1] and checked.metrics == {}
    assert set(results[0].metrics) == {GAIN, PRICE} and results[0].loss != results[1].loss
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and "test, adapting to 3 events of region 3" in told
    rows = found.baselines("test", 6)
    pooled = rows["Poisson, prior of the source"]
    assert pooled[GAIN] == 0.0 and results[1].metrics[GAIN] == pytest.approx(pooled["loss"] - results[1].loss)
    assert rows["Poisson of the target alone"][PRICE] == pytest.approx(0, abs=1e-9)
    for call in (found.evaluate, lambda _, *rest: found.baselines(*rest)):
        with pytest.raises(ValueError, match="length is one of 3, 6 events, got 5"):
            call(model, "test", 5)
        with pytest.raises(ValueError, match="unknown split 'source'"):
            call(model, "source", 6)


def test_what_a_model_gains_is_paid_for_where_it_knew_the_pace_of_the_source() -> None:
    found = task()
    torch.manual_seed(0)
    rows = {}
    for name in ("zero-shot", "scratch"):  # whose units are the source's, and the target's own
        model = found.model("relative_channels", transfer=name, adapt_steps=0, **SMALL)
        rows[name] = found.evaluate(model, "test", 6).metrics[PRICE]
    assert abs(rows["scratch"]) < 1e-3 and rows["zero-shot"] > 0.1


def test_there_is_something_to_look_at(tmp_path: Path) -> None:
    found = task()
    for options in ({"transfer": "ours"}, {"transfer": "zero-shot", "channels": "position"}):
        model = found.model("relative_channels", **options, **SMALL)
        picture, text = *found.pictures(model, tmp_path), *found.sample(model, tmp_path, 0)
        assert picture.path.stat().st_size > 10_000 and picture.kind == "image"
        lines = text.path.read_text().splitlines()
        assert lines[3].startswith("region 3") and any(line.startswith("frozen: ") for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": ()}, "lengths rise and there is at least one"),
        ({"lengths": (6, 3)}, "lengths rise"),
        ({"tokens": 7}, "runs of 7 tokens do not hold 6 events"),
        ({"under": 16}, "under=16 leaves no target with 6 events and 10 to score"),
        ({"source": "nowhere"}, "source is one of busy, quiet, got 'nowhere'"),
        ({"enough": 60}, "source has 1 regions, and needs 2"),
    ],
)
def test_sizes_that_leave_nothing_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh(**options)


def test_worker_processes_are_sent_no_data_and_ties_get_apart() -> None:
    found = task()
    found.baselines("test", 6)
    assert len(pickle.dumps(found)) < 2000
    tied = untied(Sequences.of([[1.0, 1.0, 3.0]], places=[np.zeros((3, 2))], marks=[[0, 1, 0]], window=(0, 4)))
    assert (tied.gaps()[1:] > 0).all() and tied.end[0] == 4.0
    last = untied(Sequences.of([[1.0, 3.0, 3.0]], places=[np.zeros((3, 2))], marks=[[0, 1, 0]], window=(0, 4)))
    assert last.times[1] < last.times[2] <= last.end[0] == 5.0
