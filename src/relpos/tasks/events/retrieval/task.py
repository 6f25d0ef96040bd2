"""The task event-retrieval: which sequences of a corpus are of the query's class.

**Documents.** In a primary school the contacts of a person begin at some times of a day: the second day is the query,
the first day the corpus, and relevant is who is of the same school class. Marks say how many contacts begin at once,
never with whom. A person's own first day is no candidate.

**Judging.** Queries and corpus of a split are of its people alone, none of whom was trained on. ``hold="people"`` has
seen others of their classes, whose timetables it can know; ``hold="classes"`` has seen none. Loss: the pairwise hinge
of training over all pairs of the split. `metrics` are over the whole ranking, and NDCG over the first ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks.base import Artifact, Batch, Evaluation, Measure, Metric, Progress
from relpos.tasks.events.metrics import retrieval as metrics
from relpos.tasks.events.neural import Scales, Seen, Tape
from relpos.tasks.events.neural.tape import Run
from relpos.tasks.events.retrieval import baselines, drawing, model_free
from relpos.tasks.events.retrieval.documents import SPLITS, Halves, primary_school, split
from relpos.tasks.events.retrieval.relevance import Encoded, NeuroSeqRet, hinge
from relpos.tasks.events.retrieval.simulated import simulated
from relpos.tasks.events.sequences import Sequences

DATASETS = ("primary-school", "simulated")
GROUP = 4  # items of a class in a batch
PERIODS = {"primary-school": (24.0, 8.0, 2.0, 2 / 3), "simulated": (24.0, 8.0, 2.0)}  # hours: of the clock in tokens
STIFF = 0.2  # weight of the departure of the unwarping from the identity
KEPT = 0.8  # of the events of a training sequence
_AT_A_TIME = 64
MODEL = {"dim": 32, "depth": 1, "channels": "time"}
CONTESTANTS = (  # the whole, and each ingredient off beside it
    "relative_channels",
    "nope",
    "relative_channels[unwarp=false]",
    "relative_channels[model_free=false]",
    "relative_channels[relevance=cross]",
)


class EventRetrieval:
    """Sequences of the query's class, ranked first; see the module.

    dataset   "primary-school", or "simulated": classes of processes, with the queries' clock bent (`simulated.bent`)
    hold      "people" or "classes": what the test has not been seen of; see `documents.split`. Default: people of the
              school, classes of what is simulated
    tick      seconds within which contacts count as beginning at once
    warp      of what is simulated: how much the queries' clock is bent, 0 to below 1
    draw      which of the possible splits
    """

    name = "event-retrieval"
    title = "event retrieval: which sequences of contacts are of the query's school class (NeuroSeqRet)"
    unit = "hinge"
    metrics = (
        Metric("map", "MAP", format=".3f"),
        Metric("ndcg", "NDCG@10", format=".3f"),
        Metric("mrr", "MRR", format=".3f"),
        Metric("precision", "precision@3", format=".3f"),
    )
    multiples = (1,)
    train_length = 128
    measure = Measure("length of a document", "tokens at most", "length of a document")
    pace = "documents"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0, 1), "steps": 250, "batch": 16, "rates": (6e-3,), "budget": 4.5, "model": MODEL,
            "encodings": CONTESTANTS,
        },
        "results": {
            "seeds": (0, 1, 2), "steps": 800, "batch": 16, "rates": (6e-3,), "budget": None, "model": MODEL,
            "encodings": CONTESTANTS,
        },
    }  # fmt: skip

    def __init__(
        self,
        dataset: str = "primary-school",
        hold: str | None = None,
        tick: float = 300.0,
        warp: float = 0.6,
        draw: int = 0,
    ) -> None:
        if dataset not in DATASETS:
            raise ValueError(f"dataset is one of {', '.join(DATASETS)}, got {dataset!r}")
        if hold not in (None, "people", "classes"):
            raise ValueError(f'hold is "people" or "classes", got {hold!r}')
        if not tick > 0 or not 0 <= warp < 1 or draw < 0:
            raise ValueError(f"tick > 0, 0 <= warp < 1 and draw >= 0, got {tick}, {warp} and {draw}")
        self.dataset, self.tick, self.warp, self.draw = dataset, float(tick), float(warp), draw
        self.hold = hold or ("people" if dataset == "primary-school" else "classes")
        if dataset == "simulated":
            self.title = "event retrieval: which simulated sequences are of the query's class (NeuroSeqRet)"
        self._halves: Halves | None = None
        self._sides: dict[str, np.ndarray] = {}
        self._scales = Scales()

    @property
    def source(self) -> str:
        return f"the data set {self.dataset}" if self._halves is None else self._halves.source

    def prepare(self, progress: Progress | None = None) -> None:
        if self._halves is not None:
            return
        if self.dataset == "simulated":
            self._take(simulated(warp=self.warp))
        else:
            self._take(primary_school(self.tick))

    def _take(self, halves: Halves) -> None:
        longest = max(int(each.lengths.max(initial=0)) for each in halves.sides().values())
        if longest >= self.train_length:
            raise ValueError(
                f"a document has {longest} events, {self.train_length - 1} is the most: give a longer tick"
            )
        self._sides = split(halves, self.hold, self.draw)
        train = halves.corpus.select(self._sides["train"])
        self._halves, self._scales = halves, Scales.of(train)

    def __getstate__(self) -> dict[str, Any]:
        """Without the data, which `prepare` reads back."""
        return {**self.__dict__, "_halves": None, "_sides": {}}

    @property
    def halves(self) -> Halves:
        self.prepare()
        assert self._halves is not None
        return self._halves

    def rows(self, side: str) -> np.ndarray:
        """The items of "train", "validation" or "test"."""
        if side not in SPLITS:
            raise ValueError(f"unknown split {side!r}: choose one of {', '.join(SPLITS)}")
        self.prepare()
        return self._sides[side]

    def describe(self) -> dict[str, object]:
        halves = self.halves
        return {
            "task": self.name,
            "dataset": self.dataset,
            "source": self.source,
            "classes": list(halves.classes),
            "window": {"span": halves.span, "unit": halves.queries.unit},
            "held out": self.hold,
            "splits": {
                side: {"items": len(rows), "classes": len(np.unique(halves.labels[rows]))}
                for side, rows in self._sides.items()
            },
            "events": {
                side: {"median": float(np.median(each.lengths)), "most": int(each.lengths.max())}
                for side, each in halves.sides().items()
            },
            "candidates": "the corpus sequences of the same split, but for the asker's own",
        }

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """A `NeuroSeqRet`; options are its own and those of `History`, such as relevance=cross, unwarp=false."""
        halves = self.halves
        given = {
            "periods": PERIODS[self.dataset],
            "length": self.train_length,
            "scales": self._scales,
            "span": halves.span,
        }
        return NeuroSeqRet(halves.queries.mark_count, encoding, **{**given, **options})

    # ---- training

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, ...]:
        """Documents of ``size`` items: marks, times, mask (size, 2, n), query and corpus; class and number of the items
        (size,). Items come in classes of `GROUP`; some of their events are left out."""
        if min(step, seed) < 0 or size < GROUP:
            raise ValueError(
                f"step and seed are 0 or more and size {GROUP} or more, so that it has two classes; got {step}, {seed} "
                f"and {size}"
            )
        halves, rng = self.halves, np.random.default_rng([seed, step, 11])
        rows = self._drawn(rng, size)
        sides = [self._thinned(each.select(rows), rng) for each in (halves.queries, halves.corpus)]
        documents = [read(each) for each in sides]
        length = max(each.marks.shape[1] for each in documents)
        marks, times, mask = (
            torch.stack([_lengthened(getattr(each, name), length, name) for each in documents], 1)
            for name in ("marks", "times", "mask")
        )
        return marks, times, mask, torch.from_numpy(halves.labels[rows]), torch.from_numpy(rows)

    def _drawn(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Items of different classes in groups of about `GROUP`, from classes that have two at least."""
        rows = self._sides["train"]
        labels = self.halves.labels[rows]
        enough = np.flatnonzero(np.bincount(labels) > 1)
        groups = max(2, size // GROUP)
        chosen = np.concatenate([rng.permutation(enough) for _ in range(-(-groups // len(enough)))])[:groups]
        counts = np.diff(np.linspace(0, size, groups + 1).astype(int))
        parts = [
            rng.choice(rows[labels == kind], size=count, replace=(labels == kind).sum() < count)
            for kind, count in zip(chosen, counts)
        ]
        return np.concatenate(parts)

    def _thinned(self, sequences: Sequences, rng: np.random.Generator) -> Sequences:
        return sequences.keep(rng.random(len(sequences.times)) < KEPT)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean pairwise hinge, and `STIFF` times the departure of the unwarping from the identity."""
        marks, times, mask, labels, items = batch
        none = times.new_zeros((len(times), times.shape[2], 0))
        queries, corpus = (Seen(marks[:, side], times[:, side], mask[:, side], none, none) for side in (0, 1))
        scores, departure = model(queries, corpus)
        return hinge(scores, labels[:, None] == labels, items[:, None] != items) + STIFF * departure

    # ---- judging

    @torch.no_grad()
    def encoded(self, model: nn.Module, side: str, rows: np.ndarray, progress: Progress | None = None) -> Encoded:
        """The "queries" or the "corpus" sequences of some items, as a network knows them."""
        network, sequences = _own(model), self.halves.sides()[side].select(rows)
        device = network.log_scale.device
        whole = Seen(*(part.to(device) for part in read(sequences)))
        parts = []
        for first in range(0, len(rows), _AT_A_TIME):
            few = slice(first, first + _AT_A_TIME)
            parts.append(network.encode(Seen(*(part[few] for part in whole)), query=side == "queries"))
            if progress is not None:
                progress(min(first + _AT_A_TIME, len(rows)), len(rows), f"reading {side}")
        seen, states, vectors, events = zip(*parts)
        return Encoded(_joined(seen), torch.cat(states), torch.cat(vectors), _joined(events))

    @torch.no_grad()
    def scores(self, model: nn.Module, rows: np.ndarray, progress: Progress | None = None) -> Tensor:
        """(rows, rows) float64: of every query against every corpus sequence of these items."""
        training = model.training
        model.eval()
        try:
            queries, corpus = (self.encoded(model, side, rows, progress) for side in ("queries", "corpus"))
            parts = []
            for query in range(len(rows)):
                one = torch.tensor([query], device=queries.vectors.device)
                parts.append(_own(model).score(queries.take(one), corpus))
                if progress is not None:
                    progress(query + 1, len(rows), "comparing")
        finally:
            model.train(training)
        return torch.cat(parts)

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Hinge over all pairs of the split, and the metrics of its rankings."""
        self._check(split, length)
        rows = self.rows(split)
        scores = self.scores(model, rows, progress).cpu()
        relevant, valid = self._relevant(rows)
        loss = float(hinge(scores, torch.from_numpy(relevant), torch.from_numpy(valid)))
        return Evaluation(length, loss, None, len(rows), judged(scores.numpy(), relevant, valid))

    def _relevant(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = self.halves.labels[rows]
        return labels[:, None] == labels[None], ~np.eye(len(rows), dtype=bool)

    def _check(self, split: str, length: int) -> None:
        if split not in SPLITS[1:]:
            raise ValueError(f"unknown split {split!r}: choose validation or test")
        if length != self.train_length:
            raise ValueError(f"documents are read whole, as {self.train_length} tokens at most, not {length}")

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Rankings that need no training; the last knows the classes of the training people, as networks do."""
        self._check(split, length)
        halves, rows, known = self.halves, self.rows(split), self.rows("train")
        relevant, valid = self._relevant(rows)
        chance = [judged(baselines.random(len(rows), k), relevant, valid) for k in range(baselines.DRAWS)]
        seen = [read(each.select(rows)) for each in (halves.queries, halves.corpus)]
        queries, corpus = (Seen(*(part[:, 1:] for part in each)) for each in seen)
        time, mark = (each.numpy() for each in model_free.distances(queries, corpus, halves.span))
        rankings = {
            "contact rate": baselines.rate(halves, rows),
            "model-free distance": -time / halves.span - mark,
            "time of day": baselines.time_of_day(halves, rows),
        }
        if np.isin(halves.labels[rows], halves.labels[known]).all():
            rankings["time of day, by classmates"] = baselines.classmates(halves, rows, known)
        mean = {name: float(np.mean([each[name] for each in chance])) for name in chance[0]}
        return {"random": mean, **{name: judged(each, relevant, valid) for name, each in rankings.items()}}

    # ---- to look at

    def pictures(self, model: nn.Module, directory: Path) -> list[Artifact]:
        """The learned map of the query's clock; [] for a network without one."""
        curve = _own(model).unwarping
        if curve is None:
            return []
        return [drawing.unwarping(curve, Path(directory), self.warp if self.dataset == "simulated" else None)]

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """A test query as a raster of its events, and the five sequences that the network ranks first."""
        rows = self.rows("test")
        relevant, valid = self._relevant(rows)
        asked = int(np.random.default_rng(seed).choice(np.flatnonzero((relevant & valid).any(1))))
        scores = self.scores(model, rows)[asked].cpu().numpy()
        best = np.argsort(np.where(valid[asked], -scores, np.inf), kind="stable")[:5]
        return [drawing.rasters(self.halves, rows[asked], rows[best], scores[best], model, Path(directory))]


def _own(model: nn.Module) -> NeuroSeqRet:
    if not isinstance(model, NeuroSeqRet):
        raise TypeError(f"event-retrieval takes a NeuroSeqRet, as its `model` makes, got {type(model).__name__}")
    return model


def read(sequences: Sequences) -> Seen:
    """Whole sequences as a network reads them, times since the start of each window."""
    lengths = sequences.lengths + 1
    seen, _ = Tape(sequences).take([Run(row, 0, int(length), 0) for row, length in enumerate(lengths)])
    return seen._replace(times=seen.times - torch.from_numpy(sequences.start)[:, None])


def _joined(parts: Sequence[Seen]) -> Seen:
    return Seen(*(torch.cat(columns) for columns in zip(*parts)))


def _lengthened(values: Tensor, length: int, name: str) -> Tensor:
    missing = length - values.shape[1]
    if not missing:
        return values
    last = values[:, -1:] if name == "times" else torch.zeros_like(values[:, :1])
    return torch.cat([values, last.expand(-1, missing)], 1)


def judged(scores: np.ndarray, relevant: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The metrics of the task; equal scores are taken at their worst."""
    whole = metrics.evaluate(scores, relevant, valid=valid, ties="worst")
    ten, three = (metrics.evaluate(scores, relevant, k, valid=valid, ties="worst") for k in (10, 3))
    return {
        "map": whole.mean("ap"),
        "ndcg": ten.mean("ndcg"),
        "mrr": whole.mean("rr"),
        "precision": three.mean("precision"),
    }
