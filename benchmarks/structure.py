"""Time and memory of a self-attention layer with labels of structure, against the same layer without any encoding.

    python benchmarks/structure.py [--markdown docs/results/structure.md]

Labels are drawn as in windows of POP909: melody 40 pitches, 26 chords, 5 sections, in runs. Contestants take turns;
memory is the highest resident size of a fresh process during three forward and backward passes, less what it had with
the inputs ready. "explicit" is the way of the released code, written here: one (T, T, width) tensor a level.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from measure import fresh, machine, peak, ratio, turns
from torch import Tensor, nn

import relpos as rp
from relpos.encodings.levels import BASES, waves

WIDTH, HEADS = 512, 4
LEVELS = {"melody": (40, 4), "chord": (26, 45), "section": (5, 270)}  # distinct labels, ticks of a run
NAMES = ("none", "shaw", "structure_rpe", "structure_rpe learned", "non_stationary_rpe", "same_label", "explicit")
EXPLICIT_LONGEST = 512
SLOW_ROUNDS = 2  # of the explicit way, which takes many seconds


def labels(n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, (count, run) in LEVELS.items():
        drawn = torch.randint(0, count, (-(-n // run),), generator=generator)
        found[name] = drawn.repeat_interleave(run)[:n]
    return {"index": torch.arange(n), **found}


class Explicit(nn.Module):
    """Attention with the (T, T, width) tensors of the released code, all heads and levels, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = rp.SelfAttention(WIDTH, HEADS, causal=True)
        self.maps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in LEVELS)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, q_pos: dict[str, Tensor]) -> Tensor:
        layer, n, dim = self.layer, x.shape[1], WIDTH // HEADS
        q, k, v = (f(x).view(1, n, HEADS, dim).transpose(1, 2) for f in (layer.q, layer.k, layer.v))
        score = q @ k.mT
        for name, linear in zip(LEVELS, self.maps, strict=True):
            difference = q_pos[name][:, None] - q_pos[name][None]
            code = waves(difference.flatten(), WIDTH, BASES[name]).float().view(n, n, WIDTH)
            p = self.last(linear(code)).view(n, n, dim, HEADS)
            score = score + torch.einsum("bhtd,tsdh->bhts", q, p)
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = (score / dim**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        out: Tensor = layer.out((weights @ v).transpose(1, 2).flatten(2))
        return out


def contestant(name: str, n: int, batch: int = 1) -> Callable[[], None]:
    torch.manual_seed(0)
    word, *kind = name.split()
    options = (
        {"kind": kind[0]} if kind else {"levels": ["melody", "chord", "section"]} if word == "same_label" else None
    )
    encoding = None if word in ("none", "explicit") else word
    if word == "explicit":
        layer: nn.Module = Explicit()
    else:
        layer = rp.SelfAttention(WIDTH, HEADS, encoding, causal=True, encoding_options=options)
    x, where = torch.randn(batch, n, WIDTH, requires_grad=True), labels(n)

    def work() -> None:
        layer(x, q_pos=where).square().mean().backward()

    return work


def page(rounds: int) -> str:
    parts = [
        "# Attention with labels of structure: time and memory",
        f"One layer of width {WIDTH}, {HEADS} heads, batch 1, causal, float32, forward and backward, "
        f"{torch.get_num_threads()} threads; labels in runs: {', '.join(f'{c} {n}' for n, (c, _) in LEVELS.items())}. "
        "Medians, and the ratio to the layer without encoding, round by round. *explicit* is the way of the released "
        "code: a tensor of T x T x width a level.",
    ]
    for n in (512, 1024, 3072):
        names = [name for name in NAMES if name != "explicit" or n <= EXPLICIT_LONGEST]
        works = {name: contestant(name, n) for name in names}
        spent = turns(works, rounds if n < 3072 else 5, once=("explicit",), few=SLOW_ROUNDS)
        rows = ["| encoding | time | times none | peak memory | more than none |", "|---|---:|---:|---:|---:|"]
        base = fresh(__file__, "--peak", "none", "--length", str(n))
        for name in names:
            slower = ratio(spent[name], spent["none"])
            more = fresh(__file__, "--peak", name, "--length", str(n))
            rows.append(
                f"| {name} | {1e3 * statistics.median(spent[name]):.1f} ms | {slower:.2f} | {more:.0f} MiB | "
                f"{more - base:+.0f} MiB |"
            )
        parts += [f"## T = {n}", "\n".join(rows)]
    return "\n\n".join([*parts, f"Machine: {machine()}. Command: `python benchmarks/structure.py`."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.peak:
        print(peak(contestant(given.peak, given.length), 1 if given.peak == "explicit" else 3))
        return
    text = page(given.rounds)
    print(text)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
