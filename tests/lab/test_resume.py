"""A run that was stopped, however it was stopped, ends as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relpos.lab import assess
from relpos.lab.compare import compare
from relpos.lab.jobs import Crew
from relpos.lab.progress import Reporter
from relpos.lab.train import CHECKPOINT, Training, learning_rate, read_log, train_model
from tests.lab.conftest import quiet, settings
from tests.lab.toy import Toy

ROOT = Path(__file__).parents[2]


class StoppedAt(Toy):
    """Sends this process Ctrl-C while it makes the batch of one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        if step == self.step:
            self.step = -1
            os.kill(os.getpid(), signal.SIGINT)
        return super().batch(step, seed, size)


class Fails(Toy):
    """Has no batch 3."""

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        if step == 3:
            raise ValueError("no such step")
        return super().batch(step, seed, size)


def train(task: Any, folder: Path, encoding: str = "toy_slope", steps: int = 20) -> None:
    with Reporter(quiet=True).step("") as progress:
        train_model(Training(task, settings(steps=steps), encoding, 1, 0.01, steps, folder), progress)


def assert_same(one: Path, other: Path) -> None:
    first, second = load_file(one / CHECKPOINT), load_file(other / CHECKPOINT)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def without_times(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in log]


@pytest.mark.parametrize("encoding", ["toy_slope", "toy_places"])
def test_ctrl_c_and_rerun_give_the_same_weights_optimizer_and_random_state_bit_for_bit(
    tmp_path: Path, encoding: str
) -> None:
    train(Toy(), tmp_path / "whole", encoding)
    task = StoppedAt(7)
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "stopped", encoding)
    assert len(read_log(tmp_path / "stopped" / "metrics.jsonl")) == 8
    train(task, tmp_path / "stopped", encoding)
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    logs = [without_times(read_log(tmp_path / name / "metrics.jsonl")) for name in ("whole", "stopped")]
    assert logs[0] == logs[1]


def test_steps_logged_after_the_last_checkpoint_are_dropped_and_a_torn_line_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(StoppedAt(4), tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 9.0}\n{"step": 7, "lo')
    train(Toy(), tmp_path)
    log = read_log(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in log] == list(range(1, 21))
    assert log[5]["loss"] != 9.0


def test_handlers_of_signals_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(StoppedAt(2), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_rerun_of_a_finished_comparison_trains_nothing(new_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = settings(encodings=("nope",), seeds=(0,))
    compare(Toy(), few, new_run, quiet())
    stamp = (new_run / "nope-seed0" / CHECKPOINT).stat().st_mtime_ns
    monkeypatch.setattr("relpos.lab.jobs.train_model", None)
    compare(Toy(), few, new_run, quiet())
    assert (new_run / "nope-seed0" / CHECKPOINT).stat().st_mtime_ns == stamp


def test_stopped_between_training_and_evaluation_goes_on_with_the_evaluation(
    new_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings(encodings=("toy_turn",), seeds=(0,))
    with monkeypatch.context() as patch:
        patch.setattr(assess, "_lengths", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compare(Toy(), few, new_run, quiet())
    assert not assess.finished(new_run / "toy_turn-seed0")
    compare(Toy(), few, new_run, quiet())
    assert assess.finished(new_run / "toy_turn-seed0")


@pytest.mark.slow(12)
def test_models_trained_side_by_side_equal_models_trained_one_by_one(new_run: Path, tmp_path: Path) -> None:
    few = settings(encodings=("toy_slope", "nope"), seeds=(3,))
    compare(Toy(), few, tmp_path / "one", quiet())
    compare(Toy(), few, new_run, quiet(), crew=Crew(workers=2, modules=("tests.lab.toy",)))
    for name in ("toy_slope-seed3", "nope-seed3"):
        assert_same(tmp_path / "one" / name, new_run / name)


@pytest.mark.slow(10)
def test_an_error_in_a_worker_is_raised_here_with_its_place(new_run: Path) -> None:
    few = settings(encodings=("toy_slope", "nope"), seeds=(3,))
    with pytest.raises(RuntimeError, match=r"(?s)seed 3 failed:.*no such step"):
        compare(Fails(), few, new_run, quiet(), crew=Crew(workers=2, modules=("tests.lab.toy",)))


@pytest.mark.slow(25)
def test_kill_9_leaves_nothing_corrupt_and_a_rerun_ends_as_a_run_that_was_not_killed(tmp_path: Path) -> None:
    def relpos(name: str, **environment: str) -> int:
        words = ["-m", "relpos.cli", "--import", "tests.lab.toy", "compare", "toy", "--encodings", "toy_slope"]
        words += [
            "--seeds",
            "3",
            "--steps",
            "15",
            "--save-every",
            "0",
            "--workers",
            "1",
            "--out",
            str(tmp_path),
            "--name",
            name,
        ]
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
        )
        return done.returncode

    assert relpos("whole") == 0
    assert relpos("killed", TOY_KILL_AT="9") == -signal.SIGKILL
    folder = tmp_path / "killed" / "toy_slope-seed3"
    assert len(read_log(folder / "metrics.jsonl")) == 9 and (folder / CHECKPOINT).exists()
    (folder / f".{CHECKPOINT}.1.part").write_bytes(b"torn")
    assert relpos("killed") == 0
    assert_same(tmp_path / "whole" / "toy_slope-seed3", folder)
    assert not list((tmp_path / "killed").rglob("*.part"))


def test_learning_rate_rises_linearly_then_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.1)
