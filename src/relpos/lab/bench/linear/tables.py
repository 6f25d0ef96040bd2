"""The tables and the words of the page on attention at linear cost."""

from __future__ import annotations

from typing import Any

from relpos.lab.bench.contestants import CONTESTANTS
from relpos.lab.bench.linear.goals import over, swept_length
from relpos.lab.bench.page import verdict
from relpos.lab.bench.tables import Table, goals_tables, memory_tables, milliseconds, timing_tables

Results = dict[str, Any]
FEW = 5  # samples below which a cell says how many


def all_tables(results: Results) -> list[Table]:
    first = results["settings"]["features"][0]
    base = {**results, "memory": [r for r in results["memory"] if r["features"] == first]}
    tables = [*goals_tables(results), *timing_tables(results, cell), *memory_tables(base)]
    return tables + _features(results) + _stochastic(results) + _decode(results)


def cell(row: dict[str, Any] | None, results: Results) -> str:
    """`12.3 ms (12.1-12.6), 26 x faster`: median, quartiles, and the median of fused SDPA over it."""
    if row is None:
        return "-"
    if row["skipped"] is not None:
        return "not run"
    few = "" if row["rounds"] >= FEW else ", once" if row["rounds"] == 1 else f", {row['rounds']} rounds"
    spread = f" ({1e3 * row['seconds_low']:.3g}-{1e3 * row['seconds_high']:.3g})" if row["rounds"] > 1 else ""
    timings = [r for r in results["timings"] if r["skipped"] is None]
    faster = over(timings, "softmax", row["contestant"], row["causal"], row["backward"]).get(row["n"])
    against = "" if faster is None or row["contestant"] == "softmax" else f", {faster:.3g} x"
    return f"{milliseconds(row['seconds'])}{spread}{against}{few}"


def _features(results: Results) -> list[Table]:
    rows = [r for r in results["memory"] if r["skipped"] is None]
    n = swept_length(rows) if rows else None
    if n is None:
        return []
    counts = sorted({r["features"] for r in rows})
    found = {(r["contestant"], r["features"]): f"{r['peak'] / 2**20:.0f} MiB" for r in rows if r["n"] == n}
    names = [name for name in CONTESTANTS if (name, counts[-1]) in found]
    body = [[CONTESTANTS[name].title, *(found.get((name, m), "-") for m in counts)] for name in names]
    return [Table(f"Peak memory by number of features, n = {n}", ["", *(f"m = {m}" for m in counts)], body)]


def _stochastic(results: Results) -> list[Table]:
    rows = [r for r in results["stochastic"] if r["skipped"] is None]
    if not rows:
        return []
    body = [
        [CONTESTANTS[r["contestant"]].title, milliseconds(r["seconds"]), f"{r['peak'] / 2**20:.0f} MiB"] for r in rows
    ]
    dim = results["settings"]["dim"]
    what = f"batch 2, n = {rows[0]['n']}, {rows[0]['heads']} heads of width {dim}, {dim} realizations, 5 sines"
    title = "Stochastic encoding of queries and keys, forward + backward"
    return [Table(title, ["", "time", "peak memory"], body, what[0].upper() + what[1:] + ".")]


def _decode(results: Results) -> list[Table]:
    rows = results["decode"]
    done = [r for r in rows if r["skipped"] is None]
    if not done:
        return []
    sizes = [step["cache"] for step in done[0]["steps"]]
    body = [
        [r["title"], *(f"{1e6 * step['seconds']:.0f} us" for step in r["steps"]), f"{r['difference']:.1e}"]
        for r in done
    ]
    note = "  \n".join([
        *(f"Total of the {r['steps'][-1]['cache']} tokens, {r['title']}: {r['steps'][-1]['total']:.1f} s."
          for r in done if "total" in r["steps"][-1]),
        *wins(done),
        *(f"Not run: {r['title']}: {r['skipped']}." for r in rows if r["skipped"] is not None),
    ])  # fmt: skip
    columns = ["", *(f"token {size}" for size in sizes), "largest difference"]
    return [Table("Decoding: time a token at a position, and equality in float64", columns, body, note)]


def wins(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence a kernelised decoder: from which of the positions on it is quicker a token than the softmax cache."""
    softmax = next((r for r in rows if r["encoding"] == "softmax"), None)
    found = []
    for row in rows if softmax is not None else []:
        if row is softmax:
            continue
        assert softmax is not None
        ahead = [a["seconds"] < b["seconds"] for a, b in zip(row["steps"], softmax["steps"], strict=True)]
        first = next((i for i in range(len(ahead)) if all(ahead[i:])), None)
        where = "nowhere yet" if first is None else f"from token {row['steps'][first]['cache']} on"
        found.append(f"Quicker a token than softmax, {row['title']}: {where}.")
    return found


def introduction(results: Results) -> str:
    s = results["settings"]
    return (
        f"Batch 1, {s['heads']} heads of width {s['dim']}, {s['features'][0]} positive random features of unit rows, "
        f"{s['dtype']}, {s['threads']} threads, device {s['device']}. The whole call of `relpos.linear_attention` is "
        "timed, features included. A cell holds the median time, its quartiles, and how many times as long fused "
        "attention without any bias takes (from the medians)." + verdict(results)
    )


def method(results: Results) -> list[str]:
    lines = [
        "All contestants take turns in one process, round by round, each round starting one further than the last; "
        "kernelised attention without encoding keeps the pace: it runs before and after every four of them, at all "
        "lengths. Before that, one or two calls of each warm up. Medians of five rounds or more where that is quick, "
        f"else of three: below {FEW} a cell says how many. Of calls over 1.5 s the warm-up is the first of the three; "
        "what takes over 8 s was called once, without a call before it.",
        "The literal algorithm is Luo et al. 2021, Algorithm 1, with real FFTs of a 5-smooth length and autograd's "
        "backward pass; the table of 2n-1 lags is the same as that of ours. The figures on the free table are stated "
        "for attention to all keys. A crossover is the smallest length measured from which on all are faster.",
    ]
    if results["memory"]:
        lines.append(
            "Memory: each contestant and length in a fresh process, the highest resident size during one call over "
            "that with the inputs ready, so outputs and gradients count; the percentage is of one tensor of h n n "
            "floats. The exponent is the slope of log(peak) against log(n) over the lengths shown."
        )
    if results["stochastic"]:
        lines.append(
            "Stochastic encoding: noise drawn, queries and keys encoded, gradients to both and to all parameters. "
            "By feature: codes (1, n, heads, dim, realizations), a broadcast product and a sum over dim, as in the "
            "released package, written here."
        )
    if results["decode"]:
        lines.append(
            "Decoding: `KernelStream.step` and `Stream.step`, one token at a time. Bands and softmax: medians of the "
            "33 steps up to a position, the tokens between came in chunks. Free table: every token is timed, since few "
            "of them do the work of many; a position shows the mean since half of it, and totals are sums. The "
            f"difference is the largest in float64 over the first {results['settings']['equal_steps']} tokens."
        )
    return lines
