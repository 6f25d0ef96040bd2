"""Translation of Bible verses from English to Spanish, or of a parallel text of the user's own.

**What is compared.** An encoder-decoder reads a verse of up to ``train_length`` = 64 subwords and writes it in the
other language; the encoding works in the self-attention of both halves. The subwords (byte-pair encoding, one
vocabulary for both languages) are learned from the training side alone. Pairs with a side of more than 64 are left out
of training and evaluation alike, so lengths beyond it are not evaluated.

**The evaluation rule.** The loss is the mean cross-entropy in nats of every target subword and of the end, given those
before it; training smooths its labels, the evaluation does not. BLEU (sacrebleu's own tokens and defaults) is of
greedy translations of the same verses of the split for every model: of a few hundred, drawn once.

The language is that of the 17th century, full of formulas, and translations are close: the nearest training verse
makes a strong baseline, which is listed beside the models.
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

from relpos.tasks.base import Artifact, Evaluation, Metric, Progress
from relpos.tasks.lengths import length_options
from relpos.tasks.ngram import Counts
from relpos.tasks.parallel import SIDES, Nearest, Pairs
from relpos.tasks.subwords import END, PAD, START, Subwords

BLEU = Metric("bleu", "BLEU", format=".1f")
_EDGE = 8  # batches are made of verses whose longer side rounds up to the same multiple of it
_TOKENS_A_BATCH = 4096


@dataclass(frozen=True)
class Settings:
    """Sizes of the network and of its vocabulary, and what is translated."""

    dim: int = 128
    depth: int = 2
    heads: int = 4
    expansion: int = 4
    dropout: float = 0.1
    smoothing: float = 0.1
    vocabulary: int = 4000
    translated: int = 200
    shown: int = 20


class Translate:
    """English verses into Spanish; see the module for the rules.

    path     a parallel text of the user's own in place of the verses, in a layout of `relpos.tasks.data` "parallel"
    reverse  from the second language into the first
    pairs    sentences that are already there, in place of either
    """

    name = "translate"
    title = "Bible verses, English to Spanish: encoder and decoder, judged by loss and BLEU"
    unit = "nats a token"
    metrics = (BLEU,)
    train_length = 64
    multiples = (1,)
    presets = {
        "demo": {"steps": 1500, "batch": 12, "rates": (4e-3,), "model": {"dim": 128, "depth": 2, "heads": 4}},
        "results": {"steps": 6000, "batch": 16, "rates": (4e-3,), "model": {"dim": 128, "depth": 2, "heads": 4}},
    }

    def __init__(
        self,
        path: str | Path | None = None,
        reverse: bool = False,
        settings: Settings | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        self.path, self.reverse, self.settings = path, bool(reverse), settings or Settings()
        self._given = pairs
        self._ready: _Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}  # read again from the cache faster than sent to another process

    @property
    def source(self) -> str:
        about = self.data.pairs.about
        if not about:
            return "sentences given by the caller"
        packages: Any = about.get("packages") or ()
        held = ", ".join(f"{each.get('package')} {each.get('version')}" for each in packages)
        return "; ".join(str(x) for x in (about.get("title"), held or about.get("origin"), about.get("licence")) if x)

    def prepare(self, progress: Progress | None = None) -> None:
        """Reads the text and learns the subwords, once; from the cache after that."""
        if self._ready is None:
            pairs = self._given or _load(self.path, progress)
            self._ready = _Prepared.of(pairs, self.settings.vocabulary, self.train_length, self.reverse)

    @property
    def data(self) -> _Prepared:
        """Pairs, subwords and numbered sentences; prepared at first use."""
        self.prepare()
        assert self._ready is not None
        return self._ready

    def describe(self) -> dict[str, object]:
        data = self.data
        sides = {
            side: {
                "pairs": len(data.source[side]),
                "source tokens": int(sum(map(len, data.source[side]))),
                "target tokens": int(sum(map(len, data.target[side]))),
                "left out as too long": data.dropped[side],
            }
            for side in SIDES
        }
        return {
            "task": self.name,
            "source": self.source,
            "splits": sides,
            "vocabulary": f"{len(data.subwords)} subwords of both languages, learned from the training side",
            "train_length": self.train_length,
            "lengths": [self.train_length],
            "translated": f"{self.settings.translated} verses of the split, greedily",
            "baselines": {
                "uniform": "every subword equally likely",
                "unigram": "how often a subword occurs in the training targets",
                "copy": "the source as it is",
                "nearest verse": "the translation of the training verse nearest to the source by tf-idf",
            },
        }

    def model(self, encoding: str, **options: Any) -> nn.Module:
        """``relpos.models.Seq2Seq`` of this task's size; options go to it and override the settings.

        Tables of lags and of positions end where sentences do, where ``encoding_options`` do not say otherwise.
        """
        from relpos.models import Seq2Seq

        s = self.settings
        arguments: dict[str, Any] = {
            "dim": s.dim,
            "depth": s.depth,
            "heads": s.heads,
            "expansion": s.expansion,
            "dropout": s.dropout,
        } | options
        given = dict(arguments.pop("encoding_options", None) or {})
        longest = self.train_length + 1  # with the start of a target
        given = length_options(encoding, longest, longest) | given
        return Seq2Seq(len(self.data.subwords), encoding=encoding, encoding_options=given, **arguments)

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, Tensor]:
        """Sources (rows, n) and targets with START and END (rows, m + 2), filled up with PAD.

        A pure function of its arguments, of about size * train_length tokens a side: verses of like length come
        together, more of them where they are shorter. Every training pair is equally likely in every row.
        """
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        draw = np.random.default_rng([seed, step])
        buckets = self.data.buckets
        rows = {edge: max(1, size * self.train_length // edge) for edge in buckets}
        weight = np.array([len(members) / rows[edge] for edge, members in buckets.items()])
        edge = list(buckets)[int(draw.choice(len(buckets), p=weight / weight.sum()))]
        chosen = buckets[edge][draw.integers(len(buckets[edge]), size=rows[edge])]
        return self.data.tensors("train", chosen)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Nats a target token, with smoothed labels while the model is in training mode."""
        source, target = batch
        logits = model(source, target[:, :-1], source != PAD)
        smoothing = self.settings.smoothing if model.training else 0.0
        return nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=smoothing
        )

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Loss on every pair of a split and, on the test side, BLEU of the chosen verses; the mode is kept."""
        self._check(split, length)
        training = model.training
        model.eval()
        try:
            loss, count = self._nats(model, split, progress)
            metrics = {} if split == "validation" else {BLEU.name: self.bleu(self.translations(model, split), split)}
        finally:
            model.train(training)
        return Evaluation(length, loss, None, count, metrics)

    def _nats(self, model: nn.Module, split: str, progress: Progress | None) -> tuple[float, int]:
        device, total, count = _device(model), 0.0, 0
        order = np.argsort([len(x) for x in self.data.target[split]], kind="stable")
        parts = np.array_split(order, max(1, len(order) * self.train_length // (2 * _TOKENS_A_BATCH)))
        for done, part in enumerate(parts, start=1):
            source, target = (x.to(device) for x in self.data.tensors(split, part))
            logits = model(source, target[:, :-1], source != PAD).float()
            scored = target[:, 1:] != PAD
            nats = nn.functional.cross_entropy(logits.transpose(1, 2), target[:, 1:], reduction="none")
            total += float(nats[scored].double().sum())
            count += int(scored.sum())
            if progress is not None:
                progress(done, len(parts), split)
        return total / count, count

    def chosen(self, split: str) -> np.ndarray:
        """Rows of a side that are translated: the same for every model and every run."""
        available = len(self.data.source[split])
        return np.random.default_rng(0).permutation(available)[: self.settings.translated]

    @torch.inference_mode()
    def translations(self, model: Any, split: str, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Greedy translations of rows of a side, by default those that BLEU is taken from."""
        rows = self.chosen(split) if rows is None else np.asarray(rows)
        source, _ = self.data.tensors(split, rows)
        source = source.to(_device(model))
        out = model.translate(source, source != PAD, start=START, end=END, steps=self.train_length)
        return self.data.subwords.decode(list(out.cpu().numpy()))

    def bleu(self, translations: Sequence[str], split: str, rows: Sequence[int] | np.ndarray | None = None) -> float:
        """Corpus BLEU, 0 to 100, of translations of rows of a side."""
        import sacrebleu

        rows = self.chosen(split) if rows is None else rows
        return float(sacrebleu.corpus_bleu(list(translations), [self.data.texts(split, "target", rows)]).score)

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Trivial predictors on what `evaluate` scores, and trivial translations of what it translates."""
        self._check(split, length)
        data, size = self.data, len(self.data.subwords)
        counts = Counts(size, [1])
        seen, scored = (_with_ends(data.target[side]) for side in ("train", split))
        counts.add([np.zeros_like(seen)], seen)
        unigram = float(counts.loss([np.zeros_like(scored)], scored, strength=float(size)).mean())
        rows = self.chosen(split)
        asked = data.texts(split, "source", rows)
        near = Nearest(data.texts("train", "source"))
        found = data.texts("train", "target", [near(text) for text in asked])
        return {
            "uniform": {"loss": math.log(size)},
            "unigram": {"loss": unigram},
            "copy": {BLEU.name: self.bleu(asked, split)},
            "nearest verse": {BLEU.name: self.bleu(found, split)},
        }

    def _check(self, split: str, length: int) -> None:
        if split not in SIDES:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SIDES)}")
        if length != self.train_length:
            raise ValueError(f"verses are read whole, up to {self.train_length} tokens: no length of {length}")

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """A page of test verses with their real translation and the model's; the same verses for every model."""
        rows = self.chosen("test")[: self.settings.shown]
        columns = (
            self.data.texts("test", "source", rows),
            self.data.texts("test", "target", rows),
            self.translations(model, "test", rows),
        )
        path = Path(directory) / "translations.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        verses = [f"source:    {s}\nreference: {r}\nnetwork:   {t}\n" for s, r, t in zip(*columns, strict=True)]
        path.write_text("\n".join(verses), encoding="utf-8")
        return [Artifact(path, "text", "Verses that the network had not seen, and how it translates them")]


