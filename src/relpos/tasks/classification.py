"""One answer a sequence (or a pair of sequences): what all such tasks share.

**The rule of evaluation.** A network reads the first ``length`` tokens of a sequence; what is longer is cut off. The
scored examples are the same ones at every length, so where a task names several lengths only the text that the network
may see differs. Large splits are judged on a part of them, drawn once without regard to their order: ``judged``
examples of the validation and of the test split. Loss is in nats an example, the metric is accuracy.

**Training.** Every epoch goes through all examples in an order drawn anew from the seed; sequences are cut at
``train_length`` and filled up to the longest of the batch, and the network does not see what was filled up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks.base import ACCURACY, Artifact, Evaluation, Progress
from relpos.tasks.examples import Examples
from relpos.tasks.lengths import length_options
from relpos.tasks.predictors import Predictor, Prior, score

Splits = Mapping[str, Examples]
SPLITS = ("train", "validation", "test")
_TOKENS_A_BATCH = 16_384
_CONFUSION_OF = 400  # judged examples, for the table of right and wrong
SHOWN = 16


@dataclass(frozen=True)
class Sizes:
    """The network of a task where nothing else is said; names as in `relpos.models.Classifier`."""

    dim: int = 64
    depth: int = 2
    heads: int = 2
    expansion: int = 2
    dropout: float = 0.0
    pooling: str = "mean"


class Classification:
    """Base of the tasks of one answer a sequence; see the module for the rules.

    A task gives `load`, the names below, and may add `predictors`, `facts`, `positions` and `encoding_options`.
    splits: examples to use in place of its own data, by split. judged: at most so many examples of the validation
    and of the test split.
    """

    name: str = ""
    title: str = ""
    unit = "nats an example"
    metrics = (ACCURACY,)
    vocabulary: int = 257  # tokens of the network, padding among them
    shift: int = 1  # from stored tokens to the network's
    padding: int | None = 0  # of the network's tokens; None: all sequences are equally long
    multiples: tuple[int, ...] = (1,)
    sizes: Sizes = Sizes()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    classes: tuple[str, ...] = ()

    def __init__(self, train_length: int, judged: tuple[int, int] = (500, 2000), splits: Splits | None = None) -> None:
        if train_length < 1 or min(judged) < 1:
            raise ValueError(f"train_length and judged are at least 1, got {train_length} and {judged}")
        self.train_length, self.judged = train_length, judged
        self._given = None if splits is None else self._checked(splits)
        self._splits: Splits | None = self._given
        self._rows: dict[str, np.ndarray] = {}
        self._order: tuple[tuple[int, int], np.ndarray] | None = None
        self._predictors: dict[str, Predictor] | None = None

    @property
    def source(self) -> str:
        """Where the data comes from."""
        raise NotImplementedError

    def load(self, progress: Progress | None = None) -> Splits:
        """The examples of "train", "validation" and "test", from the cache where they are in it."""
        raise NotImplementedError

    def predictors(self) -> Mapping[str, Callable[[], Predictor]]:
        """How to fit the cheap predictors of this task beside "uniform" and "majority", by name."""
        return {}

    def facts(self) -> dict[str, object]:
        """What `describe` says beside what all tasks say."""
        return {}

    def positions(self, length: int) -> object:
        """What the network is told of places; None: tokens in order."""
        return None

    def encoding_options(self, encoding: object, front: int) -> dict[str, Any]:
        """Options of an encoding given by name, such as the size of its tables; front: tokens put before a sequence."""
        return length_options(encoding, self.train_length + front, self.train_length * max(self.multiples) + front)

    def show(self, examples: Examples, log_p: np.ndarray, directory: Path) -> list[Artifact]:
        """Files that show these examples beside what the network says, (examples, classes) in nats."""
        raise NotImplementedError

    def prepare(self, progress: Progress | None = None) -> None:
        if self._splits is None:
            self._splits = self._checked(self.load(progress))

    def __getstate__(self) -> dict[str, Any]:
        """Without data that can be loaded again, so that a worker process is sent a name and not a data set."""
        return {**self.__dict__, "_splits": self._given, "_order": None, "_predictors": None}

    def _checked(self, splits: Splits) -> Splits:
        if set(splits) != set(SPLITS):
            raise ValueError(f"splits are {', '.join(SPLITS)}; got {', '.join(map(str, splits))}")
        for name, split in splits.items():
            if not len(split):
                raise ValueError(f"the split {name!r} is empty: give it examples")
            if not 0 <= split.labels.min() <= split.labels.max() < len(self.classes):
                raise ValueError(f"labels lie in 0..{len(self.classes) - 1}, got {split.labels.max()} in {name!r}")
        return splits

    @property
    def splits(self) -> Splits:
        """All examples by split; prepared at first use."""
        self.prepare()
        assert self._splits is not None
        return self._splits

    def describe(self) -> dict[str, object]:
        return {
            "task": self.name,
            "source": self.source,
            "classes": list(self.classes),
            "splits": {name: _counted(split, len(self.classes)) for name, split in self.splits.items()},
            "judged": {name: len(self.examples(name)) for name in SPLITS[1:]},
            "vocabulary": self.vocabulary,
            "train_length": self.train_length,
            "lengths": [m * self.train_length for m in self.multiples],
            **self.facts(),
        }

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """`relpos.models.Classifier` of this task's size; options go to it and override the sizes."""
        from relpos.models import Classifier

        s = self.sizes
        arguments: dict[str, Any] = {
            "dim": s.dim, "depth": s.depth, "heads": s.heads, "expansion": s.expansion, "dropout": s.dropout,
            "pooling": s.pooling, "padding": self.padding, "two_tower": self._towers() == 2,
        } | options  # fmt: skip
        given = dict(arguments.pop("encoding_options", None) or {})
        known = self.encoding_options(encoding, front=int(arguments["pooling"] == "cls"))
        return Classifier(
            self.vocabulary, len(self.classes), encoding=encoding, encoding_options=known | given or None, **arguments
        )

    def _towers(self) -> int:
        return 1

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, Tensor]:
        """Tokens (size, n) or for pairs (size, 2, n), int64, and labels (size,). A pure function of its arguments."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        train = self.splits["train"]
        rows = np.empty(size, dtype=np.int64)
        for i in range(size):
            epoch, place = divmod(step * size + i, len(train))
            rows[i] = self._ordered(seed, epoch)[place]
        return self._tensors(train, rows, self.train_length)

    def _ordered(self, seed: int, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != (seed, epoch):
            draw = np.random.default_rng([seed, epoch])
            self._order = (seed, epoch), draw.permutation(len(self.splits["train"]))
        return self._order[1]

    def _tensors(self, examples: Examples, rows: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        tokens = examples.padded(rows, length, self.shift)
        if self._towers() == 1:
            tokens = tokens[:, 0]
        return torch.from_numpy(tokens), torch.from_numpy(examples.labels[rows])

    def _logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        positions = self.positions(tokens.shape[-1])
        logits: Tensor = model(tokens) if positions is None else model(tokens, positions=positions)
        return logits.float()

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy in nats an example."""
        tokens, labels = batch
        return nn.functional.cross_entropy(self._logits(model, tokens), labels)

    def examples(self, split: str) -> Examples:
        """The examples of "validation" or "test" that are judged."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        whole = self.splits[split]
        most = {"validation": self.judged[0], "test": self.judged[1]}.get(split, len(whole))
        if most >= len(whole):
            return whole
        return whole.take(np.sort(np.random.default_rng(0).permutation(len(whole))[:most]))

    def _check_length(self, length: int) -> None:
        allowed = [m * self.train_length for m in self.multiples]
        if length not in allowed:
            raise ValueError(f"length is one of {', '.join(map(str, allowed))} tokens here, got {length}")

    @torch.inference_mode()
    def log_probabilities(
        self, model: nn.Module, examples: Examples, length: int, progress: Progress | None = None, text: str = ""
    ) -> np.ndarray:
        """(examples, classes) float64 in the order of the examples; the model's mode is kept."""
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        order = np.argsort(np.minimum(examples.lengths, length), kind="stable")  # like lengths together: little padding
        result = np.empty((len(examples), len(self.classes)))
        training, first = model.training, 0
        model.eval()
        try:
            while first < len(order):
                longest = min(length, int(examples.lengths[order[min(first + 63, len(order) - 1)]]))
                rows = order[first : first + max(1, min(64, _TOKENS_A_BATCH // (max(1, longest) * self._towers())))]
                tokens, _ = self._tensors(examples, rows, length)
                logits = self._logits(model, tokens.to(device))
                result[rows] = logits.double().log_softmax(-1).cpu().numpy()
                first += len(rows)
                if progress is not None:
                    progress(first, len(order), text)
        finally:
            model.train(training)
        return result

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Nats an example and accuracy of the judged examples, their first ``length`` tokens read."""
        self._check_length(length)
        examples = self.examples(split)
        log_p = self.log_probabilities(model, examples, length, progress, f"{split}, {length} tokens")
        found = score(log_p, examples.labels)
        return Evaluation(length, found["loss"], None, len(examples), {"accuracy": found["accuracy"]})

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Loss and accuracy of cheap predictors on exactly the examples that `evaluate` judges, seeing what it does."""
        self._check_length(length)
        examples = self.examples(split)
        if self._predictors is None:
            labels, classes = self.splits["train"].labels, len(self.classes)
            fixed = {"uniform": Prior(labels, classes, count=False), "majority": Prior(labels, classes)}
            self._predictors = fixed | {name: fit() for name, fit in self.predictors().items()}
        return {
            name: score(predictor.log_probabilities(examples, length), examples.labels)
            for name, predictor in self._predictors.items()
        }

    def fitting(self) -> Splits:
        """What a predictor is fitted on: the training split and the judged part of the validation split."""
        return {"train": self.splits["train"], "validation": self.examples("validation")}

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """Some test examples with the network's answers, and its table of right and wrong answers.

        The examples are the same for every model and seed.
        """
        from relpos.tasks import answers

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        whole = self.examples("test")
        part = whole.take(np.arange(min(len(whole), _CONFUSION_OF)))
        log_p = self.log_probabilities(model, part, self.train_length)
        few = np.arange(min(len(part), SHOWN))
        shown = self.show(part.take(few), log_p[few], directory)
        table = answers.confusion(directory / "confusion.png", part.labels, log_p.argmax(1), self.classes)
        return [*shown, Artifact(table, "image", f"answers to {len(part)} test examples")]


def _counted(split: Examples, classes: int) -> dict[str, object]:
    lengths = split.lengths
    return {
        "examples": len(split),
        "labels": np.bincount(split.labels, minlength=classes).tolist(),
        "tokens": {"median": float(np.median(lengths)), "mean": float(lengths.mean()), "longest": int(lengths.max())},
    }
