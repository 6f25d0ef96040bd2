"""Time and memory of a self-attention layer with four relative channels, against the same layer without any.

    python benchmarks/channels.py [--markdown docs/results/channels.md] [--quick]

Position, time, place and profile of each pair of events: as scalar biases, and as tables of vectors for keys and for
values. "materialised" is the usual way to the latter, written here: per sequence, tensors (n, n, head width) of what
keys and values become for each pair; it takes one sequence of the batch at a time, which spares it memory.
Contestants take turns; memory is the highest resident size of a fresh process during a forward and a backward pass,
less what it had with the inputs ready.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measure import fresh, machine, peak, ratio, tensors, turns
from torch import Tensor, nn

import relpos as rp
from relpos.encodings.pairs.channel import Channel
from relpos.encodings.pairs.features import FEATURES
from relpos.positions import NAMED

HEADS = 4
CHANNELS: list[dict[str, Any]] = [
    {"feature": "index", "clip": 16},
    {"feature": "time", "encoder": "log", "unit": 60.0, "step": 0.5, "clip": 24},
    {"feature": "place", "encoder": "log", "unit": 0.1, "step": 0.5, "clip": 24},
    {"feature": "profile", "unit": 0.1, "clip": 10},
]
NAMES = ("none", "biases", "tables", "revamp", "materialised")
SLOW_ROUNDS = 2  # of the materialised way, which takes many seconds
WARM = 320  # tokens of the call that loads libraries and starts threads before memory is measured


@dataclass(frozen=True)
class Size:
    """head: the width of a head; the layer is HEADS times as wide."""

    n: int
    batch: int
    head: int
    causal: bool

    @property
    def arguments(self) -> list[str]:
        given = ["--n", str(self.n), "--batch", str(self.batch), "--head", str(self.head)]
        return given if self.causal else [*given, "--both-ways"]


def events(n: int, batch: int) -> dict[str, Tensor]:
    """Sequences of a town: gaps of minutes to days, places some kilometres apart, genres as profiles."""
    g = torch.Generator().manual_seed(0)
    gaps = torch.exp(1.5 * torch.randn(batch, n, generator=g, dtype=torch.float64) + 8)
    places = torch.tensor([44.97, -93.26]) + 0.05 * torch.randn(batch, n, 2, generator=g, dtype=torch.float64)
    profiles = (torch.rand(batch, n, 18, generator=g) < 0.12).double()
    return {"index": torch.arange(n), "time": 1.6e9 + gaps.cumsum(1), "place": places, "profile": profiles}


class Materialised(nn.Module):
    """The tables of the layer given, by tensors (n, n, head width) of what each pair adds to its key and its value."""

    def __init__(self, layer: rp.SelfAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, q_pos: dict[str, Tensor]) -> Tensor:
        layer, (batch, n) = self.layer, x.shape[:2]
        q, k, v = (f(x).view(batch, n, HEADS, -1).transpose(1, 2) for f in (layer.q, layer.k, layer.v))
        keys, values = self.added(q_pos)
        score = (q @ k.mT + torch.einsum("bhid,ijd->bhij", q, keys)) / math.sqrt(q.shape[-1])
        if layer.causal:
            score = score.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        weights = score.softmax(-1)
        mixed = weights @ v + torch.einsum("bhij,ijd->bhid", weights, values)
        out: Tensor = layer.out(mixed.transpose(1, 2).flatten(2))
        return out

    def added(self, q_pos: dict[str, Tensor]) -> tuple[Any, Any]:
        keys: Any = 0.0
        values: Any = 0.0
        for channel in self.layer.encoding.channels:  # type: ignore[union-attr]
            assert isinstance(channel, Channel) and channel.keys is not None and channel.values is not None
            feature = FEATURES[channel.kind]
            read = feature.read(NAMED[channel.position](q_pos[channel.position]))
            code = channel.encoder.code(feature.between(read, read))[0]  # type: ignore[operator]
            keys, values = keys + channel.keys[code], values + channel.values[code]
        return keys, values


def layer_of(name: str, size: Size) -> nn.Module:
    torch.manual_seed(0)
    made: Any = rp.encodings.RelativeChannels
    if name == "none":
        encoding = None
    elif name == "biases":
        encoding = made(size.head, [c | {"inject": "bias"} for c in CHANNELS], HEADS)
    else:
        encoding = made.revamp(size.head) if name == "revamp" else made(size.head, CHANNELS)
    layer = rp.SelfAttention(HEADS * size.head, HEADS, encoding, causal=size.causal)
    return Materialised(layer) if name == "materialised" else layer


def contestant(name: str, size: Size) -> Callable[[], None]:
    layer = layer_of(name, size)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(size.batch, size.n, HEADS * size.head, generator=g).requires_grad_()
    at = events(size.n, size.batch)

    def clear() -> None:
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    def whole() -> None:
        clear()
        layer(x, q_pos=at).square().mean().backward()

    def one_by_one() -> None:
        clear()
        for b in range(size.batch):
            own = {name: p if p.dim() == 1 else p[b : b + 1] for name, p in at.items()}
            (layer(x[b : b + 1], q_pos=own).square().mean() / size.batch).backward()

    return one_by_one if name == "materialised" else whole


def call_alone(name: str, size: Size) -> Callable[[], None]:
    """Attention without the layer's projections: forward, and backward from a gradient that is there."""
    encoding: Any = layer_of(name, size).encoding  # type: ignore[assignment]
    g = torch.Generator().manual_seed(1)
    q, k, v, grad = (torch.randn(size.batch, HEADS, size.n, size.head, generator=g) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)] + ([] if encoding is None else list(encoding.parameters()))
    at = {} if encoding is None else dict.fromkeys(("q_pos", "k_pos"), events(size.n, size.batch))

    def run() -> None:
        for x in leaves:
            x.grad = None
        rp.attention(q, k, v, encoding, causal=size.causal, **at).backward(grad)

    return run


