"""What a horizon's scores reward: the draws of networks and of classical processes, with one thing changed at a time.

    relpos compare events --preset results --name horizons --encodings "..."
    python benchmarks/horizons.py runs/horizons [--markdown docs/results/events-horizon.md]

First the page of `relpos events horizons`. Then the draws of its best network and of processes again, with the
probabilities of marks taken from elsewhere, and thinned at random to as many events as networks draw.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relpos.lab.checkpoint import load_checkpoint
from relpos.lab.horizons import judge_run
from relpos.lab.progress import Reporter
from relpos.lab.results import spread
from relpos.lab.run import Run
from relpos.lab.train import CHECKPOINT, build
from relpos.tasks import get
from relpos.tasks.events import forecasts
from relpos.tasks.events.neural import Draw
from relpos.tasks.events.sequences import Sequences

DRAWS = 3
Found = Sequence[tuple[Sequences, Sequence[Draw]]]
PROCESSES = ("periodic Poisson", "homogeneous Poisson")


def changed(found: Found, change: Callable[[Draw], Draw]) -> Found:
    return [(real, [change(draw) for draw in draws]) for real, draws in found]


def rescored(models: Sequence[Any]) -> Callable[[Draw], Draw]:
    """Each event with the probabilities of marks that a Poisson process of its sequence gives at its time."""

    def change(draw: Draw) -> Draw:
        marks = np.empty_like(draw.log_marks)
        for row, model in enumerate(models):
            own = draw.sequences.rows == row
            rates = model.at(draw.sequences.times[own])
            marks[own] = np.log(np.maximum(rates / rates.sum(-1, keepdims=True), 1e-12))
        return draw._replace(log_marks=marks)

    return change


def thinned(share: float, seed: int) -> Callable[[Draw], Draw]:
    """Each event is kept with the probability `share`."""
    rng = np.random.default_rng(seed)

    def change(draw: Draw) -> Draw:
        whole = draw.sequences
        keep = rng.random(len(whole.times)) < share
        return Draw(whole.keep(keep, start=whole.start, end=whole.end, windowed=True), draw.log_marks[keep])

    return change


def controls(run: Run, encoding: str, draws: int, reporter: Reporter) -> str:
    """The second table."""
    task: Any = get(run.settings.task, **run.settings.task_options)
    plan, unit = task.plan(), task.scales.unit
    horizon = forecasts.usual_horizon(plan, task.scales)
    models = {row.name: row.models for row in task.rows() if row.name in PROCESSES}
    scores: dict[str, list[dict[str, float]]] = {}

    def note(name: str, found: Found) -> float:
        scores.setdefault(name, []).append(forecasts.judged(found, horizon, unit))
        return scores[name][-1]["drawn for each"]

    with reporter.step("controls") as step:
        for number, seed in enumerate(run.settings.seeds):
            step(number, len(run.settings.seeds))
            network: Any = build(task, run.settings, encoding)
            load_checkpoint(run.model(encoding, seed) / CHECKPOINT, network)
            generator = torch.Generator().manual_seed(seed)
            found = forecasts.over_horizons(network, plan, horizon, draws, generator, task.train_length)
            made = note(encoding, found)
            note("its events, marks of the homogeneous Poisson process", changed(found, rescored(models[PROCESSES[1]])))
            note("its events, marks of the periodic Poisson process", changed(found, rescored(models[PROCESSES[0]])))
            for name in PROCESSES:
                own = forecasts.process_draws(models[name], plan, horizon, draws, seed)
                count = note(name, own)
                note(f"{name}, thinned to as many events", changed(own, thinned(min(1.0, made / count), seed)))
    names = list(next(iter(scores.values()))[0])
    lines = ["| draws of | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for name, each in scores.items():
        cells = []
        for what in names:
            values = [one[what] for one in each]
            cells.append(f"{statistics.fmean(values):.4f} ± {spread(values) or 0.0:.4f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


WHY = """## What the scores reward

The same draws with one thing changed at a time, {encoding} for a network:

{table}

* **OTD rewards silence**: leaving out events at random lowers it, though nothing is foretold better. Classical
  processes draw more, since rates in the fitted part are above those of the test, which networks read off the events.
* **T-mAP rewards draws without bursts**: with as many events and the same probabilities of marks, the times of the
  periodic process match more than the network's, and than those of a Hawkes process on it, although both are likelier:
  what excites itself is drawn in bursts, and a burst in the wrong hour matches nothing. A draw from the truth is not
  what this score is highest for; likelihood and the time-rescaling test are what tells whether a process is right.

    python benchmarks/horizons.py {run} --draws {draws}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of `relpos compare events`")
    parser.add_argument("--encoding", help="of the network whose draws are changed; the last of the run if left out")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of each sequence and horizon (%(default)s)")
    parser.add_argument("--markdown", type=Path, help="page to write; default horizons.md in the run")
    given = parser.parse_args()
    reporter, run = Reporter(), Run.read(given.run)
    target = given.markdown or given.run / "horizons.md"
    judge_run(given.run, given.draws, None, 0, target, reporter)
    encoding = given.encoding or run.settings.encodings[-1]
    table = controls(run, encoding, given.draws, reporter)
    why = WHY.format(encoding=encoding, table=table, run=f"runs/{run.path.name}", draws=given.draws)
    target.write_text(target.read_text() + "\n" + why)
    print(target.read_text())


if __name__ == "__main__":
    main()
