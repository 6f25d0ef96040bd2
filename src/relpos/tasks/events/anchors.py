"""The numbers that a network must beat: classical processes, fitted sequence by sequence, scored on what came later.

The protocol: of the sequences that have at least ``least`` events, the first ``most`` in the order of their names; a
model a sequence, fitted to the first four fifths of the window; the last fifth is one window that is scored, in nats an
event of time and mark jointly, in the unit of the times. What came before is history to the models that have any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from relpos.tasks.base import Progress
from relpos.tasks.events import checks, clock
from relpos.tasks.events.processes import Hawkes, PeriodicPoisson, Poisson, Process, Renewal
from relpos.tasks.events.sequences import Sequences

STRENGTHS = (0.0, 250.0, 1000.0, 4000.0)
SIZES = {"mpls-stops": (300, 25), "cdnow": (5, 1000), "hawkes": (2, 25)}
"""Of a data set: events that a sequence must have, and how many sequences are taken."""
OTHERS = (10, 200)
FEW = 50  # events a sequence in the fitted part: below it the classical processes are fitted to all sequences together


@dataclass(frozen=True)
class Protocol:
    """All windows, what is fitted, and the time from which on is scored, (count,); tick: of the clock, 0.0: none."""

    sequences: Sequences
    train: Sequences
    cut: np.ndarray
    tick: float = 0.0

    @property
    def scored(self) -> int:
        """Events that are scored."""
        return int((self.sequences.times > np.repeat(self.cut, self.sequences.lengths)).sum())

    @property
    def short(self) -> bool:
        """Whether sequences are too short for a model each."""
        return len(self.train) > 1 and float(np.median(self.train.lengths)) < FEW


@dataclass(frozen=True)
class Row:
    """A model's score: nats an event; parameters and models are of all sequences together."""

    name: str
    nats: float
    parameters: int
    models: Sequence[Process]


def protocol(sequences: Sequences, least: int = 300, most: int = 25, share: float = 0.8, tick: float = 0.0) -> Protocol:
    """ValueError where no sequence has enough events, and where none of them comes in the part that is scored."""
    enough = np.flatnonzero(sequences.lengths >= least)
    if sequences.ids:
        enough = enough[np.argsort(np.array(sequences.ids)[enough], kind="stable")]
    if not len(enough):
        raise ValueError(f"no sequence has at least {least} events; the longest has {sequences.lengths.max(initial=0)}")
    chosen = sequences.select(enough[:most])
    cut = chosen.start + share * (chosen.end - chosen.start)
    plan = Protocol(chosen, chosen.until(cut), cut, tick)
    if not plan.scored:
        raise ValueError(f"no event comes after the first {share:g} of the windows, so there is none to score")
    return plan


def untied(sequences: Sequences, ties: str = "spread", tick: float = 0.0) -> Sequences:
    """The same sequences with their ties treated as `Sequences.from_flat` says; places and profiles are left away.

    A gap of 0 has no density, so a likelihood needs that. Windows may grow by a tick for events that are spread. With
    ``ties="jitter"`` all events, tied or not, are laid out at random within their ``tick``: of a clock that shows in
    the gaps, a density that learned it would grow without bound.
    """
    checks.require(ties in clock.POLICIES, f"ties is one of {', '.join(clock.POLICIES)}, got {ties!r}")
    whole = sequences
    if ties == "jitter":
        whole, ties = clock.jittered(whole, tick), "spread"
    end = whole.end
    if ties == "spread" and len(whole.times):
        gaps = whole.gaps()
        positive = gaps[gaps > 0]
        tick = float(positive.min()) if len(positive) else 1.0
        last = np.zeros(len(whole), dtype=bool)
        filled = whole.lengths > 0
        last[filled] = gaps[whole.offsets[1:][filled] - 1] == 0
        end = whole.end + tick * (last & (whole.end - whole.latest < tick))
    return Sequences.from_flat(
        whole.times, whole.offsets, marks=whole.marks, window=(whole.start, end), ids=whole.ids,
        mark_names=whole.mark_names, mark_count=None if whole.marks is None else whole.mark_count,
        unit=whole.unit, ties=ties,
    )  # fmt: skip


def score(models: Sequence[Process], plan: Protocol) -> float:
    """Nats an event after the cut, each sequence under its own model."""
    total = sum(float(model.log_likelihood(own, since=since).sum()) for model, own, since in shared(models, plan))
    return total / plan.scored


def shared(models: Sequence[Process], plan: Protocol) -> Iterator[tuple[Process, Sequences, np.ndarray]]:
    """(model, the sequences it is of, their cuts) of each distinct model, so that one of many is asked once."""
    rows: dict[int, list[int]] = {}
    for row, model in enumerate(models):
        rows.setdefault(id(model), []).append(row)
    for own in rows.values():
        yield models[own[0]], plan.sequences.select(own), plan.cut[own]


