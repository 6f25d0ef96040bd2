"""ImageNet, or any large folder of pictures in its layout, for those who have it: the recipe of PosMLP.

**Data.** DIR/train/CLASS/* and DIR/val/CLASS/*, opened when they are needed. A file that cannot be read is named once,
counted, and another picture of its class stands in for it. "test" is all of DIR/val; "validation" is a share of train
that is held out from training.

**Recipe** (Wang et al. 2022, PosMLP, their configuration of T): 300 epochs of AdamW (eps 1e-5, decay 0.067), batches of
1,024, cosine from 2e-3 to 1e-6 after ten epochs of warm-up from 1e-5, gradients clipped at 1, RandAugment m6-n3 with
mstd 1.0, colour jitter 0.4, mixup 0.5 and cutmix 1.0 by turns, label smoothing 0.1, crops of 8 to 100% with aspect 0.67
to 1.5, drop path 0.1, weights averaged with 0.99992, evaluation on the middle 90%. Theirs adds ten epochs of cool-down.

Pictures are varied by timm's transforms; each is a pure function of the seed and of its number in the run, so a resumed
training goes on with the same ones, on however many devices. Which pictures are mixed depends on the number of devices.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.base import positive
from relpos.tasks.base import ACCURACY, Artifact, Evaluation, Measure, Metric, Progress
from relpos.tasks.data.readers import pictures
from relpos.tasks.predictors import Prior, score
from relpos.tasks.vision import costs, maps, networks
from relpos.tasks.vision.options import pair, span

TOP5 = Metric("top5", "accuracy of the five first", unit="%", format=".1f", scale=100)
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRIES = 20  # pictures of a class that are tried before it is given up
_A_BATCH = 64
_TOLD = 10

Loader = Callable[..., Any]


class ImageNet:
    """What a photograph shows; see the module for data and recipe.

    path      the folder that holds train and val
    side      pixels a side, in training and in evaluation
    augment   timm's name of an augmentation, "" for none; jitter: of the colours
    mixup, cutmix, smoothing    of pictures and labels; both 0: no mixing
    scale, ratio                area and aspect of the crops
    crop      share of the side that evaluation sees
    held      share of train that is held out as validation; 0: val serves for both
    judged    at most so many pictures of validation and test; None for all
    workers   processes that read pictures in evaluation
    """

    name = "imagenet"
    title = "imagenet: a large folder of photographs, trained by PosMLP's recipe (give --data DIR)"
    unit = "nats a picture"
    metrics = (ACCURACY, TOP5)
    multiples = (1,)
    measure = Measure("picture size", "pixels a side", "training size")
    pace = "images"
    costs = (costs.MACS, costs.THROUGHPUT)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "encodings": ("gqpe",), "seeds": (42,), "batch": 1024, "rates": (2e-3,), "warmup": 10 / 300,
            "weight_decay": 0.067, "clip": 1.0, "validations": 300,
            "model": {"network": "posmlp", "drop_path": 0.1, "dropout": 0.02333},
            "recipe": {
                "epochs": 300, "betas": [0.9, 0.999], "eps": 1e-5, "first": 5e-3, "last": 5e-4, "average": 0.99992,
                "precision": "auto", "devices": "auto", "loaders": 8,
            },
        },
    }  # fmt: skip

    def __init__(
        self,
        path: str | None = None,
        side: int = 224,
        augment: str = "rand-m6-n3-mstd1.0-inc1",
        jitter: float = 0.4,
        mixup: float = 0.5,
        cutmix: float = 1.0,
        smoothing: float = 0.1,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.67, 1.5),
        crop: float = 0.9,
        held: float = 0.01,
        judged: tuple[int, int] | None = None,
        workers: int = 8,
    ) -> None:
        if path is None:
            raise ValueError("give the folder that holds train and val: --data DIR")
        if not isinstance(workers, int) or workers < 0 or not 0 < crop <= 1 or not 0 <= held < 1:
            raise ValueError(
                f"workers is an integer from 0 on, crop in (0, 1], held in [0, 1); got {workers}, {crop}, {held}"
            )
        if min(jitter, mixup, cutmix) < 0 or not 0 <= smoothing < 1:
            raise ValueError(
                "jitter, mixup and cutmix are 0 or more, smoothing in [0, 1); "
                f"got {jitter}, {mixup}, {cutmix} and {smoothing}"
            )
        self.path, self.train_length = Path(path).expanduser(), positive("side", side)
        self.lengths = (self.train_length,)
        self.augment, self.jitter, self.mixup, self.cutmix, self.smoothing = augment, jitter, mixup, cutmix, smoothing
        self.scale, self.ratio, self.crop, self.held = span("scale", scale), span("ratio", ratio), crop, held
        self.judged, self.workers = None if judged is None else pair("judged", judged), workers
        self._found: pictures.Listing | None = None
        self._picked: dict[str, tuple[list[str], np.ndarray]] = {}
        self._rows: dict[str, np.ndarray] = {}
        self._transforms: dict[bool, Loader] = {}
        self._order: tuple[tuple[int, int], np.ndarray] | None = None
        self._told: set[str] = set()

    @property
    def source(self) -> str:
        """Where the data comes from."""
        return f"the folder {self.path}"

    def prepare(self, progress: Progress | None = None) -> None:
        if self._found is not None:
            return
        _timm()  # a missing package is told now, not when the first picture is read
        if progress is not None:
            progress(0, 1, "listing pictures")
        found = pictures.listed(self.path)
        if "val" not in found.files:
            raise ValueError(f"{self.path} has no folders train and val, each with a folder a class")
        count = len(found.files["train"])
        held = np.random.default_rng(0).permutation(count)[: round(self.held * count)]
        kept = np.setdiff1d(np.arange(count), held)
        if not len(kept):
            raise ValueError(f"held={self.held} leaves none of the {count} pictures of train")
        self._rows = {"train": kept, "validation": np.sort(held), "test": np.arange(len(found.files["val"]))}
        self._found = found

    def __getstate__(self) -> dict[str, Any]:
        """With the list of files, which takes long to make; without the transforms, which are made where needed."""
        return {**self.__dict__, "_transforms": {}, "_picked": {}, "_order": None}

    @property
    def found(self) -> pictures.Listing:
        """The files by side, not opened yet."""
        self.prepare()
        assert self._found is not None
        return self._found

    @property
    def examples(self) -> int:
        """Pictures of an epoch."""
        self.prepare()
        return len(self._rows["train"])

    def describe(self) -> dict[str, object]:
        found = self.found
        return {
            "task": self.name,
            "source": self.source,
            "classes": len(found.classes),
            "splits": {name: len(self._pick(name)[0]) for name in ("train", "validation", "test")},
            "pixels a side": self.train_length,
            "varied in training": f"{self.augment or 'as it is'}, colours {self.jitter:g}, mixup {self.mixup:g}, "
            f"cutmix {self.cutmix:g}, smoothing {self.smoothing:g}, crops {self.scale[0]:g} to {self.scale[1]:g}",
            "evaluated on": f"the middle {self.crop:.0%}",
        }

    def model(self, encoding: str, network: str = "posmlp", **options: Any) -> nn.Module:
        """A network of `relpos.tasks.vision.networks`; options go to it."""
        return networks.build(network, encoding, self.train_length, 3, len(self.found.classes), large=True, **options)

    batches_in_parts = True

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, Tensor]:
        """Pictures (size, 3, side, side) float32 and labels: (size, classes) shares where they are mixed, else (size,).

        A pure function of its arguments; batch number j of size s holds the same pictures as its parts of half the
        size, numbers 2 j and 2 j + 1, so devices can share it out.
        """
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        files, labels = self._pick("train")
        images, answers = [], []
        for place in range(step * size, (step + 1) * size):
            epoch, index = divmod(place, len(files))
            row = int(self._ordered(seed, epoch)[index])
            images.append(self._image(files, labels, row, (seed, place)))
            answers.append(int(labels[row]))
        x, y = torch.stack(images), torch.tensor(answers)
        if not (self.mixup or self.cutmix) or size % 2:
            return x, y
        with seeded((seed, step, size)):
            return self._mixing()(x, y)

    def _ordered(self, seed: int, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), np.random.default_rng([seed, epoch]).permutation(self.examples)
        return self._order[1]

    def _mixing(self) -> Any:
        from timm.data import Mixup

        return Mixup(
            self.mixup,
            self.cutmix,
            switch_prob=0.5,
            label_smoothing=self.smoothing,
            num_classes=len(self.found.classes),
        )

    def _image(self, files: list[str], labels: np.ndarray, row: int, seed: tuple[int, ...] | None) -> Tensor:
        """The picture of a row, varied where there is a seed; another of its class where it cannot be read."""
        alike = [row] + [int(i) for i in np.flatnonzero(labels == labels[row])[:TRIES] if i != row]
        for each in alike:
            try:
                image = pictures.decode(files[each]).convert("RGB")
            except pictures.Unreadable as error:
                self._tell(files[each], error)
                continue
            with seeded(seed) if seed is not None else contextlib.nullcontext():
                varied: Tensor = self._transform(seed is not None)(image)
            return varied
        name = self.found.classes[int(labels[row])]
        raise ValueError(f"none of {len(alike)} pictures of the class {name} can be read; mend or remove that folder")

    def _tell(self, file: str, error: Exception) -> None:
        """Each unreadable file once, the first ones by a warning."""
        if file not in self._told:
            self._told.add(file)
            if len(self._told) <= _TOLD:
                warnings.warn(
                    f"{file} cannot be read and is replaced ({len(self._told)} so far): {error}", stacklevel=4
                )

    def _transform(self, training: bool) -> Loader:
        if training not in self._transforms:
            create, side = _timm().create_transform, self.train_length
            shared = {"mean": MEAN, "std": SPREAD}
            varied = {
                "scale": self.scale, "ratio": self.ratio, "color_jitter": self.jitter or None, "re_prob": 0.0,
                "auto_augment": self.augment or None, "interpolation": "random",
            }  # fmt: skip
            seen = {"crop_pct": self.crop, "interpolation": "bicubic"}
            self._transforms[training] = create(side, is_training=training, **shared, **(varied if training else seen))
        return self._transforms[training]

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy in nats a picture, against shares or labels; these are smoothed in training."""
        x, y = batch
        smoothing = self.smoothing if y.dim() == 1 and model.training else 0.0
        return nn.functional.cross_entropy(model(x).float(), y, label_smoothing=smoothing)

    def _pick(self, split: str) -> tuple[list[str], np.ndarray]:
        """Files and labels of a split, those that are judged; kept, since a list of a million takes a while."""
        if split not in self._picked:
            found = self.found
            if split not in self._rows:
                raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self._rows)}")
            side = "test" if split == "validation" and not len(self._rows[split]) else split
            rows, name = self._rows[side], "val" if side == "test" else "train"
            if self.judged is not None and split != "train":
                most = self.judged[split == "test"]
                rows = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:most])]
            files = found.files[name]
            self._picked[split] = [files[row] for row in rows], found.labels[name][rows]
        return self._picked[split]

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Nats a picture, and the shares whose class is the first or among the first five answers."""
        if length != self.train_length:
            raise ValueError(f"length is {self.train_length} pixels a side here, got {length}")
        files, labels = self._pick(split)
        device, parts, training = next(model.parameters()).device, [], model.training
        model.eval()
        try:
            for x in self._seen(files, labels):
                parts.append(model(x.to(device)).double().log_softmax(-1).cpu().numpy())
                if progress is not None:
                    progress(sum(map(len, parts)), len(files), f"{split} pictures")
        finally:
            model.train(training)
        log_p = np.concatenate(parts)
        first = np.argsort(-log_p, axis=1)[:, :5]
        top5 = float((first == labels[:, None]).any(1).mean())
        found = score(log_p, labels)
        return Evaluation(length, found["loss"], None, len(files), {"accuracy": found["accuracy"], "top5": top5})

    def _seen(self, files: list[str], labels: np.ndarray) -> Iterator[Tensor]:
        """Batches of pictures in their order, as evaluation sees them; worker processes read them where many are."""
        source = _Seen(self, files, labels)
        workers = self.workers if len(files) > 4 * _A_BATCH else 0
        yield from torch.utils.data.DataLoader(
            source, batch_size=_A_BATCH, num_workers=workers, generator=torch.Generator()
        )

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """All classes alike, and the commonest class, on the labels that `evaluate` judges."""
        labels, classes = self._pick("train")[1], len(self.found.classes)
        judged = self._pick(split)[1]
        rows = {"uniform": Prior(labels, classes, count=False), "majority": Prior(labels, classes)}
        # Neither looks at a picture: every row is the same, so none is made for each of them.
        return {
            name: {
                "loss": float(-each.log_p[judged].mean()),
                "accuracy": float(
                    np.mean((each.log_p == each.log_p.max())[judged] / (each.log_p == each.log_p.max()).sum())
                ),
            }
            for name, each in rows.items()
        }

    def cost(self, model: nn.Module) -> dict[str, float]:
        """Multiply-adds of one picture and pictures a second, forward."""
        shape = (3, self.train_length, self.train_length)
        return {"macs": costs.macs(model, shape), "throughput": costs.throughput(model, shape)}

    def pictures(self, model: nn.Module, directory: Path) -> list[Artifact]:
        """The weight of every cell for the query in the middle, by layer and group."""
        return maps.artifacts(model, Path(directory))

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Nothing: photographs of others do not belong in a report."""
        return []


