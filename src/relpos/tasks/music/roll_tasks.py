"""Piano-roll tasks: the next tick of all tracks, or the other tracks to a given one.

**The network** reads a frame of bits a tick and writes one; positions are the tick and the labels of structure at that
tick. It is causal: what is written at tick t has seen the frames up to t (the next-step task writes tick t + 1). All
scores are teacher-forced: the past that the network sees is the real one. Nothing here is generated; for that see
``relpos music``.

**Labels.** ``labels="honest"`` takes only levels that somebody has before the music is there: the form, the bar and
beat, the phrase, the melody where it is given, and chords guessed from that melody. ``labels="oracle"`` takes the
levels as the data has them, also those that were computed from what is to be predicted (chords read off the
accompaniment): then the task is to play a given chart, and its table must stand apart.

**The evaluation rule.** Pieces are cut from their beginning into windows of the longest length, end to end; what is
left at the end is not used. A shorter context is the same window in parts, each read without what came before. So every
length scores the same ticks. Loss is the cross-entropy of a tick's bits, summed over the frame, in nats.

**Binarisation** for the metrics: one threshold a model, the one of `THRESHOLDS` with the best F1 of cells on the
validation split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.levels import SIZES
from relpos.tasks.base import Artifact, Evaluation, Progress
from relpos.tasks.music import judging
from relpos.tasks.music.frames import Frames, Place, places, stacked, stacked_labels
from relpos.tasks.music.guess import guessed_chords
from relpos.tasks.music.song import Song
from relpos.tasks.music.structure_options import structure_options

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
ORDER = ("melody", "chord", "section", "phrase", "tempo", "beat", "bar")  # levels, as far as a song has them
_TICKS_A_BATCH = 4096
_MODEL = {"dim": 96, "depth": 2, "heads": 4}
_PAPERS = ("nope", "sinusoidal", "shaw", "structure_ape", "structure_rpe", "non_stationary_rpe", "fstripe")
_OTHERS = (
    "structure_ape[encoding.kind=learned]",
    "structure_rpe[encoding.kind=learned]",
    'structure_ape[encoding.levels=["bar","beat"]]',  # like SymphonyNet: codes of the bar and of the place in it
    'structure_rpe[encoding.levels=["melody","beat","bar"]]',  # like RIPO: differences of pitch and onset
    "same_label",
    "rope_pool",
)
Batch = tuple[Tensor, ...]
SPLITS = ("train", "validation", "test")


class RollTask:
    """Base of the piano-roll tasks; see the module for the rules. Subclasses say what is read and what is written.

    data     "chorales", "pop909" (with path), "toy", or a folder of MIDI files; see `relpos.tasks.music.sets`
    path     where the data lies, for sets that are not in a package
    ticks    of a quarter note
    labels   "honest" or "oracle", see the module
    quarters of a training window; it is evaluated at `multiples` of that
    songs    songs and their split, in place of the data set
    """

    name: str = ""
    title: str = ""
    unit = "nats a tick"
    metrics = judging.METRICS
    multiples: tuple[int, ...] = (1, 2)
    ahead: int = 0  # how many ticks later the frame is that a tick predicts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0,), "steps": 500, "batch": 16, "rates": (2e-3,), "budget": 9.0, "model": _MODEL,
            "encodings": _PAPERS,
        },
        "results": {
            "seeds": (0, 1, 2), "steps": 1000, "batch": 16, "rates": (1e-3, 3e-3), "sweep_steps": 150, "budget": None,
            "model": _MODEL, "encodings": (*_PAPERS, *_OTHERS),
        },
    }  # fmt: skip

    def __init__(
        self,
        data: str = "chorales",
        path: str | None = None,
        ticks: int = 4,
        labels: str = "honest",
        quarters: int = 16,
        songs: Any = None,
    ) -> None:
        if labels not in ("honest", "oracle"):
            raise ValueError(f'labels is "honest" or "oracle", got {labels!r}')
        if min(ticks, quarters) < 1:
            raise ValueError(f"ticks and quarters are at least 1, got {ticks} and {quarters}")
        self.data, self.path, self.ticks, self.labels, self.quarters = data, path, ticks, labels, quarters
        self.train_length = ticks * quarters
        if labels == "oracle":  # every report of such a run opens with it
            self.title = f"{type(self).title} [ORACLE LABELS: some were computed from what is predicted]"
        self._given = songs
        self._loaded: judging.Prepared | None = None

    # ---- what a subclass says

    def read(self, songs: Sequence[Song]) -> tuple[int, ...]:
        """The tracks of a frame that is read."""
        raise NotImplementedError

    def written(self, songs: Sequence[Song]) -> tuple[int, ...]:
        """The tracks of a frame that is written."""
        raise NotImplementedError

    def honest(self, song: Song) -> Song:
        """The song without the levels that were computed from what is to be predicted."""
        return replace(song, levels={name: level for name, level in song.levels.items() if not level.from_target})

    # ---- data

    def prepare(self, progress: Progress | None = None) -> None:
        """Reads the songs once and caches them; see `relpos.tasks.music.sets`."""
        if self._loaded is not None:
            return
        found = self._given
        if found is None:
            from relpos.tasks.music import sets

            where = {} if self.path is None else {"path": self.path}
            found = sets.load(self.data, ticks=self.ticks, progress=progress, **where)
        self._loaded = self._prepared(found)

    def _prepared(self, found: Any) -> judging.Prepared:
        songs = list(found.songs)
        tracks = {len(song.tracks) for song in songs}
        if len(tracks) > 1:
            raise ValueError(
                f"the songs have {min(tracks)} to {max(tracks)} tracks; this task takes songs of equally many"
            )
        if self.labels == "honest":
            songs = [self.honest(song) for song in songs]
        train = [songs[i] for i in found.split["train"]]
        read, written = Frames.fitting(train, self.read(songs)), Frames.fitting(train, self.written(songs))
        longest = self.train_length * max(self.multiples)
        windows = {side: places(songs, found.split[side], longest, self.ahead) for side in ("validation", "test")}
        windows["train"] = places(songs, found.split["train"], self.train_length, self.ahead, self.ticks)
        for side, at in windows.items():
            if not at:
                raise ValueError(f"no {side} song is longer than {longest} ticks; give fewer quarters or longer songs")
        return judging.Prepared(songs, found.split, windows, read, written, str(found.source), self.ahead, self.ticks)

    @property
    def prepared(self) -> judging.Prepared:
        self.prepare()
        assert self._loaded is not None
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        """Without songs that can be loaded again."""
        return {**self.__dict__, "_loaded": None}

    @property
    def source(self) -> str:
        return self.prepared.source

    def levels(self) -> dict[str, str]:
        """The levels that networks are told, by name, with where they come from; in the order in which they matter."""
        songs = self.prepared.songs
        first = songs[0].levels
        return {name: first[name].source for name in ORDER if all(name in song.levels for song in songs)}

    def describe(self) -> dict[str, object]:
        data = self.prepared
        late = [name for name in self.levels() if any(song.levels[name].from_target for song in data.songs)]
        return {
            "task": self.name,
            "source": self.source,
            "songs": len(data.songs),
            "splits": {
                side: {"songs": len(data.split[side]), "windows": len(data.windows[side])} for side in SPLITS
            },
            "ticks a quarter": self.ticks,
            "labels": self.labels,
            "levels": self.levels(),
            "LEAKS": f"computed from what is predicted: {', '.join(late)}" if late else "no level is",
            "a frame read": self._bits(data.read),
            "a frame written": self._bits(data.written),
            "train_length": self.train_length,
            "lengths": [m * self.train_length for m in self.multiples],
            "scores": "teacher-forced; one threshold a model, chosen on the validation split",
        }  # fmt: skip

    def _bits(self, frames: Frames) -> str:
        names = ", ".join(self.prepared.songs[0].tracks[t] for t in frames.tracks)
        return f"{frames.width} bits: {names}, pitches {frames.low} to {frames.high}"

    # ---- training

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """``relpos.models.FrameTransformer``, its output at the frequency of each pitch; levels are filled in."""
        from relpos.models import FrameTransformer

        data = self.prepared
        arguments: dict[str, Any] = {"dim": 96, "depth": 2, "heads": 4, "dropout": 0.1, "expansion": 2, **options}
        given = dict(arguments.pop("encoding_options", None) or {})
        own = structure_options(
            encoding, self._sizes(), self.train_length, self.train_length * max(self.multiples), given
        )
        return FrameTransformer(
            data.read.width, data.written.width, encoding=encoding, encoding_options=own,
            prior=torch.from_numpy(data.log_odds()), **arguments,
        )  # fmt: skip

    def _sizes(self) -> dict[str, int]:
        """How many labels each level has, at least as many as in the papers' tables."""
        songs = self.prepared.songs
        return {
            name: max(SIZES.get(name, 1), 1 + max(int(song.levels[name].values.max()) for song in songs if song.ticks))
            for name in self.levels()
        }

    def batch(self, step: int, seed: int, size: int) -> Batch:
        """Frames read (size, n, width), frames written, and one (size, n) of labels a level; a pure function of its
        arguments. Windows begin at any quarter."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        at = self.prepared.windows["train"]
        chosen = np.random.default_rng([seed, step]).integers(len(at), size=size)
        return self._tensors([at[i] for i in chosen])

    def _tensors(self, at: Sequence[Place]) -> Batch:
        data, levels = self.prepared, list(self.levels())
        read = stacked(data.songs, data.read, at)
        written = stacked(data.songs, data.written, at, self.ahead)
        labels = stacked_labels(data.songs, levels, at)
        return tuple(torch.from_numpy(x) for x in (read, written, *(labels[name] for name in levels)))

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        frames, _, *labels = batch
        index = torch.arange(frames.shape[1], device=frames.device)
        logits: Tensor = model(frames, positions={"index": index, **dict(zip(self.levels(), labels, strict=True))})
        return logits.float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats a tick."""
        return _nats(self._logits(model, batch), batch[1]).mean()

    # ---- judging

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss by the rule of the module; on the test split the metrics too."""
        at = self._parts(split, length)
        nats, probability = self._predicted(model, at, progress, f"{split}, {length} ticks")
        by_position = nats.mean(0)
        if split != "test":
            return Evaluation(length, float(nats.mean()), by_position, nats.size)
        held = self._parts("validation", length)
        threshold = judging.best_threshold(self._predicted(model, held)[1], self.prepared.targets(held), THRESHOLDS)
        metrics = self.prepared.judge(probability > threshold, at, float(nats.mean()))
        return Evaluation(length, float(nats.mean()), by_position, nats.size, metrics)

    def _parts(self, split: str, length: int) -> list[Place]:
        if split not in ("validation", "test"):
            raise ValueError(f"unknown split {split!r}: choose validation or test")
        longest = self.train_length * max(self.multiples)
        if length < 1 or longest % length:
            raise ValueError(f"length must divide {longest}, so that every length scores the same ticks; got {length}")
        return [part for place in self.prepared.windows[split] for part in place.parts(length)]

    @torch.inference_mode()
    def _predicted(
        self, model: nn.Module, at: Sequence[Place], progress: Progress | None = None, text: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nats (places, n) and probabilities (places, n, width), float32; the model's mode is kept."""
        device = next(model.parameters()).device
        size = max(1, _TICKS_A_BATCH // at[0].length)
        nats, probability = [], []
        training = model.training
        model.eval()
        try:
            for first in range(0, len(at), size):
                batch = tuple(x.to(device) for x in self._tensors(at[first : first + size]))
                logits = self._logits(model, batch)
                nats.append(_nats(logits, batch[1]).double().cpu().numpy())
                probability.append(logits.sigmoid().cpu().numpy())
                if progress is not None:
                    progress(min(first + size, len(at)), len(at), text)
        finally:
            model.train(training)
        return np.concatenate(nats), np.concatenate(probability)

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Trivial predictors on the very ticks that `evaluate` scores; see `relpos.tasks.music.baselines`."""
        return self.prepared.baselines(self._parts(split, length))

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """A test window: what is right, and what the network expects at every tick, teacher-forced, as pictures."""
        at = self._parts("test", self.train_length)[:1]
        _, probability = self._predicted(model, at)
        return judging.pictures(self.prepared, at[0], probability[0], Path(directory))


def _nats(logits: Tensor, written: Tensor) -> Tensor:
    """(batch, n): the cross-entropy of a tick's bits, summed over the frame."""
    cells = nn.functional.binary_cross_entropy_with_logits(logits, written.to(logits.dtype), reduction="none")
    return cells.sum(-1)


class NextStep(RollTask):
    """The next tick of all tracks, from all tracks up to now. Honest labels know the melody up to now only: levels that
    were computed from more of it are left out, and chords are those that the half bar before suggests."""

    name = "next-step"
    title = "Music: predict the next tick of every track (piano-roll), with labels of structure"
    ahead = 1

    def read(self, songs: Sequence[Song]) -> tuple[int, ...]:
        return tuple(range(len(songs[0].tracks)))

    written = read

    def honest(self, song: Song) -> Song:
        given = super().honest(song)
        known = {name: level for name, level in given.levels.items() if not level.from_melody}
        if "section" not in known and "phrase" in known:  # which phrase this is, where its letter would tell too much
            known["section"] = known["phrase"]
        return _guessing(replace(given, levels=known), late=1)


class Accompaniment(RollTask):
    """The other tracks to a given one, tick by tick. Honest chords are those that the melody suggests.

    given: names of the tracks that are there, separated by +; the first track where nothing is said.
    """

    name = "accompaniment"
    title = "Music: the other parts to a given melody (piano-roll), with labels of structure"

    def __init__(self, given: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.given = given

    def read(self, songs: Sequence[Song]) -> tuple[int, ...]:
        names = [name.lower() for name in songs[0].tracks]
        if self.given is None:
            return (0,)
        wanted = [word.strip().lower() for word in self.given.split("+")]
        unknown = [word for word in wanted if word not in names]
        if unknown or len(set(wanted)) == len(names):
            raise ValueError(f"given names some of the tracks {', '.join(names)}, not all; got {self.given!r}")
        return tuple(names.index(word) for word in wanted)

    def written(self, songs: Sequence[Song]) -> tuple[int, ...]:
        read = self.read(songs)
        return tuple(track for track in range(len(songs[0].tracks)) if track not in read)

    def honest(self, song: Song) -> Song:
        return _guessing(super().honest(song))


def _guessing(song: Song, late: int = 0) -> Song:
    """The song with chords guessed from its melody, where it has none."""
    return song if "chord" in song.levels else replace(song, levels={**song.levels, **guessed_chords(song, late)})
