"""The parts of `relpos bench linear`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from relpos.lab.bench.command import Bench, Part
from relpos.lab.bench.contestants import LINEAR, STOCHASTIC, Contestant
from relpos.lab.bench.kind import Kind
from relpos.lab.bench.linear import decode, figures, goals, tables
from relpos.lab.bench.problem import Problem
from relpos.lab.bench.settings import Settings
from relpos.lab.bench.timing import Patience, Tick, race

LONG, ONCE = 1.5, 8.0  # seconds of a call from which there are three, and only one
BETWEEN = 4  # contestants between two runs of the one that keeps the pace
RIVALS_DEEPEST = 8192  # tokens up to which the memory of those that are not linear is measured
SWEPT = 8192  # tokens at which the number of features varies


@dataclass(frozen=True)
class LinearSettings(Settings):
    bench: ClassVar[str] = "linear"
    about: ClassVar[str] = "Time and peak memory of kernelised attention with encodings, and of its decoding."
    small: ClassVar[dict[str, Any]] = {
        **Settings.small, "features": (4, 8), "decode_steps": 64, "equal_steps": 32, "tokens": 32,
    }  # fmt: skip
    lists: ClassVar[tuple[str, ...]] = (*Settings.lists, "features")
    parts: ClassVar[tuple[tuple[str, str], ...]] = (("stochastic", "the part on stochastic encoding"),)

    lengths: tuple[int, ...] = tuple(2**p for p in range(9, 17))
    memory_lengths: tuple[int, ...] = (8192, 16384, 32768)
    features: tuple[int, ...] = (16, 64, 256)
    rounds: int = 3
    sample: float = 0.05
    patience: float = 4.0
    decode_steps: int = 65536
    equal_steps: int = 1024  # decoded tokens that are compared with the parallel result
    tokens: int = 1024  # of the part on stochastic encoding
    stochastic: bool = True


class LinearBench(Bench):
    field: ClassVar[Mapping[str, Contestant]] = LINEAR
    settings: LinearSettings

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        s = self.settings
        self.patience = Patience(s.rounds, s.sample, s.patience, LONG, ONCE, BETWEEN)
        self.results["stochastic"] = []

    def problem(self, n: int, causal: bool, backward: bool) -> Problem:
        return replace(super().problem(n, causal, backward), features=self.settings.features[0])

    def parts(self) -> list[Part]:
        s, found = self.settings, []
        for problem in self.problems():
            found.append(Part(self._race_seconds(problem), partial(self.race, problem)))
        for contestant, problem in self._memory_jobs() if s.memory else []:
            cost = 4 + 1e-5 * problem.n * problem.features / 16
            found.append(Part(cost, partial(self._memory, contestant, problem)))
        if s.stochastic and self.missing is None:
            found.append(Part(20 if not s.quick else 6, self._stochastic))
        if s.decode and self.missing is None:
            found.append(Part(2e-3 * s.decode_steps, self._decode))
        return found

    def _memory_jobs(self) -> list[tuple[Contestant, Problem]]:
        s = self.settings
        base = [self.problem(n, not s.full, s.backward) for n in sorted(s.memory_lengths)]
        jobs = [
            (c, p) for p in base for c in self.contestants
            if c.deep or (c.name in ("softmax", "literal") and p.n <= RIVALS_DEEPEST)
        ]  # fmt: skip
        swept = self.problem(min(SWEPT, max(s.memory_lengths)), not s.full, s.backward)
        return jobs + [(c, replace(swept, features=m)) for c in self.contestants if c.deep for m in s.features[1:]]

    def _memory(self, contestant: Contestant, problem: Problem, tick: Tick) -> None:
        measured = contestant.name == "linear-clipped" and problem.features == self.settings.features[0]
        self.results["memory"].append(self.memory(contestant, problem, tick, measured))

    def _stochastic(self, tick: Tick) -> None:
        """Encoding queries and keys, forward and backward: time in turns, memory in fresh processes."""
        s = self.settings
        heads = max(1, s.heads // 2)
        problem = Problem(s.tokens, heads, s.dim, dtype=s.dtype, device=s.device, batch=2)
        ours, other = STOCHASTIC.values()
        patience = replace(self.patience, rounds=5, seconds=2 * s.patience)
        rows = race(problem, ours, [other], patience, lambda share, name: tick(share / 2, f"stochastic: {name}"))
        for row in rows:
            asked = self.ask({"kind": "memory", "contestant": row["contestant"]}, problem)
            peak = {key: asked.get(key) for key in ("peak", "share")}
            self.results["stochastic"].append({**row, **peak, "heads": heads, "skipped": asked["skipped"]})
            tick(0.75, "stochastic: memory")

    def _decode(self, tick: Tick) -> None:
        s = self.settings
        shape = (s.heads, s.dim, s.features[0], getattr(torch, s.dtype), s.device)
        self.results["decode"] = decode.measure(s.decode_steps, s.equal_steps, *shape, tick)

    def _race_seconds(self, problem: Problem) -> float:
        """A guess for the time left, from what five sums of a token cost and what fused attention costs."""
        causal, floor = (0.7 if problem.causal else 1), self.floor_seconds(problem) if problem.n <= 16384 else 0
        one = floor + causal * 6e-5 * problem.n * (4 if problem.backward else 1)
        rounds = min(max(self.patience.rounds, self.patience.seconds / max(one, 1e-9)), 5 * self.patience.rounds)
        return one * (rounds + 1) + 0.1


KIND = Kind(
    settings=LinearSettings,
    format="relpos-bench-linear-1",
    title="Attention at linear cost: time, memory, decoding",
    images="../images",
    captions={"linear": "Time against length", "decoding": "Time a decoded token against its position"},
    goals=goals.goals,
    tables=tables.all_tables,
    pictures=figures.pictures,
    introduction=tables.introduction,
    method=tables.method,
)
