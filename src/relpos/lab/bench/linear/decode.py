"""Decoding of kernelised attention to the longest position: what a token costs there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import relpos as rp
from relpos.lab.bench.contestants import reason
from relpos.lab.bench.decode import NEAR, difference, tokens
from relpos.lab.bench.ours import CLIP, random_features
from relpos.lab.bench.problem import Problem
from relpos.lab.bench.statistics import quartiles
from relpos.lab.bench.timing import Tick, seconds

SHORTEST = 1024  # first position that is shown, where there are as many
CHUNK = 1024  # tokens of a step between two positions that are measured
Tokens = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Decoder:
    """A way to decode: its stream, the parallel result, and whether every token has to be timed.

    whole   what a token costs varies from one to the next, so all are timed and a position shows the mean since half of
            it; otherwise tokens between the positions come in chunks, and 33 single steps stand for a position
    """

    name: str
    title: str
    stream: Callable[[], Any]
    parallel: Callable[..., Tensor]
    whole: bool = False


def decoders(steps: int, heads: int, dim: int, features: int, kind: torch.dtype, device: str) -> list[Decoder]:
    problem = Problem(steps, heads, dim, dtype=str(kind).removeprefix("torch."), device=device, features=features)
    phi = random_features(problem)

    def linear(name: str, title: str, encoding: Any, whole: bool = False) -> Decoder:
        made = encoding.to(device, kind)
        parallel = partial(rp.linear_attention, encoding=made, features=phi, causal=True)
        return Decoder(name, title, partial(rp.KernelStream, made, features=phi), parallel, whole)

    learned = rp.encodings.LearnedBias
    return [
        linear("linear-clipped", "kernelised, table clipped at 128", learned(heads, CLIP)),
        linear("linear-alibi", "kernelised, ALiBi", rp.encodings.ALiBi(heads)),
        linear("linear-free", "kernelised, free table", learned(heads, max(1, steps - 1)), whole=True),
        Decoder("softmax", "softmax, reading its cache", rp.Stream, partial(rp.attention, causal=True)),
    ]


@torch.no_grad()
def measure(
    steps: int, equal: int, heads: int, dim: int, features: int, dtype: torch.dtype, device: str, tick: Tick
) -> list[dict[str, Any]]:
    """A row a decoder: seconds a token at each position, and the largest difference from the parallel causal result
    over the first `equal` tokens, in float64."""
    rows: list[dict[str, Any]] = []
    double = decoders(equal, heads, dim, features, torch.float64, device)
    single = decoders(steps, heads, dim, features, dtype, device)
    given, doubled = (tokens(n, heads, dim, k, device) for n, k in ((steps, dtype), (equal, torch.float64)))
    for index, (exact, decoder) in enumerate(zip(double, single, strict=True)):

        def told(share: float, at: int = index, name: str = decoder.name) -> None:
            tick((at + share) / len(single), f"decoding, {name}")

        row: dict[str, Any] = {"encoding": decoder.name, "title": decoder.title, "skipped": None}
        try:
            row["difference"] = difference(exact.stream(), exact.parallel, doubled)
            way = _whole if decoder.whole else _sampled
            row["steps"] = way(decoder.stream(), given, device, told)
        except Exception as error:
            row["skipped"] = reason(error)
        rows.append(row)
    return rows


def positions(steps: int) -> list[int]:
    """Powers of two from SHORTEST on, and the last position; of a short run, its halves."""
    found, size = [], steps
    while size >= min(SHORTEST, max(1, steps // 2)):
        found.append(size)
        size //= 2
    return found[::-1]


def _sampled(stream: Any, given: Tokens, device: str, told: Callable[[float], None]) -> list[dict[str, float]]:
    found, steps = [], given[0].shape[2]
    for size in positions(steps):
        near = max(stream.length, size - NEAR)
        _fill(stream, given, near)
        spent = [seconds(partial(stream.step, *(x[:, :, i : i + 1] for x in given)), device) for i in range(near, size)]
        median, low, high = quartiles(spent)
        found.append({"cache": size, "seconds": median, "low": low, "high": high})
        told(size / steps)
    return found


def _fill(stream: Any, given: Tokens, end: int) -> None:
    """Tokens up to `end` in chunks. A softmax stream only caches them: what they attend to is asked for by nobody."""
    softmax = isinstance(stream, rp.Stream)
    if softmax:
        stream.window = 1
    while stream.length < end:
        chunk = slice(stream.length, min(stream.length + CHUNK, end))
        stream.step(*(x[:, :, chunk] for x in given))
    if softmax:
        stream.window = None


def _whole(stream: Any, given: Tokens, device: str, told: Callable[[float], None]) -> list[dict[str, float]]:
    found, steps, spent = [], given[0].shape[2], []
    shown = set(positions(steps))
    for i in range(steps):
        spent.append(seconds(partial(stream.step, *(x[:, :, i : i + 1] for x in given)), device))
        if i + 1 in shown:
            late = spent[len(spent) // 2 :]
            _, low, high = quartiles(late)
            found.append(
                {"cache": i + 1, "seconds": sum(late) / len(late), "low": low, "high": high, "total": sum(spent)}
            )
            told((i + 1) / steps)
    return found
