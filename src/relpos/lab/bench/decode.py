"""Decoding token by token: time a step against the size of the cache, and equality with the parallel result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import relpos as rp
from relpos.lab.bench.contestants import reason
from relpos.lab.bench.statistics import quartiles
from relpos.lab.bench.timing import seconds

ENCODINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "learned_bias": {"max_lag": 1024},
    "alibi": {},
    "t5": {"causal": True},
    "rope": {},
    "shaw": {"max_lag": 128, "values": False},
}
NEAR = 33  # steps around a size of the cache whose median stands for it


def measure(
    steps: int, heads: int, dim: int, dtype: torch.dtype, device: str, progress: Callable[[float, float, str], None]
) -> list[dict[str, Any]]:
    """One row an encoding: seconds a step at cache sizes 128, 256, .., and the largest difference from the parallel
    causal result, in float64. The streams advance together, step by step, so that all meet the same machine."""
    rows = [_row(name, heads, dim) for name in ENCODINGS]
    running = [row for row in rows if row["skipped"] is None]
    for done, row in enumerate(running):
        progress(done, 2 * len(running), f"{row['encoding']}: equality in float64")
        try:
            doubled = None if row["object"] is None else row["object"].to(device, torch.float64)
            given = tokens(steps, heads, dim, torch.float64, device)
            row["difference"] = difference(
                rp.Stream(doubled), functools.partial(rp.attention, encoding=doubled, causal=True), given
            )
        except Exception as error:
            row["skipped"] = reason(error)
    running = [row for row in running if row["skipped"] is None]
    _advance(running, steps, tokens(steps, heads, dim, dtype, device), device, progress)
    for row in running:
        row["steps"] = _at_sizes(row.pop("seconds"), steps)
    for row in rows:
        row.pop("object", None)
    return rows


def _row(name: str, heads: int, dim: int) -> dict[str, Any]:
    row: dict[str, Any] = {"encoding": name, "skipped": None, "object": None}
    if name == "none":
        return row
    try:
        if name not in rp.names():
            raise ValueError(f"relpos {rp.__version__} has no encoding {name!r}")
        from relpos.encodings.registry import fitted

        row["object"] = fitted(name, {"heads": heads, "dim": dim, "causal": True}, ENCODINGS[name])
    except Exception as error:
        row["skipped"] = reason(error)
    return row


def tokens(steps: int, heads: int, dim: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, steps, dim, generator=seeded).to(device, dtype) for _ in range(3))
    return q, k, v


@torch.no_grad()
def difference(stream: Any, parallel: Callable[..., Tensor], given: tuple[Tensor, Tensor, Tensor]) -> float:
    """The largest between the steps of a stream and the parallel causal result."""
    rows = [stream.step(*(x[:, :, i : i + 1] for x in given)) for i in range(given[0].shape[2])]
    return float((torch.cat(rows, 2) - parallel(*given)).abs().max())


@torch.no_grad()
def _advance(
    rows: list[dict[str, Any]],
    steps: int,
    given: tuple[Tensor, Tensor, Tensor],
    device: str,
    progress: Callable[[float, float, str], None],
) -> None:
    kind = given[0].dtype
    for row in rows:
        encoding = row["object"]
        if encoding is not None:  # parameters stay float32 below it, as in mixed precision
            encoding = encoding.to(torch.float64 if kind == torch.float64 else torch.float32)
        row["stream"], row["seconds"] = rp.Stream(encoding), []
    for i in range(steps):
        token = [x[:, :, i : i + 1] for x in given]
        for row in rows:
            row["seconds"].append(seconds(functools.partial(row["stream"].step, *token), device))
        progress(steps + i, 2 * steps, f"step {i + 1}")
    for row in rows:
        del row["stream"]


def _at_sizes(spent: list[float], steps: int) -> list[dict[str, float]]:
    """Median and quartiles of the steps around each size of the cache: powers of two from 128, and the last."""
    sizes = [size for size in (2**p for p in range(7, 31)) if size < steps] + [steps]
    found = []
    for size in sizes:
        near = spent[max(0, size - NEAR) : size]
        median, low, high = quartiles(near)
        found.append({"cache": size, "seconds": median, "low": low, "high": high})
    return found
