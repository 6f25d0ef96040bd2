"""What a network for pictures costs beside its parameters: multiply-adds and time of the forward pass."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from relpos.tasks.base import Metric

MACS = Metric("macs", "MACs", higher_is_better=False, unit="millions a picture", format=",.1f", scale=1e-6)
THROUGHPUT = Metric("throughput", "forward", unit="images/s", format=",.0f")
_BATCH = 64


def macs(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """Multiply-adds of one picture (channels, height, width), in the dense form: `relpos.models.macs`."""
    from relpos.models.macs import macs as counted

    return float(counted(model, 1, *shape))


def throughput(model: nn.Module, shape: tuple[int, int, int], times: int = 5) -> float:
    """Pictures a second in batches of 64, forward only; the median of some batches after two."""
    x = _pictures(model, _BATCH, shape)
    seconds = []
    with torch.inference_mode():
        for _ in range(2 + times):
            begin = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return _BATCH / statistics.median(seconds[2:])


def _pictures(model: nn.Module, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    parameter = next(model.parameters())
    return torch.zeros(count, *shape, device=parameter.device, dtype=parameter.dtype)
