"""What a network of a run would go on with: what the command `relpos events sample` does."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relpos.lab.assess import finished
from relpos.lab.checkpoint import load_checkpoint, write_atomic
from relpos.lab.errors import LabError
from relpos.lab.happenings import line
from relpos.lab.preparation import prepare
from relpos.lab.progress import Reporter
from relpos.lab.run import Run
from relpos.lab.train import CHECKPOINT, build
from relpos.tasks import get
from relpos.tasks.events import anchors, forecasts, point_pictures
from relpos.tasks.events.neural import Draw, NeuralProcess, PointNetwork
from relpos.tasks.events.processes import Poisson
from relpos.tasks.events.sequences import Sequences


@dataclass(frozen=True)
class Wish:
    """Draws a sequence, how far (None: the usual horizon), seed of the draws, whether to draw a PNG and to judge."""

    draws: int
    horizon: float | None
    seed: int
    png: bool
    judge: bool


def find(path: Path, encoding: str | None, seed: int | None) -> tuple[Run, str, int]:
    """The run, contestant and seed meant: ``path`` is a run directory, or the folder of one model in it.

    LabError where there is no such trained model, and where a run of several contestants is given and none named: the
    best on the test must not be chosen for draws that are judged on the test.
    """
    inside = not (path / "config.json").exists() and (path.parent / "config.json").exists()
    run = Run.read(path.parent if inside else path)
    every = [(e, s) for e in run.settings.encodings for s in run.settings.seeds if finished(run.model(e, s))]
    if inside:
        every = [pair for pair in every if run.model(*pair).name == path.name]
    chosen = [(e, s) for e, s in every if encoding in (None, e) and seed in (None, s)]
    listed = ", ".join(dict.fromkeys(e for e, _ in every)) or "none yet"
    if not chosen:
        asked = " ".join([encoding or "", "" if seed is None else f"seed {seed}"]).strip() or "model"
        raise LabError(f"{path} has no finished {asked}; finished: {listed}")
    if len({e for e, _ in chosen}) > 1:
        raise LabError(f"{path} has several contestants; name one with --encoding: {listed}")
    return run, *chosen[0]


def sample_file(
    path: Path, encoding: str | None, model_seed: int | None, wish: Wish, output: Path, reporter: Reporter
) -> None:
    """Writes draws of what comes after the cut of the test, a line a draw and sequence; says how good they are."""
    run, label, seed = find(path, encoding, model_seed)
    task: Any = get(run.settings.task, **run.settings.task_options)
    prepare(task, reporter)
    network = build(task, run.settings, label)
    if not isinstance(network, PointNetwork):
        raise LabError(f"{path} is a run of the task {run.settings.task}, not of events")
    load_checkpoint(run.model(label, seed) / CHECKPOINT, network)
    plan = task.plan()
    unit = plan.sequences.unit or "units of time"
    horizon = forecasts.usual_horizon(plan, task.scales) if wish.horizon is None else wish.horizon
    generator = torch.Generator().manual_seed(wish.seed)
    try:
        real = forecasts.window_after(plan.sequences, plan.cut, horizon)
        with reporter.step(f"drawing {horizon:g} {unit}") as step:
            past = plan.sequences.until(plan.cut)
            draws = forecasts.drawn(network, past, horizon, wish.draws, generator, task.train_length, step)
        write_atomic(output, _lines(draws))
        counts = [len(each.sequences.times) for each in draws]
        reporter.say(
            f"{label} seed {seed}: {len(plan.sequences)} sequences, {horizon:g} {unit} each; {len(real.times):,} "
            f"events came, {statistics.mean(counts):,.1f} were drawn\nwrote {output}"
        )
        if wish.png:
            _pictures(network, task, real, draws, output, reporter)
        if wish.judge:
            _judge(network, task, horizon, wish, reporter)
    except ValueError as error:
        raise LabError(str(error)) from error


def _lines(draws: Sequence[Draw]) -> bytes:
    lines = []
    for number, draw in enumerate(draws):
        for row, one in enumerate(draw.sequences):
            lines.append(json.dumps({**line(one, row), "id": one.ids[0] if one.ids else str(row), "draw": number}))
    return ("\n".join(lines) + "\n").encode()


def _pictures(
    network: PointNetwork, task: Any, real: Sequences, draws: Sequence[Draw], output: Path, reporter: Reporter
) -> None:
    target = output.with_suffix(".png")
    point_pictures.continued(real, [each.sequences for each in draws[:3]], target)
    reporter.say(f"wrote {target}")
    plan, second = task.plan(), output.with_name(f"{output.stem}-intensity.png")
    row = point_pictures.busiest(plan)
    point_pictures.intensity(NeuralProcess(network, task.train_length), plan, row, second)
    reporter.say(f"wrote {second}")


def _judge(network: PointNetwork, task: Any, horizon: float, wish: Wish, reporter: Reporter) -> None:
    """A table over all horizons that fit into the test, beside draws of a Poisson process for each sequence."""
    from rich.table import Table

    plan, unit = task.plan(), task.scales.unit
    generator = torch.Generator().manual_seed(wish.seed)
    with reporter.step("judging") as step:
        found = forecasts.over_horizons(network, plan, horizon, wish.draws, generator, task.train_length, step)
    rows = {
        "network": forecasts.judged(found, horizon, unit),
        "Poisson, one a sequence": forecasts.judged(
            forecasts.process_draws(anchors.each(Poisson.fit, plan.train), plan, horizon, wish.draws, wish.seed),
            horizon,
            unit,
        ),
    }
    reporter.say(
        f"\n{len(found)} horizons one after the other, {wish.draws} draws each. OTD of the first {forecasts.FIRST} "
        f"events: one is deleted or inserted for 1, and moved by a median gap ({unit:g}) for 1\n"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("draws of")
    for name in rows["network"]:
        table.add_column(name, justify="right")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in values.values()))
    if not reporter.quiet:
        reporter.console.print(table)
