"""Next-byte prediction on English prose.

**The evaluation rule.** A split is cut into windows of the longest context, eight times that of training, and the byte
after each. ``judged`` of them, spread evenly over the split, are read: at the longest length whole, at shorter ones in
parts, each without what came before (see `relpos.tasks.windows`). So every length is scored on the same bytes, and only
the context differs. Loss is in nats a byte, the metric in bits a byte, which is what compressors are measured in.

The network's vocabulary is the bytes that occur in the training split, in rising order, and one more token for all
others.
"""

from __future__ import annotations

import bz2
import lzma
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relpos.tasks import held_out, windows
from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.data import sets
from relpos.tasks.lengths import length_options
from relpos.tasks.ngram import Counts

_ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3, "5-gram": 5}
_CONTEXTS = 1 << 16  # of a level, at most: the most frequent ones
_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
_CHUNK = 1 << 20  # bytes counted at once
_SIDES = ("train", "validation", "test")
MEANING = {
    "uniform": "all bytes of the vocabulary alike",
    "unigram": "byte frequencies",
    "bigram": "given the byte before",
    "trigram": "given the two bytes before",
    "5-gram": f"given up to four bytes before, the {_CONTEXTS} most frequent contexts of each length",
    "bz2": "the scored bytes compressed by bz2 -9, which learns from nothing else",
    "xz": "the same by xz -9e",
}


