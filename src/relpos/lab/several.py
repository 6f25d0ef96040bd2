"""Several processes that train one model together, started by torchrun on one machine or on many.

The first process does what a single one would do: it claims the run, chooses, evaluates, writes and speaks. The others
wait to be told which model is trained next. They need no view of the run directory.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from relpos.lab.errors import LabError

PATIENCE = datetime.timedelta(days=14)  # the others wait while the first one evaluates
TIMEOUT = datetime.timedelta(minutes=30)  # of an exchange within a step of training


def launched(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun has started; 1 where it has not."""
    return int(environment.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in environment else 1


@dataclass(frozen=True)
class Team:
    """The processes of this run, seen from one of them."""

    fabric: Fabric
    words: Any  # the group over which the first tells the others what to do

    @property
    def leads(self) -> bool:
        return self.fabric.is_global_zero

    def say(self, order: object = None) -> Any:
        """What the first process says, on all of them."""
        held = [order]
        with together():
            dist.broadcast_object_list(held, src=0, group=self.words)
        return held[0]


CURRENT: list[Team] = []  # the team of this process, while it is in one


@contextmanager
def together() -> Iterator[None]:
    """Losing another process, as an error of one line."""
    try:
        yield
    except RuntimeError as error:  # torch has no narrower class for what gloo and NCCL report
        told = str(error)
        if not any(word in told.lower() for word in ("connection", "timed out", "timeout", "gloo", "nccl", "peer")):
            raise
        raise LabError(
            "another process of this training has ended or has been silent for too long; its own output says why. Run "
            f"the same command again to go on from the last checkpoint (reported: {told.splitlines()[0]})"
        ) from error


@contextmanager
def one_line(count: int) -> Iterator[None]:
    """The end of one of the processes that Lightning has started, as an error of one line where that says all."""
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    try:
        yield
    except ProcessRaisedException as error:
        told = [line.partition("LabError: ")[2] for line in str(error).splitlines() if "LabError: " in line]
        if not told:
            raise
        raise LabError(told[-1]) from error
    except ProcessExitedException as error:
        raise LabError(
            f"one of the {count} processes of this training ended ({error}), perhaps for want of memory; the others "
            "were stopped. Run the same command again to go on from the last checkpoint"
        ) from error


@contextmanager
def team(precision: str) -> Iterator[Team | None]:
    """Joins the processes that torchrun has started, None where it has not; the first dismisses the others."""
    world = launched()
    if world == 1:
        yield None
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if torch.cuda.is_available() and not dist.is_nccl_available():
        raise LabError(
            "this build of torch has no NCCL, over which GPUs talk; set CUDA_VISIBLE_DEVICES= to train on CPUs"
        )
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=world // local,
        strategy=DDPStrategy(timeout=TIMEOUT),
        precision=precision,  # type: ignore[arg-type]
    )
    with together():
        fabric.launch()
        joined = Team(fabric, dist.new_group(backend="gloo", timeout=PATIENCE))
    CURRENT.append(joined)
    try:
        yield joined
    finally:
        CURRENT.clear()
        if joined.leads:
            with suppress(LabError):  # where the others are gone already
                joined.say(None)
        dist.destroy_process_group()
