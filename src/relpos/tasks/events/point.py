"""The task events: what comes next, and when, in sequences of marked events; networks beside classical processes.

**Judging.** As in `relpos.tasks.events.anchors`: the first four fifths of every window are learned from, the last fifth
is one window that is scored with what came before as history, in nats an event of time and mark jointly. Loss is minus
that. The classical processes of that module, fitted to and scored on the very same events, are the baselines.

**Splits.** Networks learn from the whole fitted part, as the classical processes do. The split "validation" is the last
fifth of that part, and so has been learned from: its loss says whether training goes well, and nothing may be chosen by
it. With ``hold=true`` it is held out from training, and may; that is how the settings of the presets were found.

**Metrics.** Beside the likelihood: how far the median of the next gap is off, how often the likeliest mark is right
(the true gap not known), and the Kolmogorov-Smirnov distance of gaps after time rescaling from what they should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from relpos.tasks import held_out
from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.data import sets
from relpos.tasks.events import anchors, clock, forecasts, point_pictures
from relpos.tasks.events.anchors import Protocol
from relpos.tasks.events.neural import Following, PointNetwork, Scales, Seen, Tape
from relpos.tasks.events.processes import Hawkes, simulate
from relpos.tasks.events.sequences import UNITS, Sequences

Batch = tuple[Tensor, ...]
SPLITS = ("validation", "test")
BINS = 168  # parts of the period, of a week the hours
TRUTH = ((0.3, 0.2), ((0.4, 0.1), (0.2, 0.3)), 1.0)  # mu, alpha, beta of the simulated data
_CLOCK = "relative_channels[periods=[24,168]]"
CONTESTANTS = (
    "nope",
    "sinusoidal",
    "sinusoidal[clock=time]",
    "relative_channels[channels=position]",
    "relative_channels[channels=time]",
    "relative_channels",
    _CLOCK,
)


class PointProcess:
    """What comes next and when; see the module for the rules.

    dataset   "mpls-stops", "cdnow", "hawkes" (simulated, so that the truth is a row), or any set of event sequences;
              path: of your own copy
    least     events that a sequence must have; most: sequences that are taken, in the order of their names
    ties      of events at one time: "spread", "first" or "keep"; "jitter" lays all events out within the ticks of the
              clock, and is the default where these show in the gaps (a thousandth of the median gap and more)
    length    tokens in training; at least half as many come before every event that is scored
    hold      whether the split "validation" is held out from training
    period    of the rates of the classical processes, in the unit of the data: a week where the unit is known, 0: none
    """

    name = "events"
    title = "events: what comes next and when, in sequences of marked events, beside classical point processes"
    unit = "nats an event"
    bounds = ("the truth",)
    multiples = (1,)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "encodings": CONTESTANTS, "seeds": (0, 1), "steps": 400, "batch": 16, "rates": (3e-3,), "budget": 4.5,
            "model": {"dim": 32, "depth": 2, "heads": 2},
        },
        "results": {
            "encodings": (
                *CONTESTANTS,
                "nope[periods=[24,168]]",  # what the calendar does alone
                # where nothing else tells of elapsed time
                *("nope[gap=false]", "relative_channels[gap=false]", "relative_channels[gap=false,inject=key+value]"),
                *("relative_channels[head=rmtpp]", "relative_channels[head=intensity]"),
                *("nope[head=intensity,periods=[24,168]]", "relative_channels[head=intensity,periods=[24,168]]"),
            ),
            "seeds": (0, 1, 2), "steps": 400, "batch": 16, "rates": (3e-3,), "budget": None, "validations": 2,
            "model": {"dim": 32, "depth": 2, "heads": 2},
        },
    }  # fmt: skip

    def __init__(
        self,
        dataset: str = "mpls-stops",
        path: str | None = None,
        least: int | None = None,
        most: int | None = None,
        ties: str | None = None,
        length: int = 64,
        hold: bool = False,
        period: float | None = None,
    ) -> None:
        usual = anchors.SIZES.get(dataset, anchors.OTHERS)
        self.dataset, self.path, self.ties, self.hold, self.period = dataset, path, ties, hold, period
        self.least, self.most = usual[0] if least is None else least, usual[1] if most is None else most
        if min(self.least, self.most) < 1 or length < 4 or (period is not None and period < 0):
            raise ValueError(f"least, most >= 1, length >= 4, period >= 0; got {least}, {most}, {length}, {period}")
        self.train_length = length
        self._plan: Protocol | None = None
        self._origin = ""
        self._rows: list[anchors.Row] | None = None

    @property
    def source(self) -> str:
        """Where the data comes from; in full once it is read."""
        return self._origin or f"the data set {self.dataset}"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        unit = self._plan.sequences.unit if self._plan is not None else ""
        return (
            Metric("nats", "log likelihood", unit="nats an event", format=".4f"),
            Metric("mae", "error of the median gap", False, unit=unit),
            Metric("accuracy", "accuracy of the mark", unit="%", format=".1f", scale=100),
            Metric("ks", "KS distance of rescaled gaps", False, format=".4f"),
        )

    def prepare(self, progress: Progress | None = None) -> None:
        if self._plan is None:
            self.take(*self._read(progress))

    def _read(self, progress: Progress | None) -> tuple[Sequences, str, float]:
        """The sequences with their ties treated, where they are from, and the tick of their clock."""
        if self.dataset == "hawkes":
            drawn = simulate(Hawkes(*TRUTH), (0.0, 400.0), self.most, 0)
            return drawn, "simulated by relpos: an exponential Hawkes process of two marks", 0.0
        found = held_out.load(sets.Events, self.dataset, self.path, progress)
        tick = clock.resolution(found.sequences)
        self.ties = clock.policy(found.sequences, self.ties, tick)
        return anchors.untied(found.sequences, self.ties, tick), held_out.origin(found.card), tick

    def take(self, sequences: Sequences, origin: str = "given sequences", tick: float | None = None) -> None:
        """Makes these sequences the data. tick: of their clock; told from them where None. ValueError where none is
        long enough."""
        tick = clock.resolution(sequences) if tick is None else tick
        self._plan, self._origin = anchors.protocol(sequences, self.least, self.most, tick=tick), origin
        plan = self._plan
        inner = plan.train.start + 0.8 * (plan.train.end - plan.train.start)
        self._inner = Protocol(plan.train, plan.train.until(inner), inner)
        learned = (self._inner if self.hold else plan).train
        self._learned, self._scales = Tape(learned), Scales.of(learned)

    def __getstate__(self) -> dict[str, Any]:
        """Without data that can be loaded again, so that a worker process is sent a name and not a data set."""
        dropped = {"_inner", "_learned", "_scales"}
        kept = {key: value for key, value in self.__dict__.items() if key not in dropped}
        return {**kept, "_plan": None, "_rows": None}

    def plan(self, split: str = "test") -> Protocol:
        """What is fitted and what is scored, for one of the splits."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.prepare()
        assert self._plan is not None
        return self._plan if split == "test" else self._inner

    @property
    def scales(self) -> Scales:
        """Of the gaps that networks learn from."""
        self.prepare()
        return self._scales

    def describe(self) -> dict[str, object]:
        plan = self.plan()
        return {
            "task": self.name,
            "dataset": self.dataset,
            "source": self.source,
            "sequences": len(plan.sequences),
            "marks": list(plan.sequences.mark_names) or plan.sequences.mark_count,
            "unit of time": plan.sequences.unit or "of the data",
            "median gap": round(self.scales.unit, 6),
            "events": {
                "learned from": self._learned.events,
                "validation": self._inner.scored,
                "test": plan.scored,
            },
            "validation": "held out" if self.hold else "learned from: nothing is chosen by it",
            "cut": "the last fifth of each window is the test, what came before it is history",
            "ties": self.ties or "none",
            "clock": clock.named(plan.tick, plan.sequences.unit) if plan.tick else "without ticks",
        }

    def model(self, encoding: str, **options: Any) -> PointNetwork:
        """A `PointNetwork`; scales are filled in from what is learned from."""
        arguments: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "length": self.train_length, **options}
        return PointNetwork(self.plan().sequences.mark_count, encoding, scales=self.scales, **arguments)

    def batch(self, step: int, seed: int, size: int) -> Batch:
        """The tensors of a `Seen` and of its `Following`, (size, up to length) each. A pure function."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        self.prepare()
        runs = self._learned.draw(np.random.default_rng([seed, step, 11]), size, self.train_length)
        seen, following = self._learned.take(runs)
        return (*seen, *following)

    def loss(self, model: PointNetwork, batch: Batch) -> Tensor:
        """Minus the log likelihood of what follows all tokens, an event."""
        seen, following = Seen(*batch[:5]), Following(*batch[5:])
        events = (following.scored & (following.marks >= 0)).sum().clamp(min=1)
        return -model.log_likelihood(seen, following).sum() / events

    def evaluate(self, model: PointNetwork, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Minus nats an event of the scored part, and the metrics; length: tokens that the network reads at once."""
        if length != self.train_length:
            raise ValueError(f"networks read {self.train_length} tokens here, not {length}; give another length=")
        plan = self.plan(split)
        tape = Tape(plan.sequences, plan.cut)
        total, residuals, off, right = (np.zeros(len(tape)) for _ in range(4))
        whole = split == "test"

        @torch.no_grad()
        def visit(states: Tensor, following: Following, tokens: np.ndarray) -> None:
            head = model.head
            total[tokens] = head.log_likelihood(states, following).cpu().numpy()
            if not whole:
                return
            silence = head.log_survival(states, following.floors) - head.log_survival(states, following.gaps)
            residuals[tokens] = silence.cpu().numpy()
            coming = following.marks >= 0
            median, among = head.forecast(states[coming])
            at = tokens[coming.cpu().numpy()]
            off[at] = (median - following.gaps[coming]).abs().cpu().numpy()
            right[at] = (among.argmax(-1) == following.marks[coming]).double().cpu().numpy()

        model.read(tape, visit, length, progress=progress, text=split)
        events = tape.scored & (tape.next_marks >= 0)
        nats = float(total.sum() / tape.events)
        metrics = {}
        if whole:
            distance = forecasts.distance(residuals, events)
            metrics = {"nats": nats, "mae": float(off[events].mean()), "accuracy": float(right[events].mean())}
            metrics["ks"] = distance
        return Evaluation(length, -nats, None, tape.events, metrics)

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Constants, and the classical processes of `anchors`; of simulated data also the truth."""
        plan = self.plan(split)
        found = forecasts.constants(plan)
        rows = self.rows(split)
        if self.dataset == "hawkes":
            truth = [Hawkes(*TRUTH)] * len(plan.sequences)
            rows = [*rows, anchors.Row("the truth", anchors.score(truth, plan), 0, truth)]
        for row in rows:
            found[row.name] = {"loss": -row.nats, "nats": row.nats, **forecasts.of(row.models, plan)}
        return found

    def rows(self, split: str = "test") -> list[anchors.Row]:
        """The classical processes, a model a sequence, or one for all where sequences are short."""
        plan = self.plan(split)
        if split == "test" and self._rows is not None:
            return self._rows
        week = 7 * UNITS["days"] / UNITS[plan.sequences.unit] if plan.sequences.unit in UNITS else 0.0
        period = week if self.period is None else self.period
        bins = clock.parts(period, BINS, self.plan().tick) if period else BINS
        found = anchors.rows(plan, period or None, bins, pooled=plan.short)
        if split == "test":
            self._rows = found
        return found

    def pictures(self, model: PointNetwork, directory: Path) -> list[Artifact]:
        """Intensity over a stretch of the test, residuals against the exponential, the learned functions of time."""
        return point_pictures.artifacts(model, self.plan(), Path(directory), self.train_length)

    def sample(self, model: PointNetwork, directory: Path, seed: int) -> list[Artifact]:
        """What came in the first week of the test, or after the cut for twenty median gaps, beside three draws."""
        plan = self.plan()
        horizon = forecasts.usual_horizon(plan, self.scales)
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        past = plan.sequences.until(plan.cut)
        generator = torch.Generator().manual_seed(seed)
        draws = forecasts.drawn(model, past, horizon, 3, generator, self.train_length)
        real = forecasts.window_after(plan.sequences, plan.cut, horizon)
        path = point_pictures.continued(real, [each.sequences for each in draws], directory / "continuations.png")
        return [Artifact(path, "image", f"what came in {horizon:g} {real.unit or 'units of time'}, and three draws")]


__all__ = ["CONTESTANTS", "PointProcess"]
