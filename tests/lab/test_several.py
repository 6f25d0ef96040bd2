"""One training by several processes: what comes out is what one process gives, whoever takes which step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from relpos.lab import several
from relpos.lab.errors import LabError, RunDirectoryError
from relpos.lab.recipe import Recipe, share
from relpos.lab.run import Run, claim
from relpos.lab.settings import Settings
from relpos.lab.shards import blocks
from relpos.lab.train import Training, read_log, train_model
from tests.lab.toy import Toy

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
PLAN = Settings(
    "toy", ("toy_slope",), seeds=(0,), steps=STEPS, batch=4, rates=(0.01,), model={"dropout": 0.0},
    recipe={"average": 0.8, "parts": 1},
)  # fmt: skip


def train(folder: Path, stop: int | None = None, **recipe: Any) -> nn.Module:
    def progress(done: float, total: float, text: str = "") -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGINT)

    settings = replace(PLAN, recipe={**PLAN.recipe, **recipe})
    return train_model(Training(Toy(), settings, "toy_slope", 0, 0.01, STEPS, folder), progress, save_every=0.0).model


def curve(folder: Path) -> list[tuple[float, float | None]]:
    lines = read_log(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [(line["loss"], line.get("validation")) for line in lines]


def same(a: list[tuple[float, float | None]], b: list[tuple[float, float | None]]) -> None:
    assert len(a) == len(b)
    for (loss, validation), (other, judged) in zip(a, b):
        assert other == pytest.approx(loss, abs=1e-5) and (judged is None) == (validation is None)
        assert validation is None or judged == pytest.approx(validation, abs=1e-5)


def torchrun(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "relpos.cli"]
    words += ["--import", "tests.lab.toy", "train", "toy", "--encoding", "toy_slope", "--steps", str(STEPS)]
    words += ["--batch", "4", "--rates", "0.01", "--model", "dropout=0.0", "--recipe", "average=0.8", *more]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words, "--name", "turns", "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow(35)
def test_two_processes_one_process_and_shards_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies until both are killed, then one process, then shards under torchrun, which also write the report."""
    expected = train(tmp_path / "one")
    folder = tmp_path / "turns" / "toy_slope-seed0"
    claim(tmp_path / "turns").close()
    monkeypatch.setenv("TOY_KILL_AT", "5")
    with pytest.raises(LabError, match="one of the 2 processes of this training ended"):
        train(folder, devices=2)
    monkeypatch.delenv("TOY_KILL_AT")
    assert len(curve(folder)) == 5
    with pytest.raises(KeyboardInterrupt):
        train(folder, stop=8)
    assert len(curve(folder)) == 8
    done = torchrun(tmp_path, "--strategy", "fsdp", "--recipe", "parts=2")
    assert done.returncode == 0, done.stderr
    same(curve(tmp_path / "one"), curve(folder))
    found = train(folder)
    tokens = Toy().batch(99, 0, 4)
    with torch.no_grad():  # not the weights: the bias of the keys has no gradient but rounding, which Adam makes large
        torch.testing.assert_close(found.eval()(tokens), expected.eval()(tokens), atol=1e-4, rtol=0)
    assert done.stdout.count("loading the training libraries") == done.stdout.count("\nreport: ") == 1
    assert (tmp_path / "turns" / "report.html").exists()
    assert json.loads((folder / "evaluation.json").read_text())["diverged"] is None


def test_rows_are_shared_out(tmp_path: Path) -> None:
    whole = torch.arange(14).view(7, 2)
    for world in (2, 3, 7):
        parts = [share((whole, whole[:, 0]), rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([part[0] for part in parts]), whole)
        assert {len(part[0]) for part in parts} <= {7 // world, 7 // world + 1}
    with pytest.raises(LabError, match="a batch of 7 rows cannot be shared out among 8"):
        share(whole, 0, 8)


def test_a_run_goes_on_with_other_devices_but_not_with_another_average(tmp_path: Path) -> None:
    Run.create(tmp_path, PLAN, STEPS, {})
    later = Run.create(tmp_path, replace(PLAN, recipe={**PLAN.recipe, "devices": 4, "strategy": "fsdp"}), STEPS, {})
    assert later.settings.recipe["devices"] == 4 and Run.read(tmp_path).settings == PLAN
    with pytest.raises(RunDirectoryError, match="average"):
        Run.create(tmp_path, replace(PLAN, recipe={"average": 0.9}), STEPS, {})


def test_what_cannot_be_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="a strategy is ddp or fsdp, got 'zero'"):
        Recipe(strategy="zero").check(4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert several.launched() == Recipe().count() == 3
    with pytest.raises(LabError, match="torchrun has started 3 processes, --devices says 2"):
        Recipe(devices=2).check(6)
    with pytest.raises(LabError, match="a batch of 4 cannot be shared out among 3 devices"):
        Recipe().check(4)


def test_the_loss_of_a_process_is_one_line() -> None:
    with pytest.raises(LabError, match="another process of this training has ended"), several.together():
        raise RuntimeError("[pair.cc:537] Read error: Connection reset by peer\nmore")
    with pytest.raises(RuntimeError, match="shape"), several.together():
        raise RuntimeError("mat1 and mat2 shape")


def test_blocks_that_share_nothing_are_gathered_one_at_a_time() -> None:
    tied = nn.Linear(2, 2)
    free = nn.Linear(2, 2)
    network = nn.Module()
    network.first = nn.ModuleList([free, tied, nn.ReLU()])
    network.second = nn.ModuleList([nn.Sequential(tied), nn.Sequential(nn.Linear(2, 2))])
    assert blocks(network) == [free, network.second[1]]