class _Seen(torch.utils.data.Dataset):
    """Pictures as evaluation sees them."""

    def __init__(self, task: ImageNet, files: list[str], labels: np.ndarray) -> None:
        self._task, self._files, self._labels = task, files, labels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        # A picture that cannot be read is judged as a black one: another one in its place would be judged twice.
        try:
            image = pictures.decode(self._files[index]).convert("RGB")
        except pictures.Unreadable as error:
            self._task._tell(self._files[index], error)
            image = pictures.pillow().new("RGB", (self._task.train_length, self._task.train_length))
        seen: Tensor = self._task._transform(False)(image)
        return seen


@contextlib.contextmanager
def seeded(seed: tuple[int, ...]) -> Iterator[None]:
    """Python's, numpy's and torch's random numbers are a function of the seed for a while, and as before afterwards."""
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _timm() -> Any:
    """timm.data. ModuleNotFoundError says what to install."""
    try:
        import timm.data
    except (ImportError, RuntimeError) as error:  # torchvision for another torch ends in a RuntimeError
        raise ModuleNotFoundError(
            f"photographs are varied with timm and torchvision, which cannot be imported ({error}): "
            "pip install 'relpos[vision]', with the torchvision that was built for the torch installed",
            name="timm",
        ) from error
    return timm.data
