"""Next-token prediction on Bach's four-part chorales.

**What is compared.** A network is trained on windows of ``train_length`` = 128 tokens (8 quarters, two bars), and is
then evaluated with 1, 2 and 4 times that context. 128 is chosen so that every piece but the shortest (of 96 ticks)
holds a window of four times as many; of twice as long windows only a quarter of the pieces hold one.

**The evaluation rule.** Each piece of the split, led by its tick of START, is cut from its beginning into windows of
512 tokens that do not overlap; what is left at its end is not used. A window also knows the token that follows it. At
512, the network reads tokens 0..511 and is scored on tokens 1..512. At 256 and 128, the same window is cut into
parts, each is read without what came before, and each is scored on its tokens and the one that follows it. So the
scored tokens are the same ones at every length, only the context differs. START is never scored, no token is scored
twice, and every window begins with the soprano. A window begins one 16th before a beat, so the loss by position
ripples with the metre; means over 16 tokens (a quarter) or 64 (a bar of 4/4) take that out.

A piece's training windows begin at any tick, in any transposition that keeps each voice in its range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks import windows
from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.lengths import length_options
from relpos.tasks.music import collection, markov, roll
from relpos.tasks.music.piece import TICKS_PER_QUARTER, VOICES, Piece
from relpos.tasks.ngram import Counts

_VOICES = len(VOICES)
_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Settings:
    """Size of the network and of its training batches, and how continuations are drawn."""

    dim: int = 128
    depth: int = 4
    heads: int = 4
    expansion: int = 4
    dropout: float = 0.0
    batch_size: int = 8
    temperature: float = 0.9
    top_p: float = 0.95
    prompt_quarters: int = 8


class Chorales:
    """Bach's four-part chorales, one token a voice and 16th note; see the module for the rules of evaluation.

    settings: sizes; pieces: other four-part pieces to use in place of the chorales, for instance a user's own.
    """

    name = "chorales"
    title = "Bach chorales: predict the next note of four voices, train on two bars, read up to eight"
    unit = "nats a token"
    metrics: tuple[Metric, ...] = ()
    train_length = 128
    multiples = (1, 2, 4)
    vocabulary = roll.VOCABULARY

    def __init__(self, settings: Settings | None = None, pieces: Sequence[Piece] | None = None) -> None:
        self.settings = settings or Settings()
        self._collection = None if pieces is None else collection.Collection.of(pieces)
        self._windows: dict[str, np.ndarray] = {}
        self._counts: dict[str, tuple[Counts, float]] = {}
        self._starts: np.ndarray | None = None

    @property
    def source(self) -> str:
        version = collection.music21_version() or "not installed, read from the cache"
        return (
            f"J. S. Bach, four-part chorales from the corpus of the Python package music21 ({version}); the music is "
            "in the public domain, the encodings are distributed with music21 by permission of the encoders (see "
            "corpus/license.txt there)"
        )

    def prepare(self, progress: Progress | None = None) -> None:
        """Reads the scores once (half a minute on two cores) and caches them; returns at once after that."""
        if self._collection is None:
            self._collection = collection.Collection.of(collection.load(progress))

    @property
    def data(self) -> collection.Collection:
        """Pieces, tokens, groups and split; prepared at first use."""
        self.prepare()
        assert self._collection is not None
        return self._collection

    def describe(self) -> dict[str, object]:
        data = self.data
        sides = {
            side: {
                "pieces": len(members),
                "tunes": len(set(data.group[members].tolist())),
                "tokens": sum(_VOICES * data.pieces[i].ticks for i in members),
                "windows": len(self.windows(side)),
            }
            for side, members in data.split.items()
        }
        shifts = [len(data.shifts[i]) for i in data.split["train"]]
        return {
            "task": self.name,
            "source": self.source,
            "pieces": len(data.pieces),
            "tunes": int(data.group.max()) + 1,
            "quarters": sum(p.ticks for p in data.pieces) / TICKS_PER_QUARTER,
            "notes": sum(int(p.onset.sum()) for p in data.pieces),
            "splits": sides,
            "split rule": f"a tune's harmonisations on one side, 80/10/10 of the pieces, seed {collection.SPLIT_SEED}",
            "vocabulary": f"{self.vocabulary}: START, HOLD, REST, pitches {roll.LOWEST} to {roll.HIGHEST}",
            "order": "soprano, alto, tenor, bass of each 16th note in turn",
            "transposition in training": f"-5 to +6 semitones within the voices' ranges, {np.mean(shifts):.1f} a piece",
            "train_length": self.train_length,
            "lengths": [m * self.train_length for m in self.multiples],
            "baselines": dict(markov.MEANING),
        }

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """``relpos.models.Transformer`` of this task's size; options go to it and override the settings.

        What an encoding wants to know of lengths is filled in where ``encoding_options`` do not say it: see
        `relpos.tasks.lengths`.
        """
        from relpos.models import Transformer

        s = self.settings
        arguments: dict[str, Any] = {
            "dim": s.dim,
            "depth": s.depth,
            "heads": s.heads,
            "expansion": s.expansion,
            "dropout": s.dropout,
            "causal": True,
        } | options
        given = dict(arguments.pop("encoding_options", None) or {})
        known = length_options(encoding, self.train_length, self.train_length * max(self.multiples))
        return Transformer(self.vocabulary, encoding=encoding, encoding_options=known | given, **arguments)

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        """(size, train_length + 1) int64: tokens to read and, one further, to predict.

        A pure function of its arguments. Every start (any tick of any training piece) is equally likely, and so is
        each transposition that the piece allows.
        """
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        data, starts = self.data, self._training_starts()
        draw = np.random.default_rng([seed, step])
        rows = starts[draw.integers(len(starts), size=size)]
        parts = draw.random(size)
        batch = np.empty((size, self.train_length + 1), dtype=np.int64)
        for row, (piece, start), part in zip(batch, rows, parts, strict=True):
            shifts = data.shifts[piece]
            window = data.tokens[piece][start : start + self.train_length + 1]
            row[:] = roll.transpose(window, shifts[int(part * len(shifts))])
        return torch.from_numpy(batch)

    def _training_starts(self) -> np.ndarray:
        if self._starts is None:
            starts = [
                (piece, start)
                for piece in self.data.split["train"]
                for start in range(0, len(self.data.tokens[piece]) - self.train_length, _VOICES)
            ]
            if not starts:
                raise ValueError(f"no training piece is longer than {self.train_length} tokens: add longer pieces")
            self._starts = np.array(starts)
        return self._starts

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not START; batch (size, n + 1), scalar out."""
        logits = model(batch[:, :-1])
        return nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten(), ignore_index=roll.START
        )

    def windows(self, split: str) -> np.ndarray:
        """(windows, 513) int64: the evaluation windows of a split and the token after each, in order of pieces."""
        data = self.data
        if split not in data.split:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(data.split)}")
        if split not in self._windows:
            longest = self.train_length * max(self.multiples)
            rows = [
                data.tokens[piece][start : start + longest + 1]
                for piece in data.split[split]
                for start in range(0, len(data.tokens[piece]) - longest, longest)
            ]
            if not rows:
                raise ValueError(f"no piece of the split {split!r} is longer than {longest} tokens: add longer pieces")
            self._windows[split] = np.stack(rows)
        return self._windows[split]

    def _parts(self, split: str, length: int) -> np.ndarray:
        """(parts, length + 1): the windows cut for a context of ``length``."""
        return windows.cut(self.windows(split), length, _VOICES)

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss on a split with ``length`` tokens of context, by the rule of the module; the model's mode is kept."""
        parts = self._parts(split, length)
        loss, by_position, count = windows.losses(model, parts, roll.START, progress, f"{split}, {length} tokens")
        return Evaluation(length, loss, by_position, count)

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Losses of counted predictors on exactly the tokens that `evaluate` scores, seeing what it lets see.

        Counted over the training pieces in all their transpositions; the strength of the smoothing is the best on
        the validation split. ``relpos.tasks.music.markov.MEANING`` says what each looks at.
        """
        parts = self._parts(split, length)
        scored = parts[:, 1:] != roll.START
        result = {"uniform": {"loss": math.log(self.vocabulary)}}
        for name, (contexts, _) in markov.CONTEXTS.items():
            counts, strength = self._fitted(name)
            result[name] = {"loss": float(counts.loss(contexts(parts), parts[:, 1:], strength)[scored].mean())}
        return result

    def _fitted(self, name: str) -> tuple[Counts, float]:
        if name not in self._counts:
            contexts, sizes = markov.CONTEXTS[name]
            counts = Counts(self.vocabulary, sizes)
            for piece in self.data.split["train"]:
                shifts = np.array(self.data.shifts[piece])[:, None]
                tokens = roll.transpose(self.data.tokens[piece][None], shifts)
                keep = slice(_VOICES - 1, None)  # the START tick is context, not a target
                counts.add([c[:, keep] for c in contexts(tokens)], tokens[:, 1:][:, keep])
            held = self.windows("validation")
            scored = held[:, 1:] != roll.START
            seen = contexts(held)
            best = min(_STRENGTHS, key=lambda m: float(counts.loss(seen, held[:, 1:], m)[scored].mean()))
            self._counts[name] = counts, best
        return self._counts[name]

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Continues the beginning of a test piece, and writes that and the real continuation as MIDI and picture.

        The prompt is the same for every model; together they fill the longest length that is evaluated.
        """
        from relpos.tasks.music import gallery

        return gallery.continuation(self, model, Path(directory), seed)

    def prompt(self) -> tuple[Piece, np.ndarray]:
        """The test piece that `sample` continues, and the tokens of its first quarters with the START tick.

        The piece is the first in the split that is titled, in 4/4 and as long as the longest evaluation, else the
        first.
        """
        data, longest = self.data, self.train_length * max(self.multiples)
        test = [data.pieces[i] for i in data.split["test"]]
        fit = [p for p in test if p.title and (p.meter == (4, 4)).all() and p.ticks * _VOICES >= longest]
        piece = (fit or test)[0]
        ticks = 1 + self.settings.prompt_quarters * TICKS_PER_QUARTER
        return piece, roll.encode(piece)[: ticks * _VOICES]