def agree(size: Size) -> None:
    """That the two ways to the tables are one layer; AssertionError otherwise."""
    ours, theirs = layer_of("tables", size), layer_of("materialised", size)
    at = events(size.n, 1)
    x = torch.randn(1, size.n, HEADS * size.head)
    torch.testing.assert_close(ours(x, q_pos=at), theirs(x, q_pos=at), rtol=1e-4, atol=1e-5)


def beyond(name: str, size: Size, alone: bool = False) -> float:
    """MiB at the peak of a fresh process, over what it held with inputs and parameters ready, the median of three where
    they are quick; alone: of the call."""
    arguments = ["--peak", name, *size.arguments, *(["--alone"] if alone else [])]
    runs = 1 if name == "materialised" or size.n > 1024 else 3
    return statistics.median(fresh(__file__, *arguments) for _ in range(runs))


def held(name: str, size: Size) -> float:
    """MiB of the tensors of the call alone: what is left of its peak is the allocator's."""
    call_alone(name, Size(min(WARM, size.n), 1, size.head, size.causal))()
    return tensors(call_alone(name, size))


def table(size: Size, rounds: int) -> tuple[str, dict[str, float]]:
    """The rows of all contestants, and their figures by name."""
    agree(Size(min(size.n, 96), 1, size.head, size.causal))
    works = {name: contestant(name, size) for name in NAMES}
    spent = turns(works, rounds, once=("materialised",), few=SLOW_ROUNDS)
    rows = [
        "| channels | time | times none | peak memory | more than none | peak of the call alone | its tensors |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    found: dict[str, float] = {}
    for name in NAMES:
        found[f"{name} slower"] = ratio(spent[name], spent["none"])
        found[f"{name} MiB"] = beyond(name, size)
        found[f"{name} alone"] = beyond(name, size, alone=True) if name != "materialised" else float("nan")
        rows.append(
            f"| {name} | {1e3 * statistics.median(spent[name]):.0f} ms | {found[f'{name} slower']:.2f} | "
            f"{found[f'{name} MiB']:.0f} MiB | {found[f'{name} MiB'] - found['none MiB']:+.0f} MiB | "
            + ("| |" if name == "materialised" else f"{found[f'{name} alone']:.0f} MiB | {held(name, size):.0f} MiB |")
        )
    found["faster"] = 1 / ratio(spent["tables"], spent["materialised"])
    return "\n".join(rows), found


def goals(found: dict[str, float]) -> str:
    rows = ["| figure | goal | measured | met |", "|---|---:|---:|---|"]
    for what, limit, value, most in (
        ("scalar biases, times none", 5.0, found["biases slower"], True),
        ("tables, times none", 12.0, found["tables slower"], True),
        ("tables, times faster than materialised", 8.0, found["faster"], False),
        ("peak of the call with biases, MiB", 64.0, found["biases alone"], True),
        ("peak of the call with tables, MiB", 64.0, found["tables alone"], True),
    ):
        met = value <= limit if most else value >= limit
        rows.append(
            f"| {what} | {'at most' if most else 'at least'} {limit:g} | {value:.2f} | {'yes' if met else 'no'} |"
        )
    return "\n".join(rows)


def growth(lengths: Sequence[int], head: int, batch: int) -> str:
    """The exponent is that of what grows: increments from doubling to doubling leave the tiles' constant part out."""
    names = ("none", "biases", "tables")
    head_row = "| channels | " + " | ".join(f"n = {n}" for n in lengths) + " | exponent (goal 1.0 +- 0.1) |"
    rows = [head_row, "|---|" + "---:|" * (len(lengths) + 1)]
    for name in names:
        found = [beyond(name, Size(n, batch, head, True), alone=True) for n in lengths]
        steps = [b - a for a, b in pairwise(found)]
        power = math.log2(steps[-1] / steps[-2]) if len(steps) > 1 and min(steps[-2:]) > 0 else None
        cells = " | ".join(f"{x:.0f} MiB" for x in found)
        rows.append(f"| {name} | {cells} | {'-' if power is None else f'{power:.2f}'} |")
    return "\n".join(rows)


def page(given: argparse.Namespace) -> str:
    n, batch, lengths = (64, 2, (64, 128, 256)) if given.quick else (1024, 8, (1024, 2048, 4096, 8192))
    parts = [
        "# Attention with relative channels: time and memory",
        f"One layer of {HEADS} heads, {batch} sequences of {n} events, float32, forward and backward, "
        f"{torch.get_num_threads()} threads. Medians of {given.rounds} rounds in turns after one to warm up "
        f"({SLOW_ROUNDS} of *materialised*, without); ratios round by round. *biases* and *tables*: position (clipped "
        "at 16), time and place (24 buckets by logarithm each), profile (10 buckets), as a number a head, or as "
        "vectors added to keys and values. *revamp*: tables of the default sizes of `RelativeChannels.revamp`, time in "
        "64 hours. *materialised*: the channels of *tables* by a tensor of n x n x head width for keys and one for "
        "values, a sequence at a time. Memory: the highest resident size of a fresh process, over that with inputs and "
        "parameters ready, the median of three processes; it counts the output and all gradients, and of "
        "*materialised* is that of one sequence, once. The attention call alone has q, k and v for inputs; its output "
        "and their gradients count. *Its tensors*: what torch's allocation records say were held at once, most of them "
        "the output and the gradients; the rest of the peak is what the allocator keeps between them.",
    ]
    if given.quick:
        parts.append("**A quick run at tiny sizes: it shows that everything runs; its figures mean nothing.**")
    for head in given.heads:
        for causal in (True, False):
            rows, found = table(Size(n, batch, head, causal), given.rounds)
            title = f"## Heads of {head}, a layer of width {HEADS * head}, {'causal' if causal else 'both ways'}"
            parts += [title, rows, goals(found)]
    parts += [
        f"## Memory of the attention call by length, heads of {given.heads[0]}, causal",
        growth(lengths, given.heads[0], batch),
        "The exponent is log2 of the last doubling's increment over that of the doubling before.",
    ]
    parts.append(f"Machine: {machine()}. Command: `python benchmarks/channels.py`.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("n", 1024), ("batch", 8), ("head", 64)):
        parser.add_argument(f"--{name}", type=int, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--both-ways", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, nargs="+", default=[64, 16], help="widths of a head that are measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.peak:
        size = Size(given.n, given.batch, given.head, not given.both_ways)
        made = call_alone if given.alone else contestant
        made(given.peak, Size(min(WARM, size.n), 1, size.head, size.causal))()
        print(peak(made(given.peak, size), 1))
        return
    text = page(given)
    print(text)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
