"""What a network has learned of time, in the source and in its targets: tables and densities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure

from relpos.encodings.content.relative_channels import RelativeChannels
from relpos.encodings.pairs.channel import Channel
from relpos.encodings.pairs.encoders import Sparse
from relpos.tasks.base import Artifact
from relpos.tasks.events.transfer.methods import Movable
from relpos.tasks.events.transfer.network import Traveller
from relpos.tasks.events.transfer.regions import Region, Size

if TYPE_CHECKING:
    from relpos.tasks.events.transfer.task import Transfer

SOURCE, TARGET = "#222222", "#c44e52"
POINTS = 400


def artifacts(task: Transfer, model: torch.nn.Module, directory: Path) -> list[Artifact]:
    """One picture of two panels, of the network after the longest adaptation."""
    assert isinstance(model, Movable)
    length = task.lengths[-1]
    adapted = [(region, *task.adapted(model, region, length)) for region in task.regions("test")]
    busy = max(task.regions("source"), key=len)
    source = (busy, model.network, busy.size(task.prior, 0, len(busy)))
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    tables, densities = figure.subplots(1, 2)
    for style, (region, network, size) in [("source", source), *(("target", each) for each in adapted)]:
        colour, width = (SOURCE, 2.0) if style == "source" else (TARGET, 1.0)
        known: dict[str, Any] = {"color": colour, "linewidth": width}
        known["label"] = f"{region.name} ({style})" if style == "source" else None
        found = table(network, size)
        if found is not None:
            tables.plot(*found, **known)
        densities.plot(*density(task, network, region, size), **known)
    tables.plot([], [], color=TARGET, label="targets")
    densities.plot([], [], color=TARGET, label="targets")
    unit = busy.events.unit or "units"
    tables.set(xscale="log", xlabel=f"time between two events ({unit})", ylabel="bias of attention (nats)")
    tables.set_title("relative time, mean over layers and heads")
    densities.set(xscale="log", xlabel=f"time to the next event ({unit})", ylabel="density of its logarithm")
    densities.set_title("mean over the scored events")
    for axes, place in ((tables, "lower left"), (densities, "upper left")):
        axes.legend(frameon=False, fontsize=8, loc=place)
    path = directory / "time.png"
    figure.savefig(path, dpi=110)
    return [Artifact(path, "image", f"what elapsed time does, and when the next event comes ({length} events known)")]


@torch.no_grad()
def table(network: Traveller, size: Size) -> tuple[np.ndarray, np.ndarray] | None:
    """Elapsed times, in the unit of the data, and the bias of attention that the time channels of all layers give on
    average; None where there is no such channel."""
    gap = network.typical[0] if network.units == "source" else size.gap
    elapsed = torch.logspace(-1, 2, POINTS, dtype=torch.float64)
    found = []
    for part in network.modules():
        if isinstance(part, RelativeChannels):
            for channel in part.channels:
                assert isinstance(channel, Channel)
                if channel.kind == "time" and channel.bias is not None and isinstance(channel.encoder, Sparse):
                    found.append(channel.bias[:, channel.encoder.code(elapsed)].double().mean(0))
    if not found:
        return None
    return (elapsed * gap).numpy(), torch.stack(found).mean(0).numpy()


@torch.no_grad()
def density(task: Transfer, network: Traveller, region: Region, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Times to the next event, in the unit of the data, and the mean density of their logarithm over what is scored."""
    runs = region.tape.runs(task.tokens, task.tokens // 2)[:8]
    measured = network.measured(region.take(runs, [size] * len(runs)))
    states = network.states(measured)[measured.following.scored]
    at = torch.logspace(-3, 1.5, POINTS, dtype=torch.float64)
    head = network.head.density(states[:, None])
    values = (head.log_prob(at).exp() * at).mean(0)
    gap = network.typical[0] if network.units == "source" else size.gap
    return (at * gap).numpy(), values.numpy()
