"""Echoes: the answers by a plain loop, the optimum, what a shift of the clock does, and that encodings part."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relpos import tasks
from relpos.positions import EARTH_RADIUS_KM
from relpos.tasks.base import Task
from relpos.tasks.events.echo import KINDS, TICK, Echo
from relpos.tasks.events.echo_rules import Drawn

ALL = "position+time+place"


def kilometres(one: np.ndarray, other: np.ndarray) -> float:
    """By the law of cosines, which is exact enough beyond some metres."""
    a, b, turn = math.radians(one[0]), math.radians(other[0]), math.radians(one[1] - other[1])
    return EARTH_RADIUS_KM * math.acos(min(1.0, math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(turn)))


def by_loop(times: np.ndarray, places: np.ndarray, age: float, near: float) -> list[tuple[int, int]]:
    """Which event is asked for, by its definition, -1 where none is."""
    found = []
    for i in range(len(times)):
        old, nearest, least = -1, -1, math.inf
        for j in range(i):
            if times[i] - times[j] >= age:
                old = j  # a later one takes its place
            far = kilometres(places[i], places[j])
            if far <= near and far < least:
                nearest, least = j, far
        found.append((old, nearest))
    return found


@given(seed=st.integers(0, 10**6), age=st.sampled_from([0.5, 5.0, 9.0]), near=st.sampled_from([0.7, 2.0, 30.0]))
@settings(max_examples=15, deadline=None)
def test_answers_are_those_of_a_plain_loop(seed: int, age: float, near: float) -> None:
    task = Echo(events=12, age=age, near=near)
    drawn = task.draw(np.random.default_rng(seed), 3)
    for marks, times, places, answers in zip(*drawn, strict=True):
        wanted = [[marks[j] if j >= 0 else -1 for j in pair] for pair in by_loop(times, places, age, near)]
        assert answers.tolist() == wanted


def test_an_event_of_exactly_the_age_is_old_enough_and_its_own_place_is_near() -> None:
    times, places = np.array([0.0, 1.0, 5.0, 6.0]), np.zeros((4, 2))
    places[:, 0] = [0, 1, 1, 0]  # a degree is 111 km
    assert Echo(events=4).sources(times, places).tolist() == [[-1, -1], [-1, -1], [0, 1], [1, 0]]


def test_in_buckets_an_event_in_that_of_the_age_counts_as_old() -> None:
    times, places = np.array([0.0, 0.19, 5.0 + TICK]), np.zeros((3, 2))
    places[:, 0] = [0.0, 0.0004, 0.0005]  # 56 and 11 m from the last: one bucket of 100 m
    task = Echo(events=3)
    assert task.sources(times, places)[2].tolist() == [0, 1]
    assert task.sources(times, places, tick=TICK, stride=0.1)[2].tolist() == [1, 0]


def test_draws_have_the_stated_laws() -> None:
    drawn = Echo().draw(np.random.default_rng(0), 2000)
    gaps = np.diff(drawn.times, axis=1, prepend=0.0)
    assert abs(gaps.mean() - 1) < 0.03 and abs(gaps.var() - 2) < 0.15  # of shape k and mean 1 the variance is 1 / k
    assert np.bincount(drawn.marks.ravel(), minlength=8).min() > 7500 and drawn.marks.max() == 7
    corners = [kilometres(a, b) for a, b in zip(drawn.places[:, 0], drawn.places[:, 1])]
    assert max(corners) < 20 * 2**0.5 * 1.01 and abs(np.mean(corners) - 0.5214 * 20) < 0.4  # mean of a square's pairs
    asked = (drawn.answers >= 0).mean((0, 1))
    assert 0.75 < asked[0] < 0.85 and 0.3 < asked[1] < 0.4


def test_batches_and_splits_are_functions_of_their_arguments() -> None:
    task, again = tasks.get("echo", judged=5), tasks.get("echo", judged=5)
    assert isinstance(task, Task) and isinstance(task, Echo) and isinstance(again, Echo)
    one, same, other = task.batch(3, 1, 4), again.batch(3, 1, 4), task.batch(4, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True)) and not torch.equal(one[0], other[0])
    assert not np.array_equal(task.split("test").marks, task.split("validation").marks)
    assert np.array_equal(pickle.loads(pickle.dumps(task)).split("test").times, again.split("test").times)


class Knowing(nn.Module):
    """Looks the answers up by the rules; asked with another clock it still does."""

    def __init__(self, task: Echo) -> None:
        super().__init__()
        self.task, self.nothing = task, nn.Parameter(torch.zeros(()))

    def forward(self, marks: Tensor, times: Tensor, places: Tensor) -> Tensor:
        answers = self.task.answers(marks.numpy(), times.numpy(), places.numpy())
        return 60.0 * nn.functional.one_hot(torch.from_numpy(answers).clamp(min=0), self.task.marks) + self.nothing


@pytest.mark.parametrize("kind", ["both", "time", "place"])
def test_who_knows_the_rules_is_always_right(kind: str) -> None:
    task = Echo(kind=kind, events=16, judged=30)
    found = task.evaluate(Knowing(task), "test", 16)
    rows = task.baselines("test", 16)
    assert found.metrics.keys() == {metric.name for metric in task.metrics} == rows["optimum"].keys() - {"loss"}
    for name in task.kinds:
        assert found.metrics[name] == rows["optimum"][name] == 1
        assert 1 / 8 < rows["the best fixed number of events back"][name] < 0.6
        assert rows["chance"][name] == 1 / 8
        assert 0.85 < rows["the rules, in the model's buckets"][name] <= 1
    if kind != "place":
        assert found.metrics["shifted"] == 1 and found.metrics["moved"] < 1e-12
    assert found.loss < 1e-12 and rows["chance"]["loss"] == pytest.approx(math.log(8))
    assert found.count == (task.split("test").answers[..., [KINDS.index(k) for k in task.kinds]] >= 0).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_left_out_has_no_part_in_the_loss(kind: str) -> None:
    task = Echo(kind=kind, events=16)
    model = task.model("relative_channels", channels=ALL)
    *given, answers = task.batch(0, 0, 4)
    changed = answers.clone()
    changed[..., 1 - KINDS.index(kind)] = 3
    before = task.loss(model, (*given, answers))  # type: ignore[arg-type]
    assert torch.equal(before, task.loss(model, (*given, changed)))  # type: ignore[arg-type]
    changed[..., KINDS.index(kind)] = 3
    assert not torch.equal(before, task.loss(model, (*given, changed)))  # type: ignore[arg-type]


def made_decided(model: nn.Module) -> nn.Module:
    """With weights large enough that its probabilities depend on what it sees."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("inject", ["key", "bias", "key+value"])