class BytesLM:
    """The next byte of a text; dataset: "prose32", "az27", or with a path any that `relpos data list` calls a corpus
    ("text" is a plain file).

    train_length: bytes of context in training; judged: windows of eight times that which are scored; splits: texts to
    use in place of a data set, one uint8 array a split.
    """

    name = "bytes-lm"
    title = "bytes: predict the next byte of a text, train on 256, read up to 2,048"
    unit = "nats a byte"
    metrics = (Metric("bits_per_byte", "bits a byte", higher_is_better=False),)
    multiples = (1, 2, 4, 8)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "seeds": (0,), "steps": 3000, "batch": 16, "rates": (3e-3,), "budget": 12.0,
            "model": {"dim": 96, "depth": 3, "heads": 3},
        },
        "results": {
            "seeds": (0, 1), "steps": 10_000, "batch": 16, "rates": (1e-3, 3e-3), "sweep_steps": 500, "budget": None,
            "model": {"dim": 128, "depth": 4, "heads": 4},
        },
    }  # fmt: skip

    def __init__(
        self,
        dataset: str | None = None,
        path: str | None = None,
        train_length: int = 256,
        judged: int = 48,
        splits: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if train_length < 2 or judged < 1:
            raise ValueError(f"train_length is at least 2 and judged at least 1, got {train_length} and {judged}")
        dataset = dataset or ("text" if path else "prose32")
        self.dataset, self.path, self.train_length, self.judged = dataset, path, train_length, judged
        self._given = splits is not None
        self._origin = f"the data set {dataset}" if splits is None else "texts given by the caller"
        self._tokens: dict[str, np.ndarray] | None = None
        self.symbols = np.zeros(0, dtype=np.uint8)
        self._counts: dict[str, tuple[Counts, list[np.ndarray], float]] = {}
        if splits is not None:
            self._accept({side: np.asarray(splits[side], dtype=np.uint8) for side in _SIDES})

    @property
    def longest(self) -> int:
        """The longest context that is evaluated."""
        return self.train_length * max(self.multiples)

    @property
    def vocabulary(self) -> int:
        self.prepare()
        return len(self.symbols) + 1

    @property
    def source(self) -> str:
        return self._origin  # in full once the data is read

    def prepare(self, progress: Progress | None = None) -> None:
        if self._tokens is not None:
            return
        found = held_out.load(sets.Corpus, self.dataset, self.path, progress)
        if found.tokens.dtype != np.uint8:
            raise ValueError(f"{self.dataset} holds words, not bytes: choose prose32, az27, text8, enwik8 or text")
        self._origin = held_out.origin(found.card)
        self._accept({side: found.part(side) for side in _SIDES})

    def _accept(self, texts: Mapping[str, np.ndarray]) -> None:
        for side, text in texts.items():
            if len(text) <= self.longest:
                raise ValueError(f"the split {side!r} has {len(text)} bytes, but a window takes {self.longest + 1}")
        self.symbols = np.flatnonzero(np.bincount(texts["train"], minlength=256)).astype(np.uint8)
        rank = np.full(256, len(self.symbols), dtype=np.uint16)
        rank[self.symbols] = np.arange(len(self.symbols))
        self._tokens = {side: rank[text] for side, text in texts.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Without data that can be loaded again, so that a worker process is sent a name and not a data set."""
        return {**self.__dict__, "_counts": {}, "_tokens": self._tokens if self._given else None}

    def text(self, split: str) -> np.ndarray:
        """The tokens of a split, uint16: ranks of bytes."""
        self.prepare()
        assert self._tokens is not None
        if split not in self._tokens:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self._tokens)}")
        return self._tokens[split]

    def describe(self) -> dict[str, object]:
        return {
            "task": self.name,
            "source": self.source,
            "bytes": {side: len(self.text(side)) for side in _SIDES},
            "scored bytes": {side: len(self.windows(side)) * self.longest for side in _SIDES[1:]},
            "vocabulary": f"{self.vocabulary}: {len(self.symbols)} bytes of the training split, one for others",
            "train_length": self.train_length,
            "lengths": [m * self.train_length for m in self.multiples],
            "baselines": dict(MEANING),
        }

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """`relpos.models.Transformer`, causal; options go to it. Lengths are filled in as in `relpos.tasks.lengths`."""
        from relpos.models import Transformer

        arguments: dict[str, Any] = {"dim": 128, "depth": 4, "heads": 4, "causal": True} | options
        given = dict(arguments.pop("encoding_options", None) or {})
        known = length_options(encoding, self.train_length, self.longest)
        return Transformer(self.vocabulary, encoding=encoding, encoding_options=known | given or None, **arguments)

    def batch(self, step: int, seed: int, size: int) -> Tensor:
        """(size, train_length + 1) int64 from anywhere in the training split: a pure function of its arguments."""
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        text = self.text("train")
        starts = np.random.default_rng([seed, step]).integers(len(text) - self.train_length, size=size)
        rows = text[starts[:, None] + np.arange(self.train_length + 1)]
        return torch.from_numpy(rows.astype(np.int64))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats a byte."""
        logits = model(batch[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def windows(self, split: str) -> np.ndarray:
        """(windows, longest + 1) int64: those of a split that are judged."""
        text = self.text(split)
        count = (len(text) - 1) // self.longest
        chosen = np.unique(np.linspace(0, count - 1, min(self.judged, count)).round().astype(np.int64))
        return text[chosen[:, None] * self.longest + np.arange(self.longest + 1)].astype(np.int64)

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss with ``length`` bytes of context, by the rule of the module."""
        parts = windows.cut(self.windows(split), length)
        loss, by_position, count = windows.losses(model, parts, None, progress, f"{split}, {length} bytes")
        return Evaluation(length, loss, by_position, count, {"bits_per_byte": loss / math.log(2)})

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Counted predictors and compressors on exactly the bytes that `evaluate` scores; `MEANING` says what each is.

        Counts see what lies in the same part only, as a network does; the compressors get all scored bytes in one go.
        """
        parts = windows.cut(self.windows(split), length)
        nats = {"uniform": math.log(self.vocabulary)}
        for name in _ORDERS:
            counts, known, strength = self._fitted(name)
            nats[name] = float(counts.loss(self._contexts(parts, known), parts[:, 1:], strength).mean())
        raw = np.append(self.symbols, 0)[self.windows(split)[:, 1:]].astype(np.uint8).tobytes()
        packed = {"bz2": bz2.compress(raw, 9), "xz": lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)}
        nats |= {name: 8 * math.log(2) * len(short) / len(raw) for name, short in packed.items()}
        return {name: {"loss": loss, "bits_per_byte": loss / math.log(2)} for name, loss in nats.items()}

    def _contexts(self, rows: np.ndarray, known: list[np.ndarray]) -> list[np.ndarray]:
        """Of the targets rows[:, 1:], a level the index of what stands before among the known contexts, else -1."""
        levels = [np.zeros_like(rows[:, 1:])]
        for order, contexts in enumerate(known, start=1):
            code = np.zeros((len(rows), rows.shape[1] - order), dtype=np.int64)
            for i in range(order):
                code = code * self.vocabulary + rows[:, i : i + code.shape[1]]
            at = np.minimum(np.searchsorted(contexts, code), len(contexts) - 1)
            level = np.full(rows[:, 1:].shape, -1, dtype=np.int64)
            level[:, order - 1 :] = np.where(contexts[at] == code, at, -1)
            levels.append(level)
        return levels

    def _fitted(self, name: str) -> tuple[Counts, list[np.ndarray], float]:
        if name not in self._counts:
            text = self.text("train")
            known = [self._frequent(text, order) for order in range(1, _ORDERS[name])]
            counts = Counts(self.vocabulary, [1, *(len(contexts) for contexts in known)])
            for first in range(0, len(text) - 1, _CHUNK):
                rows = text[None, first : first + _CHUNK + 1].astype(np.int64)
                counts.add(self._contexts(rows, known), rows[:, 1:])
            held = self.windows("validation")
            seen = self._contexts(held, known)
            best = min(_STRENGTHS, key=lambda m: float(counts.loss(seen, held[:, 1:], m).mean()))
            self._counts[name] = counts, known, best
        return self._counts[name]

    def _frequent(self, text: np.ndarray, order: int) -> np.ndarray:
        """The codes of the most frequent runs of ``order`` tokens, in rising order."""
        code = np.zeros(len(text) - order + 1, dtype=np.int64)
        for i in range(order):
            code = code * self.vocabulary + text[i : i + len(code)]
        codes, count = np.unique(code, return_counts=True)
        return np.sort(codes[np.argsort(-count, kind="stable")[:_CONTEXTS]])

    def sample(self, model: Any, directory: Path, seed: int) -> list[Artifact]:
        """Continues the first judged test window by two training lengths, beside what really follows."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        window = self.windows("test")[0]
        prompt, steps = window[: self.train_length], min(2 * self.train_length, self.longest - self.train_length)
        device = next(model.parameters()).device
        generator = torch.Generator(device=device).manual_seed(seed)
        row = torch.from_numpy(prompt)[None].to(device)
        made = model.generate(row, steps, temperature=0.8, top_p=0.95, generator=generator)[0, len(prompt) :]
        parts = {
            "Prompt": prompt,
            "The network goes on": made.cpu().numpy(),
            "The text goes on": window[len(prompt) : len(prompt) + steps],
        }
        lines = [f"## {title}\n\n```text\n{self._readable(part)}\n```\n" for title, part in parts.items()]
        path = directory / "continuation.md"
        path.write_text("\n".join(lines), encoding="utf-8")
        return [Artifact(path, "text", "a test text, continued by the network and by its author")]

    def _readable(self, tokens: np.ndarray) -> str:
        raw = np.append(self.symbols, ord("?"))[tokens].astype(np.uint8).tobytes()
        return raw.decode("utf-8", "replace").replace("```", "'''")
