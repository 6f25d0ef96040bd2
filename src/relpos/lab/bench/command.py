"""The run of `relpos bench attention`, from its options to its files."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from relpos.lab.bench import decode, floors, goals, page
from relpos.lab.bench.child import ask
from relpos.lab.bench.contestants import FLOOR, Contestant, chosen
from relpos.lab.bench.machine import load, machine
from relpos.lab.bench.problem import Problem, lag_index
from relpos.lab.bench.settings import Settings, parse
from relpos.lab.bench.tables import Table, all_tables
from relpos.lab.bench.timing import Patience, race
from relpos.lab.checkpoint import read_json, write_json
from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter, Step

DEEPEST = 16384  # beyond it, only the memory of `deep` contestants is measured
IN_QUICK = ("sdpa", "learned")  # whose memory a quick run measures: each costs the start of a process


def main(arguments: Sequence[str] | None = None, **options: Any) -> Path:
    """Measures, writes, prints; returns the run directory. LabError for options that make no sense."""
    reporter = options.pop("reporter", None) or Reporter()
    typed = list(arguments or [])
    settings = Settings.of(**{**parse(typed), **options})
    if settings.rewrite is not None:
        return rewrite(settings.rewrite, settings.markdown, reporter)
    command = shlex.join(["relpos", "bench", "attention", *typed, *_words(options)])
    folder = settings.out / (settings.name or time.strftime("bench-%Y%m%d-%H%M%S"))
    if (folder / "results.json").exists():
        raise LabError(f"{folder} holds a finished bench; give another --name, or --rewrite {folder} to print it again")
    bench = Bench(settings, command, folder, reporter)
    try:
        bench.run()
    except KeyboardInterrupt:
        reporter.say("stopped: what was measured so far is written")
        finish(folder, bench.results, settings.markdown, reporter)
        raise SystemExit(130) from None
    bench.results["unfinished"] = False
    finish(folder, bench.results, settings.markdown, reporter)
    return folder


def rewrite(folder: Path, markdown: Path | None, reporter: Reporter) -> Path:
    """The files of a stored run once more, from its results.json."""
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or results.get("format") != page.FORMAT:
        raise LabError(f"{folder}/results.json is not of this command (format {page.FORMAT})")
    finish(folder, results, markdown, reporter)
    return folder


def finish(folder: Path, results: dict[str, Any], markdown: Path | None, reporter: Reporter) -> None:
    results["goals"] = goals.goals(results)
    results["load_after"] = results["load_after"] or load()
    page.write_all(folder, results, markdown)
    for table in all_tables(results):
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


class Bench:
    """One run; `results` is complete at every moment for what has been measured."""

    def __init__(self, settings: Settings, command: str, folder: Path, reporter: Reporter) -> None:
        self.settings, self.folder, self.reporter = settings, folder, reporter
        self.contestants = chosen(settings.only)
        self.patience = Patience(settings.rounds, settings.sample, settings.patience)
        torch.set_num_threads(settings.threads)
        self.missing = None
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            self.missing = "this machine has no CUDA device"
        self.results: dict[str, Any] = {
            "format": page.FORMAT, "command": command, "settings": settings.as_dict(), "machine": machine(),
            "load_after": None, "rates": {}, "rate_samples": [], "timings": [], "memory": [], "decode": [],
            "goals": [], "unfinished": True,
        }  # fmt: skip

    def run(self) -> None:
        problems = self._problems()
        memory = self._memory_jobs() if self.settings.memory else []
        self._rates()
        costs = [self._race_seconds(problem) for problem in problems]
        costs += [self._child_seconds(contestant, problem) for contestant, problem in memory]
        costs.append(self._decode_seconds())
        with self.reporter.step("bench attention") as step:
            done = 0.0
            for cost, problem in zip(costs, problems, strict=False):
                self._race(problem, step, done, cost, sum(costs))
                done += cost
                self._keep()
            for cost, (contestant, problem) in zip(costs[len(problems) :], memory, strict=False):
                step(done, sum(costs), f"memory of {contestant.name}, n = {problem.n}")
                self._memory(contestant, problem)
                done += cost
                self._keep()
            self._decode(
                lambda part, whole, text: step(done + costs[-1] * part / whole, sum(costs), f"decoding, {text}")
            )
        self._rates()

    def _problems(self) -> list[Problem]:
        s = self.settings
        backward = [flag for flag, wanted in ((False, s.forward), (True, s.backward)) if wanted]
        causal = [flag for flag, wanted in ((False, s.full), (True, s.causal)) if wanted]
        return [self._problem(n, c, b) for n in sorted(s.lengths) for b in backward for c in causal]

    def _problem(self, n: int, causal: bool, backward: bool) -> Problem:
        s = self.settings
        return Problem(n, s.heads, s.dim, causal, backward, s.dtype, s.device)

    def _memory_jobs(self) -> list[tuple[Contestant, Problem]]:
        s = self.settings
        jobs = []
        for n in sorted(s.memory_lengths):
            for contestant in self.contestants:
                if n <= DEEPEST or contestant.deep:
                    causal = contestant.name.endswith("-channels") or not s.full
                    jobs.append((contestant, self._problem(n, causal, s.backward)))
        return jobs

    def _race(self, problem: Problem, step: Step, done: float, cost: float, total: float) -> None:
        if self.missing is not None:
            self.results["timings"] += [
                {"contestant": c.name, "n": problem.n, "causal": problem.causal, "backward": problem.backward,
                 "skipped": self.missing}
                for c in self.contestants
            ]  # fmt: skip
            return
        floor = self.contestants[0]
        assert floor.name == FLOOR
        together = [c for c in self.contestants[1:] if not c.apart]

        def tick(share: float, name: str) -> None:
            step(done + share * cost, total, f"n = {problem.n}, {problem.mode}: {name}")

        rows = race(problem, floor, together, self.patience, tick)
        lag_index.cache_clear()
        rows += [self._apart(contestant, problem) for contestant in self.contestants if contestant.apart]
        self.results["timings"] += rows
        self._rates()

    def _apart(self, contestant: Contestant, problem: Problem) -> dict[str, Any]:
        mode = {"n": problem.n, "causal": problem.causal, "backward": problem.backward}
        if self.settings.quick:
            return {"contestant": contestant.name, **mode, "skipped": "left out of a quick run: compiling takes longer"}
        patience = {
            "rounds": self.patience.rounds,
            "sample": self.patience.sample,
            "seconds": self.patience.seconds / 4,
        }
        job = {"kind": "race", "contestant": contestant.name, "threads": self.settings.threads, "patience": patience}
        answer = ask({**job, "problem": problem.as_dict()}, self.settings.limit)
        return answer.get("row") or {"contestant": contestant.name, **mode, "skipped": answer["skipped"]}

    def _memory(self, contestant: Contestant, problem: Problem) -> None:
        if self.missing is not None:
            answer: dict[str, Any] = {"skipped": self.missing}
        elif self.settings.quick and contestant.name not in IN_QUICK:
            answer = {"skipped": "left out of a quick run"}
        else:
            job = {"kind": "memory", "contestant": contestant.name, "threads": self.settings.threads}
            answer = ask({**job, "problem": problem.as_dict()}, self.settings.limit)
        mode = {"n": problem.n, "causal": problem.causal, "backward": problem.backward}
        self.results["memory"].append({"contestant": contestant.name, **mode, **answer})

    def _decode(self, progress: Any) -> None:
        s = self.settings
        if s.decode and self.missing is None:
            kind = getattr(torch, s.dtype)
            self.results["decode"] = decode.measure(s.decode_steps, s.heads, s.dim, kind, s.device, progress)
            self._keep()

    def _rates(self) -> None:
        """One more sample of the machine's rates; samples along the run, since a machine's clock changes."""
        if self.missing is None:
            s = self.settings
            sample = floors.rates(getattr(torch, s.dtype), s.device, s.heads, s.dim, s.quick)
            self.results["rate_samples"].append(sample)
            self.results["rates"] = floors.settled(self.results["rate_samples"])

    def _keep(self) -> None:
        write_json(self.folder / "results.json", self.results)

    def _race_seconds(self, problem: Problem) -> float:
        """A guess for the time left; two fifths of the rounds, at three times the cost, for the slow ones."""
        floor = self._floor_seconds(problem)
        together = [c for c in self.contestants[1:] if not c.apart]
        one = floor * sum(1.8 if c.slow else 1.7 for c in together)
        rounds = min(max(self.patience.rounds, self.patience.seconds / max(one, 1e-9)), 5 * self.patience.rounds)
        apart = 0 if problem.backward or self.settings.quick else 30 + 15 * floor
        return one * (rounds + 1) + apart + 0.1

    def _child_seconds(self, contestant: Contestant, problem: Problem) -> float:
        if self.settings.quick and contestant.name not in IN_QUICK:
            return 0.0
        return 4 + self._floor_seconds(problem) * (3 if contestant.slow else 1.3)

    def _decode_seconds(self) -> float:
        return 0.03 * self.settings.decode_steps if self.settings.decode else 0.1

    def _floor_seconds(self, problem: Problem) -> float:
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
