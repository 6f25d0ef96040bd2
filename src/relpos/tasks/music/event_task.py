"""Next-event prediction on music as tokens, within and beyond the training length.

**What is compared.** A network is trained on windows of ``train_length`` tokens (bars, positions, notes, lengths; see
`relpos.tasks.music.tokens`) and is evaluated with 1, 2 and 4 times that context, on the same tokens by the rule of
`relpos.tasks.windows`; the loss by position shows what becomes of it beyond the training length. Networks are told the
index of a token, its tick, its bar, the place in it and the labels of structure that are there beforehand. By default
attention is kernelised, for the claim that stochastic encoding keeps a linear model's loss where absolute codes lose it
(Liutkus et al. 2021, section 3).

**Style.** With ``style`` prompts above 0 each network also goes on from the first two bars of so many test pieces, to
the length in question, under the grammar of events (nothing invalid is written). The style is then how alike the
histograms of the continuation are to those of the real one: pairs of notes by interval and time, and onsets by length,
a mean over tracks and quarters of the time (the groove experiment of the same paper, its tick mix-up mended).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.music import events, midifile, sets
from relpos.tasks.music.grammar import State
from relpos.tasks.music.metrics.groove import style_similarity
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, Song
from relpos.tasks.music.structure_options import structure_options
from relpos.tasks.music.tokens import BAR, CUT, END, VOCABULARY
from relpos.tasks.ngram import Counts

STYLE = (
    Metric("time_pitch", "likeness of pairs of notes", format=".2f"),
    Metric("onset_duration", "likeness of onsets and lengths", format=".2f"),
)
CLOCK = ("bar", "beat")
LABELS = ("section", "phrase")
PROMPT_BARS = 2
TEMPERATURE, TOP_P = 0.9, 0.95
_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_JUDGED = ("validation", "test")
Batch = tuple[Tensor, ...]


class Tokens:
    """Music as events; see the module for the rules.

    data, path     a set of `relpos.tasks.music.sets`; train_length: tokens of context in training
    judged         windows of each split that models are judged on, at most
    style          prompts from which every network goes on, 0 for none
    songs          songs and their split, in place of the data set
    """

    name = "tokens"
    title = "Music as tokens: predict the next event within and beyond the training length, in linear attention"
    unit = "nats a token"
    multiples = (1, 2, 4)
    vocabulary = VOCABULARY
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0,), "steps": 1200, "batch": 16, "rates": (3e-3,), "budget": 12.0,
            "model": {"dim": 64, "depth": 2, "heads": 2, "mixer": "kernelized", "features": "relu"},
            "encodings": ("nope", "sinusoidal", "sine_spe", "conv_spe", "fstripe", "alibi"),
        },
        "results": {
            "seeds": (0, 1), "steps": 3000, "batch": 16, "rates": (3e-3,), "budget": None,
            "model": {"dim": 64, "depth": 2, "heads": 2, "mixer": "kernelized", "features": "relu"},
            "encodings": ("nope", "sinusoidal", "learned", "sine_spe", "conv_spe", "fstripe", "alibi"),
            "task_options": {"style": 6},
        },
    }  # fmt: skip

    def __init__(
        self,
        data: str = "chorales",
        path: str | None = None,
        train_length: int = 160,
        judged: int = 48,
        style: int = 0,
        songs: Any = None,
    ) -> None:
        if train_length < 2 or judged < 1 or style < 0:
            raise ValueError(f"train_length >= 2, judged >= 1, style >= 0; got {train_length}, {judged}, {style}")
        self.data, self.path, self.train_length, self.judged, self.style = data, path, train_length, judged, style
        self.metrics = STYLE if style else ()
        self._given = songs
        self._songs: sets.Songs | None = None
        self._rows: dict[int, dict[str, np.ndarray]] = {}
        self._starts: np.ndarray | None = None
        self._counts: dict[str, tuple[Counts, float]] = {}

    # ---- data

    def prepare(self, progress: Progress | None = None) -> None:
        if self._songs is None:
            where: dict[str, Any] = {} if self.path is None else {"path": self.path}
            found = self._given or sets.load(self.data, progress=progress, **where)
            for side in ("train", "validation", "test"):
                if not len(found.split[side]):
                    raise ValueError(f"{found.source}: too few pieces, {side} would be empty")
            self._songs = found

    @property
    def songs(self) -> sets.Songs:
        self.prepare()
        assert self._songs is not None
        return self._songs

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be read again."""
        return {**self.__dict__, "_songs": None, "_rows": {}, "_starts": None, "_counts": {}}

    @property
    def source(self) -> str:
        return self.songs.source

    def levels(self) -> list[str]:
        """What a network is told of a token beside its index and tick."""
        honest = set(self.songs.levels) - set(self.songs.from_target)
        first = self.songs.songs[0].levels
        return [*CLOCK, *(name for name in LABELS if name in honest and not first[name].from_melody)]

    def row(self, index: int) -> dict[str, np.ndarray]:
        """A song's "tokens", "time" and levels, each (n,) int64."""
        if index not in self._rows:
            song = self.songs.songs[index]
            tokens = events.encode(song)
            clock = events.clock(tokens, song, song.ticks_per_quarter)
            self._rows[index] = {"tokens": tokens} | {name: clock[name] for name in ("time", *self.levels())}
        return self._rows[index]

    def describe(self) -> dict[str, object]:
        sides = {}
        for side, members in self.songs.split.items():
            rows = [len(self.row(int(i))["tokens"]) for i in members]
            sides[side] = {"songs": len(rows), "tokens": sum(rows), "median tokens": int(np.median(rows))}
        return {
            "task": self.name,
            "source": self.source,
            "splits": sides,
            "scored tokens": {side: len(self._parts(side, self.longest)) * self.longest for side in _JUDGED},
            "vocabulary": self.vocabulary,
            "levels": self.levels(),
            "train_length": self.train_length,
            "lengths": [m * self.train_length for m in self.multiples],
            "style prompts": self.style,
        }  # fmt: skip

    @property
    def longest(self) -> int:
        return self.train_length * max(self.multiples)

    # ---- training

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """`relpos.models.Transformer`, causal; options go to it. Levels and lengths are filled in."""
        from relpos.models import Transformer

        arguments: dict[str, Any] = {"dim": 64, "depth": 2, "heads": 2, "embedding_scale": 50.0, **options}
        given = dict(arguments.pop("encoding_options", None) or {})
        rows = [self.row(int(i)) for i in self.songs.split["train"]]
        sizes = {name: 1 + max(int(row[name].max()) for row in rows) for name in self.levels()}
        own = structure_options(encoding, sizes, self.train_length, self.longest, given)
        return Transformer(self.vocabulary, encoding=encoding, encoding_options=own, **arguments)

    def batch(self, step: int, seed: int, size: int) -> Batch:
        """tokens (size, train_length + 1), then tick and levels (size, train_length) of what is read: a pure function
        of its arguments. A window may begin at any token."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        if self._starts is None:
            self._starts = np.array([
                (int(i), start) for i in self.songs.split["train"]
                for start in range(max(len(self.row(int(i))["tokens"]) - self.train_length, 0))
            ])  # fmt: skip
            if not len(self._starts):
                raise ValueError(f"no training piece has more than {self.train_length} tokens; give a shorter length")
        chosen = self._starts[np.random.default_rng([seed, step]).integers(len(self._starts), size=size)]
        return self._tensors([(index, start) for index, start in chosen.tolist()], self.train_length)

    def _tensors(self, at: Sequence[tuple[int, int]], length: int) -> Batch:
        found = []
        for name in ("tokens", "time", *self.levels()):
            more = 1 if name == "tokens" else 0
            rows = [self.row(index)[name][start : start + length + more] for index, start in at]
            found.append(torch.from_numpy(np.stack(rows)))
        return tuple(found)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens, time, *labels = batch
        index = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        named = {"index": index, "time": time.double(), **dict(zip(self.levels(), labels, strict=True))}
        logits: Tensor = model(tokens[:, :-1], positions=named)
        return logits.float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats a token."""
        return nn.functional.cross_entropy(self._logits(model, batch).flatten(0, 1), batch[0][:, 1:].flatten())

    # ---- judging

    def _parts(self, split: str, length: int) -> list[tuple[int, int]]:
        """Song and first token of every part: windows of the longest context from the beginning of each piece, cut."""
        if split not in self.songs.split:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self.songs.split)}")
        if length < 1 or self.longest % length:
            raise ValueError(f"length must divide {self.longest}, so that every length scores the same; got {length}")
        found = [
            (int(index), start)
            for index in self.songs.split[split]
            for start in range(0, len(self.row(int(index))["tokens"]) - self.longest, self.longest)
        ]
        if not found:
            raise ValueError(f"no piece of {split!r} has more than {self.longest} tokens; give a shorter train_length")
        chosen = np.unique(np.linspace(0, len(found) - 1, min(self.judged, len(found))).round().astype(np.int64))
        whole = [found[i] for i in chosen]
        return [(index, start) for index, first in whole for start in range(first, first + self.longest, length)]

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss with ``length`` tokens of context, by the rule of the module; on the test split the style, if asked."""
        at, device = self._parts(split, length), next(model.parameters()).device
        size, nats = max(1, 8192 // length), []
        training = model.training
        model.eval()
        try:
            for first in range(0, len(at), size):
                batch = tuple(x.to(device) for x in self._tensors(at[first : first + size], length))
                logits = self._logits(model, batch).transpose(1, 2)
                each = nn.functional.cross_entropy(logits, batch[0][:, 1:], reduction="none")
                nats.append(each.double().cpu().numpy())
                if progress is not None:
                    progress(min(first + size, len(at)), len(at), f"{split}, {length} tokens")
            found = np.concatenate(nats)
            metrics = self._style(model, length, progress) if self.style and split == "test" else {}
        finally:
            model.train(training)
        return Evaluation(length, float(found.mean()), found.mean(0), found.size, metrics)

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Counted predictors on exactly the tokens that `evaluate` scores."""
        rows = self._tensors(self._parts(split, length), length)[0].numpy()
        found = {"uniform": {"loss": math.log(self.vocabulary)}}
        for name in ("unigram", "bigram"):
            counts, strength = self._fitted(name)
            found[name] = {"loss": float(counts.loss(_contexts(rows, name), rows[:, 1:], strength).mean())}
        return found

    def _fitted(self, name: str) -> tuple[Counts, float]:
        if name not in self._counts:
            counts = Counts(self.vocabulary, (1, self.vocabulary)[: 1 if name == "unigram" else 2])
            for index in self.songs.split["train"]:
                row = self.row(int(index))["tokens"][None]
                counts.add(_contexts(row, name), row[:, 1:])
            held = self._tensors(self._parts("validation", self.longest), self.longest)[0].numpy()
            contexts = _contexts(held, name)
            best = min(_STRENGTHS, key=lambda m: float(counts.loss(contexts, held[:, 1:], m).mean()))
            self._counts[name] = counts, best
        return self._counts[name]

    # ---- continuations

    def prompts(self) -> list[tuple[Song, np.ndarray]]:
        """Test songs that are long enough, and the tokens of their first bars."""
        found = []
        for index in self.songs.split["test"].tolist():
            tokens = self.row(index)["tokens"]
            bars = np.flatnonzero((tokens >= BAR) & (tokens < CUT))
            if len(bars) > PROMPT_BARS and len(tokens) > self.longest:
                found.append((self.songs.songs[index], tokens[: bars[PROMPT_BARS]]))
        if not found:
            raise ValueError("no test piece is long enough for a continuation; give a shorter train_length")
        return found[: max(self.style, 1)]

    def _style(self, model: nn.Module, length: int, progress: Progress | None) -> dict[str, float]:
        scores: dict[str, list[float]] = {metric.name: [] for metric in STYLE}
        prompts = self.prompts()
        for done, (song, prompt) in enumerate(prompts):
            if progress is not None:
                progress(done, len(prompts), f"continuations to {length} tokens")
            made = self.continued(model, song, prompt, length, seed=done)
            for name, values in _likeness(made, song, prompt).items():
                scores[name] += values
        return {name: float(np.mean(values)) if values else 0.0 for name, values in scores.items()}

    @torch.inference_mode()
    def continued(self, model: Any, song: Song, prompt: np.ndarray, length: int, seed: int) -> Song:
        """The prompt and what the network writes after it, to ``length`` tokens, under the grammar of events."""
        generator = torch.Generator().manual_seed(seed)
        state, streams, device = State(song.ticks_per_quarter), model.streams(), next(model.parameters()).device
        row = prompt.tolist()
        for token in row:
            state.advance(token)
        fed = 0
        while len(row) < max(length, len(prompt) + 1) or state.last in ("POSITION", "TRACK", "PITCH", "DRUM", "LONG"):
            chunk = torch.tensor([row[fed:]], device=device)
            logits = model(chunk, positions=self._named(row, fed, song, device), streams=streams)[0, -1].float().cpu()
            fed = len(row)
            allowed = torch.from_numpy(state.allowed())
            allowed[END] = False
            row.append(_drawn(logits.masked_fill(~allowed, -torch.inf), generator))
            state.advance(row[-1])
        return events.song_of(state, song)

    def _named(self, row: list[int], fed: int, song: Song, device: torch.device) -> dict[str, Tensor]:
        clock = events.clock(np.array(row), song, song.ticks_per_quarter)
        named = {name: torch.from_numpy(clock[name][fed:]).to(device) for name in ("index", "time", *self.levels())}
        return {**named, "time": named["time"].double()}

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Goes on from the first bars of a test piece; writes that and the piece as MIDI."""
        song, prompt = self.prompts()[0]
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        made = self.continued(model, song, prompt, self.longest, seed)
        real = events.decode(self._bars(song), song.ticks_per_quarter, like=song)
        found = []
        for name, each, title in (("continued", made, "the network goes on"), ("real", real, "the piece itself")):
            path = directory / f"{name}.mid"
            midifile.write(path, each)
            found.append(Artifact(path, "midi", f"{song.name}: {title}"))
        return found

    def _bars(self, song: Song) -> np.ndarray:
        """The whole bars among a song's first ``longest`` tokens."""
        tokens = events.encode(song)[: self.longest]
        bars = np.flatnonzero((tokens >= BAR) & (tokens < CUT))
        return tokens[: bars[-1]]


