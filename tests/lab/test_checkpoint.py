"""Checkpoints: whole or absent, on a full disk too."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from relpos.lab import checkpoint
from relpos.lab.checkpoint import load_checkpoint, read_json, save_checkpoint, write_atomic, write_json
from relpos.lab.compare import compare
from relpos.lab.errors import DiskFullError, LabError, RunDirectoryError
from relpos.lab.train import CHECKPOINT
from tests.lab.conftest import quiet, settings
from tests.lab.toy import Toy


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def fill_the_disk(file: Any, data: bytes) -> None:
    file.write(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_round_trip_restores_weights_optimizer_random_state_and_progress(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path / "c", model, optimizer, {"step": 7, "diverged": None})
    drawn = torch.rand(3)
    fresh = nn.Linear(3, 2)
    other = torch.optim.AdamW(fresh.parameters(), lr=9.0)
    assert load_checkpoint(tmp_path / "c", fresh, other) == {"step": 7, "diverged": None}
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(fresh.weight, model.weight)
    assert other.param_groups[0]["lr"] == 0.1
    assert torch.equal(other.state[fresh.weight]["exp_avg_sq"], optimizer.state[model.weight]["exp_avg_sq"])
    assert other.state[fresh.weight]["step"] == 1


def test_full_disk_keeps_the_previous_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained()
    path = tmp_path / "c"
    save_checkpoint(path, model, optimizer, {"step": 1})
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "write_bytes", fill_the_disk)
    with pytest.raises(DiskFullError, match=r"previous version is kept.*run the same command again"):
        save_checkpoint(path, model, optimizer, {"step": 2})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_full_disk_in_a_comparison_is_an_error_that_a_rerun_overcomes(
    new_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings(encodings=("nope",), seeds=(0,))
    write = checkpoint.write_bytes

    def full_for_checkpoints(file: Any, data: bytes) -> None:
        (fill_the_disk if CHECKPOINT in file.name else write)(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_bytes", full_for_checkpoints)
        with pytest.raises(DiskFullError, match="no space left"):
            compare(Toy(), few, new_run, quiet())
    compare(Toy(), few, new_run, quiet())
    assert (new_run / "nope-seed0" / "evaluation.json").exists()


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "x", b"old")
    seen = []
    replace = checkpoint.os.replace

    def watch(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), Path(target).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", watch)
    write_atomic(tmp_path / "x", b"new")
    assert seen == [(b"new", b"old")]
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("x", b"new")]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "file" / "x", tmp_path / "file" / "y" / "x"):
        with pytest.raises(LabError, match=f"cannot write {re.escape(str(path))}: "):
            write_atomic(path, b"data")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "folder"]


def test_other_write_errors_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: Any, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "write_bytes", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(tmp_path / "x", b"data")
    assert not list(tmp_path.iterdir())


def test_truncated_foreign_and_unfitting_checkpoints_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, optimizer = trained()
    path = tmp_path / "c"
    save_checkpoint(path, model, optimizer, {"step": 1})
    with pytest.raises(RunDirectoryError, match="another model"):
        load_checkpoint(path, nn.Linear(4, 2))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunDirectoryError, match="not a readable checkpoint"):
        load_checkpoint(path, model)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(RunDirectoryError, match="not a checkpoint of this version"):
        load_checkpoint(path, model)


def test_json_refuses_nan_and_names_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="not readable JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunDirectoryError, match="missing"):
        read_json(tmp_path / "y.json")
