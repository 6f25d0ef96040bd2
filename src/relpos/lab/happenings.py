"""From event sequences to a file, a table or a picture: what the commands `relpos events ..` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relpos.lab.checkpoint import write_atomic, write_json
from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter
from relpos.tasks.events import UNITS, Sequences, anchors, clock
from relpos.tasks.events.processes import (
    KS,
    Hawkes,
    PeriodicPoisson,
    Poisson,
    Process,
    Renewal,
    ks_exponential,
    rescaled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEEK = 7 * UNITS["days"]
MODELS = ("poisson", "periodic", "renewal", "hawkes", "hawkes-periodic")
DRAWN = 60  # events in the picture of an intensity
Cycle = tuple[float | None, int | None]
"""Period in the unit of the data (None: a week, 0: none) and its equal parts (None: the most that make sense)."""
BINS = 168  # of a week the hours


@dataclass(frozen=True)
class Choice:
    """Which sequences: of what set, from where, of how many events, how many of them, and what becomes of ties. None:
    as usual for the set, and what suits its clock."""

    name: str
    path: Path | None
    least: int | None
    most: int | None
    ties: str | None


def chosen(choice: Choice, reporter: Reporter) -> anchors.Protocol:
    """The sequences with their windows. LabError where there are none."""
    from relpos.tasks.data import Events, FetchError, load, source

    try:
        record = source(choice.name)
        if choice.path is None and not record.packages:
            raise LabError(f"{choice.name} is in no package: give your copy with --path, {record.layout}")
        with reporter.step(choice.name) as step:
            found = load(choice.name, choice.path, step)
        if not isinstance(found, Events):
            raise LabError(f"{choice.name} holds {found.shape_name}, not events; see `relpos data list`")
        whole = found.sequences
        tick = clock.resolution(whole)
        ties = clock.policy(whole, choice.ties, tick)
        usual = anchors.SIZES.get(choice.name, anchors.OTHERS)
        least, most = (own if given is None else given for own, given in zip(usual, (choice.least, choice.most)))
        plan = anchors.protocol(anchors.untied(whole, ties, tick), least, most, tick=tick)
    except (FetchError, ValueError, OSError) as error:
        raise LabError(str(error)) from error
    if not whole.windowed:
        reporter.say(
            f"note: {choice.name} does not say until when it was observed; windows end with the last event, which "
            "makes rates look a little higher than they are"
        )
    if choice.ties is None and ties == "jitter":
        reporter.say(
            f"note: the clock of {choice.name} ticks every {clock.named(tick, whole.unit)}; events are laid out at "
            "random within their ticks, so that no model can score by knowing the clock"
        )
    if plan.short:
        reporter.say("note: the sequences are short, so one model is fitted to all of them together")
    return plan


def bins_of(plan: anchors.Protocol, period: float | None, bins: int | None, reporter: Reporter) -> int:
    """The parts of a period: as wanted; where nothing is wanted the hours of a week, or what the clock allows.

    LabError where parts are wanted that are shorter than the clock's ticks, or hold now more and now fewer of them.
    """
    wanted = BINS if bins is None else bins
    if period is None:
        return wanted
    allowed, unit = clock.parts(period, wanted, plan.tick), plan.sequences.unit
    if allowed == wanted:
        return wanted
    ticks = f"the clock of the data ticks every {clock.named(plan.tick, unit)}"
    if bins is not None:
        raise LabError(
            f"--bins {bins} cuts the period of {period:g} {unit or 'of the data'} into parts that do not hold whole "
            f"ticks, and {ticks}: rates would tell where the clock can stand, and not when events come. Give --bins "
            f"{allowed}, or leave it out"
        )
    reporter.say(f"note: {ticks}; rates by {allowed} parts of the period in place of {wanted}")
    return allowed


def period_of(plan: anchors.Protocol, period: float | None) -> float | None:
    """The period in the unit of the data: a week where none is given and the unit is known, None for 0."""
    if period is not None:
        return period or None
    return WEEK / UNITS[plan.sequences.unit] if plan.sequences.unit in UNITS else None


# --- simulate ---------------------------------------------------------------------------------------------------------


def simulate_file(
    output: Path,
    parameters: tuple[str, str, float],
    horizon: float,
    count: int,
    seed: int,
    method: str,
    png: bool,
    reporter: Reporter,
) -> None:
    """Writes drawn sequences as JSON lines that `easytpp` reads, with their windows. LabError where they cannot be."""
    from relpos.tasks.events.processes import simulate

    try:
        mu, alpha = _matrix(parameters[0])[0], _matrix(parameters[1])
        if alpha.shape == (1, 1) and len(mu) > 1 and alpha[0, 0] == 0:
            alpha = np.zeros((len(mu), len(mu)))
        process = Hawkes(mu, alpha, parameters[2])
        drawn = simulate(process, (0.0, horizon), count, seed, method)
    except ValueError as error:
        raise LabError(str(error)) from error
    lines = [json.dumps(line(one, row)) for row, one in enumerate(drawn)]
    write_atomic(output, ("\n".join(lines) + "\n").encode())
    reporter.say(
        f"wrote {output}: {count} sequences, {len(drawn.times):,} events; spectral radius {process.radius:.3f}"
    )
    if png:
        target = output.with_suffix(".png")
        _save(picture([process], drawn, drawn.name_of(0), 0), target, reporter)


def _matrix(text: str) -> np.ndarray:
    try:
        return np.array([[float(cell) for cell in row.split(",")] for row in text.split(";")])
    except ValueError:
        raise ValueError(f"numbers by commas, rows by semicolons, got {text!r}") from None


def line(one: Sequences, row: int) -> dict[str, Any]:
    """A sequence as `easytpp` reads it, with its window."""
    gaps = np.diff(one.times, prepend=one.start[0])
    return {
        "dim_process": one.mark_count,
        "seq_idx": row,
        "seq_len": len(one.times),
        "t_start": float(one.start[0]),
        "t_end": float(one.end[0]),
        "time_since_start": one.times.tolist(),
        "time_since_last_event": gaps.tolist(),
        "type_event": one.kinds.tolist(),
    }


# --- fit --------------------------------------------------------------------------------------------------------------


def fit_table(choice: Choice, period: float | None, bins: int | None, output: Path | None, reporter: Reporter) -> None:
    """Prints the score of every classical model, and writes it as JSON."""
    from rich.table import Table

    plan = chosen(choice, reporter)
    period = period_of(plan, period)
    bins = bins_of(plan, period, bins, reporter)
    try:
        with reporter.step("fitting") as step:
            rows = anchors.rows(plan, period, bins, step, pooled=plan.short)
    except ValueError as error:
        raise LabError(str(error)) from error
    unit = plan.sequences.unit or "unit of time"
    reporter.say(
        f"{choice.name}: {len(plan.sequences)} sequences; {len(plan.train.times):,} events learned from, "
        f"{plan.scored:,} later ones scored\nlog likelihood of time and mark, nats an event, time in {unit}\n"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "nats/event", "parameters"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(row.name, f"{row.nats:.4f}", f"{row.parameters:,}")
    if not reporter.quiet:
        reporter.console.print(table)
    if output is not None:
        counts = {"sequences": len(plan.sequences), "scored": plan.scored}
        # A mark that came only after the cut is impossible to a model that counts: -inf, for which JSON has no number.
        scores = [
            {"model": row.name, "nats": row.nats if np.isfinite(row.nats) else None, "parameters": row.parameters}
            for row in rows
        ]
        write_json(output, {"data": choice.name, "unit": unit, **counts, "rows": scores})
        reporter.say(f"\nwrote {output}")


# --- diagnose ---------------------------------------------------------------------------------------------------------


def fitted(plan: anchors.Protocol, model: str, cycle: Cycle, reporter: Reporter) -> list[Process]:
    """A model a sequence, of one of `MODELS`, fitted to its whole window; one for all where sequences are short."""
    period = cycle[0]
    if model not in MODELS:
        raise LabError(f"unknown model {model!r}; known: {', '.join(MODELS)}")
    if "periodic" in model and period is None:
        raise LabError(f"{model} needs --period, in the unit of the times ({plan.sequences.unit or 'unknown'})")
    bins = bins_of(plan, period if "periodic" in model else None, cycle[1], reporter)
    whole = plan.sequences
    fits: dict[str, Callable[..., Process]] = {"poisson": Poisson.fit, "renewal": Renewal.fit}
    with reporter.step(f"fitting {model}") as step:
        grounds: list[list[PeriodicPoisson]] = []
        if "periodic" in model and period is not None:
            whole_plan = anchors.Protocol(whole, whole, whole.end)
            base = partial(PeriodicPoisson.fit, period=period, bins=bins)
            tables = [base(whole)] * len(whole) if plan.short else anchors.background(whole_plan, period, bins)
            grounds = [tables]
        if model == "periodic":
            return list(grounds[0])
        if plan.short:
            return anchors.together(fits.get(model, Hawkes.fit), whole, *grounds)
        return anchors.each(fits.get(model, Hawkes.fit), whole, *grounds, progress=step)


def diagnose_file(
    choice: Choice, model: str, cycle: Cycle, sequence: str | None, target: Path, reporter: Reporter
) -> None:
    """Prints the tests of a model and draws its intensity and residuals. LabError where it cannot be fitted."""
    plan = chosen(choice, reporter)
    names = plan.sequences.ids or tuple(map(str, range(len(plan.sequences))))
    if sequence is not None and sequence not in names:
        raise LabError(f"no sequence {sequence!r} among those taken: {', '.join(names)}")
    row = names.index(sequence) if sequence is not None else 0
    try:
        models = fitted(plan, model, (period_of(plan, cycle[0]), cycle[1]), reporter)
        each = [ks_exponential(rescaled(process, one)) for process, one in zip(models, plan.sequences)]
        test = ks_exponential(rescaled(models, plan.sequences))
    except ValueError as error:
        raise LabError(str(error)) from error
    per = sum(float(m.log_likelihood(one)[0]) for m, one in zip(models, plan.sequences)) / len(plan.sequences.times)
    reporter.say(
        f"{choice.name}, {model}: {len(models)} sequences, {test.count:,} events, {per:.4f} nats/event (as fitted)\n"
        f"time rescaling, all sequences: {_verdict(test)}\n"
        f"by sequence: p < 0.01 in {sum(one.p < 0.01 for one in each)} of {len(each)}"
    )
    _save(picture(models, plan.sequences, f"{names[row]}: {model}", row), target, reporter)


def _verdict(test: KS) -> str:
    said = "as the model says" if test.p >= 0.01 else "not as the model says"
    return f"KS distance {test.statistic:.4f}, p = {test.p:.2g}: gaps are {said}"


# --- pictures ---------------------------------------------------------------------------------------------------------


def _save(figure: Figure, target: Path, reporter: Reporter) -> None:
    from relpos.lab.plots import png

    write_atomic(target, png(figure))
    reporter.say(f"wrote {target}")


def picture(models: Sequence[Process], sequences: Sequences, title: str, row: int) -> Figure:
    """Intensity over the busiest stretch of one sequence, above; residuals of all against the exponential, below.

    models: one a sequence, or a single one for all.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from relpos.lab.plots import STYLE

    mpl.rcParams.update(STYLE)
    if len(models) == 1:
        models = list(models) * len(sequences)
    figure = Figure(figsize=(9.0, 7.0), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 4])
    _intensity(above, models[row], sequences.select([row]), title)
    _quantiles(below, rescaled(models, sequences))
    return figure