@dataclass(frozen=True)
class _Prepared:
    """The pairs in numbers. source, target: side -> one array a sentence; kept: side -> their rows in `pairs`."""

    pairs: Pairs
    subwords: Subwords
    source: dict[str, list[np.ndarray]]
    target: dict[str, list[np.ndarray]]
    kept: dict[str, np.ndarray]
    dropped: dict[str, int]
    buckets: dict[int, np.ndarray]

    @classmethod
    def of(cls, pairs: Pairs, vocabulary: int, longest: int, reverse: bool) -> _Prepared:
        if reverse:
            pairs = Pairs(pairs.target, pairs.source, pairs.split, pairs.about)
        subwords = Subwords.learned([line for lines in pairs.texts("train") for line in lines], vocabulary)
        source, target, kept, dropped = {}, {}, {}, {}
        for side in SIDES:
            left, right = (subwords.encode(lines) for lines in pairs.texts(side))
            fit = [i for i in range(len(left)) if 0 < len(left[i]) <= longest and 0 < len(right[i]) < longest]
            if not fit:
                raise ValueError(f"no pair of the side {side} has at most {longest} subwords: give shorter sentences")
            source[side], target[side] = [left[i] for i in fit], [right[i] for i in fit]
            kept[side], dropped[side] = pairs.split[side][fit], len(left) - len(fit)
        size = np.array([max(len(s), len(t)) for s, t in zip(source["train"], target["train"], strict=True)])
        edges = -(-size // _EDGE) * _EDGE
        buckets = {int(edge): np.flatnonzero(edges == edge) for edge in np.unique(edges)}
        return cls(pairs, subwords, source, target, kept, dropped, buckets)

    def texts(self, side: str, which: str, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """The "source" or "target" as text, of all that is kept of a side or of some rows of it."""
        all_texts = self.pairs.source if which == "source" else self.pairs.target
        kept = self.kept[side] if rows is None else self.kept[side][np.asarray(rows, dtype=np.int64)]
        return [all_texts[i] for i in kept]

    def tensors(self, side: str, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        sources = [self.source[side][i] for i in rows]
        targets = [np.concatenate([[START], self.target[side][i], [END]]) for i in rows]
        return _padded(sources), _padded(targets)


def _padded(rows: Sequence[np.ndarray]) -> Tensor:
    out = np.full((len(rows), max(map(len, rows), default=0)), PAD, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


def _with_ends(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.append(row, END) for row in rows])


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _load(path: str | Path | None, progress: Progress | None) -> Pairs:
    from relpos.tasks import data

    found = data.load("bible-en-es" if path is None else "parallel", path=path, progress=progress)
    assert isinstance(found, data.Parallel)
    source, target = ([side.text(i) for i in range(len(side))] for side in (found.source, found.target))
    return Pairs.of(source, target, found.split, found.card.json())
