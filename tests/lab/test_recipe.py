"""Training by a recipe: the average, shared batches, the way of the learning rate, and stopping without a trace."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter
from relpos.lab.recipe import Average, Recipe, batches, in_steps
from relpos.lab.settings import Settings, preset, usual_preset
from relpos.lab.train import Training, learning_rate, train_model
from tests.lab.toy import Toy

RECIPE = {"betas": [0.9, 0.999], "eps": 1e-5, "first": 0.01, "last": 0.001, "average": 0.9}


def settings(**changes: Any) -> Settings:
    return replace(
        Settings("toy", ("toy_slope",), seeds=(0,), steps=12, batch=4, rates=(0.01,)), **{"recipe": RECIPE, **changes}
    )


def train(folder: Path, which: Settings, steps: int, stop: int | None = None) -> nn.Module:
    def progress(done: float, total: float, text: str = "") -> None:
        if done == stop:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    return train_model(Training(Toy(), which, "toy_slope", 0, 0.01, steps, folder), progress).model


def test_the_average_follows_the_weights_and_copies_counts() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        network[0].weight.fill_(1.0)  # type: ignore[union-attr, operator]
        average = Average(network, 0.75)
        network[0].weight.fill_(5.0)  # type: ignore[union-attr, operator]
    network(torch.zeros(3, 1))
    average.update(network)
    average.update(network)
    other = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average.put_into(other)
    assert other[0].weight.item() == pytest.approx(5 - 4 * 0.75**2)  # type: ignore[union-attr, operator]
    assert other[1].num_batches_tracked == 1
    with pytest.raises(LabError, match="decay"):
        Average(network, 1.0)


def test_what_is_trained_by_a_recipe_is_the_average(tmp_path: Path) -> None:
    plain = train(tmp_path / "a", settings(recipe={}), 12)
    same = train(tmp_path / "b", settings(recipe={"average": 0.0}), 12)
    slow = train(tmp_path / "c", settings(recipe={"average": 0.99}), 12)
    pairs = list(zip(plain.parameters(), same.parameters(), slow.parameters()))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not any(torch.equal(a, c) for a, _, c in pairs)


def test_a_training_by_a_recipe_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", settings(), 12)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", settings(), 12, stop=5)
    resumed = train(tmp_path / "b", settings(), 12)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    again = train(tmp_path / "b", settings(), 12)  # finished: the average comes out of the checkpoint
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_batch_in_parts_makes_the_same_step(parts: int, tmp_path: Path) -> None:
    still = {"dropout": 0.0}  # a mask is drawn for each part
    calm = {"eps": 1e-2}  # else AdamW makes a whole step of what is rounding in a gradient of 0
    whole = train(tmp_path / "a", settings(recipe=calm, model=still), 3)
    split = train(tmp_path / "b", settings(recipe={**calm, "parts": parts}, model=still), 3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole.parameters(), split.parameters()))


class Numbered:
    """Batch j of size s holds the rows j s .. (j + 1) s."""

    name = "numbered"
    examples = 100

    def prepare(self, progress: Any = None) -> None:
        pass

    def batch(self, step: int, seed: int, size: int) -> torch.Tensor:
        return torch.arange(step * size, (step + 1) * size)


@pytest.mark.parametrize("loaders", [0, 2])
def test_the_shares_of_all_devices_are_the_whole_batch(loaders: int) -> None:
    state = torch.get_rng_state()
    parts = [list(batches(Numbered(), 0, 6, 2, 5, loaders, rank, 3)) for rank in range(3)]
    assert torch.equal(state, torch.get_rng_state())
    for step, shares in enumerate(zip(*parts), start=2):
        assert torch.equal(torch.cat(shares), Numbered().batch(step, 0, 6))
    with pytest.raises(LabError, match="batch of 6 cannot be shared out among 4"):
        Recipe(devices=4).check(6)
    with pytest.raises(LabError, match="at least one device and one part"):
        Recipe(parts=0).check(6)
    with pytest.raises(LabError, match="devices are a number or auto, got '3x'"):
        Recipe(devices="3x").check(6)


def test_the_learning_rate_starts_and_ends_where_it_is_told() -> None:
    rates = [learning_rate(step, 100, 2.0, 0.1, first=0.25, last=0.01) for step in range(101)]
    assert rates[0] == pytest.approx(0.5 + 0.75 * 0.2) and rates[9] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.02) and rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(rates[55], 2 * (0.01 + 0.99 / 2))


def test_epochs_become_steps_and_unknown_fields_are_told() -> None:
    quiet = Reporter(quiet=True)
    assert in_steps(Numbered(), settings(recipe={"epochs": 8}), quiet).steps == 200
    assert in_steps(Numbered(), settings(), quiet).steps == 12
    with pytest.raises(LabError, match="no epoch; it has average"):
        Recipe.of({"epoch": 3})


def test_settings_without_a_recipe_are_stored_as_ever() -> None:
    assert "recipe" not in settings(recipe={}).as_dict()
    assert Settings.from_dict(settings().as_dict()).recipe == RECIPE


def test_a_task_without_a_demo_begins_with_its_first_preset() -> None:
    own = {"paper": {"steps": 7, "rates": (1e-3,), "budget": None}, "quick": {}}
    assert usual_preset(own) == "paper" and usual_preset({}) == "demo" and usual_preset({"x": {}, "demo": {}}) == "demo"
    assert preset("paper", "toy", ("toy_slope",), own).steps == 7
    own["paper"]["recipe"] = {"devices": "auto", "epochs": 3}
    changed = preset("paper", "toy", ("toy_slope",), own, recipe={"devices": 1})
    assert changed.recipe == {"devices": 1, "epochs": 3}


def test_the_command_takes_data_and_the_one_encoding_of_a_preset(tmp_path: Path) -> None:
    from relpos.lab.commands import only_encoding, with_data

    assert with_data(["side=64"], Path("x")) == ["side=64", "path=x"] and with_data(None, None) is None
    assert only_encoding("imagenet", {"encodings": ("gqpe",)}) == "gqpe"
    for preset_ in ({}, {"encodings": ("rope", "t5")}):
        with pytest.raises(LabError, match="--encoding rope"):
            only_encoding("images", preset_)
