"""The figures that the library sets itself for attention at linear cost, each compared with what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from relpos.lab.bench.goals import EQUALITY, Goal, applies, goal
from relpos.lab.bench.statistics import slope

BANDED = {"linear-clipped": "table clipped at 128", "linear-t5": "T5", "linear-alibi": "ALiBi"}
LONG = 16384  # tokens at which times and memory are compared with softmax
STEEP = 4096  # tokens from which growth is read
CROSSING = 2500  # tokens from which a free table is to be faster than softmax
CROSSED = 8192  # decoded tokens from which a free table goes by FFT, so that its total grows as it does for ever
_FEATURES = 16

Row = dict[str, Any]


def goals(results: dict[str, Any]) -> list[Goal]:
    """What is asked, the limit, what was measured (None where it was not), and whether it is met."""
    settings = results["settings"]
    if not applies(settings) or settings["device"] != "cpu" or settings["features"][0] != _FEATURES:
        return []
    timings = [r for r in results["timings"] if r["skipped"] is None]
    return [
        *_banded(timings),
        *_free(timings),
        *_memory([r for r in results["memory"] if r["skipped"] is None]),
        *_stochastic(results["stochastic"]),
        *_decoding([r for r in results["decode"] if r["skipped"] is None]),
    ]


def _banded(timings: list[Row]) -> Iterator[Goal]:
    for name, words in BANDED.items():
        for causal in (False, True):
            for backward, least in ((False, 20), (True, 15)):
                way = _way(causal, backward)
                faster = over(timings, "softmax", name, causal, backward)
                if LONG in faster:
                    yield goal(f"{words}, {way}, n = {LONG}: times faster than SDPA", least, faster[LONG], least=True)
                late = [times for n, times in faster.items() if n >= 1024]
                if late and not backward:
                    yield goal(f"{words}, {way}, n from 1024 on: times faster than SDPA", 1, min(late), least=True)
                yield from _slope(timings, name, words, causal, backward, 0.1)


def _free(timings: list[Row]) -> Iterator[Goal]:
    words = "free table"
    faster = over(timings, "softmax", "linear-free", False, False)
    if faster:
        yield goal(f"{words}, forward, n = {LONG}: times faster than SDPA", 5, faster.get(LONG), least=True)
        at, reached = crossover(faster), min(faster) <= CROSSING
        asked = goal(f"{words}, forward: n from which it is faster than SDPA", CROSSING, at if reached else None)
        yield {**asked, "met": False} if reached and at is None else asked
    literal = over(timings, "literal", "linear-free", False, True)
    for n in (4096, 8192):
        if n in literal:
            yield goal(f"{words}, forward + backward, n = {n}: times faster than literal", 3, literal[n], least=True)
    for backward in (False, True):
        floor = _exponent([r for r in timings if r["contestant"] == "transforms" and _is(r, False, backward)])
        alone = "" if floor is None else f" (of its transforms alone: {floor:.2f})"
        yield from _slope(timings, "linear-free", words, False, backward, None, alone)


def over(timings: list[Row], other: str, name: str, causal: bool, backward: bool) -> dict[int, float]:
    """By length: how many times as long as `name` the other one takes, where both were measured (median times)."""
    found = {(r["contestant"], r["n"]): r["seconds"] for r in timings if _is(r, causal, backward)}
    lengths = sorted(n for who, n in found if who == name and (other, n) in found)
    return {n: found[other, n] / found[name, n] for n in lengths}


def crossover(faster: dict[int, float]) -> float | None:
    """The smallest measured length from which on all are faster; None where the longest is not."""
    found = None
    for n in sorted(faster, reverse=True):
        if faster[n] <= 1:
            break
        found = float(n)
    return found


def _slope(
    timings: list[Row], name: str, words: str, causal: bool, backward: bool, around: float | None, note: str = ""
) -> Iterator[Goal]:
    rows = [r for r in timings if r["contestant"] == name and _is(r, causal, backward) and r["n"] >= STEEP]
    found = _exponent(rows)
    if found is None or max(r["n"] for r in rows) < LONG:
        return
    way = _way(causal, backward)
    span = f"n = {min(r['n'] for r in rows)} to {max(r['n'] for r in rows)}"
    if around is None:
        yield goal(f"{words}, {way}, {span}: exponent of n in time{note}", 1.15, found)
    else:
        yield goal(f"{words}, {way}, {span}: exponent of n in time, distance from 1", around, abs(found - 1))


def _exponent(rows: list[Row]) -> float | None:
    """The slope of log(time) against log(n) from `STEEP` on."""
    long = [r for r in rows if r["n"] >= STEEP]
    return slope([r["n"] for r in long], [r["seconds"] for r in long])


def _memory(rows: list[Row]) -> Iterator[Goal]:
    for name, words in (("linear-clipped", "table clipped at 128"), ("linear-free", "free table")):
        own = [r for r in rows if r["contestant"] == name]
        base = [r for r in own if r["features"] == _FEATURES]
        for row in base:
            if row["n"] == LONG:
                what = (
                    f"{words}, {_way(row['causal'], row['backward'])}, n = {LONG}: peak memory, share of h n n floats"
                )
                yield goal(what, 0.05, row["share"])
        found = slope([r["n"] for r in base], [r["peak"] for r in base])
        if found is not None and max(r["n"] for r in base) >= LONG:
            yield goal(f"{words}: exponent of n in peak memory (fixed costs bring it below 1)", 1.1, found)
        swept = {r["features"]: r["peak"] for r in own if r["n"] == swept_length(own)}
        if len(swept) > 1:
            few, many = min(swept), max(swept)
            what = f"{words}, n = {swept_length(own)}: peak memory with {many} features over that with {few}"
            yield goal(what, 1.1, swept[many] / max(1, swept[few]))


def swept_length(rows: list[Row]) -> int | None:
    """The length at which the number of features varies."""
    return next((r["n"] for r in rows if r["features"] != rows[0]["features"]), None)


def _stochastic(rows: list[Row]) -> Iterator[Goal]:
    found = {r["contestant"]: r for r in rows if r["skipped"] is None}
    if len(found) == 2:
        ours, other = found["spe"], found["spe-features"]
        words = f"SineSPE, forward + backward, batch 2, n = {ours['n']}: times"
        yield goal(f"{words} faster than codes by feature", 4, other["seconds"] / ours["seconds"], least=True)
        yield goal(f"{words} less memory than codes by feature", 2, other["peak"] / max(1, ours["peak"]), least=True)


def _decoding(rows: list[Row]) -> Iterator[Goal]:
    for row in rows:
        steps, words = row["steps"], row["title"]
        if row["encoding"] == "linear-free":
            late = [s for s in steps if s["cache"] >= CROSSED]
            found = slope([growth(s["cache"]) for s in late], [s["total"] for s in late])
            if found is not None:
                yield goal(f"decoding, {words}: exponent of n log^2 n in its total time", 1.1, found)
        elif row["encoding"] != "softmax" and len(steps) > 1:
            first, last = steps[0], steps[-1]
            what = f"decoding, {words}: time a token at {last['cache']} over that at {first['cache']}"
            yield goal(what, 1.2, last["seconds"] / first["seconds"])
        yield goal(f"decoding, {words}: difference from the parallel result, float64", EQUALITY, row["difference"])


def growth(n: float) -> float:
    return n * math.log2(n) ** 2


def _is(row: Row, causal: bool, backward: bool) -> bool:
    return (row["causal"], row["backward"]) == (causal, backward)


def _way(causal: bool, backward: bool) -> str:
    return ("forward + backward" if backward else "forward") + (", causal" if causal else "")
