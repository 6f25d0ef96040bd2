"""A comparison spread over a Ray cluster ends as one on this machine, whatever happens to its workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from relpos.lab import cluster, commands
from relpos.lab.cluster import Cluster
from relpos.lab.compare import compare
from relpos.lab.errors import LabError
from relpos.lab.jobs import Board, Crew
from relpos.lab.progress import Reporter
from relpos.lab.train import CHECKPOINT, read_log
from tests.lab.conftest import quiet, settings
from tests.lab.toy import Toy

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    """Two workers at once on this machine; what a worker imports is found as here."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
        small = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        ray.init(**small, log_to_driver=False, logging_level="error")
        yield ray
        ray.shutdown()


class Diary(Toy):
    """Writes down which process makes the batch of which step; once, a process is killed while it makes one."""

    def __init__(self, folder: Path, dies_at: int | None = None, fails_at: int | None = None) -> None:
        self.folder, self.dies_at, self.fails_at = folder, dies_at, fails_at

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        with open(self.folder / "diary", "a") as file:
            file.write(f"{os.getpid()} {seed} {step}\n")
        if step == self.fails_at:
            raise ValueError("no such step")
        if step == self.dies_at and seed == 1:
            with open(self.folder / "died", "a") as file:
                file.write("x")
            if (self.folder / "died").stat().st_size == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step, seed, size)

    def entries(self) -> list[tuple[int, ...]]:
        return [tuple(map(int, line.split())) for line in (self.folder / "diary").read_text().splitlines()]


class Unhurried(Toy):
    """Trains long enough to be stopped."""

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        time.sleep(0.01)
        return super().batch(step, seed, size)


def on_ray(plan: Any, save_every: float = 0.0) -> Crew:
    return Crew(2, (), save_every, Cluster.of(plan))


def same(a: Path, b: Path, plan: Any) -> None:
    for encoding in plan.encodings:
        for seed in plan.seeds:
            one, other = (path / f"{encoding}-seed{seed}" for path in (a, b))
            first, second = load_file(one / CHECKPOINT), load_file(other / CHECKPOINT)
            assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
            logs = [read_log(folder / "metrics.jsonl") for folder in (one, other)]
            bare = [[{k: v for k, v in line.items() if k not in TIMES} for line in log] for log in logs]
            assert bare[0] == bare[1]
            records = [json.loads((folder / "evaluation.json").read_text()) for folder in (one, other)]
            assert {k: v for k, v in records[0].items() if k not in TIMES} == {
                k: v for k, v in records[1].items() if k not in TIMES
            }
            files = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (one, other)]
            assert files[0] == files[1]


@pytest.mark.slow(15)
def test_a_comparison_survives_the_loss_of_a_worker_and_equals_a_local_one(ray_here: Any, tmp_path: Path) -> None:
    plan = settings(encodings=("nope", "toy_slope"), rates=(0.003, 0.01), sweep_steps=4)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    alone, task = Diary(tmp_path / "a"), Diary(tmp_path / "b", dies_at=7)
    compare(alone, plan, tmp_path / "here", quiet())
    with open(tmp_path / "said", "w") as file:
        reporter = Reporter(Console(file=file, width=300))
        compare(task, plan, tmp_path / "there", reporter, crew=on_ray(plan))
    same(tmp_path / "here", tmp_path / "there", plan)
    said = (tmp_path / "said").read_text()
    assert said.count("the worker was lost") == 1 and "seed 1" in said.partition("the worker was lost")[0][-40:]
    entries = task.entries()
    assert os.getpid() not in {process for process, _, _ in entries}
    begun = [[entry[1:] for entry in each].count((1, 0)) for each in (alone.entries(), entries)]
    assert begun[0] == begun[1]  # what was lost went on, and did not begin anew
    assert [entry[1:] for entry in entries].count((1, 7)) == 1 + len(plan.encodings)


@pytest.mark.slow(15)
def test_checkpoints_that_arrive_late_overwrite_nothing(
    ray_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = settings(encodings=("toy_slope",))
    monkeypatch.setattr(cluster, "mailbox", late(cluster.mailbox()))
    compare(Diary(tmp_path, dies_at=7), plan, tmp_path / "there", quiet(), crew=on_ray(plan))
    monkeypatch.undo()
    compare(Toy(), plan, tmp_path / "here", quiet())
    same(tmp_path / "here", tmp_path / "there", plan)


def late(plain: type) -> Callable[[], type]:
    """A mailbox that gives what has come to it only when asked a second time."""

    def mailbox() -> type:
        class Late(plain):
            held: tuple[Any, ...] = ()

            def take(self) -> Any:
                given, self.held = self.held, super().take()
                return given

        return Late

    return mailbox


@pytest.mark.slow(10)
def test_ctrl_c_keeps_checkpoints_and_a_rerun_goes_on(
    ray_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = settings(encodings=("toy_slope",), seeds=(0, 1), steps=200)
    with monkeypatch.context() as patch:
        plain = Board.update

        def interrupted(board: Board, job: Any, share: float, text: str) -> None:
            plain(board, job, share, text)
            if share > 0.01:
                raise KeyboardInterrupt

        patch.setattr(Board, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(Unhurried(), plan, tmp_path / "there", quiet(), crew=on_ray(plan, 600.0))
    logs = [read_log(tmp_path / "there" / f"toy_slope-seed{seed}" / "metrics.jsonl") for seed in (0, 1)]
    assert any(0 < len(log) < 200 for log in logs)
    task = Diary(tmp_path)
    compare(task, plan, tmp_path / "there", quiet(), crew=on_ray(plan, 600.0))
    for seed, log in enumerate(logs):
        steps = [step for _, own, step in task.entries() if own == seed]
        assert not log or sorted(steps)[:2] != [0, 1]  # step 0 alone is read again, to measure memory
    compare(Toy(), plan, tmp_path / "here", quiet())
    same(tmp_path / "here", tmp_path / "there", plan)


def test_an_error_on_a_worker_is_raised_here_with_its_place(ray_here: Any, tmp_path: Path) -> None:
    plan = settings(encodings=("nope",), seeds=(0,))
    with pytest.raises(RuntimeError, match=r"nope seed 0 failed:[\s\S]*ValueError: no such step"):
        compare(Diary(tmp_path, fails_at=3), plan, tmp_path / "run", quiet(), crew=on_ray(plan))


def test_machines_of_other_versions_are_refused(ray_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = settings(encodings=("nope",), seeds=(0,))
    monkeypatch.setattr(cluster, "versions", lambda: {"torch": "0.1"})
    with pytest.raises(LabError, match=r"has other versions .* \(there 0\.1\)"):
        compare(Toy(), plan, tmp_path / "run", quiet(), crew=on_ray(plan))


def test_addresses() -> None:
    assert cluster.place("ray") is None
    assert cluster.place("ray:auto") == "auto" and cluster.place("ray:10.0.0.1:6379") == "10.0.0.1:6379"
    assert cluster.place("ray://head:10001") == "ray://head:10001"
    with pytest.raises(LabError, match="--on is ray"):
        cluster.place("dask")


def test_an_address_where_nobody_answers_is_known_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError):
            cluster.knock(address)
        taken.listen()
        for each in (address, "auto", None, "ray://head:1"):
            cluster.knock(each)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LabError, match=r'pip install "relpos\[ray\]"'), commands.crew_of(settings(), 20.0, None, "ray"):
        pass
