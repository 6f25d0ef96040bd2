"""Imputers and predictors without networks for the task missing, told the same as the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from relpos.tasks.events import anchors
from relpos.tasks.events.imputers import both_ways, evenly, expected, mirrored, thinned
from relpos.tasks.events.metrics.recovery import Recovery
from relpos.tasks.events.processes import Hawkes, NextEvent, PeriodicPoisson, Poisson, Process, gap_density
from relpos.tasks.events.sequences import Sequences

if TYPE_CHECKING:
    from relpos.tasks.events.missing import Missing

TRAINED = 0.3


@dataclass(frozen=True)
class Fitted:
    """A model a sequence, of what was recorded where 30 in a hundred were hidden."""

    constant: list[Poisson]
    periodic: list[PeriodicPoisson]
    hawkes: list[Process]
    backwards: list[Process]
    medians: np.ndarray
    marks: np.ndarray

    @classmethod
    def to(cls, train: Sequences) -> Fitted:
        """Rates by hour of the week where the unit is hours, else constant; Hawkes processes on them, both ways."""
        constant = [Poisson.fit(one, 0.5) for one in train]
        periodic, hawkes = _fitted(train)
        turned = mirrored(train)
        medians = np.array([_middle(one) for one in train])
        marks = np.array([int(one.count_marks().argmax()) for one in train])
        return cls(constant, periodic, hawkes, _fitted(turned)[1], medians, marks)


def _fitted(train: Sequences) -> tuple[list[PeriodicPoisson], list[Process]]:
    ground = _background(train)
    return ground, anchors.each(Hawkes.fit, train, ground)


def _background(train: Sequences) -> list[PeriodicPoisson]:
    """As `anchors.background`, but that no hour is without events: half an event is added to each, of all sequences."""
    period, bins = (168.0, 168) if train.unit == "hours" else (float((train.end - train.start).max()), 1)
    cut = train.start + 0.8 * (train.end - train.start)
    inner = anchors.Protocol(train, train.until(cut), cut)

    def tables(of: Sequences, strength: float) -> list[PeriodicPoisson]:
        base = PeriodicPoisson.fit(of, period, bins, strength=0.5 * bins * of.mark_count)
        return [PeriodicPoisson.fit(one, period, bins, 0.0, base, strength) for one in of]

    return tables(train, max(anchors.STRENGTHS[1:], key=lambda x: anchors.score(tables(inner.train, x), inner)))


def _middle(one: Sequences) -> float:
    """The median gap; the window where there is none."""
    gaps = one.gaps()[1:]
    return float(np.median(gaps)) if len(gaps) else float(one.end[0] - one.start[0])


def rows(task: Missing, fitted: Fitted, split: str, length: int) -> dict[str, dict[str, float]]:
    """The rows of the table: name to metrics."""
    share = length / 100
    recorded, cells = task.recorded(split, length), task.cells(split, length)
    factor = (1 - share) / (1 - TRAINED)
    constant: list[Process] = [Poisson(each.rates * factor) for each in fitted.constant]
    periodic: list[Process] = [thinned(each, factor) for each in fitted.periodic]
    hawkes = [thinned(each, factor) for each in fitted.hawkes if isinstance(each, Hawkes)]
    backwards = [thinned(each, factor) for each in fitted.backwards if isinstance(each, Hawkes)]
    assert all(isinstance(each, Hawkes) for each in (*hawkes, *backwards))
    placed = evenly(recorded, cells.start, task.budget(split, length), fitted.medians / factor, fitted.marks)
    none = Recovery(0, 0, task.recovered(placed, split, length).hidden, 0.0, 0)
    found = {
        "no imputation": {"f1": none.f1},
        "median gap": {
            **task.metrics_of(task.recovered(placed, split, length)),
            **_medians(recorded, cells.start, fitted.medians / factor, fitted.marks),
        },
    }
    kinds: list[tuple[str, Sequence[Process]]] = [
        ("constant rate", constant),
        ("rate by hour of the week", periodic),
        ("Hawkes on that rate", hawkes),
    ]
    for name, models in kinds:
        found[name] = {
            **task.judged(expected(models, recorded, cells, share), split, length),
            **_next(models, recorded, cells.start),
        }
    masses = both_ways(hawkes, backwards, recorded, cells, share)  # type: ignore[arg-type]
    found["Hawkes, both ways"] = task.judged(masses, split, length)
    return found


def _medians(recorded: Sequences, since: np.ndarray, medians: np.ndarray, marks: np.ndarray) -> dict[str, float]:
    """The next event comes after the usual gap, with the commonest mark."""
    later = recorded.times > np.repeat(since, recorded.lengths)
    error = np.abs(recorded.gaps() - np.repeat(medians, recorded.lengths))[later].mean()
    right = (recorded.kinds == np.repeat(marks, recorded.lengths))[later].mean()
    return {"next_time": float(error), "next_mark": float(right)}


def _next(models: Sequence[Process], recorded: Sequences, since: np.ndarray) -> dict[str, float]:
    """Loss, and the next event at the median of its density, with the mark that is likeliest then."""
    error, right, nats, count = 0.0, 0, 0.0, 0
    for row, (model, one) in enumerate(zip(models, recorded)):
        nats += float(model.log_likelihood(one, since[[row]])[0])
        later = one.times > since[row]
        density = gap_density(model, one)
        assert isinstance(density, NextEvent)
        chosen = NextEvent(density.process, density.now[later], density.state[later])
        if not later.any():
            continue
        middle = chosen.quantile(0.5).numpy()
        error += float(np.abs(middle - one.gaps()[later]).sum())
        right += int((chosen.rates(middle).argmax(-1) == one.kinds[later]).sum())
        count += int(later.sum())
    return {"loss": -nats / count, "next_time": error / count, "next_mark": right / count}
