"""The task missing: a share of all events was never recorded; what can be said of them, and of those that come next?

Police stops of 25 neighbourhoods (`anchors.protocol`), of which 10, 30 or 50 in a hundred are hidden, drawn once before
anything is seen, each event by its own coin; what is hidden at 10 is hidden at 30 too. The hidden events serve for
scoring alone. Everybody is told the share that is hidden, and nothing else about them.

**Parts.** Networks and baselines learn from the first nine tenths of what comes before the cut with 30 in a hundred
hidden; the last tenth is the validation, what comes after the cut the test. They are applied where 10, 30 and 50 are
hidden, with the share told. Scoring begins at the first recorded event of each part, as a bound cannot begin within a
gap; what was recorded before is history.

**Recovery.** Each imputer says where it expects hidden events, and `imputers.place` puts as many as are expected to be
hidden, share / (1 - share) times the recorded ones, the same number for all. They are matched to the hidden events one
to one within ``tolerance``. The score of the rate needs no tolerance and no placing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks import data
from relpos.tasks.base import Artifact, Evaluation, Measure, Metric, Progress
from relpos.tasks.events import anchors, missing_baselines, missing_pictures
from relpos.tasks.events.imputers import Cells, Masses, place
from relpos.tasks.events.metrics.recovery import Recovery, rate_score, recovery
from relpos.tasks.events.neural.history import Scales
from relpos.tasks.events.neural.imputation import Pieces, masses_of
from relpos.tasks.events.neural.imtpp import IMTPP
from relpos.tasks.events.neural.tape import Following, Seen, Tape
from relpos.tasks.events.sequences import UNITS, Sequences

SHARES = (10, 30, 50)
TRAINED = 30
WINDOW, HISTORY = 48, 24  # tokens a run, and those of them that are only read
SPLITS = ("validation", "test")
_RUNS = 32  # at a time
CONTESTANTS = (
    "nope",
    "relative_channels[channels=position]",
    "relative_channels[channels=time]",
    "relative_channels",
    "relative_channels[posterior=deterministic]",
    "relative_channels[latent=0]",
)
Batch = tuple[Tensor, ...]


class Missing:
    """See the module.

    dataset, path   a set of event sequences; `relpos data list`
    tolerance       within which an imputed event can stand for a hidden one, in hours (in the unit of a set without)
    draws           paths of hidden events that bounds and rates of networks are a mean over
    least, most     events that a sequence must have to be taken, and sequences
    """

    name = "missing"
    title = "missing events: a share was never recorded; where were they, and what comes next?"
    unit = "nats an event"
    metrics = (
        Metric("f1", "F1 of recovered events", unit="%", format=".1f", scale=100),
        Metric("rate", "score of the rate of hidden events", unit="nats a hidden event"),
        Metric("error", "time error of recovered events", False, "h"),
        Metric("mark", "mark accuracy of recovered events", unit="%", format=".1f", scale=100),
        Metric("next_time", "time error of the next event", False, "h", ".2f"),
        Metric("next_mark", "mark accuracy of the next event", unit="%", format=".1f", scale=100),
    )
    train_length = TRAINED
    lengths = SHARES
    multiples = (1,)
    measure = Measure("share of events deleted", "%", "share deleted in training")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "encodings": CONTESTANTS, "seeds": (0, 1), "steps": 250, "batch": 8, "rates": (4e-3,), "budget": None,
            "validations": 2, "model": {},
        },
        "results": {
            "encodings": CONTESTANTS, "seeds": (0, 1, 2), "steps": 300, "batch": 16, "rates": (4e-3,), "budget": None,
            "validations": 2, "model": {},
        },
    }  # fmt: skip

    def __init__(
        self,
        dataset: str = "mpls-stops",
        path: str | None = None,
        tolerance: float = 1.0,
        draws: int = 4,
        least: int = 300,
        most: int = 25,
    ) -> None:
        if not (0 < tolerance < np.inf) or min(draws, least, most) < 1:
            raise ValueError(
                f"tolerance is above 0 and draws, least and most at least 1, got {tolerance}, {draws}, {least}, {most}"
            )
        self.dataset, self.path, self.tolerance, self.draws = dataset, path, float(tolerance), draws
        self.least, self.most = least, most
        self._plan: anchors.Protocol | None = None
        self._luck = np.zeros(0)
        self._tape: Tape | None = None
        self._fitted: missing_baselines.Fitted | None = None

    @property
    def source(self) -> str:
        """Where the data comes from."""
        return f"the data set {self.dataset}; see relpos data inspect {self.dataset}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None, "_luck": np.zeros(0), "_tape": None, "_fitted": None}

    def prepare(self, progress: Progress | None = None) -> None:
        if self._plan is not None:
            return
        found = data.load(self.dataset, self.path, progress)
        if not isinstance(found, data.Events):
            raise ValueError(f"{self.dataset} holds {found.shape_name}, not events; see relpos data list")
        self.take(found.sequences)

    def take(self, sequences: Sequences) -> None:
        """Another set of sequences in place of the data set's."""
        whole = sequences.to_unit("hours") if sequences.unit in UNITS else sequences
        untied = Sequences.from_flat(
            whole.times, whole.offsets, marks=whole.marks, window=(whole.start, whole.end), ids=whole.ids,
            mark_names=whole.mark_names, mark_count=None if whole.marks is None else whole.mark_count,
            unit=whole.unit, ties="spread",
        )  # fmt: skip
        plan = anchors.protocol(untied, self.least, self.most)
        # a coin an event, by its place in the set alone, so that no result can depend on who asked first
        self._luck = np.random.default_rng(20210413).random(len(plan.sequences.times))
        self._plan, self._tape, self._fitted = plan, None, None

    @property
    def plan(self) -> anchors.Protocol:
        """All events with none hidden, and the cut."""
        self.prepare()
        assert self._plan is not None
        return self._plan

    def until(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(count,) from when on and until when a split is scored; "train" from the start."""
        start, cut, end = self.plan.sequences.start, self.plan.cut, self.plan.sequences.end
        inner = start + 0.9 * (cut - start)
        parts = {"train": (start, inner), "validation": (inner, cut), "test": (cut, end)}
        if split not in parts:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        return parts[split]

    def recorded(self, split: str, share: int) -> Sequences:
        """What was recorded up to the end of a split where ``share`` in a hundred are hidden."""
        return self._kept(split, self._luck_of() >= share / 100)

    def hidden(self, split: str, share: int) -> Sequences:
        """What was not."""
        return self._kept(split, self._luck_of() < share / 100)

    def _luck_of(self) -> np.ndarray:
        self.prepare()
        return self._luck

    def _kept(self, split: str, mask: np.ndarray) -> Sequences:
        return self.plan.sequences.keep(mask).until(self.until(split)[1])

    def since(self, split: str, share: int) -> np.ndarray:
        """(count,) the first recorded event of each part, from which on is scored; the end where there is none."""
        begin, end = self.until(split)
        recorded = self.recorded(split, share)
        firsts = [one.times[one.times > begin[row]] for row, one in enumerate(recorded)]
        return np.array([times[0] if len(times) else end[row] for row, times in enumerate(firsts)])

    @property
    def tape(self) -> Tape:
        """What is learned from."""
        if self._tape is None:
            self._tape = Tape(self.recorded("train", TRAINED))
        return self._tape

    def describe(self) -> dict[str, object]:
        counts = {
            f"{share} %": {
                "recorded": len(self.recorded("test", share).times),
                "hidden in the test": int(sum(table.sum() for table in self.truth("test", share)[1])),
            }
            for share in SHARES
        }
        return {
            "task": self.name,
            "dataset": self.dataset,
            "source": self.source,
            "sequences": len(self.plan.sequences),
            "events": len(self.plan.sequences.times),
            "marks": list(self.plan.sequences.mark_names),
            "learned from": f"{len(self.tape.sequences.times)} recorded events, {TRAINED} % hidden",
            "deleted": counts,
            "tolerance": f"{self.tolerance:g} {self.plan.sequences.unit}",
            "told": "everybody is told the share that is hidden, and imputes as many events",
        }

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """`relpos.tasks.events.neural.IMTPP`, with sines and cosines of the hour of the day and week."""
        sequences = self.tape.sequences
        day = 24.0 if sequences.unit == "hours" else None
        settings = {"periods": () if day is None else (day, 7 * day), "length": WINDOW + 8, **options}
        return IMTPP(sequences.mark_count, encoding, scales=Scales.of(sequences), **settings)

    def batch(self, step: int, seed: int, size: int) -> Batch:
        """Runs of recorded events and what follows them: marks, times, mask, gaps, following marks, scored."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        runs = self.tape.draw(np.random.default_rng([seed, step, 5]), size, WINDOW)
        seen, following = self.tape.take(runs)
        return (*seen[:3], following.gaps, following.marks, following.scored)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Minus the bound, a scored token."""
        marks, times, mask, gaps, follows, scored = batch
        none = times.new_zeros(*times.shape, 0)
        following = Following(gaps, follows, torch.zeros_like(gaps), scored)
        bound = model(Seen(marks, times, mask, none, none), following, TRAINED / 100, posterior=model.posterior)
        return (-bound.sum() / scored.sum()).float()

    # ---- judging

    def cells(self, split: str, share: int) -> Cells:
        """The cells of time that rates of hidden events are told by."""
        return Cells(self.since(split, share), self.until(split)[1], self.tolerance / 4)

    def truth(self, split: str, share: int) -> tuple[Sequences, Masses]:
        """The hidden events that are to be found, and their counts by cell and mark."""
        hidden, since = self.hidden(split, share), self.since(split, share)
        found = hidden.keep(hidden.times > np.repeat(since, hidden.lengths))
        return found, self.cells(split, share).count(found)

    def budget(self, split: str, share: int) -> int:
        """How many events are imputed by each imputer."""
        recorded, since = self.recorded(split, share), self.since(split, share)
        count = int((recorded.times > np.repeat(since, recorded.lengths)).sum())
        return round(count * share / (100 - share))

    def recovered(self, placed: list[tuple[np.ndarray, np.ndarray]], split: str, share: int) -> Recovery:
        """Imputed events, (times, marks) a sequence, against the hidden ones."""
        found = Recovery(0, 0, 0, 0.0, 0)
        for (times, marks), one in zip(placed, self.truth(split, share)[0], strict=True):
            found += recovery(times, marks, one.times, one.kinds, self.tolerance)
        return found

    def judged(self, masses: Masses, split: str, share: int) -> dict[str, float]:
        """The metrics of an imputer that has a rate."""
        cells = self.cells(split, share)
        placed = place(masses, cells, self.budget(split, share), self.tolerance)
        score = rate_score(masses, self.truth(split, share)[1], cells.width)
        return {**self.metrics_of(self.recovered(placed, split, share)), "rate": score}

    def metrics_of(self, found: Recovery) -> dict[str, float]:
        """Of imputed events; where none was right, its error is the tolerance and its marks are wrong."""
        some = found.matched > 0
        error = found.time_error if some else self.tolerance
        return {"f1": found.f1, "error": error, "mark": found.mark_accuracy if some else 0.0}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """The bound of what was recorded, recovery of what was not, and the next event; at ``length`` % hidden."""
        self.check(split, length)
        assert isinstance(model, IMTPP)
        training = model.training
        model.eval()
        try:
            return self._evaluate(model, split, length, progress)
        finally:
            model.train(training)

    def check(self, split: str, length: int) -> None:
        if split not in SPLITS or length not in SHARES:
            raise ValueError(f"split is one of {SPLITS} and the length, percent hidden, of {SHARES}: {split}, {length}")

    def _evaluate(self, model: IMTPP, split: str, length: int, progress: Progress | None) -> Evaluation:
        share, generator = length / 100, torch.Generator().manual_seed(length)
        tape = Tape(self.recorded(split, length), since=self.since(split, length))
        runs = tape.runs(WINDOW, HISTORY)
        total, late, right = 0.0, 0.0, 0.0
        for first in range(0, len(runs), _RUNS):
            seen, following = tape.take(runs[first : first + _RUNS])
            total += float(model.bound(seen, following, share, self.draws, generator).sum())
            if split == "test":
                gaps, marks = model.foretold(seen, share, self.draws, generator)
                coming = following.scored & (following.marks >= 0)
                late += float((gaps - following.gaps).abs()[coming].sum())
                right += float((marks.argmax(-1) == following.marks)[coming].sum())
            if progress is not None:
                progress(min(first + _RUNS, len(runs)), len(runs), f"{split}, {length} % deleted")
        count = tape.events
        loss = -total / count
        if split != "test":
            return Evaluation(length, loss, None, count)
        found = self.judged(self.masses(model, split, length), split, length)
        return Evaluation(length, loss, None, count, {**found, "next_time": late / count, "next_mark": right / count})

    @torch.no_grad()
    def masses(self, model: IMTPP, split: str, length: int) -> Masses:
        """Hidden events that a network expects, by cell and mark."""
        cells, generator = self.cells(split, length), torch.Generator().manual_seed(1000 + length)
        tape = Tape(self.recorded(split, length), since=cells.start)
        found = [np.zeros((int(count), model.marks)) for count in cells.counts]
        runs = tape.runs(WINDOW, HISTORY)
        for first in range(0, len(runs), _RUNS):
            some = runs[first : first + _RUNS]
            seen, following = tape.take(some)
            pieces = Pieces(tape, some, following, cells)
            values = masses_of(model, seen, following, pieces, length / 100, self.draws, generator)
            pieces.add(found, values)
        return found

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Imputers without networks, fitted to what the networks learn from; see `missing_baselines`."""
        self.check(split, length)
        if self._fitted is None:
            self._fitted = missing_baselines.Fitted.to(self.tape.sequences)
        return missing_baselines.rows(self, self._fitted, split, length)

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """A stretch of a neighbourhood: recorded, hidden and imputed events, and the rate that was expected."""
        assert isinstance(model, IMTPP)
        training = model.training
        model.eval()
        try:
            masses = self.masses(model, "test", TRAINED)
        finally:
            model.train(training)
        return missing_pictures.stretch(self, masses, Path(directory) / "stretch.png")
