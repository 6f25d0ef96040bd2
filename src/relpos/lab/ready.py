"""A network ready to be trained: on its device, from its checkpoint, alone, as one of several copies, or in shards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from relpos.lab.checkpoint import load_checkpoint, save_checkpoint
from relpos.lab.measure import parameter_groups
from relpos.lab.recipe import Average, Recipe
from relpos.lab.shards import shard, whole_state


@dataclass
class Ready:
    """network: whose parameters are trained. model: what is called with a batch. state: steps done, and whether the
    loss stopped being a number."""

    device: Fabric
    network: nn.Module
    model: Any
    optimizer: Any
    average: Average | None
    state: dict[str, Any]
    sharded: bool

    @property
    def evaluates(self) -> bool:
        """Whether this process takes part in an evaluation: of shards all do, of copies the first."""
        return self.sharded or self.device.is_global_zero

    def clip(self, norm: float) -> None:
        if self.sharded:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), norm)
        else:
            self.device.clip_gradients(self.model, self.optimizer, max_norm=norm, error_if_nonfinite=False)

    @contextmanager
    def alone(self, enabled: bool) -> Iterator[None]:
        """Gradients of several parts of a batch are exchanged once, with the last. (Shards exchange those of each.)"""
        if self.sharded:
            yield
            return
        with self.device.no_backward_sync(self.model, enabled=enabled and self.device.world_size > 1):
            yield

    def save(self, path: Path) -> None:
        """Called by every process; the first one writes."""
        first = self.device.is_global_zero
        if first or self.sharded:
            save_checkpoint(path, self.network, self.optimizer, self.state, self.average, write=first)

    def finished(self, fresh: nn.Module) -> nn.Module:
        """The network with what is to be evaluated in it; shards are put together in `fresh`, of the same shape."""
        if not self.sharded:
            if self.average is not None:
                self.average.put_into(self.network)
            return self.network
        network = fresh.to(self.device.device)
        network.load_state_dict(whole_state(self.network))
        if self.average is not None:
            network.load_state_dict(dict(zip(self.average.names, whole_state(self.average).values())))
        return network


def ready(device: Fabric, network: nn.Module, recipe: Recipe, rate: float, decay: float, checkpoint: Path) -> Ready:
    """From the checkpoint where the first process has one; otherwise from the network as it is."""
    state: dict[str, Any] = {"step": 0, "diverged": None}
    sharded = recipe.strategy == "fsdp" and device.world_size > 1
    if sharded:
        network.to(device.device)
        average = None if recipe.average is None else Average(network, recipe.average)
        with seen_by_all(device, checkpoint) as file:
            state = state if file is None else load_checkpoint(file, network, None, average)
            shard(network, device.device, recipe.resolved())
            if average is not None:
                average.share(network)
            optimizer = _adamw(network, recipe, rate, decay)
            if file is not None:
                load_checkpoint(file, None, optimizer)
        return Ready(device, network, network, optimizer, average, state, True)
    optimizer = _adamw(network, recipe, rate, decay)
    wrapped, prepared = device.setup(network, optimizer)
    average = None if recipe.average is None else Average(network, recipe.average)
    with seen_by_all(device, checkpoint) as file:
        if file is not None:
            state = load_checkpoint(file, network, optimizer, average)
    return Ready(device, network, wrapped, prepared, average, state, False)


def _adamw(network: nn.Module, recipe: Recipe, rate: float, decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(network, decay), lr=rate, betas=recipe.betas, eps=recipe.eps)


@contextmanager
def seen_by_all(device: Fabric, path: Path) -> Iterator[Path | None]:
    """The first process's file, or None, also for processes on machines that do not see it."""
    if device.world_size == 1:
        yield path if path.exists() else None
        return
    first = device.is_global_zero
    data: bytes | None = device.broadcast(path.read_bytes() if first and path.exists() else None)
    if data is None or first:
        yield None if data is None else path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(data)
        yield copy
