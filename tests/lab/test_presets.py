"""Presets that a task brings: under names of its own, and with options for the task itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from relpos import tasks
from relpos.lab.cli import app
from relpos.lab.errors import LabError
from relpos.lab.settings import PRESETS, preset
from tests.lab.toy import Toy


class Sized(Toy):
    """Echoes of three tokens ago, of a length to choose."""

    name = "sized"
    presets: ClassVar = {
        "short": {"steps": 2, "seeds": (0,), "rates": (0.01,), "model": {}, "task_options": {"length": 8}}
    }

    def __init__(self, length: int = 16) -> None:
        self.train_length = length


tasks.register("sized", "tests.lab.test_presets:Sized")


def test_a_preset_of_the_task_makes_the_task_and_can_be_overruled(tmp_path: Path) -> None:
    words = ["compare", "sized", "--preset", "short", "--encodings", "nope", "--budget", "5", "--workers", "1"]
    for name, more, length in (("a", [], 8), ("b", ["--task", "length=4"], 4)):
        result = CliRunner().invoke(app, [*words, "--out", str(tmp_path), "--name", name, *more])
        assert result.exit_code == 0, result.output + repr(result.exception)
        stored = json.loads((tmp_path / name / "config.json").read_text())["settings"]
        assert stored["task_options"] == {"length": length} and stored["steps"] == 2 and stored["preset"] == "short"


def test_what_a_preset_of_the_task_leaves_open_is_that_of_the_longer_run() -> None:
    settings = preset("short", "sized", ("nope",), Sized.presets)
    assert settings.steps == 2 and settings.batch == PRESETS["results"]["batch"]
    with pytest.raises(LabError, match="short"):
        preset("shirt", "sized", ("nope",), Sized.presets)
