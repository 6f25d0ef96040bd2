"""What a long training on large data does otherwise than the usual small one: several devices, mixed precision, an
average of the weights, batches made ahead in processes of their own.

A task's preset writes it down as ``recipe``, a table of the fields of `Recipe`; where there is none the usual training
runs on one device as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from relpos.lab.environment import cores
from relpos.lab.errors import LabError
from relpos.lab.preparation import prepare
from relpos.lab.progress import Reporter
from relpos.lab.settings import Settings
from relpos.lab.several import launched
from relpos.lab.shards import like

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Recipe:
    """epochs     in place of steps: times through the training examples, of which the task says how many there are
    betas, eps    of AdamW
    first, last   learning rate at the start of the warm-up and at the end of the cosine, as shares of the peak
    average       decay of an average of the weights, which is what is evaluated; None for the weights themselves
    precision     as Lightning has it: "32-true", "bf16-mixed"; "auto" is bf16 on a GPU that has it, else float32
    devices       how many, or "auto" for all GPUs; a batch is shared out among them. Under torchrun: its processes
    strategy      "ddp": every device holds the whole network; "fsdp": they share out weights, gradients and the state
                  of the optimizer, for a network too large for one
    parts         a device takes its batch in so many parts, one after the other: less memory for the same step
    loaders       processes of each device that make batches ahead; 0 makes them where the training runs
    """

    epochs: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    first: float = 0.0
    last: float = 0.1
    average: float | None = None
    precision: str = "32-true"
    devices: int | str = 1
    strategy: str = "ddp"
    parts: int = 1
    loaders: int = 0

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Recipe:
        """From a preset. LabError for a field that there is not."""
        known = {each.name for each in fields(cls)}
        if foreign := sorted(set(values) - known):
            raise LabError(f"a recipe has no {', '.join(foreign)}; it has {', '.join(sorted(known))}")
        found: dict[str, Any] = dict(values)
        if "betas" in found:
            found["betas"] = tuple(found["betas"])
        return cls(**found)

    def count(self) -> int:
        """The devices that a training runs on."""
        if launched() > 1:
            return launched()
        if self.devices == "auto":
            return max(1, torch.cuda.device_count())
        try:
            return int(self.devices)
        except ValueError:
            raise LabError(f"devices are a number or auto, got {self.devices!r}") from None

    def check(self, batch: int) -> None:
        """LabError where a batch of this size cannot be shared out among the devices and their parts."""
        if self.parts < 1 or self.count() < 1:
            raise LabError(f"a recipe has at least one device and one part, got {self.devices} and {self.parts}")
        if self.strategy not in STRATEGIES:
            raise LabError(f"a strategy is {' or '.join(STRATEGIES)}, got {self.strategy!r}")
        if launched() > 1 and self.devices not in (1, "auto", launched()):
            raise LabError(
                f"torchrun has started {launched()} processes, --devices says {self.devices}; leave --devices out"
            )
        if batch % self.count():
            raise LabError(
                f"a batch of {batch} cannot be shared out among {self.count()} devices; give a multiple, or "
                "--recipe devices=1"
            )

    def fabric(self) -> Fabric:
        """Lightning's view of the devices: one, or several in processes that are spawned."""
        several = self.count() > 1
        return Fabric(
            accelerator="auto",
            devices=self.count(),
            strategy="ddp_spawn" if several else "auto",
            precision=self.resolved(),  # type: ignore[arg-type]
        )

    def resolved(self) -> str:
        """The precision that is meant."""
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def in_steps(task: Any, settings: Settings, reporter: Reporter) -> Settings:
    """The settings with as many steps as the epochs of their recipe are; as they are where there are none."""
    epochs = Recipe.of(settings.recipe).epochs
    if epochs is None:
        return settings
    prepare(task, reporter)
    return replace(settings, steps=max(1, epochs * task.examples // settings.batch))


class Average(nn.Module):
    """An exponential moving average of a network's weights and buffers: ``average``, of the shape of the network."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise LabError(f"the decay of the average is in [0, 1), got {decay}")
        self.decay = decay
        self.names = list(network.state_dict())
        for index, value in enumerate(network.state_dict().values()):
            self.register_buffer(f"value{index}", value.detach().clone())

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One step on; what is no float (a count of batches) is copied."""
        for index, value in enumerate(network.state_dict().values()):
            kept: Tensor = getattr(self, f"value{index}")
            if kept.is_floating_point():
                kept.lerp_(value, 1 - self.decay)
            else:
                kept.copy_(value)

    def share(self, network: nn.Module) -> None:
        """Shares the average out among the processes as the network is."""
        for index, value in enumerate(network.state_dict().values()):
            setattr(self, f"value{index}", like(getattr(self, f"value{index}"), value))

    def put_into(self, network: nn.Module) -> None:
        """Loads the average into a network."""
        network.load_state_dict({name: getattr(self, f"value{index}") for index, name in enumerate(self.names)})


class _Batches(Dataset):
    """Batch number i of a run, as this device sees it: its rows are a share of the whole batch's."""

    def __init__(self, task: Any, seed: int, size: int, rank: int, world: int) -> None:
        self._task, self._seed, self._size, self._rank, self._world = task, seed, size, rank, world

    def __getitem__(self, step: int) -> Any:
        if self._world > 1 and getattr(self._task, "batches_in_parts", False):
            # Batch j of size s holds rows j s .. (j + 1) s: the share of a device is a smaller batch of a later number.
            return self._task.batch(step * self._world + self._rank, self._seed, self._size // self._world)
        whole = self._task.batch(step, self._seed, self._size)
        return whole if self._world == 1 else share(whole, self._rank, self._world)


def share(whole: Any, rank: int, world: int) -> Any:
    """The rows of a batch, a tensor or a tuple of them, that a device takes: equally many but for one."""
    several = isinstance(whole, tuple | list)
    rows = len(whole[0] if several else whole)
    if rows < world:
        raise LabError(f"a batch of {rows} rows cannot be shared out among {world} devices; take fewer, or more rows")
    ends = [rows * r // world for r in range(world + 1)]
    parts = [tensor[ends[rank] : ends[rank + 1]] for tensor in (whole if several else (whole,))]
    if not several:
        return parts[0]
    return type(whole)(*parts) if hasattr(whole, "_fields") else type(whole)(parts)


def batches(
    task: Any, seed: int, size: int, first: int, steps: int, loaders: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Any]:
    """The batches of the steps from ``first`` on, made ahead by ``loaders`` processes where there are some."""
    source = _Batches(task, seed, size, rank, world)
    if not loaders:
        yield from (source[step] for step in range(first, steps))
        return
    # A generator of its own: the loader would otherwise draw from torch's, and a resumed training differ.
    yield from DataLoader(
        source,
        batch_size=None,
        sampler=range(first, steps),
        num_workers=min(loaders, max(1, cores() // world)),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