def _contexts(rows: np.ndarray, name: str) -> list[np.ndarray]:
    nothing = np.zeros_like(rows[:, 1:])
    return [nothing] if name == "unigram" else [nothing, rows[:, :-1]]


def _drawn(logits: Tensor, generator: torch.Generator) -> int:
    p = (logits / TEMPERATURE).softmax(-1)
    ordered, order = p.sort(descending=True, stable=True)
    kept = ordered.masked_fill(ordered.cumsum(-1) - ordered >= TOP_P, 0)
    return int(order[int(torch.multinomial(kept, 1, generator=generator))])


def _likeness(made: Song, song: Song, prompt: np.ndarray) -> dict[str, list[float]]:
    """Similarities of what follows the prompt to what follows it in the piece, a number a track and quarter."""
    state = State(song.ticks_per_quarter)
    for token in prompt.tolist():
        state.advance(token)
    start = state.bars[-1].stop
    stop = max(made.ticks, start + 1)
    scores: dict[str, list[float]] = {metric.name: [] for metric in STYLE}
    names = {"time-pitch": "time_pitch", "onset-duration": "onset_duration"}
    for track in range(len(song.tracks)):
        parts = []
        for each in (made, song):
            own = each.notes[(each.notes[:, TRACK] == track) & (each.notes[:, ONSET] >= start)]
            parts.append(own[:, [ONSET, PITCH, LENGTH]] - [start, 0, 0])
        if not len(parts[1]) or track in song.drums:
            continue
        found = style_similarity(parts[0], parts[1], song.ticks_per_quarter, ticks=stop - start)
        for name, key in names.items():
            scores[key] += [0.0 if np.isnan(value) else float(value) for value in found[name]]
    return scores
