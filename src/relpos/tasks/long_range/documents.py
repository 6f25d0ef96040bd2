"""Tasks on documents read byte by byte: what kind of text it is, and whether two texts belong together.

In training a network reads the first ``length`` bytes of a document; it is then also judged with twice as many, on the
same documents. Bytes are tokens 1 to 256, 0 fills up, as in the Long Range Arena (Tay et al. 2021, 2.2.2 and 2.2.3).
The data sets offered by name are not the Arena's, and never stand beside its table; IMDB and the released pairs of ACL
papers are, where a user has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from relpos.tasks import answers, held_out
from relpos.tasks.base import Artifact, Progress
from relpos.tasks.classification import Classification, Splits
from relpos.tasks.data import sets
from relpos.tasks.examples import Examples
from relpos.tasks.long_range import arena
from relpos.tasks.predictors import Bag, Overlap, Predictor

_BYTES = 256


class Documents(Classification):
    """What both tasks share; ``released`` is the data set that the Arena's table belongs to, ``row`` its column."""

    vocabulary = _BYTES + 1
    multiples = (1, 2)
    released: ClassVar[str] = ""
    row: ClassVar[str] = ""

    def __init__(
        self, dataset: str, path: str | None, length: int, judged: tuple[int, int], splits: Splits | None
    ) -> None:
        self.dataset, self.path = dataset, path
        self._origin = f"the data set {dataset}" if splits is None else "documents given by the caller"
        super().__init__(length, (judged[0], judged[1]), splits)

    @property
    def source(self) -> str:
        return self._origin  # in full once the data is read

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        theirs = self._given is None and self.dataset == self.released and split == "test"
        return super().baselines(split, length) | (arena.published(self.row) if theirs else {})

    def facts(self) -> dict[str, object]:
        return {"dataset": self.dataset, "tokens": "bytes + 1, 0 fills up"}


class Text(Documents):
    """The kind of a document; dataset: "spam" (2 kinds), "newsgroups" (20), or with a path "imdb" (2, the Arena's).

    Small networks learn the 20 newsgroups from their bytes only in many thousands of steps, so the other is the usual.
    """

    name = "text"
    title = "text: the kind of a document, read byte by byte"
    released = "imdb"
    row = "text"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0,), "steps": 3000, "batch": 16, "rates": (2e-3,), "budget": 12.0,
            "model": {"dim": 64, "depth": 2, "heads": 2},
        },
        "results": {
            "seeds": (0, 1), "steps": 8000, "batch": 16, "rates": (1e-3, 3e-3), "sweep_steps": 500, "budget": None,
            "model": {"dim": 96, "depth": 3, "heads": 3},
        },
        "lra": arena.preset(
            32, 20_000, 5e-4, {"dim": 256, "depth": 4, "heads": 4, "expansion": 4, "pooling": "cls"},
            task_options={"dataset": "imdb", "length": 1000, "judged": [2500, 25_000]}, warmup=0.4,
        ),
    }  # fmt: skip

    def __init__(
        self,
        dataset: str | None = None,
        path: str | None = None,
        length: int = 512,
        judged: tuple[int, int] = (500, 2000),
        splits: Splits | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.classes = tuple(classes)
        super().__init__(dataset or ("imdb" if path else "spam"), path, length, judged, splits)

    def load(self, progress: Progress | None = None) -> Splits:
        found = held_out.load(sets.Texts, self.dataset, self.path, progress)
        self._origin, self.classes = held_out.origin(found.card), found.classes
        texts, labels = found.documents, found.labels
        labelled = {side: rows[labels[rows] >= 0] for side, rows in held_out.sides(found).items()}
        return {
            side: Examples(texts.data, texts.offsets, labels[rows], rows[:, None]) for side, rows in labelled.items()
        }

    def predictors(self) -> Mapping[str, Callable[[], Predictor]]:
        def bag(size: int) -> Bag:
            return Bag(self.fitting(), len(self.classes), _BYTES, self.train_length, size)

        return {"bag of bytes": lambda: bag(1), "bag of five bytes": lambda: bag(5)}

    def show(self, examples: Examples, log_p: np.ndarray, directory: Path) -> list[Artifact]:
        rows = [
            (_snippet(examples, int(member)), self.classes[label], answers.answer(row, int(label), self.classes))
            for member, label, row in zip(examples.members[:, 0], examples.labels, log_p, strict=True)
        ]
        path = answers.table(directory / "answers.md", "Documents, their kind and the network's answer", rows)
        return [Artifact(path, "text", "beginnings of test documents, their kind and the network's answer")]


class Retrieval(Documents):
    """Whether two documents belong together; dataset: "manpages" (one page names the other), or with a path
    "lra-retrieval" (one paper cites the other: the Arena's).

    Two towers: both documents go through the same encoder and only their vectors meet.
    """

    name = "retrieval"
    title = "retrieval: do two documents belong together, each read byte by byte"
    classes = ("unrelated", "related")
    released = "lra-retrieval"
    row = "retrieval"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0,), "steps": 2500, "batch": 16, "rates": (2e-3,), "budget": 12.0,
            "model": {"dim": 64, "depth": 2, "heads": 2, "interaction": True},
        },
        "results": {
            "seeds": (0, 1), "steps": 6000, "batch": 16, "rates": (1e-3, 3e-3), "sweep_steps": 400, "budget": None,
            "model": {"dim": 64, "depth": 3, "heads": 2, "interaction": True},
        },
        "lra": arena.preset(
            32, 5000, 5e-4, {"dim": 128, "depth": 4, "heads": 4, "expansion": 4, "pooling": "cls"},
            task_options={"dataset": "lra-retrieval", "length": 4000, "judged": [2000, 20_000]},
        ),
    }  # fmt: skip

    def __init__(
        self,
        dataset: str | None = None,
        path: str | None = None,
        length: int = 512,
        judged: tuple[int, int] = (500, 2000),
        splits: Splits | None = None,
    ) -> None:
        super().__init__(dataset or ("lra-retrieval" if path else "manpages"), path, length, judged, splits)

    def _towers(self) -> int:
        return 2

    def load(self, progress: Progress | None = None) -> Splits:
        found = held_out.load(sets.DocumentPairs, self.dataset, self.path, progress)
        self._origin = held_out.origin(found.card)
        texts = found.documents
        return {
            side: Examples(texts.data, texts.offsets, found.labels[rows], found.pairs[rows])
            for side, rows in held_out.sides(found).items()
        }

    def predictors(self) -> Mapping[str, Callable[[], Predictor]]:
        def shared() -> Overlap:
            return Overlap(self.fitting(), len(self.classes), _BYTES, self.train_length, size=5)

        return {"runs of five bytes in both": shared}

    def show(self, examples: Examples, log_p: np.ndarray, directory: Path) -> list[Artifact]:
        rows = [
            (
                " / ".join(_snippet(examples, int(member), 100) for member in pair),
                self.classes[label],
                answers.answer(row, int(label), self.classes),
            )
            for pair, label, row in zip(examples.members, examples.labels, log_p, strict=True)
        ]
        path = answers.table(directory / "answers.md", "Pairs of documents and the network's answer", rows)
        return [Artifact(path, "text", "beginnings of test pairs, and whether they belong together")]


def _snippet(examples: Examples, member: int, size: int = 160) -> str:
    return examples.sequence(member, size).tobytes().decode("utf-8", "replace")