def without_marks(sequences: Sequences) -> Sequences:
    """The same events with their marks left away."""
    return Sequences(**{**vars(sequences), "marks": None, "mark_names": (), "mark_count": 1})


class TimeThenMark(Process):
    """A process of times alone, and marks drawn apart from it by fixed shares."""

    def __init__(self, times: Process, shares: np.ndarray) -> None:
        self.times, self.shares, self.marks = times, shares, len(shares)
        self.parameters = times.parameters + len(shares) - 1

    @classmethod
    def fit(cls, sequences: Sequences) -> TimeThenMark:
        """An exponential Hawkes process for the times, counted shares for the marks."""
        counts = sequences.count_marks()
        return cls(Hawkes.fit(without_marks(sequences)), counts / counts.sum())

    def log_intensity(self, sequences: Sequences) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return self.times.log_intensity(without_marks(sequences)) + np.log(self.shares)[sequences.kinds]

    def compensator(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        return self.compensator_from(sequences, sequences.start)

    def compensator_from(self, sequences: Sequences, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gaps, last = self.times.compensator_from(without_marks(sequences), since)
        return gaps * self.shares, last * self.shares


def rows(
    plan: Protocol,
    period: float | None = None,
    bins: int = 168,
    progress: Progress | None = None,
    pooled: bool = False,
) -> list[Row]:
    """The anchors, worst kind first. period: of the background in the unit of the times, such as a week; None: none.

    pooled: one model of all sequences instead of a model each, for many short ones.
    """
    kinds: list[tuple[str, Callable[..., Process]]] = [
        ("homogeneous Poisson", Poisson.fit),
        ("log-normal renewal", partial(Renewal.fit, family="lognormal")),
        ("Weibull renewal", partial(Renewal.fit, family="weibull")),
        ("Hawkes, marks apart", TimeThenMark.fit),
        ("Hawkes of marks", Hawkes.fit),
    ]
    found: list[Row] = []

    def scored(name: str, fit: Callable[[], Sequence[Process]]) -> Sequence[Process]:
        if progress is not None:
            progress(len(found), len(kinds) + 2 * (period is not None), f"fitting {name}")
        models = fit()
        count = sum(model.parameters for model in (models[:1] if pooled else models))
        found.append(Row(name, score(models, plan), count, models))
        return models

    fitted = together if pooled else each
    for name, kind in kinds:
        scored(name, partial(fitted, kind, plan.train))
    if period is not None:
        base = partial(PeriodicPoisson.fit, period=period, bins=bins)
        tables = partial(together, base, plan.train) if pooled else partial(background, plan, period, bins)
        ground = scored("periodic Poisson", tables)
        scored("Hawkes of marks on it", partial(fitted, Hawkes.fit, plan.train, ground))
    return found


def together(fit: Callable[..., Process], train: Sequences, *more: Sequence[Process]) -> list[Process]:
    """One model of all sequences, as often as there are sequences; of ``more`` the first of each is an argument."""
    return [fit(train, *(arguments[0] for arguments in more))] * len(train)


def each(
    fit: Callable[..., Process], train: Sequences, *more: Sequence[Process], progress: Progress | None = None
) -> list[Process]:
    """A model a sequence; ``more`` holds an argument of the fit for each. ValueError names the sequence that fails."""
    models: list[Process] = []
    for row, (one, *arguments) in enumerate(zip(train, *more)):
        if progress is not None:
            progress(row, len(train), train.name_of(row))
        try:
            models.append(fit(one, *arguments))
        except ValueError as error:
            raise ValueError(f"{train.name_of(row)}: {error}") from error
    return models


def background(plan: Protocol, period: float, bins: int) -> list[PeriodicPoisson]:
    """Rates by bin of the period and mark, a table a sequence, drawn towards the table of all sequences together.

    How strongly is chosen within what is fitted: by its last fifth, under tables of its first four fifths.
    """
    inner_cut = plan.train.start + 0.8 * (plan.train.end - plan.train.start)
    inner = Protocol(plan.train, plan.train.until(inner_cut), inner_cut)
    best = max(STRENGTHS, key=lambda strength: score(_tables(inner.train, period, bins, strength), inner))
    return _tables(plan.train, period, bins, best)


def _tables(train: Sequences, period: float, bins: int, strength: float) -> list[PeriodicPoisson]:
    base = PeriodicPoisson.fit(train, period, bins)
    return [PeriodicPoisson.fit(one, period, bins, 0.0, base, strength) for one in train]