def test_relative_channels_do_not_hear_a_shift_of_the_clock(gap: bool, inject: str) -> None:
    for shift in (100.0, 1e6):
        task = Echo(judged=20, shift=shift)
        model = made_decided(task.model("relative_channels", channels=ALL, inject=inject, gap=gap))
        found = task.evaluate(model, "test", 32)
        assert found.metrics["moved"] < 1e-5 and found.metrics["shifted"] == found.metrics["time"]


def test_absolute_time_does_hear_it() -> None:
    task = Echo(judged=20)
    model = made_decided(task.model("sinusoidal", clock="time"))
    assert task.evaluate(model, "test", 32).metrics["moved"] > 0.01
    model = made_decided(task.model("sinusoidal"))  # of the index: it sees no clock
    assert task.evaluate(model, "test", 32).metrics["moved"] == 0


def test_what_comes_later_changes_no_answer() -> None:
    task = Echo(events=16)
    model = made_decided(task.model("relative_channels", channels=ALL, gap=True))
    drawn = task.draw(np.random.default_rng(0), 4)
    later = Drawn(*(each.copy() for each in drawn))
    later.marks[:, 9:] = 0
    later.times[:, 9:] += 3.0
    later.places[:, 9:] = later.places[:, :1]
    one, other = task.log_probabilities(model, drawn), task.log_probabilities(model, later)
    assert torch.equal(one[:, :9], other[:, :9]) and not torch.equal(one[:, 9:], other[:, 9:])


def test_the_sample_says_what_was_asked_and_answered(tmp_path: Path) -> None:
    task = Echo(judged=3)
    (text,) = task.sample(Knowing(task), tmp_path, 0)
    lines = text.path.read_text(encoding="utf-8").splitlines()
    asked = int((task.split("test").answers[:2] >= 0).sum())
    assert sum(line.count("right") for line in lines) == asked and not any("WRONG" in line for line in lines)
    (picture,) = task.pictures(task.model("relative_channels", channels=ALL), tmp_path)
    assert picture.kind == "image" and picture.path.stat().st_size > 5000
    assert task.pictures(task.model("nope"), tmp_path) == []


def test_a_short_training_parts_the_encodings() -> None:
    """A clock finds the old event, and a map the near one."""
    task = Echo(events=12, marks=4, judged=100, age=2.0, side=8.0)
    found = {}
    for channels in ("position+time", "place"):
        torch.manual_seed(0)
        model = task.model("relative_channels", channels=channels, depth=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(80):
            task.loss(model, task.batch(step, 0, 32)).backward()
            optimizer.step()
            optimizer.zero_grad()
        found[channels] = task.evaluate(model, "test", 12).metrics
    assert found["position+time"]["time"] > found["place"]["time"] + 0.3
    assert found["place"]["place"] > found["position+time"]["place"] + 0.3


def test_bad_input_is_refused() -> None:
    for options in (
        {"kind": "space"}, {"events": 1}, {"marks": 1}, {"age": 0}, {"near": -1.0}, {"side": 1e5}, {"judged": 0},
        {"shift": math.inf},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="got"):
            Echo(**options)  # type: ignore[arg-type]
    task = Echo(judged=2)
    with pytest.raises(ValueError, match="unknown split"):
        task.evaluate(nn.Linear(1, 1), "train", 32)
    with pytest.raises(ValueError, match="32 events, not 24"):
        task.evaluate(nn.Linear(1, 1), "test", 24)
    with pytest.raises(ValueError, match="position, time, place"):
        task.model("relative_channels", channels="position+colour")
    with pytest.raises(ValueError, match="not with nope"):
        task.model("nope", channels="time")
    with pytest.raises(ValueError, match="step and seed"):
        task.batch(-1, 0, 2)
