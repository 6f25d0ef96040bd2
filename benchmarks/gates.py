"""Mixing by lag alone: time and memory of PosMLP's gate against a free matrix, and of PosMLP-T against gMLP.

    python benchmarks/gates.py [--timm FOLDER] [--markdown docs/results/gates.md]

Forward and backward of one unit of 256 channels, float32. "free matrix" is one linear layer over the tokens, gated but
not normalised: the floor that the same multiply-adds have. "SGU" is gMLP's unit, with its LayerNorm. Contestants take
turns; memory is the highest resident size of a fresh process during three calls, less what it had with the inputs
ready, less output and gradients of input and output. timm is optional: without it the last table has no peer.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import fresh, machine, peak, ratio, turns
from torch import Tensor, nn

import relpos as rp
from relpos.models import macs

CHANNELS, GROUPS = 256, 4
SIZES = ((14, 32), (28, 16), (56, 8))  # side of the window, images
LINEAR = (28, 56, 112)  # sides at which the growth of memory is measured, one image
NAMES = ("free matrix", "SGU", "LRPE", "GQPE", "GQPE diagonal")


class Free(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, -1)
        mixed: Tensor = self.linear(u.mT).mT
        return mixed * v


def unit(name: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "free matrix":
        return Free(side * side)
    if name == "SGU":
        return rp.SGU(CHANNELS, side)
    word, *kind = name.lower().split()
    options = {"kind": kind[0]} if kind else None
    return rp.PoSGU(CHANNELS, side, word, groups=GROUPS, encoding_options=options)


def contestant(name: str, side: int, batch: int) -> Callable[[], None]:
    module, n = unit(name, side), side * side
    x, grad = torch.randn(batch, n, CHANNELS, requires_grad=True), torch.randn(batch, n, CHANNELS // 2)

    def work() -> None:
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        module(x).backward(grad)

    return work


def beyond(name: str, side: int, batch: int) -> float:
    """MiB at the peak beyond input, output and their gradients; those of the parameters count."""
    found = fresh(__file__, "--peak", name, "--side", str(side), "--images", str(batch))
    return found - 4 * batch * side**2 * (CHANNELS + CHANNELS // 2) / 2**20  # the gradient of x, and the output


def units(rounds: int) -> list[str]:
    parts = []
    for side, batch in SIZES:
        works = {name: contestant(name, side, batch) for name in NAMES}
        spent = turns(works, rounds if side < 56 else max(5, rounds // 3))
        rows = [
            "| unit | time | times the free matrix | times faster than SGU | parameters | memory |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name in NAMES:
            count = sum(p.numel() for p in unit(name, side).parameters())
            slower, faster = ratio(spent[name], spent["free matrix"]), ratio(spent["SGU"], spent[name])
            rows.append(
                f"| {name} | {1e3 * statistics.median(spent[name]):.1f} ms | {slower:.2f} | {faster:.2f} | {count:,} | "
                f"{beyond(name, side, batch):.0f} MiB |"
            )
        parts += [f"## {side} x {side} tokens, {batch} images", "\n".join(rows)]
    return parts


def growth() -> list[str]:
    rows = ["| unit | " + " | ".join(f"{side} x {side}" for side in LINEAR) + " |", "|---|" + "---:|" * len(LINEAR)]
    for name in NAMES[2:]:
        found = [beyond(name, side, 1) for side in LINEAR]
        rows.append(f"| {name} | " + " | ".join(f"{x:.0f} MiB" for x in found) + " |")
    return ["## Memory of one image, by size of the window", "\n".join(rows)]


def networks(rounds: int) -> list[str]:
    """PosMLP-T against timm's gMLP-S/16: one image of 224 x 224 forward, a multiply-add at a time."""
    models: dict[str, nn.Module] = {"PosMLP-T, GQPE": rp.models.posmlp("t")}
    models["PosMLP-T, LRPE"] = rp.models.posmlp("t", encoding="lrpe")
    models["gMLP-S/16 of relpos"] = rp.models.GMLP()
    if importlib.util.find_spec("timm") is not None:
        import timm

        models["gMLP-S/16 of timm"] = timm.create_model("gmlp_s16_224")
    x = torch.randn(1, 3, 224, 224)
    counts = {name: macs(models[name], 1, 3, 224, 224) for name in models if not name.endswith("timm")}
    counts["gMLP-S/16 of timm"] = counts["gMLP-S/16 of relpos"]
    with torch.inference_mode():
        spent = turns({name: partial(model.eval(), x) for name, model in models.items()}, rounds)
    rows = ["| network | multiply-adds | time | a billion of them |", "|---|---:|---:|---:|"]
    for name in models:
        time = statistics.median(spent[name])
        rows.append(
            f"| {name} | {counts[name] / 1e9:.2f} G | {1e3 * time:.0f} ms | {1e12 * time / counts[name]:.1f} ms |"
        )
    return ["## One image of 224 x 224, forward", "\n".join(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=14, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--timm", type=Path, help="a folder that holds an installed or unpacked timm")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.peak:
        contestant(given.peak, 28, 2)()  # libraries are loaded and threads started
        print(peak(contestant(given.peak, given.side, given.images)))
        return
    if given.timm:
        sys.path.append(str(given.timm))
    head = [
        "# Mixing by lag alone: time and memory",
        f"One unit of {CHANNELS} channels, {GROUPS} groups, float32, forward and backward. Medians; ratios round by "
        "round. *free matrix*: one linear layer over the tokens, gated, without normalisation. Memory: the highest "
        "resident size of a fresh process, less the input, the output and their gradients.",
    ]
    foot = [f"Machine: {machine()}. Command: `python benchmarks/gates.py`."]
    text = "\n\n".join(head + units(given.rounds) + growth() + networks(max(5, given.rounds // 3)) + foot) + "\n"
    print(text)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
