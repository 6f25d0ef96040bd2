"""`relpos bench attention`: softmax attention with encodings, against unbiased and materialised attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from relpos.lab.bench import decode, figures, goals, tables
from relpos.lab.bench.command import Bench, Part
from relpos.lab.bench.contestants import ATTENTION, Contestant
from relpos.lab.bench.kind import Kind
from relpos.lab.bench.page import verdict
from relpos.lab.bench.problem import Problem
from relpos.lab.bench.settings import Settings
from relpos.lab.bench.timing import Tick

DEEPEST = 16384  # beyond it, only the memory of `deep` contestants is measured
IN_QUICK = ("sdpa", "learned")  # whose memory a quick run measures: each costs the start of a process


class AttentionBench(Bench):
    field = ATTENTION

    def parts(self) -> list[Part]:
        found = [Part(self._race_seconds(problem), partial(self.race, problem)) for problem in self.problems()]
        for contestant, problem in self._memory_jobs() if self.settings.memory else []:
            work = partial(self._memory, contestant, problem)
            found.append(Part(self._child_seconds(contestant, problem), work))
        if self.settings.decode and self.missing is None:
            found.append(Part(0.03 * self.settings.decode_steps, self._decode))
        return found

    def _memory_jobs(self) -> list[tuple[Contestant, Problem]]:
        s = self.settings
        jobs = []
        for n in sorted(s.memory_lengths):
            for contestant in self.contestants:
                if n <= DEEPEST or contestant.deep:
                    causal = contestant.name.endswith("-channels") or not s.full
                    jobs.append((contestant, self.problem(n, causal, s.backward)))
        return jobs

    def _memory(self, contestant: Contestant, problem: Problem, tick: Tick) -> None:
        self.results["memory"].append(self.memory(contestant, problem, tick, contestant.name in IN_QUICK))

    def _decode(self, tick: Tick) -> None:
        s = self.settings
        self.results["decode"] = decode.measure(
            s.decode_steps, s.heads, s.dim, getattr(torch, s.dtype), s.device,
            lambda part, whole, text: tick(part / whole, f"decoding, {text}"),
        )  # fmt: skip

    def _race_seconds(self, problem: Problem) -> float:
        """A guess for the time left; two fifths of the rounds, at three times the cost, for the slow ones."""
        floor = self.floor_seconds(problem)
        together = [c for c in self.contestants[1:] if not c.apart]
        one = floor * sum(1.8 if c.slow else 1.7 for c in together)
        rounds = min(max(self.patience.rounds, self.patience.seconds / max(one, 1e-9)), 5 * self.patience.rounds)
        apart = 0 if problem.backward or self.settings.quick else 30 + 15 * floor
        return one * (rounds + 1) + apart + 0.1

    def _child_seconds(self, contestant: Contestant, problem: Problem) -> float:
        if self.settings.quick and contestant.name not in IN_QUICK:
            return 0.0
        return 4 + self.floor_seconds(problem) * (3 if contestant.slow else 1.3)


def introduction(results: dict[str, Any]) -> str:
    s = results["settings"]
    return (
        f"Batch 1, {s['heads']} heads of width {s['dim']}, {s['dtype']}, {s['threads']} threads, device {s['device']}. "
        "A cell holds the time as a multiple of unbiased fused attention (median of paired ratios, quartiles in "
        "brackets), the median time, and its distance to the bound of the matrix products." + verdict(results)
    )


def method(results: dict[str, Any]) -> list[str]:
    r = results["rates"]
    lines = [
        "All contestants take turns in one process, round by round, each round starting one further than the last; "
        "the floor (`scaled_dot_product_attention` without bias, with `is_causal` where causal) runs before and after "
        "every three of them, and a ratio is taken to the mean of the two nearest floors. The floor's own quartiles "
        "are those of its ratio to its neighbours: the noise of the method. Before that, one or two calls of each "
        "warm up. Contestants marked with their rounds are slow and carry no figure. flex_attention runs in a process "
        "of its own, in turns with a floor of its own.",
        "Memory: each contestant and length in a fresh process, the highest resident size during one call over that "
        "with the inputs ready, so outputs and gradients count; the percentage is of one tensor of h n n floats. "
        "The exponent is the slope of log(peak) against log(n) over the lengths shown.",
    ]
    if results["decode"]:
        lines.append(
            "Decoding: `Stream.step`, one token at a time, all encodings in lockstep; medians of the 33 steps up to "
            "each size of the cache. The difference is the largest between all steps and the parallel causal result."
        )
    if r:
        lines.append(
            f"Rates a second (medians of {len(results['rate_samples'])} samples along the run): products of square "
            f"matrices {r['square'] / 1e9:.0f} Gflop, of attention tiles {r['tile'] / 1e9:.0f} Gflop, "
            f"{r['exp'] / 1e9:.2f} G exponentials. The bound is 4 n n d h operations forward and 14 n n d h forward + "
            "backward (two and seven products), half of that causal, at the better of the two rates; softmax is not in "
            f"it: its n n h exponentials would take {_softmax(results)} of that time again forward, twice as many of "
            "them forward + backward."
        )
    if results["settings"]["device"].startswith("cuda"):
        lines.append("Times are those between two CUDA events on the stream, after all earlier work is done.")
    return lines


def _softmax(results: dict[str, Any]) -> str:
    """Time of the exponentials over that of the products, forward."""
    problem = tables.problem_of({"n": 1024, "backward": False}, results["settings"])
    share = problem.exponentials / results["rates"]["exp"] / (problem.flops / results["rates"]["product"])
    return f"{100 * share:.0f}%"


KIND = Kind(
    settings=Settings,
    format="relpos-bench-1",
    title="Attention: time and memory",
    images="{page}",
    captions={"time": "Time against length", "memory": "Memory against length"},
    goals=goals.goals,
    tables=tables.all_tables,
    pictures=figures.pictures,
    introduction=introduction,
    method=method,
)