def _stretch(one: Sequences) -> tuple[float, float]:
    """The shortest stretch that holds `DRAWN` events, with a little room; the window where there are fewer."""
    if len(one.times) <= DRAWN:
        return float(one.start[0]), float(one.end[0])
    spans = one.times[DRAWN - 1 :] - one.times[: len(one.times) - DRAWN + 1]
    first = int(spans.argmin())
    room = 0.05 * float(spans[first])
    return max(float(one.start[0]), one.times[first] - room), min(
        float(one.end[0]), one.times[first + DRAWN - 1] + room
    )


def _intensity(axes: Axes, process: Process, one: Sequences, title: str) -> None:
    from relpos.lab.plots import look

    low, high = _stretch(one)
    inside = one.times[(one.times >= low) & (one.times <= high)]
    grid = np.unique(np.concatenate([np.linspace(low, high, 1200), inside, np.nextafter(inside, np.inf)]))
    rates = rates_at(process, one, grid)
    names = one.mark_names or tuple(f"mark {mark}" for mark in range(process.marks))
    for mark in range(process.marks):
        style = look(mark)
        if process.marks <= 6:
            axes.plot(grid, rates[:, mark], color=style["color"], linewidth=1.5, label=names[mark])
        kinds = one.kinds == mark
        seen = one.times[kinds & (one.times >= low) & (one.times <= high)]
        axes.plot(seen, np.zeros(len(seen)), "|", color=style["color"], markersize=12, clip_on=False)
    if process.marks > 6:
        axes.plot(grid, rates.sum(-1), color=look(0)["color"], linewidth=1.5, label="all marks")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left")
    axes.set_xlabel(f"time ({one.unit or 'unit of the data'}); a bar is an event")
    axes.set_ylabel("events a unit of time")
    axes.legend(loc="upper right", fontsize=8)


