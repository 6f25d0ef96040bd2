"""The files of a run: results.json, table.csv, the pictures, and the page for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relpos.lab.bench.figures import pictures
from relpos.lab.bench.tables import all_tables, as_csv, problem_of
from relpos.lab.checkpoint import write_atomic, write_json

FORMAT = "relpos-bench-1"


def write_all(folder: Path, results: dict[str, Any], markdown: Path | None) -> None:
    """Everything that can be made from the results."""
    write_json(folder / "results.json", results)
    write_atomic(folder / "table.csv", as_csv(results).encode())
    drawn = pictures(results)
    for name, data in drawn.items():
        write_atomic(folder / f"{name}.png", data)
    write_atomic(folder / "page.md", page(results, ".", list(drawn)).encode())
    if markdown is not None:
        for name, data in drawn.items():
            write_atomic(markdown.parent / markdown.stem / f"{name}.png", data)
        write_atomic(markdown, page(results, markdown.stem, list(drawn)).encode())


def page(results: dict[str, Any], pictures_in: str, drawn: list[str]) -> str:
    parts = ["# Attention: time and memory", _introduction(results)]
    if results["unfinished"]:
        parts.append("**Unfinished**: stopped before everything was measured; what is missing is not in the tables.")
    if results["settings"]["quick"]:
        parts.append("**A quick run at tiny sizes: it shows that everything runs; its times mean nothing.**")
    titles = {"time": "Time against length", "memory": "Memory against length"}
    parts += [f"![{titles[name]}]({pictures_in}/{name}.png)" for name in drawn]
    parts += [f"## {table.title}\n\n{table.markdown()}" for table in all_tables(results)]
    return "\n\n".join([*parts, _method(results), _machine(results)]) + "\n"


def _introduction(results: dict[str, Any]) -> str:
    s, goals = results["settings"], results["goals"]
    measured = [goal for goal in goals if goal["met"] is not None]
    text = (
        f"Batch 1, {s['heads']} heads of width {s['dim']}, {s['dtype']}, {s['threads']} threads, device {s['device']}. "
        "A cell holds the time as a multiple of unbiased fused attention (median of paired ratios, quartiles in "
        "brackets), the median time, and its distance to the bound of the matrix products."
    )
    if measured:
        text += f" {sum(goal['met'] for goal in measured)} of {len(measured)} figures that were measured are met."
    return text


def _method(results: dict[str, Any]) -> str:
    r = results["rates"]
    lines = [
        "## How it was measured",
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
    return "\n\n".join(lines)


def _softmax(results: dict[str, Any]) -> str:
    """Time of the exponentials over that of the products, forward."""
    problem = problem_of({"n": 1024, "backward": False}, results["settings"])
    share = problem.exponentials / results["rates"]["exp"] / (problem.flops / results["rates"]["product"])
    return f"{100 * share:.0f}%"


def _machine(results: dict[str, Any]) -> str:
    m, commit = results["machine"], results["machine"]["git"]
    memory = "" if m["memory"] is None else f", {m['memory'] / 2**30:.0f} GiB"
    dirty = " with uncommitted changes" if commit["dirty"] else ""
    versions = ", ".join(f"{name} {m['versions'][name]}" for name in ("torch", "numpy") if name in m["versions"])
    loads = [x for x in (m["load"], results["load_after"]) if x is not None]
    lines = [
        f"* Machine: {m['processor']}, {m['cores']} cores{memory}, {m['system']}; torch uses {m['capability']} "
        f"({', '.join(m['flags'])}); device {m['device']}",
        f"* Versions: Python {m['python']}, {versions}",
        f"* Commit: {commit['commit'] or 'not a git checkout'}{dirty}",
        f"* Load of the machine before and after: {', '.join(f'{x:.1f}' for x in loads) or 'unknown'}",
    ]
    return "## Where and with what\n\n    " + results["command"] + "\n\n" + "\n".join(lines)
