"""One task, several contestants: the same data order, the same steps, the same way to a learning rate for each."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from relpos.lab.assess import finished, read_record
from relpos.lab.checkpoint import read_json, write_json
from relpos.lab.environment import environment
from relpos.lab.errors import LabError
from relpos.lab.jobs import Crew, Job, perform_all, threads
from relpos.lab.labels import EXAMPLE, slug
from relpos.lab.measure import parameter_groups
from relpos.lab.preparation import prepare
from relpos.lab.progress import Reporter, seconds_text
from relpos.lab.results import shown
from relpos.lab.run import Run, claim
from relpos.lab.settings import Settings
from relpos.lab.train import build, read_log
from relpos.tasks.base import Measure, lengths, measure, pace

# Share of a time budget that training may take; the rest is for evaluation, samples and the report.
TRAINING_SHARE = 0.7
ALONE = Crew()


def compare(
    task: Any,
    settings: Settings,
    path: Path,
    reporter: Reporter,
    *,
    fresh: bool = False,
    command: str = "",
    crew: Crew = ALONE,
) -> Run:
    """Train and measure every encoding with every seed; resumes what is there, skips what is finished.

    The seed runs slowest, so that a run stopped half way has every encoding once.
    """
    began = time.monotonic()
    lock = claim(path, fresh)
    try:
        prepare(task, reporter)
        _check_networks(task, settings)
        known = Run.stored_steps(path)
        steps = known if known is not None else fitting_steps(task, settings, reporter, crew.workers)
        run = Run.create(path, settings, steps, task.describe(), command=command, **_about(task))
        _note_environment(run, reporter, crew.workers)
        _all_models(task, run, choose_rates(task, run, reporter, crew), reporter, crew)
        _baselines(task, run, reporter)
        check_same_tokens(run)
        reporter.say(f"all models ready after {seconds_text(time.monotonic() - began)}")
        return run
    finally:
        lock.close()


def _about(task: Any) -> dict[str, object]:
    """What the reports say of the task; stored, so that they need not make it again."""
    about = {
        "title": task.title,
        "source": task.source,
        "unit": task.unit,
        "metrics": [dataclasses.asdict(metric) for metric in task.metrics],
    }
    if pace(task) != "tokens":
        about["pace"] = pace(task)
    if measure(task) != Measure():
        about["measure"] = dataclasses.asdict(measure(task))
    if bounds := getattr(task, "bounds", ()):
        about["bounds"] = list(bounds)
    if costs := getattr(task, "costs", ()):
        about["costs"] = [dataclasses.asdict(cost) for cost in costs]
    return about


def without_the_unable(task: Any, settings: Settings, reporter: Reporter) -> Settings:
    """The settings without the contestants whose network the task cannot build, which is said of each."""
    prepare(task, reporter)
    refusals = _refusals(task, settings)
    for encoding, error in refusals.items():
        reporter.say(f"without {encoding}: {error}")
    able = tuple(each for each in settings.encodings if each not in refusals)
    return dataclasses.replace(settings, encodings=able) if able else settings


def _check_networks(task: Any, settings: Settings) -> None:
    """Every network can be built: an option that one does not take is told now, not after hours of training."""
    for encoding, error in _refusals(task, settings).items():
        name, options = settings.network(encoding)
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        raise LabError(
            f"the network of {encoding} cannot be built: {error} (task {task.name}, encoding {name}, {given}); "
            f"write options of one contestant as {EXAMPLE}, those of all as --model key=value"
        ) from error


def _refusals(task: Any, settings: Settings) -> dict[str, Exception]:
    """Why the task cannot build the network of a contestant, for those that it cannot."""
    refusals: dict[str, Exception] = {}
    for encoding in settings.encodings:
        try:
            build(task, settings, encoding)
        except (TypeError, ValueError) as error:
            refusals[encoding] = error
    return refusals


def _all_models(task: Any, run: Run, rates: dict[str, float], reporter: Reporter, crew: Crew) -> None:
    """Train and measure whatever is not finished."""
    pairs = [(encoding, seed) for seed in run.settings.seeds for encoding in run.settings.encodings]
    jobs = [
        Job(f"{encoding} seed {seed}", encoding, seed, rates[encoding], run.steps, run.model(encoding, seed))
        for encoding, seed in pairs
        if not finished(run.model(encoding, seed))
    ]
    if len(jobs) < len(pairs):
        reporter.say(f"{len(pairs) - len(jobs)} of {len(pairs)} models were finished before")
    perform_all(task, run.settings, jobs, reporter, crew, lambda _, record: _summary(task, record or {}))


def _summary(task: Any, record: dict[str, Any]) -> str:
    if record["diverged"] is not None:
        return f"diverged at step {record['diverged']}"
    cells = {length: cell["values"] for length, cell in record["lengths"].items() if "values" in cell}
    parts = [
        f"{metric.title} " + ", ".join(f"{metric.text(cells[n][metric.name])} at {n}" for n in cells)
        for metric in shown(task.metrics, task.unit)
    ]
    return "test " + "; ".join(parts) if cells else "no length could be evaluated"


def fitting_steps(task: Any, settings: Settings, reporter: Reporter, workers: int = 1) -> int:
    """The steps asked for, or as many as fit the time budget on this machine; one number for all encodings."""
    if settings.budget is None:
        return settings.steps
    models = len(settings.seeds) + (
        len(settings.rates) * settings.sweep_steps / settings.steps if _sweeps(settings) else 0
    )
    with reporter.step("measuring the speed of a step") as progress, threads(settings.threads):
        a_step = 0.0
        for index, encoding in enumerate(settings.encodings):
            a_step += _step_seconds(task, settings, encoding)
            progress(index + 1, len(settings.encodings), encoding)
    fits = int(settings.budget * 60 * TRAINING_SHARE * workers / (a_step * models))
    if fits >= settings.steps:
        return settings.steps
    steps = max(fits, 1)
    reporter.say(f"{settings.steps} steps do not fit into {settings.budget:g} minutes here: {steps} steps a model")
    return steps


def _step_seconds(task: Any, settings: Settings, encoding: str, warm: int = 2, timed: int = 5) -> float:
    torch.manual_seed(0)
    model = build(task, settings, encoding)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=1e-4)
    seconds = []
    for step in range(warm + timed):
        begin = time.perf_counter()
        task.loss(model, task.batch(step, 0, settings.batch)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[warm:])


def _sweeps(settings: Settings) -> bool:
    return len(settings.rates) > 1


def choose_rates(task: Any, run: Run, reporter: Reporter, crew: Crew = ALONE) -> dict[str, float]:
    """The peak learning rate of each encoding: the one given, or the best of an identical short sweep for each."""
    settings, file = run.settings, run.path / "rates.json"
    if not _sweeps(settings):
        chosen = dict.fromkeys(settings.encodings, settings.rates[0])
        write_json(file, {"chosen": chosen, "trials": {}})
        return chosen
    if file.exists():
        stored: dict[str, float] = read_json(file)["chosen"]
        return stored
    jobs = [
        Job(
            f"learning rate {rate:g} for {encoding}",
            encoding,
            settings.seeds[0],
            rate,
            settings.sweep_steps,
            run.path / "sweep" / f"{slug(encoding)}-rate{rate:g}",
            measured=False,
        )
        for encoding in settings.encodings
        for rate in settings.rates
    ]
    perform_all(task, settings, jobs, reporter, crew, _trial_summary)
    trials: dict[str, dict[str, float | None]] = {encoding: {} for encoding in settings.encodings}
    for job in jobs:
        trials[job.encoding][f"{job.rate:g}"] = _trial(job.folder)
    chosen = {encoding: _best(losses) for encoding, losses in trials.items()}
    write_json(file, {"chosen": chosen, "trials": trials})
    return chosen


def _trial_summary(job: Job, _: object) -> str:
    loss = _trial(job.folder)
    return "diverged" if loss is None else f"validation loss {loss:.3f}"


def _trial(folder: Path) -> float | None:
    """The last validation loss of a trial, None where it diverged."""
    log = read_log(folder / "metrics.jsonl")
    loss: float | None = log[-1].get("validation") if log else None
    return loss


def _best(losses: dict[str, float | None]) -> float:
    """The rate with the lowest validation loss; a diverged trial counts as infinitely bad."""
    return float(min(losses, key=lambda rate: math.inf if losses[rate] is None else losses[rate]))  # type: ignore[arg-type, return-value]


def _note_environment(run: Run, reporter: Reporter, workers: int) -> None:
    """Store where the run was begun; say so when it goes on with other code or on another machine."""
    file, now = run.path / "environment.json", {**environment(), "workers": workers}
    if not file.exists():
        write_json(file, now)
        return
    stored = read_json(file)
    changed = [name for name in ("git", "versions", "processor") if stored.get(name) != now[name]]
    if changed:
        reporter.say(
            f"note: this run was begun with another {', '.join(changed)}; the models may differ in the last digits"
        )


def _baselines(task: Any, run: Run, reporter: Reporter) -> None:
    file = run.path / "baselines.json"
    if file.exists():
        return
    with reporter.step("baselines") as progress:
        values = {}
        for index, length in enumerate(lengths(task)):
            values[str(length)] = _baseline_values(task, length)
            progress(index + 1, len(lengths(task)))
    write_json(file, {"train_length": task.train_length, "values": values})


def _baseline_values(task: Any, length: int) -> dict[str, dict[str, float]]:
    known = {"loss", *(metric.name for metric in task.metrics)}
    rows = {name: dict(values) for name, values in task.baselines("test", length).items()}
    for name, values in rows.items():
        if foreign := set(values) - known:
            raise RuntimeError(f"the baseline {name!r} of {task.name} has {sorted(foreign)}; known: {sorted(known)}")
    return {name: {k: float(v) for k, v in values.items() if math.isfinite(v)} for name, values in rows.items()}


def check_same_tokens(run: Run) -> None:
    """Results are comparable only over the same tokens or examples: every model must have scored as many of them."""
    counts: dict[str, set[int]] = {}
    for encoding in run.settings.encodings:
        for seed in run.settings.seeds:
            for length, cell in read_record(run.model(encoding, seed))["lengths"].items():
                if "count" in cell:
                    counts.setdefault(length, set()).add(cell["count"])
    unequal = {length: sorted(found) for length, found in counts.items() if len(found) > 1}
    if unequal:
        raise RuntimeError(f"models were scored on different numbers of things: {unequal}; the task is at fault")
