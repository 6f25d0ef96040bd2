"""The task places: the next item of a sequence, a place or a film, and its profile; full ranking, leave-last-out.

**Splits.** The last event of every sequence is the test, the one before it the validation, the rest is learned from
(`relpos.tasks.events.splits.leave_last_out`). Sequences are in the order of their times, ties in that of the source.
Units and counts come from what is learned from; the items are those of the data set, so a few may never have been
learned (flights: 1 of 100, none in the test; films: 4 of 1,682, 3 in the test).

**Judging.** All items are ranked, those already seen too; equal scores share their mean rank. Recall at 1, 5 and 10,
NDCG at 10, MRR. Loss is the cross-entropy of the item. With profiles (films: genres): how well the columns of the next
profile are told, as mean cross-entropy beside that of the columns' frequencies.

Rows with query_time=request know when the next event comes, and are to be read so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from relpos.tasks import held_out
from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.data import sets
from relpos.tasks.events import functions, places_picture
from relpos.tasks.events.metrics.ranking import ranks, summary
from relpos.tasks.events.neural import Scales, Seen, Tape
from relpos.tasks.events.neural.tape import Run
from relpos.tasks.events.places_baselines import Counts
from relpos.tasks.events.revamp import ReVAMP
from relpos.tasks.events.sequences import Sequences
from relpos.tasks.events.splits import Part, leave_last_out

SPLITS = ("validation", "test")
_CHUNK = 256
_FEATURES = "position+time+place+profile"
CONTESTANTS = (
    "nope",
    "sinusoidal",
    "relative_channels[channels=position]",
    "relative_channels[channels=position+time]",
    "relative_channels",
    "relative_channels[channels=position+time,query_time=request]",
)


class NextItem:
    """Next item and next profile of sequences with times, places and profiles; see the module for the rules.

    dataset   "flights" (aircraft and their destinations), "ml-100k" (people and films, genres as profiles; then
              "relative_channels[profile=false]" is a contestant worth having), or any set of event sequences with
              marks; path: of your own copy
    least     events that a sequence must have; most: sequences taken; length: events that a network reads
    """

    name = "places"
    title = "places: the next item of a sequence, and its profile (ReVAMP)"
    unit = "nats an item"
    multiples = (1,)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "encodings": CONTESTANTS, "seeds": (0,), "steps": 1200, "batch": 32, "rates": (3e-3,), "budget": 4.5,
            "model": {"dim": 32, "depth": 2, "heads": 2},
        },
        "results": {
            "encodings": (*CONTESTANTS, "hstu[mixer=pointwise,query_time=request]"),
            "seeds": (0, 1, 2), "steps": 1200, "batch": 32, "rates": (3e-3,), "budget": None, "validations": 2,
            "model": {"dim": 32, "depth": 2, "heads": 2},
        },
    }  # fmt: skip

    def __init__(
        self, dataset: str = "flights", path: str | None = None, least: int = 10, most: int = 100_000, length: int = 32
    ) -> None:
        if least < 3 or most < 1 or length < 2:
            raise ValueError(f"least >= 3, most >= 1, length >= 2; got {least}, {most}, {length}")
        self.dataset, self.path, self.least, self.most, self.train_length = dataset, path, least, most, length
        self._parts: dict[str, Part] | None = None
        self._origin = ""

    @property
    def source(self) -> str:
        return self._origin or f"the data set {self.dataset}"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        shares = [Metric(f"recall_{k}", f"recall at {k}", unit="%", format=".1f", scale=100) for k in (1, 5, 10)]
        found = (Metric("ndcg_10", "NDCG at 10"), *shares, Metric("mrr", "mean reciprocal rank"))
        if self._parts is None or self._parts["test"].sequences.profiles is None:
            return found
        return (*found, Metric("profile", "cross-entropy of a column of the next profile", False, format=".4f"))

    def prepare(self, progress: Progress | None = None) -> None:
        if self._parts is None:
            found = held_out.load(sets.Events, self.dataset, self.path, progress)
            self.take(found.sequences, held_out.origin(found.card))

    def take(self, sequences: Sequences, origin: str = "given sequences") -> None:
        """Makes these sequences the data. ValueError without marks, and where none is long enough."""
        if sequences.marks is None:
            raise ValueError("there is no item to foretell: the events have no marks")
        enough = np.flatnonzero(sequences.lengths >= self.least)[: self.most]
        if not len(enough):
            raise ValueError(f"no sequence has at least {self.least} events; the longest has {sequences.lengths.max()}")
        chosen = sequences.select(enough)
        if chosen.profiles is not None:
            binary = np.isin(chosen.profiles, (0.0, 1.0)).all(0)
            kept = chosen.profiles[:, binary] if binary.any() else None
            chosen = Sequences(**{**vars(chosen), "profiles": kept})
        self._parts, self._origin = leave_last_out(chosen), origin
        train = self._parts["train"].sequences
        self._learned, self._scales = Tape(train, start=False), Scales.of(train)
        self._items = chosen.mark_count
        self._width = 0 if chosen.profiles is None else chosen.profiles.shape[1]

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_learned", "_scales", "_items", "_width")}
        return {**kept, "_parts": None}

    def part(self, split: str) -> Sequences:
        """The sequences of a split: their last events are the ones to be foretold; of "train" all are."""
        if split not in (*SPLITS, "train"):
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.prepare()
        assert self._parts is not None
        return self._parts[split].sequences

    def describe(self) -> dict[str, object]:
        test, train = self.part("test"), self.part("train")
        return {
            "task": self.name,
            "dataset": self.dataset,
            "source": self.source,
            "sequences": len(test),
            "items": self._items,
            "profile": self._width,
            "unit of time": test.unit or "of the data",
            "events": {"learned from": len(train.times), "validation": len(test), "test": len(test)},
            "gaps of 0": round(float((test.gaps() == 0).mean()), 4),
            "split": "leave-last-out, ties in the order of the source",
            "ranking": "of all items, those seen before too; equal scores share their mean rank",
        }

    def model(self, encoding: str, **options: Any) -> ReVAMP:
        """A `ReVAMP`; the channels are all that the data has."""
        self.prepare()
        sequences = self.part("test")
        has = {"place": sequences.places is not None, "profile": bool(self._width) and options.get("profile", True)}
        usual = "+".join(name for name in _FEATURES.split("+") if has.get(name, True))
        arguments: dict[str, Any] = {
            "dim": 32, "depth": 2, "heads": 2, "length": self.train_length, "channels": usual, **options
        }  # fmt: skip
        return ReVAMP(self._items, encoding, profiles=self._width, scales=self._scales, **arguments)

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, ...]:
        """The tensors of a `Seen`, then the times, items (-1: none) and profiles of what follows each token."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        self.prepare()
        runs = self._learned.draw(np.random.default_rng([seed, step, 13]), size, self.train_length + 1)
        return _shifted(self._learned.take(runs)[0])

    def loss(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        seen, (times, items, profiles) = Seen(*batch[:5]), batch[5:]
        logits, guess = model(seen, times)
        known = items >= 0
        loss = cross_entropy(logits[known], items[known])
        if guess is None:
            return loss
        return loss + binary_cross_entropy_with_logits(guess[known], profiles[known].to(guess.dtype))

    def evaluate(self, model: Any, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Ranks of the last items, given the ``length`` events before them."""
        sequences = self.part(split)
        total, rank, told = [], [], []
        training = model.training
        model.eval()
        try:
            for begin in range(0, len(sequences), _CHUNK):
                rows = np.arange(begin, min(begin + _CHUNK, len(sequences)))
                logits, guess, items, profiles = self._last(model, sequences, rows, length)
                total.append(cross_entropy(logits, items, reduction="none").double().cpu().numpy())
                rank.append(ranks(logits.double().cpu().numpy(), items.cpu().numpy()))
                if guess is not None:
                    off = binary_cross_entropy_with_logits(guess, profiles, reduction="none")
                    told.append(off.mean(1).cpu().numpy())
                if progress is not None:
                    progress(begin, len(sequences), split)
        finally:
            model.train(training)
        found = summary(np.concatenate(rank))
        if told:
            found["profile"] = float(np.concatenate(told).mean())
        elif self._width:
            found["profile"] = self._guess(sequences)  # who says nothing of profiles says how frequent each column is
        return Evaluation(length, float(np.concatenate(total).mean()), None, len(sequences), found)

    @torch.no_grad()
    def _last(
        self, model: Any, sequences: Sequences, rows: np.ndarray, length: int
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Of the last event of each sequence: logits, guesses of its profile, the item and the profile."""
        chosen = sequences.select(rows)
        tape = Tape(chosen, start=False)
        runs = [Run(row, max(0, int(n) - length - 1), int(n), 0) for row, n in enumerate(chosen.lengths)]
        device = next(model.parameters()).device
        tensors = [x.to(device) for x in _shifted(tape.take(runs)[0])]
        times, items, profiles = tensors[5:]
        logits, guess = model(Seen(*tensors[:5]), times)
        at = (items >= 0).sum(1) - 1
        pick = (torch.arange(len(at), device=device), at)
        return logits[pick], None if guess is None else guess[pick], items[pick], profiles[pick].to(logits.dtype)

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Counts of what was learned from and of a sequence's own past; they have no loss, they only rank."""
        sequences = self.part(split)
        past = sequences.keep(_before_last(sequences))
        targets = sequences.kinds[sequences.offsets[1:] - 1]
        rows = Counts(self.part("train"), self._items).scores(past)
        found = {name: summary(ranks(scores, targets)) for name, scores in rows.items()}
        if self._width:
            for values in found.values():
                values["profile"] = self._guess(sequences)
        return found

    def _guess(self, sequences: Sequences) -> float:
        """Mean cross-entropy of the next profile under the frequencies of its columns in training."""
        train = self.part("train").profiles
        assert train is not None and sequences.profiles is not None
        share = np.clip(train.mean(0), 1e-6, 1 - 1e-6)
        wanted = sequences.profiles[sequences.offsets[1:] - 1]
        return float(-(wanted * np.log(share) + (1 - wanted) * np.log(1 - share)).mean())

    def pictures(self, model: Any, directory: Path) -> list[Artifact]:
        """What the channels have learned of lag, time, distance and profile."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        sequences = self.part("test").select(np.arange(min(64, len(self.part("test")))))
        rows = np.arange(len(sequences))
        unit = {"time": sequences.unit or "units of the data"}
        run = lambda: self._last(model, sequences, rows, self.train_length)  # noqa: E731
        return functions.functions(model, directory, unit, run=run)

    def sample(self, model: Any, directory: Path, seed: int) -> list[Artifact]:
        """A map of some sequences: their last places, the next one, and the five that the network expects."""
        sequences = self.part("test")
        if sequences.places is None:
            return []
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        rows = np.sort(np.random.default_rng(seed).choice(len(sequences), min(4, len(sequences)), replace=False))
        logits = self._last(model, sequences, rows, self.train_length)[0]
        five = logits.topk(min(5, self._items), -1).indices.cpu().numpy()
        path = places_picture.draw(sequences, rows, five, directory / "map.png")
        return [Artifact(path, "image", "the last places of four sequences, the next, and the five expected")]


def _shifted(seen: Seen) -> tuple[Tensor, ...]:
    """All tokens but the last as input, then times, items (-1 where none) and profiles of the token after each."""
    before = Seen(*(x[:, :-1] for x in seen))
    items = torch.where(seen.mask[:, 1:], seen.marks[:, 1:], -1)
    return (*before, seen.times[:, 1:], items, seen.profiles[:, 1:])


def _before_last(sequences: Sequences) -> np.ndarray:
    mask = np.ones(len(sequences.times), dtype=bool)
    mask[sequences.offsets[1:][sequences.lengths > 0] - 1] = False
    return mask


__all__ = ["CONTESTANTS", "NextItem"]
