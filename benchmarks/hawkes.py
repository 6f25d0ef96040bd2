"""Point processes on simulated events, whose truth is known: are parameters found again, and is calibration seen?

    python benchmarks/hawkes.py [--markdown docs/results/hawkes.md] [--results hawkes.json]

Three questions. Does maximum likelihood find the parameters of Hawkes processes in 100,000 events, and of a million
where these are too few? Are the p-values of the time-rescaling test uniform under the true model, over 200 windows, and
near 0 under a wrong one? And where do fitted networks stand between the two? Some fifteen minutes on one core, most of
it training; with --results what is done is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine

from relpos.tasks.events.neural import NeuralProcess
from relpos.tasks.events.point import TRUTH, PointProcess
from relpos.tasks.events.processes import Hawkes, Poisson, Process, ks_exponential, ks_uniform, simulate
from relpos.tasks.events.sequences import Sequences

PROCESSES = {"one mark": Hawkes([0.5], [[0.5]], 1.0), "two marks": Hawkes(*TRUTH)}
MANY = "two marks, ten times as many events"
EVENTS, WINDOWS, SPAN, GAPS = 100_000, 200, 450.0, 250
TRAINED, LENGTH = 100, 64  # sequences that networks learn from, four fifths of each; tokens that they read
NETWORKS = {
    "intensity head": {"head": "intensity"},
    "mixture head": {"head": "mixture"},
    "RMTPP head": {"head": "rmtpp"},
}


def rate(process: Hawkes) -> float:
    """Events a unit of time, in the long run."""
    return float(np.linalg.solve(np.eye(process.marks) - process.alpha, process.mu).sum())


def recovered(name: str, seed: int, count: int = EVENTS) -> list[tuple[str, float, float, float]]:
    """(parameter, truth, estimate, standard error) of a process fitted to about so many events in one window."""
    truth = PROCESSES[name]
    events = simulate(truth, (0.0, count / rate(truth)), seed=seed)
    found = Hawkes.fit(events)
    errors = found.standard_errors(events)
    rows = []
    for parameter in ("mu", "alpha", "beta"):
        true, got, error = (
            np.atleast_1d(each) for each in (getattr(truth, parameter), getattr(found, parameter), errors[parameter])
        )
        for index in np.ndindex(true.shape):
            label = parameter + (f"[{', '.join(map(str, index))}]" if true.size > 1 else "")
            rows.append((label, float(true[index]), float(got[index]), float(error[index])))
    return rows


def levels(gaps: np.ndarray, windows: Sequences) -> list[float]:
    """The p-value of the first rescaled gaps of each window. A fixed number of them is independent and exponential
    under the truth, while of all gaps of a window the long ones are missing that its end cuts off."""
    if windows.lengths.min() < GAPS:
        raise ValueError(f"a window has {windows.lengths.min()} events, {GAPS} are needed")
    return [ks_exponential(gaps[first : first + GAPS]).p for first in windows.offsets[:-1]]


def within(process: Process, windows: Sequences) -> np.ndarray:
    """(events,) integral of the intensity over the gap before each event, of its own window."""
    return process.compensator(windows)[0].sum(-1)


def classical(name: str, seed: int) -> dict[str, list[float]]:
    """p-values over 200 windows: of the truth, of a Hawkes process fitted to other events, and of Poisson processes
    fitted to each window."""
    truth = PROCESSES[name]
    windows = simulate(truth, (0.0, SPAN), WINDOWS, 1000 + seed)
    learned = Hawkes.fit(simulate(truth, (0.0, SPAN), TRAINED, seed))
    each = np.concatenate([within(Poisson.fit(one), one) for one in windows])
    return {
        "the truth": levels(within(truth, windows), windows),
        "Hawkes, fitted to other events": levels(within(learned, windows), windows),
        "Poisson, fitted to each window": levels(each, windows),
    }


def train(task: PointProcess, options: dict[str, Any], steps: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = task.model("relative_channels", **options)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for step in range(steps):
        loss = task.loss(model, task.batch(step, seed, 16))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % 100 == 0:
            print(f"training, step {step} of {steps}: loss {float(loss.detach()):.4f}", flush=True)
    return model.eval()


def network(name: str, seed: int, steps: int) -> tuple[list[float], float]:
    """p-values over 200 windows of a trained network, and how many nats an event it lacks to the truth there."""
    truth = PROCESSES["two marks"]
    task = PointProcess("hawkes", length=LENGTH)
    task.take(simulate(truth, (0.0, SPAN), TRAINED, seed), "simulated", 0.0)
    process = NeuralProcess(train(task, NETWORKS[name], steps, seed), LENGTH)
    windows = simulate(truth, (0.0, SPAN), WINDOWS, 1000 + seed)
    return levels(within(process, windows), windows), truth.nats(windows) - process.nats(windows)


def measured(seeds: list[int], steps: int, keep: Path | None) -> dict[str, Any]:
    """Everything, by name and seed; what is in ``keep`` already is not done again."""
    stored: dict[str, Any] = json.loads(keep.read_text()) if keep is not None and keep.exists() else {}
    works: dict[str, Callable[[], Any]] = {}
    for seed in seeds:
        for name in PROCESSES:
            works[f"recovery, {name}, {seed}"] = partial(recovered, name, seed)
            works[f"calibration, {name}, {seed}"] = partial(classical, name, seed)
        works[f"recovery, {MANY}, {seed}"] = partial(recovered, "two marks", seed, 10 * EVENTS)
        for name in NETWORKS:
            works[f"network, {name}, {seed}"] = partial(network, name, seed, steps)
    for name, work in works.items():
        if name not in stored:
            print(name, flush=True)
            stored[name] = work()
            if keep is not None:
                keep.write_text(json.dumps(stored))
    return stored


# --- the page ---------------------------------------------------------------------------------------------------------


def parameters_table(stored: dict[str, Any], name: str, seeds: list[int]) -> tuple[str, float, float, float]:
    """(table, largest error in standard errors and as a share of the truth, largest standard error as such a share)."""
    heads = " | ".join(f"seed {seed}" for seed in seeds)
    rows = [f"| parameter | truth | {heads} |", "|---|---:|" + "---:|" * len(seeds)]
    off: list[float] = []
    share: list[float] = []
    wide: list[float] = []
    for index, (label, true, _, _) in enumerate(stored[f"recovery, {name}, {seeds[0]}"]):
        cells = []
        for seed in seeds:
            _, _, got, error = stored[f"recovery, {name}, {seed}"][index]
            off.append(abs(got - true) / error)
            share.append(abs(got - true) / true)
            wide.append(error / true)
            cells.append(f"{got:.4f} ± {error:.4f} ({100 * (got / true - 1):+.1f} %)")
        rows.append(f"| {label} | {true:g} | {' | '.join(cells)} |")
    return "\n".join(rows), max(off), max(share), max(wide)


def calibration_row(name: str, every: list[list[float]], lacks: list[float] | None = None) -> str:
    below = [100 * float(np.mean(np.array(ps) < 0.05)) for ps in every]
    second = ", ".join(f"{ks_uniform(np.array(ps)).p:.2g}" for ps in every)
    medians = ", ".join(f"{np.median(ps):.2g}" for ps in every)
    largest = max(max(ps) for ps in every)
    lacking = "" if lacks is None else f"{np.mean(lacks):.4f} ± {np.std(lacks, ddof=1) if len(lacks) > 1 else 0:.4f}"
    return f"| {name} | {second} | {np.mean(below):.0f} % | {medians} | {largest:.2g} | {lacking} |"


def verdict(right: bool) -> str:
    return "reached" if right else "**missed**"


def page(stored: dict[str, Any], seeds: list[int], steps: int) -> str:
    parts = [
        "# Point processes on simulated events",
        "What `relpos.tasks.events` makes of events whose truth is known. Exponential Hawkes processes of one mark and "
        f"of two, seeds {', '.join(map(str, seeds))}; every number comes from `benchmarks/hawkes.py`.",
        f"## Parameters, from some {EVENTS:,} events",
        "Maximum likelihood on one long window, ± the standard error that the observed information gives, and how far "
        "off in per cent of the truth.",
    ]
    for name in (*PROCESSES, MANY):
        table, off, share, wide = parameters_table(stored, name, seeds)
        parts += [f"**{name.capitalize()}**", table]
        parts.append(
            f"Aim, within 3 standard errors: {verdict(off < 3)} ({off:.2f} at most). Aim, within 5 %: "
            f"{verdict(share < 0.05)} ({100 * share:.1f} % at most; the largest standard error is {100 * wide:.1f} %)."
        )
    columns = ("second-level p, by seed", "p < 0.05", "median p, by seed", "largest p", "nats an event below the truth")
    head = [f"| model | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    parts += [
        f"## Calibration, over {WINDOWS} windows a seed",
        f"Each window is tested by time rescaling on its first {GAPS} gaps (Kolmogorov-Smirnov against the "
        f"exponential); the {WINDOWS} p-values are then tested against the uniform (*second-level p*). A right "
        "model has uniform "
        "p-values, of which 5 % are below 0.05; a wrong one has them near 0.",
    ]
    for name in PROCESSES:
        every = {key: [stored[f"calibration, {name}, {seed}"][key] for seed in seeds]
                 for key in stored[f"calibration, {name}, {seeds[0]}"]}  # fmt: skip
        rows = [calibration_row(key, each) for key, each in every.items()]
        if name == "two marks":
            for key in NETWORKS:
                found = [stored[f"network, {key}, {seed}"] for seed in seeds]
                rows.append(
                    calibration_row(f"network, {key}", [each[0] for each in found], [each[1] for each in found])
                )
        parts += [f"**{name.capitalize()}**", "\n".join([*head, *rows])]
        truth = min(ks_uniform(np.array(ps)).p for ps in every["the truth"])
        poisson = every["Poisson, fitted to each window"]
        wrong, medians = max(ks_uniform(np.array(ps)).p for ps in poisson), max(float(np.median(ps)) for ps in poisson)
        parts.append(
            f"Aim, second-level p of the truth above 0.01: {verdict(truth > 0.01)} ({truth:.2g} at least). Aim, that "
            f"of fitted Poisson processes below 0.001: {verdict(wrong < 1e-3)} ({wrong:.1g} at most; the p-value of "
            f"the median window alone is {medians:.1g} at most)."
        )
    parts += [
        f"Networks: relative position and time, width 32, two layers, {steps} steps on four fifths of {TRAINED} "
        f"windows of {SPAN:g} units of time; windows tested are others. What a network "
        "lacks in likelihood may lie in its marks, too, which this test does not look at.",
        f"Command: `python benchmarks/hawkes.py --markdown docs/results/hawkes.md`. Machine: {machine()}.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of every network")
    parser.add_argument("--markdown", type=Path, help="page to write")
    parser.add_argument("--results", type=Path, help="JSON that is added to; what is in it is not done again")
    given = parser.parse_args()
    begin = time.monotonic()
    text = page(measured(given.seeds, given.steps, given.results), given.seeds, given.steps)
    print(text, f"{time.monotonic() - begin:.0f} s")
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
