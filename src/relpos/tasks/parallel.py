"""Sentences in two languages, side by side: what becomes of a parallel data set before a network reads it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

SIDES = ("train", "validation", "test")
_SHARES = (90, 95, 100)  # of a hundred, cumulative, where the data come without a split
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Pairs:
    """source[i] and target[i] say the same; split: side -> (count,) indices; about: the origin, as JSON values."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    split: Mapping[str, np.ndarray]
    about: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: Iterable[str],
        target: Iterable[str],
        split: Mapping[str, np.ndarray] | None = None,
        about: Mapping[str, object] | None = None,
    ) -> Pairs:
        """Cleans, splits and thins out. ValueError where the sides differ in number or nothing is left for a side.

        White space is collapsed and the text brought to the Unicode form NFC. Without a split of three sides, a hash
        of the source decides, 90/5/5. Then a pair is dropped where one of its texts is empty, where the pair came
        before in its own side, and, from the training side, where either of its texts stands in another side too.
        """
        left, right = [_clean(x) for x in source], [_clean(x) for x in target]
        if len(left) != len(right):
            raise ValueError(f"source and target have one line a pair, got {len(left)} and {len(right)} lines")
        full = [i for i in range(len(left)) if left[i] and right[i]]
        if split is None or set(split) != set(SIDES):
            members = {side: [i for i in full if _side(left[i]) == side] for side in SIDES}
        else:
            known = set(full)
            members = {side: [i for i in map(int, split[side]) if i in known] for side in SIDES}
        held = [i for side in SIDES[1:] for i in members[side]]
        seen_left, seen_right = {left[i] for i in held}, {right[i] for i in held}
        members["train"] = [i for i in members["train"] if left[i] not in seen_left and right[i] not in seen_right]
        for side in SIDES:
            first = {(left[i], right[i]): i for i in reversed(members[side])}
            members[side] = sorted(first.values())
            if not members[side]:
                raise ValueError(f"no pair is left for {side}; give more than the {len(left)} pairs there are")
        rows = {side: np.array(members[side], dtype=np.int64) for side in SIDES}
        return cls(tuple(left), tuple(right), rows, about or {})

    def texts(self, side: str) -> tuple[list[str], list[str]]:
        """Sources and targets of one side."""
        rows = self.split[side]
        return [self.source[i] for i in rows], [self.target[i] for i in rows]


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _side(text: str) -> str:
    part = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    return next(side for side, share in zip(SIDES, _SHARES, strict=True) if part < share)


class Nearest:
    """Finds the known sentence most like a new one: cosine of word counts weighted by rarity (tf-idf)."""

    def __init__(self, sentences: Sequence[str]) -> None:
        counts = [Counter(_words(s)) for s in sentences]
        found: dict[str, tuple[list[int], list[int]]] = {}
        for index, words in enumerate(counts):
            for word, count in words.items():
                rows, weights = found.setdefault(word, ([], []))
                rows.append(index)
                weights.append(count)
        self._size = len(sentences)
        self._postings, norm = {}, np.zeros(self._size)
        for word, (rows, weights) in found.items():
            rarity = np.log(self._size / len(rows))
            self._postings[word] = np.array(rows), (1 + np.log(weights)) * rarity, rarity
            norm[rows] += self._postings[word][1] ** 2
        self._norm = np.sqrt(np.maximum(norm, 1e-12))

    def __call__(self, sentence: str) -> int:
        """Index of the most similar sentence, the first of equals."""
        score = np.zeros(self._size)
        for word, count in Counter(_words(sentence)).items():
            if word in self._postings:
                rows, weights, rarity = self._postings[word]
                score[rows] += weights * (1 + np.log(count)) * rarity
        return int((score / self._norm).argmax())


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())
