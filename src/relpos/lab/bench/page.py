"""The files of a run: results.json, table.csv, the pictures, and the page for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relpos.lab.bench.kind import Kind
from relpos.lab.bench.tables import as_csv
from relpos.lab.checkpoint import write_atomic, write_json


def write_all(kind: Kind, folder: Path, results: dict[str, Any], markdown: Path | None) -> None:
    """Everything that can be made from the results."""
    write_json(folder / "results.json", results)
    write_atomic(folder / "table.csv", as_csv(results).encode())
    drawn = kind.pictures(results)
    for name, data in drawn.items():
        write_atomic(folder / f"{name}.png", data)
    write_atomic(folder / "page.md", page(kind, results, ".", list(drawn)).encode())
    if markdown is not None:
        beside = kind.images.format(page=markdown.stem)
        for name, data in drawn.items():
            write_atomic(markdown.parent / beside / f"{name}.png", data)
        write_atomic(markdown, page(kind, results, beside, list(drawn)).encode())


def page(kind: Kind, results: dict[str, Any], pictures_in: str, drawn: list[str]) -> str:
    parts = [f"# {kind.title}", kind.introduction(results)]
    if results["unfinished"]:
        parts.append("**Unfinished**: stopped before everything was measured; what is missing is not in the tables.")
    if results["settings"]["quick"]:
        parts.append("**A quick run at tiny sizes: it shows that everything runs; its times mean nothing.**")
    parts += [f"![{kind.captions[name]}]({pictures_in}/{name}.png)" for name in drawn]
    parts += [f"## {table.title}\n\n{table.markdown()}" for table in kind.tables(results)]
    return "\n\n".join([*parts, "## How it was measured", *kind.method(results), _machine(results)]) + "\n"


def verdict(results: dict[str, Any]) -> str:
    """A sentence on the figures, empty where none was measured."""
    measured = [goal for goal in results["goals"] if goal["met"] is not None]
    if not measured:
        return ""
    return f" {sum(goal['met'] for goal in measured)} of {len(measured)} figures that were measured are met."


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
