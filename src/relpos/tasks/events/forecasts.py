"""What processes foretell: the next gap and mark, and the events of a horizon, with the scores of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from relpos.tasks.base import Progress
from relpos.tasks.events.anchors import Protocol, TimeThenMark, shared, without_marks
from relpos.tasks.events.metrics import Foretold, otd, t_map
from relpos.tasks.events.neural import Draw, PointNetwork, Scales, continuations
from relpos.tasks.events.processes import (
    Hawkes,
    NextEvent,
    Poisson,
    Process,
    Renewal,
    gap_density,
    ks_uniform,
    simulate,
)
from relpos.tasks.events.processes.base import previous
from relpos.tasks.events.sequences import UNITS, Sequences

DELTAS = (0.5, 1.0, 2.0)  # of T-mAP, and 1 as the cost of inserting and deleting for OTD: in median gaps
FIRST = 10  # events of each side that OTD compares
drawn = continuations

# --- the next event ---------------------------------------------------------------------------------------------------


def distance(steps: np.ndarray, events: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of rescaled gaps from the exponential. steps: compensators of all gaps in order,
    events: which of them end with an event; windows are laid end to end, so that what is cut off is carried on."""
    gaps = np.diff(np.cumsum(steps)[events], prepend=0.0)
    return ks_uniform(-np.expm1(-gaps)).statistic


def constants(plan: Protocol) -> dict[str, dict[str, float]]:
    """The median of all gaps that are learned from, and the commonest mark: for all, and for each sequence its own."""
    gaps, kinds, rows = _scored(plan)
    train = plan.train.gaps()
    known = train[np.isfinite(train)]
    median, common = float(np.median(known)), int(plan.train.count_marks().argmax())
    each = [one.gaps()[1:] for one in plan.train]
    medians = np.array([np.median(values) if len(values) else median for values in each])
    commons = np.array([one.count_marks().argmax() if len(one.times) else common for one in plan.train])

    def row(gap: np.ndarray | float, kind: np.ndarray | int) -> dict[str, float]:
        return {"mae": float(np.abs(gaps - gap).mean()), "accuracy": float((kinds == kind).mean())}

    return {
        "median gap, commonest mark": row(median, common),
        "the same of each sequence": row(medians[rows], commons[rows]),
    }


