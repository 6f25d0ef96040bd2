"""One task, several encodings: the same data order, the same steps, the same way to a learning rate for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from relpos.lab.assess import assess, finished, read_record
from relpos.lab.checkpoint import read_json, write_json
from relpos.lab.environment import environment
from relpos.lab.measure import parameter_groups
from relpos.lab.progress import Reporter, seconds_text
from relpos.lab.run import Run, claim
from relpos.lab.settings import Settings
from relpos.lab.train import SAVE_EVERY, read_log, train_model

# Share of a time budget that training may take; the rest is for evaluation, samples and the report.
TRAINING_SHARE = 0.7


def compare(
    task: Any,
    settings: Settings,
    path: Path,
    reporter: Reporter,
    *,
    fresh: bool = False,
    command: str = "",
    save_every: float = SAVE_EVERY,
) -> Run:
    """Train and measure every encoding with every seed; resumes what is there, skips what is finished.

    The seed runs slowest, so that a run stopped half way has every encoding once.
    """
    began = time.monotonic()
    lock = claim(path, fresh)
    try:
        with reporter.step(f"preparing {task.name}") as progress:
            task.prepare(progress=progress)
        known = Run.stored_steps(path)
        steps = known if known is not None else fitting_steps(task, settings, reporter)
        run = Run.create(path, settings, steps, task.describe(), command=command, title=task.title, source=task.source)
        _note_environment(run, reporter)
        rates = choose_rates(task, run, reporter)
        _all_models(task, run, rates, reporter, save_every)
        _baselines(task, run, reporter)
        check_same_tokens(run)
        reporter.say(f"all models ready after {seconds_text(time.monotonic() - began)}")
        return run
    finally:
        lock.close()


def _all_models(task: Any, run: Run, rates: dict[str, float], reporter: Reporter, save_every: float) -> None:
    """Train and measure whatever is not finished, with the time left for all of it."""
    jobs = [(encoding, seed) for seed in run.settings.seeds for encoding in run.settings.encodings]
    open_jobs = [job for job in jobs if not finished(run.model(*job))]
    if len(open_jobs) < len(jobs):
        reporter.say(f"{len(jobs) - len(open_jobs)} of {len(jobs)} models were finished before")
    began = time.monotonic()
    with reporter.step("all models", lines=False) as overall:
        for number, (encoding, seed) in enumerate(open_jobs):
            label = f"[{len(jobs) - len(open_jobs) + number + 1}/{len(jobs)}] {encoding} seed {seed}"
            begin = time.monotonic()

            def count(done: float, total: float, text: str = "", number: int = number) -> None:
                overall(number + 0.9 * done / total, len(open_jobs))

            record = _one(task, run, encoding, seed, rates[encoding], reporter, label, save_every, count)
            overall(number + 1, len(open_jobs))
            now = time.monotonic()
            left = (now - began) / (number + 1) * (len(open_jobs) - number - 1)
            reporter.say(f"{label}: {_summary(record)} ({seconds_text(now - begin)}; {seconds_text(left)} left)")


def _one(
    task: Any,
    run: Run,
    encoding: str,
    seed: int,
    rate: float,
    reporter: Reporter,
    label: str,
    save_every: float,
    count: Callable[[float, float, str], None],
) -> dict[str, Any]:
    folder = run.model(encoding, seed)
    with reporter.step(f"{label} training") as progress:

        def both(done: float, total: float, text: str = "") -> None:
            progress(done, total, text)
            count(done, total, text)

        trained = train_model(task, run.settings, encoding, seed, rate, run.steps, folder, both, save_every)
    with reporter.step(f"{label} evaluation") as progress:
        return assess(task, run.settings, trained, encoding, seed, rate, folder, progress)


def _summary(record: dict[str, Any]) -> str:
    if record["diverged"] is not None:
        return f"diverged at step {record['diverged']}"
    parts = [f"{cell['loss']:.3f} at {length}" for length, cell in record["lengths"].items() if "loss" in cell]
    return "test loss " + ", ".join(parts)


def fitting_steps(task: Any, settings: Settings, reporter: Reporter) -> int:
    """The steps asked for, or as many as fit the time budget on this machine; one number for all encodings."""
    if settings.budget is None:
        return settings.steps
    models = len(settings.seeds) + (
        len(settings.rates) * settings.sweep_steps / settings.steps if _sweeps(settings) else 0
    )
    with reporter.step("measuring the speed of a step") as progress:
        a_step = 0.0
        for index, encoding in enumerate(settings.encodings):
            a_step += _step_seconds(task, settings, encoding)
            progress(index + 1, len(settings.encodings), encoding)
    fits = int(settings.budget * 60 * TRAINING_SHARE / (a_step * models))
    if fits >= settings.steps:
        return settings.steps
    steps = max(fits, 1)
    reporter.say(f"{settings.steps} steps do not fit into {settings.budget:g} minutes here: {steps} steps a model")
    return steps


def _step_seconds(task: Any, settings: Settings, encoding: str, warm: int = 1, timed: int = 3) -> float:
    torch.manual_seed(0)
    model = task.model(encoding, **settings.model)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=1e-4)
    begin = time.perf_counter()
    for step in range(warm + timed):
        if step == warm:
            begin = time.perf_counter()
        task.loss(model, task.batch(step, 0, settings.batch)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - begin) / timed


def _sweeps(settings: Settings) -> bool:
    return len(settings.rates) > 1


def choose_rates(task: Any, run: Run, reporter: Reporter) -> dict[str, float]:
    """The peak learning rate of each encoding: the one given, or the best of an identical short sweep for each."""
    settings, file = run.settings, run.path / "rates.json"
    if not _sweeps(settings):
        chosen = dict.fromkeys(settings.encodings, settings.rates[0])
        write_json(file, {"chosen": chosen, "trials": {}})
        return chosen
    if file.exists():
        stored: dict[str, float] = read_json(file)["chosen"]
        return stored
    trials: dict[str, dict[str, float | None]] = {}
    for encoding in settings.encodings:
        trials[encoding] = {}
        for rate in settings.rates:
            folder = run.path / "sweep" / f"{encoding}-rate{rate:g}"
            with reporter.step(f"learning rate {rate:g} for {encoding}") as progress:
                train_model(task, settings, encoding, settings.seeds[0], rate, settings.sweep_steps, folder, progress)
            losses = [line.get("validation") for line in read_log(folder / "metrics.jsonl")]
            trials[encoding][f"{rate:g}"] = losses[-1] if losses else None
        reporter.say(f"learning rates of {encoding}: {trials[encoding]}")
    chosen = {encoding: _best(losses) for encoding, losses in trials.items()}
    write_json(file, {"chosen": chosen, "trials": trials})
    return chosen


def _best(losses: dict[str, float | None]) -> float:
    """The rate with the lowest validation loss; a diverged trial counts as infinitely bad."""
    return float(min(losses, key=lambda rate: math.inf if losses[rate] is None else losses[rate]))  # type: ignore[arg-type, return-value]


def _note_environment(run: Run, reporter: Reporter) -> None:
    """Store where the run was begun; say so when it goes on with other code or on another machine."""
    file, now = run.path / "environment.json", environment()
    if not file.exists():
        write_json(file, now)
        return
    stored = read_json(file)
    changed = [name for name in ("git", "versions", "processor", "threads") if stored.get(name) != now[name]]
    if changed:
        reporter.say(
            f"note: this run was begun with another {', '.join(changed)}; the models may differ in the last digits"
        )


def _baselines(task: Any, run: Run, reporter: Reporter) -> None:
    file = run.path / "baselines.json"
    if file.exists():
        return
    lengths = [multiple * task.train_length for multiple in task.multiples]
    with reporter.step("baselines") as progress:
        losses = {}
        for index, length in enumerate(lengths):
            losses[str(length)] = {name: float(loss) for name, loss in task.baselines("test", length).items()}
            progress(index + 1, len(lengths))
    write_json(file, {"train_length": task.train_length, "losses": losses})


def check_same_tokens(run: Run) -> None:
    """Losses are comparable only over the same tokens: every model must have scored as many at each length."""
    counts: dict[str, set[int]] = {}
    for encoding in run.settings.encodings:
        for seed in run.settings.seeds:
            for length, cell in read_record(run.model(encoding, seed))["lengths"].items():
                if "count" in cell:
                    counts.setdefault(length, set()).add(cell["count"])
    unequal = {length: sorted(found) for length, found in counts.items() if len(found) > 1}
    if unequal:
        raise RuntimeError(f"models were scored on different numbers of tokens: {unequal}; the task is at fault")
