"""Next-event prediction on songs of one to four parts: what the network that composes is trained on.

A window is a run of events that begins with a bar (see `tokens`; the lead is the highest part). The network reads the
distance of two events both in events and in ticks, so that what sounds together and what lies a bar apart is said by
the encoding and need not be counted. For training, a piece is moved into other keys in which each part stays where the
parts of the training music lie, and now and then neighbouring parts are joined, so that the network knows four voices
in four tracks as well as one track for two hands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos.positions import Grid
from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.music import events, sets
from relpos.tasks.music.arrange import PARTS, view
from relpos.tasks.music.guide import LEAD
from relpos.tasks.music.song import PITCH, TRACK, Song
from relpos.tasks.music.tokens import BAR, BEGIN, CUT, DRUM, PAD, STARTS, VOCABULARY
from relpos.tasks.music.tokens import PITCH as FIRST_PITCH
from relpos.tasks.ngram import Counts

JOINED = 0.3  # share of the training windows in which parts are joined
_LOWEST_SHIFT, _HIGHEST_SHIFT = -5, 6
_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Size:
    """Of the network, and of what it reads at once."""

    dim: int = 128
    depth: int = 3
    heads: int = 4
    context: int = 384
    dropout: float = 0.0


@dataclass(frozen=True)
class Row:
    """A piece as events: tokens, their ticks, and where its bars begin among them."""

    tokens: np.ndarray
    times: np.ndarray
    bars: np.ndarray


class Composer:
    """The task of a composing network; ``songs`` are any pieces on one grid of 4 ticks a quarter.

    split: places of the songs in "train", "validation" and "test"; made by `sets.split_by_group` where none is given.
    The loss is in nats an event. ValueError where a side would be empty.
    """

    name = "composer"
    title = "Music in parts: predict the next event, in any key"
    unit = "nats an event"
    metrics: tuple[Metric, ...] = ()
    multiples = (1,)

    def __init__(
        self,
        songs: Sequence[Song],
        size: Size | None = None,
        source: str = "songs given",
        split: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.size, self.source = size or Size(), source
        self.train_length = self.size.context
        self.songs = [view(song).song for song in songs]
        self.split = dict(split or sets.split_by_group(songs))
        empty = [side for side in ("train", "validation", "test") if not len(self.split[side])]
        if empty:
            raise ValueError(f"{len(songs)} songs are too few: {' and '.join(empty)} would be empty; give 3 or more")
        self._rows: dict[tuple[int, tuple[int, ...]], Row] = {}
        self._ranges: np.ndarray | None = None
        self._weights: np.ndarray | None = None

    def prepare(self, progress: Progress | None = None) -> None:
        """Writes every piece as events once."""
        for done, index in enumerate(range(len(self.songs)), start=1):
            self.row(index)
            if progress is not None:
                progress(done, len(self.songs), self.songs[index].name)

    def describe(self) -> dict[str, object]:
        sides = {side: {"songs": len(members)} for side, members in self.split.items()}
        return {"task": self.name, "source": self.source, "songs": len(self.songs), "splits": sides}

    def model(self, encoding: str = "axial_rope", **options: Any) -> nn.Module:
        """The network; ``encoding`` is one that takes a grid of (event, tick)."""
        return self.network(self.size, encoding, **options)

    @staticmethod
    def network(size: Size, encoding: str = "axial_rope", **options: Any) -> nn.Module:
        """A fresh network of a size."""
        from relpos.models import Transformer

        sizes: dict[str, Any] = {"dim": size.dim, "depth": size.depth, "heads": size.heads, "dropout": size.dropout}
        return Transformer(VOCABULARY, encoding=encoding, causal=True, **(sizes | options))

    # -- rows

    def row(self, index: int, joined: tuple[int, ...] | None = None) -> Row:
        """The piece as events. joined: part by part, which part it becomes."""
        song = self.songs[index]
        joined = joined or tuple(range(len(song.tracks)))
        if (index, joined) not in self._rows:
            if joined != tuple(range(len(song.tracks))):
                notes = song.notes.copy()
                notes[:, TRACK] = np.array(joined)[notes[:, TRACK]]
                song = replace(song, notes=notes, tracks=song.tracks[: max(joined) + 1])
            tokens = events.encode(song, LEAD)
            times = events.clock(tokens, None, song.ticks_per_quarter)["time"]
            bars = np.flatnonzero((tokens >= BAR) & (tokens < CUT))
            self._rows[index, joined] = Row(tokens, times, bars)
        return self._rows[index, joined]

    def shifts(self, index: int) -> tuple[int, int]:
        """Least and greatest transposition that keeps each part where such parts of the training music lie."""
        if self._ranges is None:
            ranges = np.full((PARTS + 1, PARTS, 2), [127, 0])
            for i in self.split["train"]:
                count = len(self.songs[i].tracks)
                for part, (low, high) in enumerate(self._extent(i)):
                    ranges[count, part] = min(ranges[count, part, 0], low), max(ranges[count, part, 1], high)
            self._ranges = ranges
        down, up = _LOWEST_SHIFT, _HIGHEST_SHIFT
        for (low, high), (bottom, top) in zip(self._extent(index), self._ranges[len(self.songs[index].tracks)]):
            down, up = max(down, int(bottom) - low), min(up, int(top) - high)
        return min(down, 0), max(up, 0)

    def _extent(self, index: int) -> list[tuple[int, int]]:
        notes = self.songs[index].notes
        parts = [notes[notes[:, TRACK] == part, PITCH] for part in range(len(self.songs[index].tracks))]
        return [(int(own.min()), int(own.max())) for own in parts]

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, Tensor]:
        """tokens (size, context + 1) and their places (size, context + 1, 2): event and tick since the first.

        A pure function of its arguments. A window begins with a bar that leaves it full, or is the end of a piece.
        """
        draw = np.random.default_rng([seed, step])
        train = self.split["train"]
        if self._weights is None:
            lengths = np.array([self.songs[i].ticks for i in train], dtype=np.float64)
            self._weights = lengths / lengths.sum()
        rows = [self._drawn(int(train[i]), draw) for i in draw.choice(len(train), size, p=self._weights)]
        return self._stacked(rows)

    def _drawn(self, index: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        parts, joined = len(self.songs[index].tracks), None
        if parts > 1 and draw.random() < JOINED:
            cuts = draw.random(parts - 1) < 0.5
            joined = (0, *np.cumsum(cuts).tolist())
        row = self.row(index, joined)
        n = self.train_length + 1
        starts = np.concatenate([[0], row.bars[1:]]) if len(row.bars) else np.zeros(1, dtype=np.int64)
        full = starts[starts + n <= len(row.tokens)]
        start = int(draw.choice(starts[: len(full) + 1]))
        low, high = self.shifts(index)
        shift = int(draw.integers(low, high + 1))
        tokens = row.tokens[start : start + n]
        pitched = (tokens >= FIRST_PITCH) & (tokens < DRUM)
        return np.where(pitched, tokens + shift, tokens), row.times[start : start + n]

    def _stacked(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
        n = self.train_length + 1
        tokens = np.full((len(rows), n), PAD, dtype=np.int64)
        places = np.zeros((len(rows), n, 2), dtype=np.int64)
        places[:, :, 0] = np.arange(n)
        for i, (row, times) in enumerate(rows):
            tokens[i, : len(row)] = row
            places[i, : len(row), 1] = times - times[0]
            places[i, len(row) :, 1] = times[-1] - times[0]
        return torch.from_numpy(tokens), torch.from_numpy(places)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of the events that are not padding."""
        tokens, places = batch
        logits = model(tokens[:, :-1], positions=Grid(places[:, :-1]))
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=PAD)

    # -- evaluation

    def windows(self, split: str) -> list[tuple[int, int, int, int]]:
        """(song, first event, first scored event, end) that score each event of the side but BEGIN once."""
        if split not in self.split:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self.split)}")
        found = []
        for index in self.split[split].tolist():
            row, start, scored = self.row(index), 0, 1
            while scored < len(row.tokens):
                end = min(start + self.train_length + 1, len(row.tokens))
                found.append((index, start, scored, end))
                scored = end
                later = row.bars[(row.bars > start) & (row.bars < end)]
                start = int(later[len(later) // 2]) if len(later) else end - 1
        return found

    @torch.inference_mode()
    def nats(self, model: nn.Module, split: str, progress: Progress | None = None) -> list[np.ndarray]:
        """Of every event of the side but BEGIN, song by song; each is read after half a context or more of its song."""
        spans, size = self.windows(split), 16
        found: dict[int, list[np.ndarray]] = {}
        training = model.training
        model.eval()
        device = next(model.parameters()).device
        try:
            for first in range(0, len(spans), size):
                chosen = spans[first : first + size]
                rows = [(self.row(i).tokens[a:e], self.row(i).times[a:e]) for i, a, _, e in chosen]
                tokens, places = (part.to(device) for part in self._stacked(rows))
                logits = model(tokens[:, :-1], positions=Grid(places[:, :-1])).float()
                nats = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").cpu()
                for (index, start, scored, end), values in zip(chosen, nats.numpy()):
                    found.setdefault(index, []).append(values[scored - start - 1 : end - start - 1])
                if progress is not None:
                    progress(min(first + size, len(spans)), len(spans), split)
        finally:
            model.train(training)
        return [np.concatenate(found[index]) for index in self.split[split].tolist()]

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Mean loss of the side's events; ``length`` is the training length, as there is no other."""
        if length != self.train_length:
            raise ValueError(f"the composing network is evaluated at {self.train_length} events, got {length}")
        nats = np.concatenate(self.nats(model, split, progress)).astype(np.float64)
        return Evaluation(length, float(nats.mean()), None, len(nats))

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Losses of counted predictors on the same events, over the training pieces in all their keys.

        "bigram": what follows the event before. "copy a bar": what stood in the bar before after the same kind of event
        at the same place of the same part, as often as training did the same; with the event before where it is not
        known. The strength of the smoothing is the best on the validation side.
        """
        result = {"uniform": {"loss": math.log(VOCABULARY)}}
        for name, contexts in (("bigram", _previous), ("copy a bar", _bar_before)):
            counts = Counts(VOCABULARY, (1, *(VOCABULARY for _ in range(1 + (name != "bigram")))))
            for index in self.split["train"].tolist():
                low, high = self.shifts(index)
                row = self.row(index).tokens
                for shift in range(low, high + 1):
                    pitched = (row >= FIRST_PITCH) & (row < DRUM)
                    tokens = np.where(pitched, row + shift, row)
                    counts.add(contexts(tokens), tokens[1:])

            def mean(side: str, strength: float, counts: Counts = counts, contexts: Any = contexts) -> float:
                rows = [self.row(index).tokens for index in self.split[side].tolist()]
                return float(np.concatenate([counts.loss(contexts(r), r[1:], strength) for r in rows]).mean())

            best = min(_STRENGTHS, key=lambda strength: mean("validation", strength))
            result[name] = {"loss": mean(split, best)}
        return result

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """None: `relpos.tasks.music.compose` is what writes music."""
        return []


def _previous(tokens: np.ndarray) -> list[np.ndarray]:
    return [np.zeros(len(tokens) - 1, dtype=np.int64), tokens[:-1]]


def _bar_before(tokens: np.ndarray) -> list[np.ndarray]:
    """Contexts of tokens[1:]: nothing, the event before, and the event that a copy of the bar before would write.

    Events are met by their place in the bar, their part and whether they belong to the lead, and the kind of the event
    before; -1 where the bar before has none such.
    """
    where = events.clock(tokens)
    kinds = np.searchsorted(STARTS, tokens, side="right")
    copies = np.full(len(tokens) - 1, -1, dtype=np.int64)
    seen: dict[tuple[int, int, int], int] = {}
    now: dict[tuple[int, int, int], int] = {}
    for i in range(len(tokens) - 1):
        if BAR <= tokens[i] < CUT or tokens[i] == BEGIN:
            seen, now = now, {}
        key = (int(where["beat"][i]), int(where["track"][i]), int(kinds[i]))
        copies[i] = seen.get(key, -1)
        now.setdefault(key, int(tokens[i + 1]))
    return [*_previous(tokens), copies]
