"""What the machine can do: matrix products and exponentials a second, with the threads of the run."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from relpos.lab.bench.timing import seconds

SQUARE = 2048
TILE = (256, 1024)  # queries and keys of an attention tile
REPEATS = 5


def rates(dtype: torch.dtype, device: str, heads: int, dim: int, small: bool = False) -> dict[str, float]:
    """One sample of each rate, the best of five: products of square matrices and of attention tiles (operations a
    second, an addition and a multiplication are two), and exponentials a second in cache."""
    side = 64 if small else SQUARE
    rows, columns = (16, 32) if small else TILE
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    q, k = (torch.randn(heads, x, dim, device=device).to(dtype) for x in (rows, columns))
    score = torch.empty(heads, rows, columns, dtype=dtype, device=device)
    x = -torch.rand(rows, columns, device=device)
    y = torch.empty_like(x)
    square = _best(lambda: torch.mm(a, b, out=out), device)
    tile = _best(lambda: torch.bmm(q, k.transpose(1, 2), out=score), device)
    exponential = _best(lambda: torch.exp(x, out=y), device)
    return {
        "square": 2 * side**3 / square,
        "tile": 2 * heads * rows * columns * dim / tile,
        "exp": rows * columns / exponential,
    }


def _best(work: Any, device: str) -> float:
    work()
    return min(seconds(work, device, 3) for _ in range(REPEATS))


def settled(samples: list[dict[str, float]]) -> dict[str, float]:
    """The medians of the samples taken along the run, and the rate that bounds are computed with: the better one."""
    middle = {key: statistics.median(sample[key] for sample in samples) for key in ("square", "tile", "exp")}
    return {**middle, "product": max(middle["square"], middle["tile"])}
