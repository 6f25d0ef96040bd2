"""Checkpoints that are whole or absent: one safetensors file holds weights, optimizer, random state and progress.

A checkpoint is written to a temporary file beside its target, flushed to the disk, and moved over the old one in a
single step, so a kill at any moment leaves either the old or the new state. One file, because two could disagree.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from relpos.lab.errors import DiskFullError, LabError, RunDirectoryError
from relpos.lab.shards import like, whole

FORMAT = "relpos-checkpoint-1"
_NO_PLACE = {getattr(errno, name) for name in ("EACCES", "EPERM", "EROFS", "ENOENT", "EEXIST", "EISDIR", "ENOTDIR")}


@contextlib.contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_PLACE:
            raise LabError(f"cannot write {path}: {error.strerror}; name another file") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        kept = "the previous version is kept" if path.exists() else "nothing was written"
        raise DiskFullError(
            f"no space left on the disk for {path}; {kept}. Free some space and run the same command again"
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` or leave it as it was; DiskFullError when the disk is full, LabError if not writable."""
    with _room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}.part"
        try:
            with open(temporary, "wb") as file:
                write_bytes(file, data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_bytes(file: Any, data: bytes) -> None:
    """The one place where bytes reach the disk (tests fill the disk here)."""
    file.write(data)


def write_json(path: Path, value: object) -> None:
    """Atomic, indented, UTF-8; refuses NaN so that every reader can read it."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The stored value; RunDirectoryError when the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path} is not readable JSON ({error}); delete it or start with --fresh") from error


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    average: nn.Module | None = None,
    write: bool = True,
) -> None:
    """Write weights, their average where there is one, optimizer state, torch's random state and `progress` (JSON) to
    one file, atomically.

    What is shared out among processes is gathered first: then all of them call this, and one with write=True.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    state = optimizer.state_dict()
    for index, slots in state["state"].items():
        for slot, value in slots.items():
            tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value)
    tensors = {name: whole(value.detach()).cpu().contiguous() for name, value in tensors.items()}
    if not write:
        return
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    # Tied weights share storage, which the format refuses; a copy each costs little at this size.
    tensors = {name: value.clone() for name, value in tensors.items()}
    header = {"format": FORMAT, "progress": json.dumps(progress), "groups": json.dumps(state["param_groups"])}
    write_atomic(path, save(tensors, metadata=header))


def load_checkpoint(
    path: Path,
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer | None = None,
    average: nn.Module | None = None,
) -> dict[str, Any]:
    """Put a checkpoint back in place and return its `progress`; RunDirectoryError when it is broken or foreign.

    The optimizer's state is shared out as its parameters are; model and average are still whole.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
                # A clone lies at an aligned address like freshly made tensors, so sums run in the same order.
                tensors[name] = file.get_tensor(name).clone()
    except (SafetensorError, OSError) as error:
        raise RunDirectoryError(f"{path} is not a readable checkpoint ({error}); delete it to train anew") from error
    if header.get("format") != FORMAT:
        raise RunDirectoryError(f"{path} is not a checkpoint of this version ({FORMAT}); delete it to train anew")
    try:
        if model is not None:
            model.load_state_dict(_part(tensors, "model."))
        if average is not None:
            average.load_state_dict(_part(tensors, "average."))
    except (RuntimeError, ValueError) as error:
        raise RunDirectoryError(f"{path} holds another model: {error}; delete it to train anew") from error
    if optimizer is not None:
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, value in _part(tensors, "optimizer.").items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = like(value, parameters[int(index)])
        optimizer.load_state_dict({"state": slots, "param_groups": json.loads(header["groups"])})
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
    progress: dict[str, Any] = json.loads(header["progress"])
    return progress


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
