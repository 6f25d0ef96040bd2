"""How near the draws of trained networks come to what came, over a horizon: what `relpos events horizons` does."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from relpos.lab.assess import finished
from relpos.lab.checkpoint import load_checkpoint, read_json, write_atomic, write_json
from relpos.lab.errors import LabError
from relpos.lab.preparation import prepare
from relpos.lab.progress import Reporter
from relpos.lab.results import spread, spread_name
from relpos.lab.run import Run
from relpos.lab.train import CHECKPOINT, build
from relpos.tasks import get
from relpos.tasks.events import forecasts
from relpos.tasks.events.anchors import Row
from relpos.tasks.events.neural import PointNetwork
from relpos.tasks.events.processes import Hawkes, Poisson

FILE = "horizons.json"
WAYS = {"OTD": "least", "T-mAP": "most"}
Scores = dict[str, float]


@dataclass(frozen=True)
class Wish:
    """Draws of each sequence and horizon, how far, and the seed of the draws; that of a model is added to it."""

    draws: int
    horizon: float
    seed: int


def judge_run(
    path: Path, draws: int, horizon: float | None, seed: int, markdown: Path | None, reporter: Reporter
) -> None:
    """Prints and writes a table of all finished networks of a run, beside classical processes; what is judged already
    is not judged again."""
    run = Run.read(path)
    task: Any = get(run.settings.task, **run.settings.task_options)
    models = [(e, s) for e in run.settings.encodings for s in run.settings.seeds if finished(run.model(e, s))]
    if not models:
        raise LabError(f"{path} has no finished model")
    prepare(task, reporter)
    if not isinstance(build(task, run.settings, models[0][0]), PointNetwork):
        raise LabError(f"{path} is a run of the task {run.settings.task}, not of events")
    try:
        plan = task.plan()
        wish = Wish(draws, forecasts.usual_horizon(plan, task.scales) if horizon is None else horizon, seed)
        count = len(forecasts.starts(plan, wish.horizon))
        networks: dict[str, list[Scores]] = {}
        for number, (encoding, own) in enumerate(models):
            title = f"{encoding} seed {own} ({number + 1} of {len(models)})"
            judge = partial(_network, run, task, wish, encoding, own, title, reporter)
            networks.setdefault(encoding, []).append(_kept(run.model(encoding, own) / FILE, wish, judge))
        classical = _kept(run.path / FILE, wish, partial(_classical, task, wish, run.settings.seeds, reporter))
    except ValueError as error:
        raise LabError(str(error)) from error
    page = _page(run, plan, task, wish, count, networks, classical)
    target = markdown or run.path / "horizons.md"
    write_atomic(target, page.encode())
    reporter.say(f"{page}\nwrote {target}")


def _kept(file: Path, wish: Wish, make: Callable[[], Any]) -> Any:
    """What the file holds for this wish; where it has none, that is made, and kept there beside that of others."""
    held = read_json(file) if file.exists() else {}
    name = f"{wish.draws} draws, horizon {wish.horizon!r}, seed {wish.seed}"
    if name not in held:
        write_json(file, {**held, name: make()})
    return read_json(file)[name]


def _network(run: Run, task: Any, wish: Wish, encoding: str, seed: int, title: str, reporter: Reporter) -> Scores:
    network = build(task, run.settings, encoding)
    load_checkpoint(run.model(encoding, seed) / CHECKPOINT, network)
    assert isinstance(network, PointNetwork)
    generator = torch.Generator().manual_seed(wish.seed + seed)
    with reporter.step(title) as step:
        found = forecasts.over_horizons(
            network, task.plan(), wish.horizon, wish.draws, generator, task.train_length, step
        )
        return forecasts.judged(found, wish.horizon, task.scales.unit)


def _classical(task: Any, wish: Wish, seeds: Sequence[int], reporter: Reporter) -> dict[str, list[Scores]]:
    """Of every process that can be gone on with; drawn as often as there are seeds of networks."""
    with reporter.step("fitting classical processes"):
        rows: list[Row] = task.rows()
    able = [row for row in rows if all(isinstance(model, Poisson | Hawkes) for model in row.models)]
    found: dict[str, list[Scores]] = {}
    for row in able:
        for seed in seeds:
            with reporter.step(f"{row.name}, draws {seed}") as step:
                try:
                    draws = forecasts.process_draws(
                        row.models, task.plan(), wish.horizon, wish.draws, wish.seed + seed, step
                    )
                except ValueError as error:  # one that explodes has no draws
                    reporter.say(f"{row.name} is left out: {error}")
                    break
                found.setdefault(row.name, []).append(forecasts.judged(draws, wish.horizon, task.scales.unit))
    return found


def _page(
    run: Run,
    plan: Any,
    task: Any,
    wish: Wish,
    count: int,
    networks: Mapping[str, Sequence[Scores]],
    classical: Mapping[str, Sequence[Scores]],
) -> str:
    unit = plan.sequences.unit or "units of time"
    names = list(next(iter(networks.values()))[0])
    lines = [
        f"# {run.settings.task}: what comes within {wish.horizon:g} {unit}, drawn ahead",
        "",
        *(_headline(name, networks, classical) for name in WAYS),
        "",
        "| draws of | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for form, rows in (("{}", networks), ("*{}* (baseline)", classical)):
        for name, scores in rows.items():
            cells = [_value([each[what] for each in scores]) for what in names]
            lines.append(f"| {form.format(name)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{len(plan.sequences)} sequences, {count} horizons one after the other over the test, {wish.draws} draws each "
        "given all that came before; means over all, " + spread_name(len(run.settings.seeds)) + " (of classical "
        "processes: of the draws). "
        f"OTD (least is best): of the first {forecasts.FIRST} events of either side, one is deleted or inserted for 1, "
        f"and moved by a median gap ({task.scales.unit:.4g}) for 1. T-mAP (most is best): an event may be off by "
        + ", ".join(f"{delta:g}" for delta in forecasts.DELTAS)
        + " median gaps. *drawn for each*: events drawn for each that came.",
        "",
        f"    relpos compare {run.settings.task} --encodings '{','.join(run.settings.encodings)}'"
        f" --preset {run.settings.preset} --name {run.path.name}",
        f"    relpos events horizons runs/{run.path.name} --draws {wish.draws} --horizon {wish.horizon:g}"
        f" --seed {wish.seed}",
        "",
        _machine(run),
        "",
    ]
    return "\n".join(lines)


def _machine(run: Run) -> str:
    """Where the networks were trained, and with what."""
    found = read_json(run.path / "environment.json")
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("relpos", "torch", "numpy"))
    return f"Machine: {found['processor']}, {found['cores']} cores, device {found['device']}. Versions: {versions}."


def _value(values: Sequence[float]) -> str:
    """Mean and spread."""
    wide = spread(list(values))
    return f"{statistics.fmean(values):.4f}" + ("" if wide is None else f" ± {wide:.4f}")


def _headline(what: str, networks: Mapping[str, Sequence[Scores]], classical: Mapping[str, Sequence[Scores]]) -> str:
    """Which network is best, and whether the best classical process is beaten by more than both spreads."""
    choose = min if WAYS[what] == "least" else max

    def best(rows: Mapping[str, Sequence[Scores]]) -> tuple[str, float, float]:
        found = {name: [each[what] for each in scores] for name, scores in rows.items()}
        name = choose(found, key=lambda one: statistics.fmean(found[one]))
        return name, statistics.fmean(found[name]), spread(found[name]) or 0.0

    name, mean, wide = best(networks)
    said = f"{what}: of the networks {name} is best, {mean:.4f}"
    if not classical:
        return said + "."
    other, base, loose = best(classical)
    gain = (base - mean) if WAYS[what] == "least" else (mean - base)
    verdict = "better than" if gain > wide + loose else "worse than" if gain < -(wide + loose) else "no other than"
    return f"{said}, {verdict} the best classical process ({other}, {base:.4f})."
