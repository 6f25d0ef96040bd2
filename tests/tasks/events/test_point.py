"""The task events: its protocol, what networks and classical processes are scored on, its pictures."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from relpos.lab.labels import read
from relpos.tasks import get, presets
from relpos.tasks.base import Task
from relpos.tasks.events import Sequences, anchors, forecasts
from relpos.tasks.events.neural import NeuralProcess, Tape
from relpos.tasks.events.point import PointProcess
from relpos.tasks.events.processes import Hawkes, Poisson, ks_exponential, rescaled, simulate

TRUTH = Hawkes([0.3, 0.2], [[0.4, 0.1], [0.2, 0.3]], 1.0)


@pytest.fixture(scope="module")
def task() -> PointProcess:
    found = PointProcess("made", least=10, length=32)
    drawn = simulate(TRUTH, (0.0, 80.0), 6, 1, unit="hours")
    found.take(Sequences(**{**vars(drawn), "ids": tuple("abcdef")}), "made")
    return found


def small(task: PointProcess, encoding: str = "relative_channels", **options: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return task.model(encoding, dim=16, depth=1, **options)


def test_it_is_a_task_with_honest_splits(task: PointProcess) -> None:
    assert isinstance(task, Task) and isinstance(get("events"), PointProcess)
    about = task.describe()
    assert about["events"]["test"] == task.plan().scored  # type: ignore[index]
    assert about["validation"] == "learned from: nothing is chosen by it"
    assert [metric.name for metric in task.metrics] == ["nats", "mae", "accuracy", "ks"]
    assert task.metrics[1].unit == "hours"
    held = PointProcess("made", least=10, length=32, hold=True)
    held.take(task.plan().sequences)
    inner = held.plan("validation")
    assert bool((inner.train.end < inner.cut + 1e-9).all()) and held.scales != task.scales
    assert held.describe()["events"]["learned from"] == len(inner.train.times)  # type: ignore[index]
    with pytest.raises(ValueError, match="unknown split 'train'"):
        task.plan("train")


def test_a_network_is_scored_on_the_very_events_of_the_anchors(task: PointProcess) -> None:
    model = small(task)
    found = task.evaluate(model, "test", 32)
    plan = task.plan()
    process = NeuralProcess(model, 32)
    assert found.count == plan.scored
    assert found.metrics["nats"] == pytest.approx(process.nats(plan.sequences, plan.cut)) == -found.loss
    assert found.loss == pytest.approx(-anchors.score([process] * 6, plan), abs=1e-5)
    ks = forecasts.of([Poisson([0.4, 0.3])] * 6, plan)["ks"]
    late = plan.sequences.within(float(plan.cut[0]), 80.0)
    assert ks == pytest.approx(ks_exponential(rescaled(Poisson([0.4, 0.3]), late)).statistic)


def test_median_and_mark_are_judged_as_they_are_foretold(task: PointProcess) -> None:
    model, plan = small(task), task.plan()
    found = task.evaluate(model, "test", 32).metrics
    states = NeuralProcess(model, 32).states(plan.sequences)
    tape = Tape(plan.sequences, plan.cut)
    coming = np.flatnonzero(tape.scored & (tape.next_marks >= 0))
    median, among = model.head.forecast(states[coming])
    assert found["mae"] == pytest.approx(np.abs(median.numpy() - tape.gaps[coming]).mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((among.argmax(-1).numpy() == tape.next_marks[coming]).mean())


def test_baselines_hold_the_anchors_and_the_constants(task: PointProcess) -> None:
    few = PointProcess("made", least=10, length=32, most=2, period=10.0)
    few.take(task.plan().sequences)
    rows, plan = few.baselines("test", 32), few.plan()
    assert rows["homogeneous Poisson"]["loss"] == pytest.approx(
        -anchors.score([Poisson.fit(one) for one in plan.train], plan)
    )
    assert {"Hawkes of marks", "log-normal renewal", "periodic Poisson", "Hawkes of marks on it"} <= set(rows)
    gaps, kinds = (np.concatenate(parts) for parts in zip(*[(one.gaps()[1:], one.kinds) for one in plan.train]))
    late = plan.sequences.times > np.repeat(plan.cut, plan.sequences.lengths)
    off = np.abs(plan.sequences.gaps()[late] - np.median(gaps))
    constant = rows["median gap, commonest mark"]
    assert constant["mae"] == pytest.approx(np.nanmean(off), rel=0.05) and "loss" not in constant
    assert constant["accuracy"] == (plan.sequences.kinds[late] == np.bincount(kinds).argmax()).mean()
    poisson = [math.log(2) / Poisson.fit(one).rates.sum() for one in plan.train]
    expected = np.abs(plan.sequences.gaps()[late] - np.array(poisson)[plan.sequences.rows[late]])
    assert rows["homogeneous Poisson"]["mae"] == pytest.approx(np.nanmean(expected), rel=0.05)


def test_batches_are_a_function_of_step_and_seed_and_hold_nothing_of_the_test(task: PointProcess) -> None:
    first, again, other = task.batch(3, 0, 5), task.batch(3, 0, 5), task.batch(3, 1, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again)) and not torch.equal(first[1], other[1])
    cut = float(task.plan().cut[0])
    for step in range(20):
        times = task.batch(step, 0, 5)[1]
        assert float(times.max()) <= cut
    with pytest.raises(ValueError, match="0 or more"):
        task.batch(-1, 0, 5)


def test_training_lowers_the_loss(task: PointProcess) -> None:
    model = small(task, head="intensity")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = task.evaluate(model, "validation", 32).loss
    for step in range(25):
        task.loss(model, task.batch(step, 0, 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert task.evaluate(model, "validation", 32).loss < before - 0.02


def test_short_sequences_have_one_process_for_all_and_the_truth_is_a_row() -> None:
    hawkes = PointProcess("hawkes", most=2)
    rows = hawkes.baselines("test", 64)
    plan = hawkes.plan()
    assert rows["the truth"]["nats"] == pytest.approx(anchors.score([TRUTH] * 2, plan))
    assert set(hawkes.bounds) <= set(rows) and rows["the truth"]["nats"] > rows["homogeneous Poisson"]["nats"]
    short = PointProcess("made", least=3, most=9)
    short.take(simulate(TRUTH, (0.0, 20.0), 12, 3))
    found = {row.name: row for row in short.rows()}
    assert found["homogeneous Poisson"].parameters == 2 and len(found["homogeneous Poisson"].models) == 9
    one = Poisson.fit(short.plan().train)
    assert found["homogeneous Poisson"].nats == pytest.approx(anchors.score([one] * 9, short.plan()))


def test_rates_by_the_hour_never_learn_the_ticks_of_a_clock_of_days() -> None:
    rng = np.random.default_rng(0)
    times = [np.unique(rng.integers(1, 70, 30)).astype(float) for _ in range(4)]
    days = PointProcess("made", least=3)
    days.take(Sequences.of(times, window=(0.0, 70.0), unit="days"), tick=1.0)
    rows = {row.name: row for row in days.rows()}
    assert rows["periodic Poisson"].parameters == 7
    assert rows["periodic Poisson"].nats < rows["homogeneous Poisson"].nats + 0.1


def test_ties_are_spread_so_that_gaps_have_a_density() -> None:
    days = Sequences.of([[0.0, 1.0, 1.0, 4.0, 6.0, 6.0]], marks=[[0, 1, 0, 1, 1, 0]], window=(0.0, 6.0), unit="days")
    found = anchors.untied(days)
    assert bool((found.gaps()[1:] > 0).all()) and found.kinds.tolist() == days.kinds.tolist()
    assert float(found.end[0]) >= float(found.times[-1])
    assert len(anchors.untied(days, "first").times) == 4


def test_pictures_and_draws_are_files(task: PointProcess, tmp_path: Path) -> None:
    model = small(task)
    shown = task.pictures(model, tmp_path)
    assert [each.path.name for each in shown] == ["intensity.png", "residuals.png", "time.png"]
    assert [each.path.name for each in task.pictures(small(task, "nope"), tmp_path / "x")] == [
        "intensity.png",
        "residuals.png",
    ]
    (drawn,) = task.sample(model, tmp_path / "samples", 0)
    files = [*(each.path for each in shown), drawn.path]
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in files)


def test_horizons_are_judged_beside_a_poisson_process(task: PointProcess) -> None:
    model, plan = small(task), task.plan()
    found = forecasts.over_horizons(model, plan, 5.0, 2, torch.Generator().manual_seed(0), 32)
    assert len(found) == 3 and all(len(draws) == 2 for _, draws in found)
    late = plan.sequences.times > np.repeat(plan.cut, plan.sequences.lengths)
    assert sum(len(real.times) for real, _ in found) <= late.sum()
    scores = forecasts.judged(found, 5.0, task.scales.unit)
    assert 0 < scores["OTD"] <= 2 * forecasts.FIRST and 0 <= scores["T-mAP"] <= 1
    flat = forecasts.judged(
        forecasts.process_draws(anchors.each(Poisson.fit, plan.train), plan, 5.0, 2, 0), 5.0, task.scales.unit
    )
    assert set(flat) == set(scores)
    with pytest.raises(ValueError, match="shorter than the horizon"):
        forecasts.starts(plan, 17.0)


def test_options_that_make_no_sense_are_refused(task: PointProcess) -> None:
    with pytest.raises(ValueError, match="length >= 4"):
        PointProcess(length=2)
    with pytest.raises(ValueError, match="networks read 32 tokens"):
        task.evaluate(small(task), "test", 64)
    with pytest.raises(ValueError, match="head is one of"):
        task.model("nope", head="thp")


def test_every_contestant_of_the_presets_can_be_built(task: PointProcess) -> None:
    for preset in presets("events").values():
        for label in preset["encodings"]:
            one = read(label)
            model = task.model(one.encoding, **{**preset["model"], **one.options})
            assert math.isfinite(float(task.loss(model, task.batch(0, 0, 2))))


def test_it_goes_to_a_worker_by_name(task: PointProcess) -> None:
    state = task.__getstate__()
    assert state["_plan"] is None and "_learned" not in state
    copy = pickle.loads(pickle.dumps(PointProcess("hawkes", most=2)))
    assert len(copy.plan().sequences) == 2
