"""Cheap predictors of a sequence's label: the rows that a table of networks has to beat.

Each is fitted on the training split, its few free numbers chosen on the validation split, and reads no more of a
sequence than the networks do. `log_probabilities` gives (examples, classes), nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from relpos.tasks.examples import Examples, grams

_TEMPERATURES = tuple(10.0 ** (k / 4) for k in range(17))  # 1 to 10,000: naive Bayes is far too sure of itself
_FITTED_ON = 20_000  # training examples at most


class Predictor(Protocol):
    """Anything that says how likely each label is."""

    def log_probabilities(self, examples: Examples, limit: int) -> np.ndarray:
        """(examples, classes); limit: tokens of each sequence that may be read."""
        ...


def score(log_p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Loss in nats an example, and accuracy; labels equally likely share the point."""
    best = log_p == log_p.max(1, keepdims=True)
    rows = np.arange(len(labels))
    return {"loss": float(-log_p[rows, labels].mean()), "accuracy": float((best[rows, labels] / best.sum(1)).mean())}


def normalised(scores: np.ndarray) -> np.ndarray:
    """log softmax over the last axis."""
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


class Prior:
    """Label frequencies of the training split, one added to each count; with count=False all labels alike."""

    def __init__(self, labels: np.ndarray, classes: int, count: bool = True) -> None:
        counts = np.bincount(labels, minlength=classes) + 1.0 if count else np.ones(classes)
        self.log_p = np.log(counts / counts.sum())

    def log_probabilities(self, examples: Examples, limit: int) -> np.ndarray:
        return np.tile(self.log_p, (len(examples), 1))


class Bag:
    """Multinomial naive Bayes over runs of ``size`` tokens (hashed into ``buckets``), of the first ``read`` tokens.

        log P(c | x) = log P(c) + (1/T) sum_g log P(g | c),     P(g | c) = (n(c, g) + a) / (n(c) + a buckets)

    (McCallum and Nigam 1998), with a and the temperature T chosen on the validation split.
    """

    def __init__(
        self,
        splits: Mapping[str, Examples],
        classes: int,
        vocabulary: int,
        limit: int,
        size: int = 1,
        read: int | None = None,
        buckets: int = 1 << 16,
    ) -> None:
        self.size, self.read, self.vocabulary = size, read, vocabulary
        self.buckets = min(buckets, vocabulary**size)
        train = splits["train"]
        self.prior = Prior(train.labels, classes).log_p
        counts = np.zeros((classes, self.buckets))
        for i in range(min(len(train), _FITTED_ON)):
            counts[train.labels[i]] += np.bincount(self._codes(train, i, limit), minlength=self.buckets)
        held = splits["validation"]
        best = math.inf
        for added in (0.01, 0.1, 1.0):
            table = np.log(counts + added) - np.log(counts.sum(1, keepdims=True) + added * self.buckets)
            sums = self._sums(table, held, limit)
            for temperature in _TEMPERATURES:
                loss = score(normalised(self.prior + sums / temperature), held.labels)["loss"]
                if loss < best:
                    best, self.table, self.temperature = loss, table, temperature

    def _codes(self, examples: Examples, index: int, limit: int) -> np.ndarray:
        limit = limit if self.read is None else min(limit, self.read)
        parts = [
            grams(examples.sequence(member, limit), self.size, self.vocabulary, self.buckets)
            for member in examples.members[index]
        ]
        return np.concatenate(parts)

    def _sums(self, table: np.ndarray, examples: Examples, limit: int) -> np.ndarray:
        codes = (self._codes(examples, i, limit) for i in range(len(examples)))
        return np.stack([table[:, code].sum(1) for code in codes])

    def log_probabilities(self, examples: Examples, limit: int) -> np.ndarray:
        return normalised(self.prior + self._sums(self.table, examples, limit) / self.temperature)


