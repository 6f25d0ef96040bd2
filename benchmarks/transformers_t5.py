"""A T5-base-shaped encoder of transformers, as it comes and with relpos in it: time and memory of training it.

    python benchmarks/transformers_t5.py [--markdown docs/results/transformers.md]

Forward and backward, batch 1, float32, no dropout, the table of buckets trainable. transformers is taken at its
fastest: eager and sdpa take turns, and the better median counts. "attention call": what an attention module does with
queries, keys and values of 12 heads of 64, the bias included. Contestants take turns; memory is the highest resident
size of a fresh process during one call, less what it had before.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from measure import fresh, machine, peak, ratio, turns
from torch import nn
from transformers import T5Config, T5EncoderModel

from relpos.integrations.transformers import accelerate

WAYS = ("eager", "sdpa", "relpos")
BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "dropout_rate": 0.0, "vocab_size": 256}


def model(way: str, layers: int) -> nn.Module:
    torch.manual_seed(0)
    made = T5EncoderModel(T5Config(**BASE, num_layers=layers))
    if way == "relpos":
        accelerate(made)
    else:
        made.set_attn_implementation(way)
    return made.train()


def stack(way: str, layers: int, n: int) -> Callable[[], None]:
    network, x = model(way, layers), torch.randint(256, (1, n))

    def work() -> None:
        network.zero_grad()
        network(input_ids=x)[0].square().mean().backward()

    return work


def call(way: str, n: int) -> Callable[[], None]:
    """The attention module without its projections."""
    part = model(way, 1).encoder.block[0].layer[0].SelfAttention
    part.q = part.k = part.v = part.o = nn.Identity()
    x = torch.randn(1, n, 768, requires_grad=True)

    def work() -> None:
        x.grad = None
        part.zero_grad()
        part(x)[0].square().mean().backward()

    return work


def beyond(way: str, layers: int, n: int) -> float:
    """MiB at the peak beyond the model and its input."""
    return fresh(__file__, "--peak", way, "--layers", str(layers), "--tokens", str(n))


def compared(title: str, works: dict[str, Callable[[], None]], rounds: int, memory: tuple[int, int] | None) -> str:
    spent = turns(works, rounds)
    best = min(("eager", "sdpa"), key=lambda way: statistics.median(spent[way]))
    sizes = {way: beyond(way, *memory) for way in WAYS} if memory else {}
    cells = [f"{1e3 * statistics.median(spent[way]):.0f} ms" for way in WAYS]
    cells += [f"{ratio(spent[best], spent['relpos']):.2f} ({best})"]
    cells += [f"{sizes[way]:.0f} MiB" if memory else "" for way in WAYS]
    cells += [f"1/{min(sizes['eager'], sizes['sdpa']) / sizes['relpos']:.1f}" if memory else ""]
    return f"| {title} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=64, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.peak:
        stack(given.peak, given.layers, 64)()
        print(peak(stack(given.peak, given.layers, given.tokens), 1))
        return
    n, long, longest = (256, 512, 1024) if given.short else (4096, 8192, 16384)
    rows = [
        "| forward and backward | eager | sdpa | relpos | times faster | eager | sdpa | relpos | memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        compared(f"attention call, {n} tokens", {way: call(way, n) for way in WAYS}, given.rounds, None),
        compared(f"4 layers, {n} tokens", {way: stack(way, 4, n) for way in WAYS}, given.rounds, (4, n)),
        compared(f"1 layer, {long} tokens", {way: stack(way, 1, long) for way in WAYS}, given.rounds, (1, long)),
        f"| 4 layers, {longest} tokens | | | | | | | {beyond('relpos', 4, longest):.0f} MiB | |",
    ]
    text = "\n\n".join(
        [
            "# T5 of transformers with relpos in it",
            "A T5-base-shaped encoder (768 wide, 12 heads of 64), batch 1, float32, forward and backward, dropout 0, "
            "the table trainable. Medians; the ratio is round by round against the faster of the two ways that "
            "transformers has on a CPU. Memory: the highest resident size of a fresh process beyond the model and "
            "its input.",
            "\n".join(rows),
            f"Machine: {machine()}. Command: `python benchmarks/transformers_t5.py`.",
        ]
    )
    print(text)
    if given.markdown:
        given.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