def rates_at(process: Process, one: Sequences, times: np.ndarray) -> np.ndarray:
    """(n, marks) intensities of a process at any times, given the events of the sequence before each of them."""
    if isinstance(process, Hawkes):
        return process.intensity_at(one, 0, times)
    if isinstance(process, Poisson):
        return process.at(times)
    if isinstance(process, Renewal):
        import torch

        last = np.searchsorted(one.times, times, side="left") - 1
        since = times - np.where(last >= 0, one.times[np.maximum(last, 0)], one.start[0])
        hazard = torch.exp(process.gaps.log_hazard(torch.from_numpy(np.maximum(since, 1e-12)))).numpy()
        return hazard[:, None] * process.shares
    raise TypeError(f"no intensity of a {type(process).__name__}")


def _quantiles(axes: Axes, gaps: np.ndarray) -> None:
    """Sorted residuals against exponential quantiles, with the pointwise band of 95%."""
    from relpos.lab.plots import GREY, look

    n = len(gaps)
    level = (np.arange(1, n + 1) - 0.5) / n
    expected = -np.log1p(-level)
    spread = 1.96 * np.sqrt(level * (1 - level) / n)
    low, high = (-np.log1p(-np.clip(level + sign * spread, 0.0, 1 - 1e-12)) for sign in (-1, 1))
    kept = np.unique(np.concatenate([np.linspace(0, n - 1, 1500).astype(int), np.arange(max(0, n - 200), n)]))
    axes.fill_between(expected[kept], low[kept], np.minimum(high, 1.5 * expected[-1])[kept], color=GREY, alpha=0.2)
    axes.plot([0, expected[-1]], [0, expected[-1]], color=GREY, linewidth=1)
    axes.plot(expected[kept], np.sort(gaps)[kept], ".", markersize=3, color=look(0)["color"])
    test = ks_exponential(gaps)
    axes.set_title(f"residuals of all sequences: KS {test.statistic:.4f}, p = {test.p:.2g}, n = {n:,}", loc="left")
    axes.set_xlabel("exponential quantile")
    axes.set_ylabel("gap after time rescaling")
