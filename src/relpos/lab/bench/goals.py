"""The figures that the library sets itself, each compared with what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from relpos.lab.bench.statistics import slope

Goal = dict[str, Any]
EQUALITY = 1e-10

# contestant, lengths (None: all from SHORTEST on), causal, backward, largest ratio to the floor, words
_RATIOS = (
    ("learned", (2048,), False, True, 1.30, "learned Toeplitz table"),
    ("learned", (4096, 8192), False, True, 1.20, "learned Toeplitz table"),
    ("learned", None, True, True, 1.25, "learned Toeplitz table"),
    ("learned", None, False, False, 1.10, "learned Toeplitz table"),
    ("learned", None, True, False, 1.20, "learned Toeplitz table"),
    ("alibi", None, False, True, 1.10, "frozen bias (ALiBi)"),
    ("shaw", (4096,), False, True, 2.00, "Shaw keys, clip 128"),
    ("rope", (4096,), False, False, 1.10, "rotary"),
    ("rope", (4096,), False, True, 1.10, "rotary"),
    ("hype-channels", None, True, False, 1.20, "HyPE as channels"),
    ("hype-channels", None, True, True, 1.20, "HyPE as channels"),
    ("alibi-channels", None, True, False, 1.20, "ALiBi as channels"),
    ("alibi-channels", None, True, True, 1.20, "ALiBi as channels"),
)
SHORTEST = 2048  # below it, calls cost more than arithmetic
_DTYPE, _HEADS, _DIM = "float32", 8, 64
_CUDA = ("bfloat16", 16, 64)  # dtype, heads and width, at 8192 tokens, against flash attention without a bias
_CUDA_RATIO = 1.15


def applies(settings: dict[str, Any]) -> bool:
    """True for the shape and dtype that the goals are stated for."""
    return _shape(settings) == (_DTYPE, _HEADS, _DIM)


def _shape(settings: dict[str, Any]) -> tuple[str, int, int]:
    return settings["dtype"], settings["heads"], settings["dim"]


def goals(results: dict[str, Any]) -> list[Goal]:
    """What is asked, the limit, what was measured (None where it was not), and whether it is met."""
    settings = results["settings"]
    if settings["device"].startswith("cuda"):
        return list(_on_cuda(results["timings"])) if _shape(settings) == _CUDA else []
    if not applies(settings) or settings["device"] != "cpu":
        return []
    return [
        *_ratios(results["timings"]),
        *_against_materialised(results["timings"]),
        *_memory(results),
        *_decoding(results),
    ]


def _ratios(timings: list[dict[str, Any]]) -> Iterator[Goal]:
    for name, lengths, causal, backward, limit, words in _RATIOS:
        rows = [r for r in timings if (r["contestant"], r["causal"], r["backward"]) == (name, causal, backward)]
        for row in rows:
            if row["n"] >= SHORTEST and (lengths is None or row["n"] in lengths):
                way = ("forward + backward" if backward else "forward") + (", causal" if causal else "")
                yield goal(f"{words}, {way}, n = {row['n']}: times the floor", limit, row.get("ratio"))


def _on_cuda(timings: list[dict[str, Any]]) -> Iterator[Goal]:
    for row in timings:
        if row["contestant"] == "triton" and row["n"] == 8192:
            way = ("forward + backward" if row["backward"] else "forward") + (", causal" if row["causal"] else "")
            words = f"learned Toeplitz table in Triton, {way}, n = 8192: times flash attention without a bias"
            yield goal(words, _CUDA_RATIO, row.get("ratio"))


def _against_materialised(timings: list[dict[str, Any]]) -> Iterator[Goal]:
    ratio = {
        r["contestant"]: r.get("ratio")
        for r in timings
        if r["n"] == 4096 and r["backward"] and not r["causal"] and r["contestant"] in ("learned", "materialised")
    }
    if len(ratio) == 2:
        ours, theirs = ratio["learned"], ratio["materialised"]
        measured = theirs / ours if ours and theirs else None
        words = "SDPA with a materialised bias, forward + backward, n = 4096: times the learned table"
        yield goal(words, 2.2, measured, least=True)


def _memory(results: dict[str, Any]) -> Iterator[Goal]:
    rows = [r for r in results["memory"] if r["contestant"] == "learned" and r["skipped"] is None]
    for row in rows:
        if row["n"] == 16384:
            words = "learned Toeplitz table, forward + backward, n = 16384: peak memory, share of h n n floats"
            yield goal(words, 0.05, row["share"])
    found = slope([r["n"] for r in rows], [r["peak"] for r in rows])
    if found is not None and max(r["n"] for r in rows) >= 8192:
        words = "learned Toeplitz table: exponent of n in peak memory, distance from 1"
        yield goal(words, 0.1, abs(found - 1))


def _decoding(results: dict[str, Any]) -> Iterator[Goal]:
    differences = [r["difference"] for r in results["decode"] if r["skipped"] is None]
    if differences:
        count = results["settings"]["decode_steps"]
        yield goal(f"{count} decoded tokens against the parallel result, float64", EQUALITY, max(differences))


def goal(words: str, limit: float, measured: float | None, least: bool = False) -> Goal:
    met = None if measured is None else bool(measured >= limit if least else measured <= limit)
    return {"what": words, "limit": limit, "least": least, "measured": measured, "met": met}
