"""What all claims share: a resumable run directory, work spread over processes, and a page with a verdict.

config.json       the claim, its preset and settings                       (written once, first)
environment.json  git state, versions, machine
...               whatever the claim keeps of its finished parts, so that a rerun goes on where it was
finding.json      verdict and numbers
page.md, *.png    the page and its pictures
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from relpos.lab.checkpoint import read_json, write_atomic, write_json
from relpos.lab.environment import environment
from relpos.lab.errors import LabError, RunDirectoryError, unknown
from relpos.lab.jobs import threads
from relpos.lab.progress import Reporter, seconds_text
from relpos.lab.run import claim as lock_directory

FORMAT = "relpos-claim-1"
QUICK = "quick"
"""The preset that only shows that everything runs: whatever it finds, the claim stays open."""
PICTURES = "{pictures}"
"""Stands in a finding's body for the folder of its pictures: ``![title]({pictures}/name.png)``."""


@dataclass(frozen=True)
class Order:
    """What a claim is asked to do, and by whom it is told: its settings, its folder, how many processes."""

    settings: Mapping[str, Any]
    folder: Path
    reporter: Reporter
    workers: int = 1
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """holds: whether the claim does, None where this run cannot say; verdict: the same in a sentence or two.

    numbers: everything behind it, as JSON values (None where a number is not finite); body: markdown, with `PICTURES`
    for the folder of the pictures; pictures: name -> PNG.
    """

    holds: bool | None
    verdict: str
    numbers: dict[str, Any]
    body: str
    pictures: dict[str, bytes] = field(default_factory=dict)


class Claim(Protocol):
    """A module of this package, or anything like it from outside.

    statement  what is claimed, and by whom, in a few sentences
    presets    settings by preset name: "quick" (seconds: does it run?), "demo" (minutes), "results" (what is published)
    run        does the work and keeps finished parts in the order's folder, so that a rerun skips them
    """

    name: str
    title: str
    statement: str
    presets: Mapping[str, Mapping[str, Any]]

    def run(self, order: Order) -> Finding: ...


def prove(
    claim: Claim,
    preset: str,
    path: Path,
    reporter: Reporter,
    *,
    changes: Mapping[str, Any] | None = None,
    markdown: Path | None = None,
    fresh: bool = False,
    workers: int = 1,
    modules: Sequence[str] = (),
    command: str = "",
) -> Finding:
    """Runs a claim in the directory `path`, or goes on with it, and writes finding, pictures and page.

    changes: settings over those of the preset. markdown: also write the page there, its pictures in a folder beside it.
    LabError for an unknown preset or setting, and where the directory holds a run of another claim or other settings.
    """
    settings = _settled(claim, preset, changes or {})
    began = time.monotonic()
    lock = lock_directory(path, fresh)
    try:
        _configured(path, claim.name, preset, settings)
        if not (path / "environment.json").exists():
            write_json(path / "environment.json", {**environment(), "workers": workers})
        finding = claim.run(Order(settings, path, reporter, workers, tuple(modules)))
        if preset == QUICK:
            finding = replace(finding, holds=None)
        write_json(
            path / "finding.json",
            {"claim": claim.name, "holds": finding.holds, "verdict": finding.verdict, "numbers": finding.numbers},
        )
        places = [(path / "page.md", path, ".")]
        if markdown is not None:
            places.append((markdown, markdown.parent / markdown.stem, markdown.stem))
        for page, folder, link in places:
            for name, data in finding.pictures.items():
                write_atomic(folder / f"{name}.png", data)
            write_atomic(page, _page(claim, preset, finding, path, link, command).encode())
            reporter.say(f"wrote {page}")
        reporter.say(f"\n{finding.verdict}\n({seconds_text(time.monotonic() - began)})")
        return finding
    finally:
        lock.close()


def spread(work: Callable[[Any], Any], items: Sequence[Any], order: Order, title: str, thread_count: int = 1) -> None:
    """Does `work(item)` for every item, in as many processes as the order allows, `thread_count` threads each.

    work is a module's function and its items can be pickled; what it finds, it keeps in the order's folder. The first
    error ends the rest and is raised here; so does Ctrl-C.
    """
    with order.reporter.step(title) as step:
        if min(order.workers, len(items)) <= 1:
            with threads(thread_count):
                for done, item in enumerate(items):
                    step(done, len(items))
                    work(item)
            return
        pool = ProcessPoolExecutor(
            min(order.workers, len(items)), multiprocessing.get_context("spawn"), _enter, (thread_count, order.modules)
        )
        try:
            open_ = {pool.submit(work, item) for item in items}
            while open_:
                done_now, open_ = wait(open_, timeout=5.0, return_when=FIRST_COMPLETED)
                for future in done_now:
                    future.result()
                step(len(items) - len(open_), len(items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def markdown_table(corner: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A markdown table with numbers to the right: `corner` heads the titles of the rows."""
    lines = [f"| {corner} | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    return "\n".join(lines + [f"| {title} | {' | '.join(row)} |" for title, row in rows.items()])


def _enter(thread_count: int, modules: tuple[str, ...]) -> None:
    """A process begins: it dies of Ctrl-C without a word, and knows what the user's modules registered."""
    import importlib

    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = str(thread_count)
    torch.set_num_threads(thread_count)
    for module in modules:
        importlib.import_module(module)


def _settled(claim: Claim, preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    if preset not in claim.presets:
        raise unknown("preset", preset, claim.presets)
    settings = dict(claim.presets[preset])
    for name, value in changes.items():
        if name not in settings:
            raise unknown(f"setting of the claim {claim.name}", name, settings)
        settings[name] = value
    return settings


def _configured(path: Path, name: str, preset: str, settings: Mapping[str, Any]) -> None:
    file = path / "config.json"
    config = {"format": FORMAT, "claim": name, "preset": preset, "settings": dict(settings)}
    if not file.exists():
        write_json(file, config)
        return
    stored = read_json(file)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise RunDirectoryError(f"{path} holds something else than the run of a claim; choose another --name")
    differing = sorted(_differences(stored, _plain(config)))
    if differing:
        raise LabError(
            f"{path} holds a run with other settings ({'; '.join(differing)}). Give the same ones to go on with it, "
            "another --name to keep it, or --fresh to replace it"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for name in {*stored, *asked}:
        there, here = stored.get(name), asked.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here)
        elif there != here:
            yield f"{name} is {there!r} there, {here!r} here"


def _page(claim: Claim, preset: str, finding: Finding, path: Path, link: str, command: str) -> str:
    e = read_json(path / "environment.json")
    answer = {True: "It holds here.", False: "It does not hold here.", None: "This run cannot tell."}[finding.holds]
    dirty = " with uncommitted changes" if e["git"]["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
    quick = ["**A quick run at tiny sizes: it shows that everything runs; its numbers mean nothing.**"]
    parts = [
        f"# {claim.title}",
        f"> {claim.statement}",
        *(quick if preset == QUICK else []),
        f"**{answer}** {finding.verdict}",
        finding.body.replace(PICTURES, link),
        "## Where and with what",
        f"    {command or f'relpos claim run {claim.name} --preset {preset}'}",
        f"* Machine: {e['processor']}, {e['cores']} cores, processes at a time: {e['workers']}, device {e['device']}\n"
        f"* Versions: Python {e['python']}, {versions}\n"
        f"* Commit: {e['git']['commit'] or 'not a git checkout'}{dirty}",
    ]
    return "\n\n".join(parts) + "\n"
