"""The run of a bench, from its options to its files."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from relpos.lab.bench import floors, page
from relpos.lab.bench.child import ask
from relpos.lab.bench.contestants import Contestant, chosen
from relpos.lab.bench.kind import Kind
from relpos.lab.bench.machine import load, machine
from relpos.lab.bench.problem import Problem, lag_index
from relpos.lab.bench.settings import Settings, parse
from relpos.lab.bench.tables import Table
from relpos.lab.bench.timing import Patience, Tick, race
from relpos.lab.checkpoint import read_json, write_json
from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter


def main(kind: Kind, make: type[Bench], arguments: Sequence[str] | None = None, **options: Any) -> Path:
    """Measures, writes, prints; returns the run directory. LabError for options that make no sense."""
    reporter = options.pop("reporter", None) or Reporter()
    typed, bench_name = list(arguments or []), kind.settings.bench
    settings = kind.settings.of(**{**parse(typed, kind.settings), **options})
    if settings.rewrite is not None:
        return rewrite(kind, settings.rewrite, settings.markdown, reporter)
    command = shlex.join(["relpos", "bench", bench_name, *typed, *_words(options)])
    folder = settings.out / (settings.name or time.strftime(f"bench-{bench_name}-%Y%m%d-%H%M%S"))
    if (folder / "results.json").exists():
        raise LabError(f"{folder} holds a finished bench; give another --name, or --rewrite {folder} to print it again")
    bench = make(settings, {"format": kind.format, "command": command}, folder, reporter)
    try:
        bench.run()
    except KeyboardInterrupt:
        reporter.say("stopped: what was measured so far is written")
        finish(kind, folder, bench.results, settings.markdown, reporter)
        raise SystemExit(130) from None
    bench.results["unfinished"] = False
    finish(kind, folder, bench.results, settings.markdown, reporter)
    return folder


def rewrite(kind: Kind, folder: Path, markdown: Path | None, reporter: Reporter) -> Path:
    """The files of a stored run once more, from its results.json."""
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or results.get("format") != kind.format:
        raise LabError(f"{folder}/results.json is not of this command (format {kind.format})")
    finish(kind, folder, results, markdown, reporter)
    return folder


def finish(kind: Kind, folder: Path, results: dict[str, Any], markdown: Path | None, reporter: Reporter) -> None:
    results["goals"] = kind.goals(results)
    results["load_after"] = results["load_after"] or load()
    page.write_all(kind, folder, results, markdown)
    for table in kind.tables(results):
        show(table, reporter)
    reporter.say(
        f"\nwrote {folder}/results.json, table.csv, page.md and pictures" + (f", {markdown}" if markdown else "")
    )


def show(table: Table, reporter: Reporter) -> None:
    from rich.table import Table as Drawn

    drawn = Drawn(title=table.title, title_justify="left", title_style="bold", box=None, header_style="bold")
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        drawn.add_row(*row)
    if reporter.quiet:
        return
    width = reporter.console.width
    if not reporter.console.is_terminal:
        reporter.console.width = 200
    reporter.console.print()
    reporter.console.print(drawn, markup=False)
    reporter.console.width = width
    if table.note:
        reporter.console.print(table.note, style="dim", markup=False)


@dataclass
class Part:
    """A piece of a run: a guess of its seconds, and the work, which says how far it is (0..1) and at what."""

    cost: float
    work: Callable[[Tick], None]


class Bench:
    """One run; `results` is complete at every moment for what has been measured. A subclass says what its parts are."""

    field: ClassVar[Mapping[str, Contestant]]

    def __init__(self, settings: Settings, about: dict[str, str], folder: Path, reporter: Reporter) -> None:
        self.settings, self.folder, self.reporter = settings, folder, reporter
        self.contestants = chosen(settings.only, self.field, settings.device)
        self.patience = Patience(settings.rounds, settings.sample, settings.patience)
        torch.set_num_threads(settings.threads)
        self.missing = None
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            self.missing = "this machine has no CUDA device"
        self.results: dict[str, Any] = {
            **about, "settings": settings.as_dict(), "machine": machine(),
            "load_after": None, "rates": {}, "rate_samples": [], "timings": [], "memory": [], "decode": [],
            "goals": [], "unfinished": True,
        }  # fmt: skip

    def parts(self) -> list[Part]:
        raise NotImplementedError

    def run(self) -> None:
        self._rates()
        parts = self.parts()
        total, done = sum(part.cost for part in parts), 0.0
        with self.reporter.step(f"bench {self.settings.bench}") as step:
            for part in parts:
                part.work(lambda share, text, at=done, cost=part.cost: step(at + share * cost, total, text))  # type: ignore[misc]
                done += part.cost
                self._keep()
        self._rates()

    def problems(self) -> list[Problem]:
        s = self.settings
        backward = [flag for flag, wanted in ((False, s.forward), (True, s.backward)) if wanted]
        causal = [flag for flag, wanted in ((False, s.full), (True, s.causal)) if wanted]
        return [self.problem(n, c, b) for n in sorted(s.lengths) for b in backward for c in causal]

    def problem(self, n: int, causal: bool, backward: bool) -> Problem:
        s = self.settings
        return Problem(n, s.heads, s.dim, causal, backward, s.dtype, s.device)

    def race(self, problem: Problem, tick: Tick) -> None:
        """Times all contestants on one problem; the first of them keeps the pace."""
        if self.missing is not None:
            self.results["timings"] += [
                {"contestant": c.name, **problem.as_mode(), "skipped": self.missing} for c in self.contestants
            ]
            return
        pace, *others = self.contestants
        together = [c for c in others if not c.apart]

        def told(share: float, name: str) -> None:
            tick(share, f"n = {problem.n}, {problem.mode}: {name}")

        rows = race(problem, pace, together, self.patience, told)
        lag_index.cache_clear()
        rows += [self._apart(contestant, problem) for contestant in others if contestant.apart]
        self.results["timings"] += rows
        self._rates()

    def _apart(self, contestant: Contestant, problem: Problem) -> dict[str, Any]:
        row = {"contestant": contestant.name, **problem.as_mode()}
        if self.settings.quick:
            return {**row, "skipped": "left out of a quick run: compiling takes longer"}
        patience = {
            "rounds": self.patience.rounds,
            "sample": self.patience.sample,
            "seconds": self.patience.seconds / 4,
        }
        answer = self.ask({"kind": "race", "contestant": contestant.name, "patience": patience}, problem)
        return answer.get("row") or {**row, "skipped": answer["skipped"]}

    def ask(self, job: dict[str, Any], problem: Problem) -> dict[str, Any]:
        """What a fresh process answers."""
        return ask({**job, "threads": self.settings.threads, "problem": problem.as_dict()}, self.settings.limit)

    def memory(self, contestant: Contestant, problem: Problem, tick: Tick, quick: bool) -> dict[str, Any]:
        """The row of one contestant's peak; quick: whether a quick run measures it too."""
        tick(0, f"memory of {contestant.name}, n = {problem.n}")
        if self.missing is not None:
            answer: dict[str, Any] = {"skipped": self.missing}
        elif self.settings.quick and not quick:
            answer = {"skipped": "left out of a quick run"}
        else:
            answer = self.ask({"kind": "memory", "contestant": contestant.name}, problem)
        return {"contestant": contestant.name, **problem.as_mode(), **answer}

    def _rates(self) -> None:
        """One more sample of the machine's rates; samples along the run, since a machine's clock changes."""
        if self.missing is None:
            s = self.settings
            sample = floors.rates(getattr(torch, s.dtype), s.device, s.heads, s.dim, s.quick)
            self.results["rate_samples"].append(sample)
            self.results["rates"] = floors.settled(self.results["rate_samples"])

    def _keep(self) -> None:
        write_json(self.folder / "results.json", self.results)

    def floor_seconds(self, problem: Problem) -> float:
        """A guess of fused attention's time."""
        return 1.3 * problem.flops / self.results["rates"].get("product", 1e12)


def _words(options: dict[str, Any]) -> list[str]:
    """Options given by name, as they would be typed."""
    words: list[str] = []
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif value is not None:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    return words
