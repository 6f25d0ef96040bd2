"""The task images: what a picture shows, from the whole picture, at the size of training and at others.

**Sizes.** A network is trained on pictures of ``side`` x ``side`` pixels and evaluated at every one of ``sizes``: the
same test pictures, resampled from how they lie in the data set, go through ``network.resize(size)``, whose learned
encoding is stretched to the new grid and whose other weights stay. A network or an encoding that cannot says why.

**Judging.** ``judged`` pictures of the validation and of the test split, drawn once, the same for every network and
size. Loss is in nats a picture, the metric is accuracy. Training pictures are shifted by some pixels and, where a
mirror image is one of the same kind, mirrored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.base import positive
from relpos.tasks import answers, held_out
from relpos.tasks.base import ACCURACY, Artifact, Evaluation, Measure, Progress
from relpos.tasks.data import sets
from relpos.tasks.examples import Examples
from relpos.tasks.predictors import Linear, Predictor, Prior, score
from relpos.tasks.vision import costs, maps, networks
from relpos.tasks.vision.options import numbers, pair
from relpos.tasks.vision.pixels import Scale, mirrored, plain, resampled, shifted

MIRRORED = {
    "fashion-mnist": True, "mnist": False, "mnist5k": False, "openclipart": True, "cifar10": True, "cifar100": True,
    "folder": True,
}  # fmt: skip
SIDES = {
    "fashion-mnist": 28,
    "mnist": 28,
    "mnist5k": 28,
    "openclipart": 32,
    "cifar10": 32,
    "cifar100": 32,
    "folder": 32,
}
SHARES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the side of training: the sizes to evaluate at
STEP = 4  # pixels: sizes are multiples of it, as patches want them
SPLITS = ("validation", "test")
CONTESTANTS = (
    "nope[network=gmlp]",  # its free matrix
    *("lrpe[network=gmlp,groups=1]", "lrpe[network=gmlp]", "gqpe[network=gmlp]", "gqpe[network=posmlp]"),
    *("nope", "learned", "axial_rope", "swin"),
)
SHOWN = 16
_CONFUSION_OF = 400
_A_BATCH = 250


class Images:
    """What a picture shows; see the module for the rules.

    dataset   "fashion-mnist", "mnist", "mnist5k" (by pip alone), "openclipart", or with a path "cifar10", "cifar100",
              "folder" (a folder a class)
    side      pixels a side in training, 28 for the MNIST family and 32 for the others
    sizes     what to evaluate at, pixels a side; default about half to twice the side
    judged    pictures of the validation and of the test split
    shift     by how many pixels at most a training picture is moved; mirror: whether some are seen as in a mirror,
              by default where that keeps their class
    """

    name = "images"
    title = "images: what a picture shows, trained at one size and evaluated at several"
    unit = "nats a picture"
    metrics = (ACCURACY,)
    multiples = (1,)
    measure = Measure("picture size", "pixels a side", "training size")
    pace = "images"
    costs = (costs.MACS, costs.THROUGHPUT)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "encodings": CONTESTANTS,
            "seeds": (0,), "steps": 3000, "batch": 32, "rates": (2e-3,), "budget": 12.0, "model": {},
            "task_options": {"shift": 1},  # a short training gains from milder changes
        },
        "results": {
            "seeds": (0, 1, 2), "steps": 6000, "batch": 32, "rates": (1e-3, 4e-3), "sweep_steps": 300, "budget": None,
            "model": {}, "task_options": {"shift": 1, "judged": [2000, 10_000]},
        },
    }  # fmt: skip

    def __init__(
        self,
        dataset: str = "fashion-mnist",
        path: str | None = None,
        side: int | None = None,
        sizes: Sequence[int] | None = None,
        judged: tuple[int, int] = (500, 2000),
        shift: int = 2,
        mirror: bool | None = None,
    ) -> None:
        if dataset not in SIDES:
            raise ValueError(f"dataset is one of {', '.join(SIDES)}, got {dataset!r}")
        self.dataset, self.path = dataset, path
        self.train_length = SIDES[dataset] if side is None else positive("side", side)
        usual = sorted({self.train_length, *(STEP * round(self.train_length * s / STEP) for s in SHARES)} - {0})
        given = usual if sizes is None else numbers("sizes", sizes)
        self.lengths = tuple(sorted({*given, self.train_length}))
        if not isinstance(shift, int) or shift < 0:
            raise ValueError(f"shift is a whole number of pixels, 0 or more, got {shift!r}")
        self.judged, self.shift = pair("judged", judged), shift
        self.mirror = MIRRORED[dataset] if mirror is None else mirror
        self._data: sets.Images | None = None
        self._sides: dict[str, np.ndarray] = {}
        self._scale: Scale | None = None
        self._order: tuple[tuple[int, int], np.ndarray] | None = None
        self._predictors: dict[str, Predictor] | None = None

    @property
    def source(self) -> str:
        """Where the data comes from; in full once it is read."""
        return f"the data set {self.dataset}" if self._data is None else held_out.origin(self._data.card)

    def prepare(self, progress: Progress | None = None) -> None:
        if self._data is None:
            self._take(held_out.load(sets.Images, self.dataset, self.path, progress))

    def _take(self, found: sets.Images) -> None:
        sides = held_out.sides(found)
        for name, rows in sides.items():
            if not len(rows):
                raise ValueError(f"the {name} side of {self.dataset} is empty: give it pictures")
        self._data, self._sides = found, sides
        self._scale = Scale.of(found.pixels[sides["train"]])

    def __getstate__(self) -> dict[str, Any]:
        """Without data that can be loaded again, so that a worker process is sent a name and not a data set."""
        return {**self.__dict__, "_data": None, "_sides": {}, "_scale": None, "_order": None, "_predictors": None}

    @property
    def data(self) -> sets.Images:
        """The pictures as they lie in the data set; read at first use."""
        self.prepare()
        assert self._data is not None
        return self._data

    @property
    def channels(self) -> int:
        """1 where pictures are grey, 3 where they are in colour."""
        return 1 if self.data.pixels.ndim == 3 else 3

    def describe(self) -> dict[str, object]:
        data, classes = self.data, len(self.data.classes)
        return {
            "task": self.name,
            "dataset": self.dataset,
            "source": self.source,
            "classes": list(data.classes),
            "splits": {
                name: {"pictures": len(rows), "labels": np.bincount(data.labels[rows], minlength=classes).tolist()}
                for name, rows in self._sides.items()
            },
            "judged": {name: len(self.rows(name)) for name in SPLITS},
            "pixels": list(data.pixels.shape[1:]),
            "trained at": self.train_length,
            "evaluated at": list(self.lengths),
            "networks": "gmlp and posmlp have gates that an encoding makes, with nope a free matrix; vit has attention",
            "varied in training": f"shifted by up to {self.shift} pixels" + ", mirrored" * self.mirror,
            **{key: value for key, value in data.card.counts.items() if key in ("distinct", "left out")},
        }

    def model(self, encoding: str, network: str = "vit", **options: Any) -> nn.Module:
        """A network of `relpos.tasks.vision.networks`; options go to it and override its sizes."""
        return networks.build(network, encoding, self.train_length, self.channels, len(self.data.classes), **options)

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, Tensor]:
        """Pictures (size, channels, side, side) float32 and labels (size,). A pure function of its arguments."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        self.prepare()
        train = self._sides["train"]
        places = np.arange(step * size, (step + 1) * size)
        rows = np.array(
            [train[self._ordered(seed, place // len(train))[place % len(train)]] for place in places.tolist()]
        )
        draw = np.random.default_rng([seed, step, 1])
        pixels = shifted(self.data.pixels[rows], self.shift, draw) if self.shift else self.data.pixels[rows]
        pixels = mirrored(pixels, draw) if self.mirror else pixels
        return self._tensors(pixels, self.train_length), torch.from_numpy(self.data.labels[rows])

    def _ordered(self, seed: int, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), np.random.default_rng([seed, epoch]).permutation(len(self._sides["train"]))
        return self._order[1]

    def _tensors(self, pixels: np.ndarray, side: int) -> Tensor:
        assert self._scale is not None
        return resampled(self._scale(pixels), side)

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy in nats a picture."""
        pictures, labels = batch
        return nn.functional.cross_entropy(model(pictures).float(), labels)

    def rows(self, split: str) -> np.ndarray:
        """Which pictures of "validation" or "test" are judged."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.prepare()
        whole, most = self._sides[split], self.judged[SPLITS.index(split)]
        if most >= len(whole):
            return whole
        return whole[np.sort(np.random.default_rng(0).permutation(len(whole))[:most])]

    @torch.inference_mode()
    def log_probabilities(
        self, model: nn.Module, rows: np.ndarray, side: int, progress: Progress | None = None, text: str = ""
    ) -> np.ndarray:
        """(rows, classes) float64, of the network made for pictures of this side; the model's mode is kept."""
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        training = model.training
        network = self._resized(model.eval(), side)
        parts = []
        try:
            for first in range(0, len(rows), _A_BATCH):
                pictures = self._tensors(self.data.pixels[rows[first : first + _A_BATCH]], side)
                parts.append(network(pictures.to(device)).double().log_softmax(-1).cpu().numpy())
                if progress is not None:
                    progress(min(first + _A_BATCH, len(rows)), len(rows), text)
        finally:
            model.train(training)
        return np.concatenate(parts)

    def _resized(self, model: nn.Module, side: int) -> nn.Module:
        if side == self.train_length:
            return model
        resize = getattr(model, "resize", None)
        if resize is None:
            raise ValueError(f"{type(model).__name__} cannot be resized to pictures of {side} x {side}")
        resized: nn.Module = resize(side)
        return resized.eval()

    def _check_length(self, length: int) -> None:
        if length not in self.lengths:
            allowed = ", ".join(map(str, self.lengths))
            raise ValueError(f"length is one of {allowed} pixels a side here, got {length}; name others as sizes")

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Nats a picture and accuracy of the judged pictures at ``length`` x ``length`` pixels."""
        self._check_length(length)
        rows = self.rows(split)
        log_p = self.log_probabilities(model, rows, length, progress, f"{split}, {length} x {length} pixels")
        found = score(log_p, self.data.labels[rows])
        return Evaluation(length, found["loss"], None, len(rows), {"accuracy": found["accuracy"]})

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """All classes alike, the commonest class, and a linear model on the pixels of the judged pictures.

        The linear model belongs to the size of training: a picture of another size is brought back to that size first.
        """
        self._check_length(length)
        rows = self.rows(split)
        examples = self._examples(rows, length)
        if self._predictors is None:
            labels, classes = self.data.labels[self._sides["train"]], len(self.data.classes)
            chosen = np.random.default_rng(1).permutation(self._sides["train"])[:10_000]
            fitted = {
                "train": self._examples(chosen, self.train_length),
                "validation": self._examples(self.rows("validation"), self.train_length),
            }
            self._predictors = {
                "uniform": Prior(labels, classes, count=False),
                "majority": Prior(labels, classes),
                "linear on pixels": Linear(fitted, classes, self.channels * self.train_length**2),
            }
        return {
            name: score(each.log_probabilities(examples, self.channels * self.train_length**2), examples.labels)
            for name, each in self._predictors.items()
        }

    def _examples(self, rows: np.ndarray, seen: int) -> Examples:
        """Pictures as rows of numbers at the size of training, after they were at ``seen`` x ``seen`` pixels."""
        parts = []
        for first in range(0, len(rows), 2000):
            x = plain(self.data.pixels[rows[first : first + 2000]])
            x = resampled(resampled(x, seen), self.train_length).round().clamp(0, 255)
            parts.append(x.flatten(1).byte().numpy())
        return Examples.of_rows(np.concatenate(parts), self.data.labels[rows])

    def cost(self, model: nn.Module) -> dict[str, float]:
        """Multiply-adds of one picture and pictures a second, forward at the size of training."""
        shape = (self.channels, self.train_length, self.train_length)
        return {"macs": costs.macs(model, shape), "throughput": costs.throughput(model, shape)}

    def pictures(self, model: nn.Module, directory: Path) -> list[Artifact]:
        """The weight or the bias of every cell for the query in the middle, by layer and group."""
        return maps.artifacts(model, Path(directory))

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Some test pictures with the network's answers, and its table of right and wrong answers.

        The pictures are the same for every model and seed.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        rows = self.rows("test")[:_CONFUSION_OF]
        log_p = self.log_probabilities(model, rows, self.train_length)
        labels, classes = self.data.labels[rows], self.data.classes
        few = slice(0, SHOWN)
        shown = answers.pictures(
            directory / "answers.png", self.data.pixels[rows[few]], labels[few], log_p[few], classes
        )
        table = answers.confusion(directory / "confusion.png", labels, log_p.argmax(1), classes)
        return [
            Artifact(shown, "image", "test pictures, what they are and what the network answers"),
            Artifact(table, "image", f"answers to {len(rows)} test pictures"),
        ]