def _scored(plan: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaps before the scored events, their marks and sequences."""
    whole = plan.sequences
    mask = whole.times > np.repeat(plan.cut, whole.lengths)
    return (whole.times - previous(whole))[mask], whole.kinds[mask], whole.rows[mask]


def of(models: Sequence[Process], plan: Protocol) -> dict[str, float]:
    """mae, accuracy and ks of a process for each sequence, on the scored events. Marks are those likeliest at the
    median gap."""
    off, right, steps, events = [], [], [], []
    for model, own, since in shared(models, plan):
        gaps, last = model.compensator_from(own, since)
        late, ends = own.times > np.repeat(since, own.lengths), own.offsets[1:]
        counted = np.insert(late, ends, True)  # silences count, whether or not an event is late
        steps.append(np.insert(gaps.sum(-1), ends, last.sum(-1))[counted])
        events.append(np.insert(np.ones(len(late), dtype=bool), ends, False)[counted])
        median, kinds = _foretold(model, own, late)
        off.append(np.abs((own.times - previous(own))[late] - median))
        right.append(own.kinds[late] == kinds)
    return {
        "mae": float(np.concatenate(off).mean()),
        "accuracy": float(np.concatenate(right).mean()),
        "ks": distance(np.concatenate(steps), np.concatenate(events)),
    }


def _foretold(model: Process, own: Sequences, late: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median gap and likeliest mark of the events ``late`` (events,) bool."""
    count = int(late.sum())
    if isinstance(model, TimeThenMark):
        times, _ = _foretold(model.times, without_marks(own), late)
        return times, np.full(count, model.shares.argmax())
    density = gap_density(model, own)
    if isinstance(model, Renewal):
        median = float(density.quantile(0.5).reshape(-1)[0])
        return np.full(count, median), np.full(count, model.shares.argmax())
    assert isinstance(density, NextEvent)
    ahead = NextEvent(density.process, density.now[late], density.state[late])
    if not count:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    median_of = ahead.quantile(ahead.mass() / 2).numpy()
    return median_of, ahead.rates(median_of).argmax(-1)


# --- a horizon --------------------------------------------------------------------------------------------------------


def usual_horizon(plan: Protocol, scales: Scales) -> float:
    """A week where the unit of the times is known, else twenty median gaps; no more than the shortest scored part."""
    unit = plan.sequences.unit
    wanted = 7 * UNITS["days"] / UNITS[unit] if unit in UNITS else 20 * scales.unit
    return float(min(wanted, (plan.sequences.end - plan.cut).min()))


def window_after(sequences: Sequences, start: np.ndarray, horizon: float) -> Sequences:
    """The events in (start, start + horizon] of each sequence, and that window."""
    since = np.repeat(start, sequences.lengths)
    mask = (sequences.times > since) & (sequences.times <= since + horizon)
    return sequences.keep(mask, start=start, end=start + horizon, windowed=True)


def starts(plan: Protocol, horizon: float) -> list[np.ndarray]:
    """Beginnings (count,) of the horizons that fit into the scored part, one after the other."""
    if not 0 < horizon < np.inf:
        raise ValueError(f"a horizon is a positive number of units of the times, got {horizon:g}")
    count = int(((plan.sequences.end - plan.cut).min() + 1e-9) // horizon)
    if count < 1:
        raise ValueError(f"the scored part is shorter than the horizon of {horizon:g}: give a shorter one")
    return [plan.cut + number * horizon for number in range(count)]


def over_horizons(
    network: PointNetwork,
    plan: Protocol,
    horizon: float,
    count: int,
    generator: torch.Generator,
    length: int = 64,
    progress: Progress | None = None,
) -> list[tuple[Sequences, list[Draw]]]:
    """For each horizon of the scored part: what came, and ``count`` draws given all that came before it."""
    found = []
    begins = starts(plan, horizon)
    for number, begin in enumerate(begins):
        past = plan.sequences.until(begin)
        found.append(
            (
                window_after(plan.sequences, begin, horizon),
                continuations(network, past, horizon, count, generator, length),
            )
        )
        if progress is not None:
            progress(number + 1, len(begins), "drawing")
    return found


def process_draws(
    models: Sequence[Process], plan: Protocol, horizon: float, count: int, seed: int, progress: Progress | None = None
) -> list[tuple[Sequences, list[Draw]]]:
    """The same from a Poisson or Hawkes process of each sequence."""
    rng = np.random.default_rng(seed)
    found = []
    begins = starts(plan, horizon)
    for number, begin in enumerate(begins):
        past = list(plan.sequences.until(begin))
        draws = []
        for _ in range(count):
            parts = [
                simulate(model, (at, at + horizon), 1, rng, history=own) for model, own, at in zip(models, past, begin)
            ]
            whole = Sequences.of(
                [each.times for each in parts], marks=[each.kinds for each in parts], window=(begin, begin + horizon),
                mark_count=plan.sequences.mark_count, unit=plan.sequences.unit,
            )  # fmt: skip
            draws.append(Draw(whole, np.concatenate([_log_shares(*each) for each in zip(models, past, parts)])))
        found.append((window_after(plan.sequences, begin, horizon), draws))
        if progress is not None:
            progress(number + 1, len(begins), "drawing")
    return found


def _log_shares(model: Process, past: Sequences, drawn: Sequences) -> np.ndarray:
    """(events, marks) log probability of each mark of the drawn events of one sequence, just before they came."""
    if isinstance(model, Hawkes):
        both = Sequences.of(
            [np.concatenate([past.times, drawn.times])], marks=[np.concatenate([past.kinds, drawn.kinds])],
            window=(past.start, drawn.end), mark_count=model.marks,
        )  # fmt: skip
        rates = model.intensity(both)[len(past.times) :]
    else:
        assert isinstance(model, Poisson)
        rates = model.at(drawn.times)
    return np.log(np.maximum(rates / rates.sum(-1, keepdims=True), 1e-12))


def judged(found: Sequence[tuple[Sequences, Sequence[Draw]]], horizon: float, unit: float) -> dict[str, float]:
    """OTD of the first `FIRST` events of both sides (in median gaps), T-mAP, and events drawn for each that came.

    Means over draws, sequences and horizons. Where a side has fewer events within the horizon, it takes part with
    those; of all events rather than the first few, OTD would be least for drawing none.
    """
    cost, came, made = 0.0, 0, 0
    cases: list[Foretold] = []
    for real, draws in found:
        for draw in draws:
            at = 0
            for one, other, start in zip(draw.sequences, real, real.start):
                first = [(each.times[:FIRST] / unit, each.kinds[:FIRST]) for each in (one, other)]
                cost += otd(*first[0], *first[1])
                scores = draw.log_marks[at : at + len(one.times)]
                at += len(one.times)
                cases.append(Foretold(float(start), one.times, scores, other.times, other.kinds))
            came, made = came + len(real.times), made + len(draw.sequences.times)
    deltas = [delta * unit for delta in DELTAS]
    return {
        "OTD": cost / max(len(cases), 1),
        "T-mAP": t_map(cases, horizon * (1 + 1e-9), deltas),
        "drawn for each": made / max(came, 1),
    }
