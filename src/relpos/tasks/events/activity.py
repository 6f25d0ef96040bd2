"""The task activity: what comes next, when, and what it is all for: the goal, told from the beginning of a sequence.

A sequence is an activity: actions (marks) in continuous time, and a goal. Seen its first events, a network tells the
goal, the next action and the gap before it. The default data is face-to-face contacts in a hospital: an action is the
beginning of a contact, marked with the role of the person met; the goal is one's own role. Days of contacts are cut
where a person met nobody for hours, and into pieces of at most ``most`` events; nobody is on two sides of the split.

**Lengths** are the observed part of a sequence, in percent of its events. At each of them the goal is judged once,
after the last event of the part; next actions, gaps and likelihood at every event of the part that another one of it
follows (of the whole, also the silence after it). Pads are never charged. A predicted gap is the median of its density.

**Loss**: nats an event of time and mark jointly, the goal's cross-entropy with weights gamma^k, and the margin (module
`activity_network`). Only the first is reported as the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from relpos.encodings.base import positive
from relpos.tasks import held_out
from relpos.tasks.base import Artifact, Evaluation, Measure, Metric, Progress
from relpos.tasks.data.sets import Events
from relpos.tasks.events import activity_pictures as drawing
from relpos.tasks.events import activity_scores as scores
from relpos.tasks.events.activity_data import SIDES, Tracks, apart, sides_of, tracks
from relpos.tasks.events.activity_network import Activity as Network
from relpos.tasks.events.activity_network import loss_of
from relpos.tasks.events.neural import Scales
from relpos.tasks.lengths import length_options

CONTACTS = ("hospital", "primary-school", "thiers")
OWN = ("proactive", "breakfast")
PARTS = (10, 25, 50, 100)
CONTESTANTS = (
    "nope",
    "learned",
    "sinusoidal[clock=time]",
    "relative_channels[channels=position]",
    "relative_channels[channels=time]",
    "relative_channels",  # position + time
    "relative_channels[margin=0]",
    "relative_channels[gamma=1]",
)
_A_BATCH = 128


class Activity:
    """Next action, its time and the goal of an activity; see the module for the rules.

    dataset   "hospital", "primary-school" or "thiers" (contacts, by themselves); with a path "proactive" (the text
              layout) or "breakfast" (a file a video)
    silence   hours without a contact that end a sequence of contacts; the other sets are activities as they are
    most, least   events of a sequence: longer ones are cut into equal pieces, shorter ones left out. By default at
              least 10 of contacts, so that a tenth is an event, and 2 of the others
    shares    of the people, to train, validate and test on, where the data has no split of its own; fold: which of
              many drawings
    beginning events that continuations are written from, in samples and in the columns of generation
    """

    name = "activity"
    title = "activity: the next action, its time and the goal of a sequence, told from its beginning"
    unit = "nats an event"
    multiples = (1,)
    lengths = PARTS
    train_length = 100
    measure = Measure("observed part", "% of the events", "whole sequence")
    pace = "sequences"
    costs = scores.COSTS
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "encodings": CONTESTANTS,
            "seeds": (0, 1), "steps": 250, "batch": 16, "rates": (5e-3,), "budget": 3.5,
            "model": {"dim": 32, "depth": 2, "heads": 2, "dropout": 0.1},
        },
        "results": {
            "encodings": CONTESTANTS,
            "seeds": (0, 1, 2), "steps": 600, "batch": 16, "rates": (5e-3,), "budget": None,
            "model": {"dim": 32, "depth": 2, "heads": 2, "dropout": 0.1},
        },
    }  # fmt: skip

    def __init__(
        self,
        dataset: str = "hospital",
        path: str | None = None,
        silence: float = 4.0,
        most: int = 64,
        least: int | None = None,
        shares: Sequence[float] = (0.5, 0.15, 0.35),
        fold: int = 0,
        beginning: int = 5,
    ) -> None:
        if dataset not in (*CONTACTS, *OWN):
            raise ValueError(f"dataset is one of {', '.join((*CONTACTS, *OWN))}, got {dataset!r}")
        if dataset in OWN and path is None:
            raise ValueError(f"{dataset} is data of your own: say where it lies with path=..")
        if not (isinstance(silence, int | float) and silence > 0):
            raise ValueError(f"silence is a number of hours above 0, got {silence!r}")
        listed = isinstance(shares, Sequence) and all(isinstance(each, int | float) for each in shares)
        if not listed or len(shares) != 3 or not all(each > 0 for each in shares):
            raise ValueError(f"shares are three numbers above 0, to train, validate and test on, got {shares!r}")
        if isinstance(fold, bool) or not isinstance(fold, int) or fold < 0:
            raise ValueError(f"fold is a whole number, 0 or more, got {fold!r}")
        self.dataset, self.path, self.silence = dataset, path, float(silence)
        self.most = positive("most", most)
        self.least = (10 if dataset in CONTACTS else 2) if least is None else positive("least", least)
        if not 2 <= self.least <= self.most:
            raise ValueError(f"2 <= least <= most, got least={self.least} and most={self.most}")
        self.beginning = positive("beginning", beginning)
        self.shares, self.fold = tuple(map(float, shares)), fold
        self._data: Events | None = None
        self._sides: dict[str, Tracks] = {}
        self._scales = Scales()
        self._rows: scores.Rows | None = None

    @property
    def time_unit(self) -> str:
        """What times are in here: minutes of contacts, else what the data is in."""
        known = "" if self._data is None else self._data.unit[0]
        return "minutes" if self.dataset in CONTACTS else known or "units of the file"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return scores.metrics(self.time_unit)

    @property
    def source(self) -> str:
        """Where the data comes from; in full once it is read."""
        return f"the data set {self.dataset}" if self._data is None else held_out.origin(self._data.card)

    @property
    def quiet(self) -> float | None:
        """The silence that ends a sequence, in `time_unit`; None where a sequence ends with its last event."""
        return self.silence * 60 if self.dataset in CONTACTS else None

    def prepare(self, progress: Progress | None = None) -> None:
        if self._data is None:
            self._take(held_out.load(Events, self.dataset, self.path, progress))

    def _take(self, found: Events) -> None:
        """ValueError where a side has no sequence."""
        people = [name.split("_")[0] for name in found.ids] if self.dataset == "breakfast" else None
        factor = 1 / 60 if self.dataset in CONTACTS else 1.0  # seconds to minutes
        cut = tracks(found, self.quiet, self.most, self.least, people, factor)
        if self.dataset == "proactive":
            sides = sides_of(held_out.sides(found), cut.sources)
        else:
            sides = apart(cut.owners, cut.goals, self.shares, self.fold)
        empty = [side for side in SIDES if not len(sides[side])]
        if empty:
            raise ValueError(
                f"no sequence of {self.dataset} has {self.least} events on the side {empty[0]}: give more "
                f"data, other shares or a smaller least ({len(cut)} sequences in all)"
            )
        self._sides = {side: cut.select(rows) for side, rows in sides.items()}
        self._scales = Scales.of(self._sides["train"].sequences)
        self._data = found

    def __getstate__(self) -> dict[str, Any]:
        """Without data that can be loaded again."""
        return {**self.__dict__, "_data": None, "_sides": {}, "_scales": Scales(), "_rows": None}

    @property
    def data(self) -> Events:
        self.prepare()
        assert self._data is not None
        return self._data

    def side(self, name: str) -> Tracks:
        """The sequences of "train", "validation" or "test"."""
        if name not in SIDES:
            raise ValueError(f"unknown split {name!r}: choose one of {', '.join(SIDES)}")
        self.prepare()
        return self._sides[name]

    def describe(self) -> dict[str, object]:
        data = self.data
        goals = len(data.classes)
        return {
            "task": self.name,
            "dataset": self.dataset,
            "source": self.source,
            "goals": list(data.classes),
            "actions": len(data.mark_names) or data.sequences.mark_count,
            "splits": {
                name: {
                    "sequences": len(each),
                    "out of sessions": len(np.unique(each.sessions)),
                    **({"of people": len(np.unique(each.owners))} if self.dataset != "proactive" else {}),
                    "events": len(each.sequences.times),
                    "goals": np.bincount(each.goals, minlength=goals).tolist(),
                }
                for name, each in self._sides.items()
            },
            "events of a sequence": f"{self.least} to {self.most}, "
            f"median {np.median(np.concatenate([each.sequences.lengths for each in self._sides.values()])):.0f}",
            "a sequence ends": f"after {self.silence:g} hours of silence" if self.quiet else "with its last event",
            "unit of time": self.time_unit,
            "written on": f"from {self.beginning} events; the real continuations: {self.rows.real(self)}",
        }

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """`activity_network.Activity`: options are its own, those of `History` and of `relpos.models.Stack`."""
        self.prepare()
        sequences = self._sides["train"].sequences
        given = dict(options)
        own = length_options(encoding, self.most, self.most + scores.WRITTEN)
        given["encoding_options"] = {**own, **(given.pop("encoding_options", None) or {})}
        arguments: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "length": self.most, **given}
        goals = max(len(self.data.classes), 2)
        return Network(sequences.mark_count, goals, encoding, scales=self._scales, **arguments)

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, ...]:
        """marks, times, mask, gaps, following (size, n) and goals (size,): a pure function of its arguments.

        Half of the sequences of contacts begin at an event drawn from them, as where one begins is chance there.
        """
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        train = self.side("train")
        draw = np.random.default_rng([seed, step, 31])
        rows = draw.integers(len(train), size=size)
        lengths = train.sequences.lengths[rows]
        late = draw.integers(np.maximum(lengths - self.least, 0) + 1) * (draw.random(size) < 0.5)
        return scores.padded(train, rows, late if self.quiet else np.zeros(size, dtype=np.int64))

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Nats an event and a sequence, weighed as the network says (goal=, margin=)."""
        *events, goals = batch
        network: Any = model
        parts = loss_of(network(*events), events[2], events[4], goals, network.gamma)
        total: Tensor = parts.events + network.weight * parts.goal + network.margin * parts.margin
        return total

    def read(self, model: nn.Module, split: str, progress: Progress | None = None) -> scores.Read:
        """What a network makes of every sequence of a side, in their order."""
        return scores.read(model, self.side(split), _A_BATCH, progress, f"reading {split}")

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss and metrics of the first ``length`` percent of each sequence."""
        self._check_length(length)
        found = scores.judged(self.read(model, split, progress), self.side(split), length)
        loss = found.pop("loss")
        return Evaluation(length, loss, None, len(self.side(split)), found)

    def _check_length(self, length: int) -> None:
        if length not in self.lengths:
            raise ValueError(f"length is one of {', '.join(map(str, self.lengths))} % of the events, got {length}")

    @property
    def rows(self) -> scores.Rows:
        """The baselines, fitted to the training side once."""
        if self._rows is None:
            self._rows = scores.Rows(self.side("train"), self.side("validation"), max(len(self.data.classes), 2))
        return self._rows

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Commonest goal, mark and median gap; Naive Bayes; a Markov table; gaps without a history."""
        self._check_length(length)
        return self.rows.judged(self.side(split), length)

    def cost(self, model: nn.Module) -> dict[str, float]:
        """What continuations of the test sequences are like, see `activity_scores.generation`."""
        return scores.generation(model, self)

    def pictures(self, model: nn.Module, directory: Path) -> list[Artifact]:
        """The probability of the true goal along some test sequences, and accuracy against the events seen."""
        return drawing.along(model, self, Path(directory))

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Beginnings of test sequences written on to their goal, beside how they really went on."""
        return drawing.written(model, self, Path(directory), seed)