class Linear:
    """Multinomial logistic regression on the tokens as numbers, for sequences of one length such as pictures.

    The weight of the penalty |w|^2 is chosen on the validation split; fitted by L-BFGS.
    """

    def __init__(self, splits: Mapping[str, Examples], classes: int, limit: int) -> None:
        train, held = splits["train"], splits["validation"]
        x = self._vectors(train, limit, _FITTED_ON // 2)
        self.mean, self.spread = x.mean(0), float(x.std()) or 1.0
        y = torch.from_numpy(train.labels[: len(x)])
        best, weights = math.inf, torch.zeros(1 + x.shape[1], classes)
        for penalty in (10.0, 1.0, 1e-1, 1e-2, 1e-3):  # from the stiffest on, each from where the last one ended
            weights = _logistic((x - self.mean) / self.spread, y, weights, penalty)
            loss = score(self._apply(weights, held, limit), held.labels)["loss"]
            if loss >= best:
                break
            best, self.weights = loss, weights

    @staticmethod
    def _vectors(examples: Examples, limit: int, most: int | None = None) -> torch.Tensor:
        rows = np.arange(min(len(examples), most or len(examples)))
        return torch.from_numpy(examples.padded(rows, limit, 0)[:, 0].astype(np.float32))

    def _apply(self, weights: torch.Tensor, examples: Examples, limit: int) -> np.ndarray:
        x = (self._vectors(examples, limit) - self.mean) / self.spread
        return normalised((x @ weights[1:] + weights[0]).double().numpy())

    def log_probabilities(self, examples: Examples, limit: int) -> np.ndarray:
        return self._apply(self.weights, examples, limit)


def _logistic(x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, penalty: float) -> torch.Tensor:
    """(1 + features, classes) weights, the first row the intercept."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weights[1:] + weights[0], y)
        loss = loss + penalty / 2 * weights[1:].square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return weights.detach()


class Overlap:
    """For pairs: how alike the two sequences' sets of token runs are, and how often pairs that alike are positive.

    Likeness is the cosine of the two sets, each run weighted by log(sequences / sequences with it); P(label | likeness)
    is counted in ``bins`` of equally many training pairs, one added to each count.
    """

    def __init__(
        self, splits: Mapping[str, Examples], classes: int, vocabulary: int, limit: int, size: int = 3, bins: int = 20
    ) -> None:
        self.size, self.vocabulary, self.buckets = size, vocabulary, 1 << 20
        train = splits["train"].take(np.arange(min(len(splits["train"]), _FITTED_ON)))
        used = np.unique(train.members)
        seen = np.zeros(self.buckets)
        for member in used:
            seen[self._set(train, member, limit)] += 1
        self.weight = np.log((len(used) + 1) / (seen + 1))
        alike = self._alike(train, limit)
        self.edges = np.quantile(alike, np.arange(1, bins) / bins)
        counts = np.ones((bins, classes))
        np.add.at(counts, (np.searchsorted(self.edges, alike), train.labels), 1)
        self.table = np.log(counts / counts.sum(1, keepdims=True))

    def _set(self, examples: Examples, member: int, limit: int) -> np.ndarray:
        return np.unique(grams(examples.sequence(member, limit), self.size, self.vocabulary, self.buckets))

    def _alike(self, examples: Examples, limit: int) -> np.ndarray:
        known = {int(member): self._set(examples, member, limit) for member in np.unique(examples.members)}
        norm = {member: math.sqrt((self.weight[found] ** 2).sum()) or 1.0 for member, found in known.items()}
        result = np.zeros(len(examples))
        for i, (one, two) in enumerate(examples.members.tolist()):
            shared = np.intersect1d(known[one], known[two], assume_unique=True)
            result[i] = (self.weight[shared] ** 2).sum() / (norm[one] * norm[two])
        return result

    def log_probabilities(self, examples: Examples, limit: int) -> np.ndarray:
        return self.table[np.searchsorted(self.edges, self._alike(examples, limit))]
