"""Echoes: the mark of the latest event of some age, and of the nearest one within reach: the showcase of relative time.

A sequence has 32 events. The gaps between them are drawn from a Gamma distribution of shape 0.5 and mean 1 h, so events
come in clusters and silences; each has one of 8 marks, and a place in a square of 20 km x 20 km around a town of the
sequence's own. Marks, gaps and places are independent of each other. Two questions are asked at every event:

* **In time.** What is the mark of the latest event that is at least 5 h old? Not asked where no event is that old.
* **In space.** What is the mark of the nearest earlier event? Asked only where that one is within 2 km.

Both answers stand in the sequence, so **the optimum is 1; chance is 1/8**. How many events back an answer stands is
chance. A clock gives the age, so an encoding of absolute time can learn the first question, for times such as it was
trained on: the same test is also taken with every clock put forward by 100 h, and the table says how many answers are
still right and by how much a probability has moved at most.

Clocks tick in buckets of 9 minutes and maps in buckets of 100 m: no bucket begins at 5 h.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding, positive
from relpos.encodings.pairs.features import feature_of
from relpos.encodings.registry import key_of
from relpos.positions import EARTH_RADIUS_KM, Places
from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.events.functions import functions
from relpos.tasks.events.neural import History, Scales, Seen

KINDS = ("time", "place")
GAP_SHAPE, GAP_MEAN = 0.5, 1.0  # hours
SCALES = Scales(0.455, -0.48, 2.22)  # of such gaps, which are those of a chi-square with one degree of freedom
TICK, TICKS = 0.15, 64  # hours; how many of them are told apart
STRIDE, STRIDES = 0.1, 40  # kilometres
SPLITS = ("validation", "test")
_A_BATCH = 125
_SHOWN = 2  # sequences of the sample
Batch = tuple[Tensor, Tensor, Tensor, Tensor]

TIME = (
    Metric("time", "accuracy in time", unit="%", format=".1f", scale=100),
    Metric("shifted", "after the clock is shifted", unit="%", format=".1f", scale=100),
    Metric("moved", "largest move of a probability", higher_is_better=False, format=".0e"),
)
PLACE = (Metric("place", "accuracy in space", unit="%", format=".1f", scale=100),)

_CHANNELS = "relative_channels[channels={}]"
CONTESTANTS = (
    "nope",
    "sinusoidal",
    "sinusoidal[clock=time,encoding.base=100]",
    _CHANNELS.format("position"),
    _CHANNELS.format("position,gap=true"),
    _CHANNELS.format("time"),
    _CHANNELS.format("position+time"),
    _CHANNELS.format("position+time,gap=true"),
    _CHANNELS.format("place"),
    _CHANNELS.format("position+time+place,gap=true"),
)


class Drawn(NamedTuple):
    """Sequences, (size, events) each: marks int64, times float64 in hours, places (.., 2) float64 in degrees, and
    answers (.., 2) int64 to the questions in time and in space, -1 where one is not asked."""

    marks: np.ndarray
    times: np.ndarray
    places: np.ndarray
    answers: np.ndarray

    def tensors(self) -> Batch:
        marks, times, places, answers = (torch.from_numpy(each) for each in self)
        return marks, times, places, answers


class Answers(nn.Module):
    """Events to the logits (batch, n, 2, marks) of the two answers: a `History`, and one linear map."""

    def __init__(self, marks: int, encoding: str, **options: Any) -> None:
        super().__init__()
        self.history = History(marks, encoding, **options)
        self.head = nn.Linear(self.history.dim, len(KINDS) * marks)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, marks: Tensor, times: Tensor, places: Tensor) -> Tensor:
        mask = torch.ones_like(marks, dtype=torch.bool)
        seen = Seen(marks, times, mask, places, times.new_zeros(*times.shape, 0))
        logits: Tensor = self.head(self.history(seen)).unflatten(-1, (len(KINDS), -1))
        return logits

    def encodings(self) -> Iterator[tuple[str, Encoding]]:
        return self.history.stack.encodings()


class Echo:
    """The mark of the latest event of some age, and of the nearest one within reach; see the module.

    kind    the questions that are asked: "time", "place" or "both"
    age, near   of the two questions, in hours and kilometres
    shift   hours by which the clock is put forward
    side    of the square of places, kilometres
    judged  sequences of the validation and of the test split each; those of training are drawn anew at every step
    """

    name = "echo"
    title = (
        "Echoes: the mark of the latest event at least 5 h old, of the nearest within 2 km (relative time's showcase)"
    )
    unit = "nats an answer"
    source = "generated by relpos: see relpos.tasks.events.echo"
    multiples = (1,)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0, 1), "steps": 600, "batch": 32, "rates": (5e-3,), "budget": 5.0,
            "model": {"dim": 32, "depth": 2, "heads": 2}, "encodings": CONTESTANTS,
        },
        "results": {
            "seeds": (0, 1, 2), "steps": 600, "batch": 32, "rates": (5e-3,), "budget": None, "validations": 4,
            "model": {"dim": 32, "depth": 2, "heads": 2}, "encodings": CONTESTANTS,
        },
    }  # fmt: skip

    def __init__(
        self,
        kind: str = "both",
        events: int = 32,
        marks: int = 8,
        age: float = 5.0,
        near: float = 2.0,
        shift: float = 100.0,
        side: float = 20.0,
        judged: int = 500,
    ) -> None:
        if kind not in (*KINDS, "both"):
            raise ValueError(f'kind is "time", "place" or "both", got {kind!r}')
        if positive("events", events) < 2 or positive("marks", marks) < 2:
            raise ValueError(f"events and marks are at least 2, got {events} and {marks}")
        for name, value in (("age", age), ("near", near), ("side", side)):
            if not (0 < value < math.inf) or (name == "side" and value > 1000):
                raise ValueError(f"{name} is a positive number{' up to 1000' * (name == 'side')}, got {value!r}")
        if not math.isfinite(shift):
            raise ValueError(f"shift is a finite number of hours, got {shift!r}")
        self.kind, self.kinds = kind, KINDS if kind == "both" else (kind,)
        self.events, self.marks, self.judged = events, marks, positive("judged", judged)
        self.age, self.near, self.shift, self.side = float(age), float(near), float(shift), float(side)
        self.train_length = events
        self.metrics = (*(TIME if "time" in self.kinds else ()), *(PLACE if "place" in self.kinds else ()))
        self._splits: dict[str, Drawn] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_splits": {}}

    def prepare(self, progress: Progress | None = None) -> None:
        """Nothing to read: sequences are drawn when they are asked for."""

    def describe(self) -> dict[str, object]:
        asked = {split: self.split(split).answers >= 0 for split in SPLITS}
        return {
            "task": self.name,
            "source": self.source,
            "events": self.events,
            "marks": self.marks,
            "gaps": f"Gamma({GAP_SHAPE}), mean {GAP_MEAN} h",
            "age asked for": f"{self.age:g} h",
            "distance asked for": f"{self.near:g} km of a square of {self.side:g} km",
            "clock put forward by": f"{self.shift:g} h",
            "judged": {"sequences": self.judged, "splits": "validation and test drawn apart from training"},
            "answers": {
                split: {kind: int(asked[split][..., KINDS.index(kind)].sum()) for kind in self.kinds}
                for split in SPLITS
            },
        }

    # ---- data

    def draw(self, generator: np.random.Generator, size: int) -> Drawn:
        """Sequences with the answers to both questions."""
        shape = (size, self.events)
        times = generator.gamma(GAP_SHAPE, GAP_MEAN / GAP_SHAPE, shape).cumsum(1)
        marks = generator.integers(self.marks, size=shape)
        places = self._places(generator, shape)
        return Drawn(marks, times, places, self.answers(marks, times, places))

    def _places(self, generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        town = generator.uniform((-60.0, -170.0), (60.0, 170.0), (shape[0], 1, 2))
        east, north = generator.uniform(-self.side / 2, self.side / 2, (2, *shape))
        degree = math.radians(1) * EARTH_RADIUS_KM
        latitude = town[..., 0] + north / degree
        return np.stack([latitude, town[..., 1] + east / degree / np.cos(np.deg2rad(town[..., 0]))], -1)

    def answers(self, marks: np.ndarray, times: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(.., events, 2) int64: the mark asked for in time and in space, -1 where there is none to ask for."""
        sources = self.sources(times, places)
        found = np.take_along_axis(marks[..., None], np.maximum(sources, 0), -2)
        return np.where(sources >= 0, found, -1)

    def sources(self, times: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(.., events, 2) int64: which event the two answers are the marks of; -1 where there is none."""
        earlier = np.tri(times.shape[-1], k=-1, dtype=bool)
        old = earlier & (times[..., :, None] - times[..., None, :] >= self.age)
        in_time = old.sum(-1) - 1  # times rise, so the old events are the first ones
        on_earth = feature_of("place")
        at = on_earth.read(Places(torch.from_numpy(places).reshape(-1, *places.shape[-2:])))
        far = on_earth.between(at, at).numpy().reshape(*times.shape, times.shape[-1])
        far = np.where(earlier, far, np.inf)
        in_space = np.where(far.min(-1) <= self.near, far.argmin(-1), -1)
        return np.stack([in_time, in_space], -1)

    def split(self, split: str) -> Drawn:
        """The judged sequences of "validation" or "test"."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose {' or '.join(SPLITS)}")
        if split not in self._splits:
            self._splits[split] = self.draw(np.random.default_rng([20240502, split == "test"]), self.judged)
        return self._splits[split]

    def batch(self, step: int, seed: int, size: int) -> Batch:
        """Marks, times, places and answers of new sequences, a pure function of the arguments."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        return self.draw(np.random.default_rng([seed, step, 11]), size).tensors()

    # ---- network

    def model(
        self,
        encoding: str,
        channels: str | Sequence[Mapping[str, Any]] | None = None,
        inject: str = "key",
        gap: bool = False,
        **options: Any,
    ) -> nn.Module:
        """`Answers`. channels: of "relative_channels" alone, names out of position, time and place joined by +, or
        dicts; inject: where named channels enter, "key", "bias", "key+value", ..; gap and other options: `History`."""
        if key_of(encoding) == "relative_channels":
            given = self._channels("position+time" if channels is None else channels, inject)
            options = {"channels": given, **options}
        elif channels is not None:
            raise ValueError(f"channels go with relative_channels, not with {encoding}")
        return Answers(self.marks, encoding, gap=gap, **{"mark_scale": 50.0, "scales": SCALES, **options})

    def _channels(self, names: str | Sequence[Mapping[str, Any]], inject: str) -> list[dict[str, Any]]:
        if not isinstance(names, str):
            return [dict(each) for each in names]
        known: dict[str, dict[str, Any]] = {
            "position": {"feature": "index", "clip": self.events - 1},
            "time": {"feature": "time", "unit": TICK, "clip": TICKS},
            "place": {"feature": "place", "unit": STRIDE, "clip": STRIDES},
        }
        asked = [name.strip() for name in names.split("+")]
        if unknown := [name for name in asked if name not in known]:
            raise ValueError(f"channels are names out of {', '.join(known)}, joined by +; got {unknown[0]!r}")
        return [{**known[name], "inject": tuple(inject.split("+"))} for name in asked]

    def _asked(self, answers: Tensor) -> Tensor:
        """Answers with -1 for the questions that this task leaves out."""
        left_out = [index for index, kind in enumerate(KINDS) if kind not in self.kinds]
        return answers.index_fill(-1, torch.tensor(left_out, dtype=torch.int64, device=answers.device), -1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over all answers asked for, in nats."""
        *given, answers = batch
        answers = self._asked(answers)
        return nn.functional.cross_entropy(model(*given).float().flatten(0, 2), answers.flatten(), ignore_index=-1)

    # ---- judging

    @torch.inference_mode()
    def log_probabilities(
        self, model: nn.Module, drawn: Drawn, shift: float = 0.0, progress: Progress | None = None, text: str = ""
    ) -> Tensor:
        """(size, events, 2, marks) float64 on the CPU, with the clock put forward; the model's mode is kept."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        marks, times, places, _ = (each.to(device) for each in drawn.tensors())
        training = model.training
        model.eval()
        parts = []
        try:
            for first in range(0, len(marks), _A_BATCH):
                rows = slice(first, first + _A_BATCH)
                parts.append(model(marks[rows], times[rows] + shift, places[rows]).double().log_softmax(-1).cpu())
                if progress is not None:
                    progress(min(first + _A_BATCH, len(marks)), len(marks), text)
        finally:
            model.train(training)
        return torch.cat(parts)

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Nats an answer, accuracy by question, and what a shift of the clock does to the answers in time."""
        self._check_length(length)
        drawn = self.split(split)
        answers = self._asked(torch.from_numpy(drawn.answers))
        log_p = self.log_probabilities(model, drawn, 0.0, progress, split)
        asked = answers >= 0
        nats = -log_p.gather(-1, answers.clamp(min=0)[..., None])[..., 0]
        counts = asked.sum((0, 2)).double()
        by_position = (torch.where(asked, nats, 0.0).sum((0, 2)) / counts).numpy()  # 0 / 0 is NaN: nothing was asked
        metrics = {kind: self._right(log_p, answers, kind) for kind in self.kinds}
        if "time" in self.kinds:
            later = self.log_probabilities(model, drawn, self.shift, progress, f"{split}, clock shifted")
            chosen = answers[..., 0] >= 0
            move = (later[..., 0, :].exp() - log_p[..., 0, :].exp())[chosen].abs()
            metrics |= {"shifted": self._right(later, answers, "time"), "moved": float(move.max())}
        ordered = {metric.name: metrics[metric.name] for metric in self.metrics}
        return Evaluation(length, float(nats[asked].mean()), by_position, int(asked.sum()), ordered)

    def _check_length(self, length: int) -> None:
        if length != self.train_length:
            raise ValueError(f"a sequence has {self.train_length} events, not {length}")

    @staticmethod
    def _right(log_p: Tensor, answers: Tensor, kind: str) -> float:
        k = KINDS.index(kind)
        asked = answers[..., k] >= 0
        return float((log_p[..., k, :].argmax(-1) == answers[..., k])[asked].double().mean())

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Chance, the mark that the best fixed number of events back has, and the optimum, which knows the rules.

        The best number was found in sequences drawn as for training. None of them looks at the clock, so none is
        moved by it.
        """
        self._check_length(length)
        drawn, known = self.split(split), self.draw(np.random.default_rng([20240503]), 1000)
        rows: dict[str, dict[str, float]] = {"chance": {"loss": math.log(self.marks)}, "optimum": {"loss": 0.0}}
        back: dict[str, float] = {}
        for kind in self.kinds:
            best = max(range(1, self.events), key=lambda lag: self._back(known, kind, lag))
            back[kind] = self._back(drawn, kind, best)
            rows["chance"][kind], rows["optimum"][kind] = 1 / self.marks, 1.0
        rows = {"chance": rows["chance"], "the best fixed number of events back": back, "optimum": rows["optimum"]}
        if "time" in self.kinds:
            for row in rows.values():
                row |= {"shifted": row["time"], "moved": 0.0}
        return rows

    def _back(self, drawn: Drawn, kind: str, lag: int) -> float:
        """The share of right answers of "the mark ``lag`` events back"; the first mark where there are fewer."""
        answers = drawn.answers[..., KINDS.index(kind)]
        at = np.maximum(np.arange(self.events) - lag, 0)
        return float((drawn.marks[:, at] == answers)[answers >= 0].mean())

    # ---- to look at

    def pictures(self, model: nn.Module, directory: Path) -> list[Artifact]:
        """What the channels have learned of elapsed time, distance and position, with 5 h and 2 km marked."""
        few = Drawn(*(each[:_A_BATCH] for each in self.split("test")))
        return functions(
            model,
            directory,
            {"time": "h"},
            lines={"time": self.age, "place": self.near},
            reach={"time": 2 * self.age, "place": 2 * self.near},
            run=lambda: self.log_probabilities(model, few),
        )

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """A text: some test sequences event by event, what was asked, where the answer stands, what the model said."""
        drawn = Drawn(*(each[:_SHOWN] for each in self.split("test")))
        p = self.log_probabilities(model, drawn).exp().numpy()
        sources = self.sources(drawn.times, drawn.places)
        names = {"time": f"latest, {self.age:g} h old", "place": f"nearest, {self.near:g} km"}
        head = f"{'event':>5} {'hour':>7} mark" + "".join(f" | {names[kind]:<29}" for kind in self.kinds)
        lines = []
        for row in range(len(drawn.marks)):
            lines += [f"sequence {row + 1}", head]
            for i in range(self.events):
                text = f"{i + 1:>5} {drawn.times[row, i]:>7.2f} {self._letter(drawn.marks[row, i]):>4}"
                for kind in self.kinds:
                    k = KINDS.index(kind)
                    text += " | " + self._said(drawn, row, int(sources[row, i, k]), p[row, i, k])
                lines.append(text)
            lines.append("")
        path = Path(directory) / "echoes.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8")
        return [Artifact(path, "text", "Two sequences: what was asked, and what the network said")]

    def _said(self, drawn: Drawn, row: int, source: int, p: np.ndarray) -> str:
        if source < 0:
            return f"{'-':<29}"
        right, said = int(drawn.marks[row, source]), int(p.argmax())
        verdict = "right" if right == said else "WRONG"
        text = f"{self._letter(right)} of event {source + 1:>2}, said {self._letter(said)} {p[said]:.2f} {verdict}"
        return f"{text:<29}"

    @staticmethod
    def _letter(mark: int) -> str:
        return chr(ord("A") + mark) if mark < 26 else str(mark)
