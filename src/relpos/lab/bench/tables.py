"""The measured numbers as rows of text: the same cells on the terminal, in the CSV and on the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relpos.lab.bench.contestants import CONTESTANTS
from relpos.lab.bench.problem import Problem
from relpos.lab.bench.statistics import slope


@dataclass(frozen=True)
class Table:
    """A titled table of text; the first column is the name, the others are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.columns) + " |", "|---|" + "---:|" * (len(self.columns) - 1)]
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in self.rows]
        return "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")


def problem_of(row: dict[str, Any], settings: dict[str, Any]) -> Problem:
    shape = {key: settings[key] for key in ("heads", "dim", "dtype", "device")}
    return Problem(row["n"], causal=row.get("causal", False), backward=row.get("backward", True), **shape)


def all_tables(results: dict[str, Any]) -> list[Table]:
    return [*goals_tables(results), *timing_tables(results, cell), *memory_tables(results), *_decode(results)]


def goals_tables(results: dict[str, Any]) -> list[Table]:
    rows = []
    for goal in results["goals"]:
        sign, value = "at least" if goal["least"] else "at most", goal["measured"]
        verdict = {True: "met", False: "missed", None: "not measured"}[goal["met"]]
        rows.append([goal["what"], f"{sign} {goal['limit']:g}", "-" if value is None else f"{value:.3g}", verdict])
    return [Table("Figures to reach", ["figure", "goal", "measured", ""], rows)] if rows else []


def modes(results: dict[str, Any]) -> list[tuple[bool, bool]]:
    """(backward, causal) of all that was timed, in the order of the tables."""
    found = {(r["backward"], r["causal"]) for r in results["timings"]}
    return sorted(found, key=lambda mode: (not mode[0], mode[1]))


Cell = Callable[[dict[str, Any] | None, dict[str, Any]], str]  # of a row and the results


def timing_tables(results: dict[str, Any], cell: Cell) -> list[Table]:
    return [_timing(results, backward, causal, cell) for backward, causal in modes(results)]


def _timing(results: dict[str, Any], backward: bool, causal: bool, cell: Cell) -> Table:
    rows = [r for r in results["timings"] if (r["backward"], r["causal"]) == (backward, causal)]
    lengths = sorted({r["n"] for r in rows})
    found = {(r["contestant"], r["n"]): r for r in rows}
    names = [name for name in CONTESTANTS if any(name == r["contestant"] for r in rows)]
    body = [[CONTESTANTS[name].title, *(cell(found.get((name, n)), results) for n in lengths)] for name in names]
    reasons = _reasons(rows)
    mode = problem_of(rows[0], results["settings"]).mode
    return Table(mode[0].upper() + mode[1:], ["", *(f"n = {n}" for n in lengths)], body, reasons)


def cell(row: dict[str, Any] | None, results: dict[str, Any]) -> str:
    """`1.13 (1.12-1.15), 412 ms, 1.2 x bound`: ratio to the floor with its quartiles, median, distance to the bound."""
    if row is None:
        return "-"
    if row["skipped"] is not None:
        return "not run"
    fewer = f", {row['rounds']} rounds" if CONTESTANTS[row["contestant"]].slow else ""
    distance = over_bound(row, results)
    bound = "" if distance is None else f", {distance:.2f} x bound"
    ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
    return f"{ratio}, {milliseconds(row['seconds'])}{bound}{fewer}"


def over_bound(row: dict[str, Any], results: dict[str, Any]) -> float | None:
    """Time over that of the matrix products alone, at the measured rate."""
    rate = results["rates"].get("product")
    if not rate or row["skipped"] is not None:
        return None
    return float(row["seconds"] * rate / problem_of(row, results["settings"]).flops)


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _reasons(rows: list[dict[str, Any]]) -> str:
    """Why contestants did not run: one line a reason, with the lengths where it does not hold for all."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row["skipped"] is not None:
            found.setdefault((row["skipped"], row["contestant"]), []).append(row["n"])
    by_reason: dict[str, list[str]] = {}
    for (reason, name), lengths in found.items():
        everywhere = len(lengths) == sum(row["contestant"] == name for row in rows)
        where = "" if everywhere else " at n = " + ", ".join(map(str, sorted(lengths)))
        by_reason.setdefault(reason, []).append(CONTESTANTS[name].title + where)
    lines = [f"Not run, {reason.rstrip('.')}: {'; '.join(who)}." for reason, who in by_reason.items()]
    return "  \n".join(lines)


def memory_tables(results: dict[str, Any]) -> list[Table]:
    rows = results["memory"]
    if not rows:
        return []
    lengths = sorted({r["n"] for r in rows})
    found = {(r["contestant"], r["n"]): r for r in rows}
    names = [name for name in CONTESTANTS if any(name == r["contestant"] for r in rows)]
    body = []
    for name in names:
        own = [r for n in lengths if (r := found.get((name, n))) is not None and r["skipped"] is None]
        power = slope([r["n"] for r in own], [r["peak"] for r in own])
        cells = [_memory_cell(found.get((name, n))) for n in lengths]
        body.append([CONTESTANTS[name].title, *cells, "-" if power is None else f"{power:.2f}"])
    backward = "forward + backward" if rows[0]["backward"] else "forward"
    columns = ["", *(f"n = {n}" for n in lengths), "exponent of n"]
    return [Table(f"Peak memory over the inputs, {backward}", columns, body, _reasons(rows))]


def _memory_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return "not run" if row["skipped"] is not None else f"{row['peak'] / 2**20:.0f} MiB ({100 * row['share']:.2g}%)"


def _decode(results: dict[str, Any]) -> list[Table]:
    rows = results["decode"]
    done = [r for r in rows if r["skipped"] is None]
    if not done:
        return []
    sizes = [step["cache"] for step in done[0]["steps"]]
    body = [
        [r["encoding"], *(f"{1e6 * step['seconds']:.0f} us" for step in r["steps"]), f"{r['difference']:.1e}"]
        for r in done
    ]
    note = "  \n".join(f"Not run: {r['encoding']}: {r['skipped']}." for r in rows if r["skipped"] is not None)
    columns = ["", *(f"cache {size}" for size in sizes), "largest difference"]
    return [Table("Decoding: time a step by size of the cache, and equality in float64", columns, body, note)]


CSV_COLUMNS = (
    "part", "contestant", "n", "causal", "backward", "seconds", "seconds_low", "seconds_high", "ratio", "ratio_low",
    "ratio_high", "rounds", "over_bound", "peak_bytes", "share", "cache", "total_seconds", "difference", "features",
    "skipped",
)  # fmt: skip


def as_csv(results: dict[str, Any]) -> str:
    """All numbers, one row a measurement; seconds and bytes, unrounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in results["timings"]:
        writer.writerow({"part": "time", **row, "over_bound": over_bound(row, results)})
    for part in ("memory", "stochastic"):
        for row in results.get(part, []):
            writer.writerow({"part": part, **row, "peak_bytes": row.get("peak")})
    for row in results["decode"]:
        common = {"part": "decode", "contestant": row["encoding"], "skipped": row["skipped"]}
        for step in row.get("steps", [{}]):
            spread = {"seconds_low": step.get("low"), "seconds_high": step.get("high")}
            spread["total_seconds"] = step.get("total")
            writer.writerow({**common, **step, **spread, "difference": row.get("difference")})
    return text.getvalue()
