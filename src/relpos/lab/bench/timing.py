"""Interleaved timing: the contestants take turns, and the floor runs between them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from relpos.lab.bench.contestants import Contestant, reason
from relpos.lab.bench.problem import Inputs, Problem, Refused, call
from relpos.lab.bench.statistics import Sample, quartiles, summary, thinned

BETWEEN = 3  # contestants between two measurements of the floor
SLOW_ROUNDS = 3
SHARE = 0.8  # of the free memory that one contestant may need

Tick = Callable[[float, str], None]  # share of the problem that is done, who had the last turn


@dataclass(frozen=True)
class Patience:
    """Rounds at least; and up to five times as many while a problem takes less than `seconds`.

    long      seconds of a call from which a contestant is called three times, the first call included
    once      seconds from which its first call is its only one
    between   contestants between two measurements of the floor
    """

    rounds: int
    sample: float
    seconds: float
    long: float = math.inf
    once: float = math.inf
    between: int = BETWEEN

    def turns_for(self, entrant: _Entrant, rounds: int) -> int:
        if entrant.once >= self.once:
            return 0
        if entrant.once >= self.long:
            return min(rounds, SLOW_ROUNDS) - 1
        return min(rounds, SLOW_ROUNDS) if entrant.contestant.slow else rounds

    def rounds_for(self, one_round: float) -> int:
        fitting = int(self.seconds / max(one_round, 1e-9))
        return min(max(self.rounds, fitting), 5 * self.rounds)


@dataclass
class _Entrant:
    contestant: Contestant
    work: Callable[[], Any]
    once: float = 0.0  # seconds of a warm call
    calls: int = 1
    samples: list[Sample] = field(default_factory=list)


def seconds(work: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Mean wall time of a call; on CUDA by events on the stream, after all earlier work is done."""
    if device.startswith("cuda"):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def race(
    problem: Problem,
    floor: Contestant,
    others: list[Contestant],
    patience: Patience,
    tick: Tick = lambda share, name: None,
) -> list[dict[str, Any]]:
    """Times the contestants on one problem; a row for each, with its numbers or with why it was skipped.

    Every round visits all of them, starting one further than the last; the floor runs before, after and after each
    group of `patience.between`.
    """
    inputs = problem.inputs()
    base = _enter(floor, problem, inputs, patience)
    entrants, rows = [], []
    one_round = (2 + len(others) / patience.between) * base.calls * base.once
    for index, contestant in enumerate(others):
        tick(index / len(others) / (patience.rounds + 1), f"{contestant.name} warms up")
        try:
            entrant = _enter(contestant, problem, inputs, patience)
        except Refused as refusal:
            rows.append(_row(contestant, problem, skipped=str(refusal)))
            continue
        entrants.append(entrant)
        if entrant.once >= patience.long:
            entrant.samples.append(Sample(entrant.once, base.once, base.once))
        if entrant.once < patience.once:
            one_round += entrant.calls * entrant.once
    floors: list[float] = []
    turns = list(_turns(entrants, patience, patience.rounds_for(one_round)))
    gc.collect()
    for number, due in enumerate(turns):
        for done, name in enumerate(_round(due, base, problem.device, floors, patience.between)):
            tick((number + 1 + (done + 1) / len(due)) / (len(turns) + 1), name)
    rows += [_row(e.contestant, problem, samples=e.samples) for e in entrants]
    return [_floor_row(floor, problem, floors), *rows]


def _enter(contestant: Contestant, problem: Problem, inputs: Inputs, patience: Patience) -> _Entrant:
    need, free = contestant.needs(problem), free_memory(problem.device)
    if free is not None and need > SHARE * free:
        raise Refused(f"needs about {need / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")
    entrant = _Entrant(contestant, call(contestant.prepare(problem), inputs))
    try:
        first = seconds(entrant.work, problem.device)
        entrant.once = seconds(entrant.work, problem.device) if first < 1 else first
    except Exception as error:
        raise Refused(reason(error)) from error
    entrant.calls = 1 if contestant.slow else max(1, math.ceil(patience.sample / max(entrant.once, 1e-9)))
    return entrant


def _turns(entrants: list[_Entrant], patience: Patience, rounds: int) -> Iterator[list[_Entrant]]:
    """Who runs in each round, in which order."""
    turns = [thinned(rounds, patience.turns_for(entrant, rounds)) for entrant in entrants]
    for turn in range(rounds):
        due = [entrant for entrant, own in zip(entrants, turns, strict=True) if turn in own]
        start = turn % max(1, len(due))
        yield due[start:] + due[:start]


def _round(due: list[_Entrant], base: _Entrant, device: str, floors: list[float], between: int) -> Iterator[str]:
    """Runs one round; names each contestant that had its turn."""
    before = seconds(base.work, device, base.calls)
    floors.append(before)
    for group in _groups(due, between):
        taken = []
        for entrant in group:
            taken.append(seconds(entrant.work, device, entrant.calls))
            yield entrant.contestant.name
        after = seconds(base.work, device, base.calls)
        floors.append(after)
        for entrant, spent in zip(group, taken, strict=True):
            entrant.samples.append(Sample(spent, before, after))
        before = after


def _groups(due: list[_Entrant], between: int) -> Iterator[list[_Entrant]]:
    for start in range(0, len(due), between):
        yield due[start : start + between]


def _row(
    contestant: Contestant, problem: Problem, samples: list[Sample] | None = None, skipped: str | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {"contestant": contestant.name, **problem.as_mode(), "skipped": skipped}
    if samples:
        row.update(summary(samples).as_dict(), samples=[sample.seconds for sample in samples])
    elif skipped is None:
        row["skipped"] = "had no turn"
    return row


def _floor_row(floor: Contestant, problem: Problem, floors: list[float]) -> dict[str, Any]:
    """The floor against its own neighbours: a ratio of 1 whose spread is the noise of the method."""
    samples = [Sample(b, a, c) for a, b, c in zip(floors, floors[1:], floors[2:], strict=False)]
    row = _row(floor, problem, samples=samples or [Sample(each, each, each) for each in floors])
    median, low, high = quartiles(floors)
    return {**row, "seconds": median, "seconds_low": low, "seconds_high": high, "samples": floors, "ratio": 1.0}


def free_memory(device: str) -> float | None:
    """Bytes that can be allocated without swapping; None where the system does not tell."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info()[0])
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    return None
