"""Labelled sequences of any lengths, packed into flat arrays: what the tasks of one answer a sequence are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Examples:
    """One split. Sequence s is tokens[offsets[s]:offsets[s + 1]]; example i reads the sequences members[i].

    tokens (total,) integers from 0; offsets (sequences + 1,) int64; labels (examples,) int64 from 0;
    members (examples, towers) int64, default one sequence an example, in order.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    members: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        for name in ("offsets", "labels", "members"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        if self.members.ndim == 1 and not self.members.size:
            object.__setattr__(self, "members", np.arange(len(self.labels))[:, None])
        ends = self.offsets
        if ends.ndim != 1 or len(ends) < 1 or ends[0] != 0 or ends[-1] != len(self.tokens) or (np.diff(ends) < 0).any():
            raise ValueError(f"offsets rise from 0 to the number of tokens, {len(self.tokens)}; got {ends}")
        if self.members.ndim != 2 or len(self.members) != len(self.labels):
            raise ValueError(f"members are ({len(self.labels)}, towers), a row a label; got {self.members.shape}")
        if self.members.size and not 0 <= self.members.min() <= self.members.max() < len(ends) - 1:
            raise ValueError(f"members name sequences 0 to {len(ends) - 2}, got up to {self.members.max()}")

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], labels: Sequence[int], dtype: type = np.uint8) -> Examples:
        """From one array a sequence."""
        offsets = np.cumsum([0, *(len(s) for s in sequences)])
        tokens = np.concatenate([np.asarray(s, dtype) for s in sequences]) if len(sequences) else np.zeros(0, dtype)
        return cls(tokens, offsets, np.asarray(labels, np.int64))

    @classmethod
    def of_rows(cls, rows: np.ndarray, labels: np.ndarray) -> Examples:
        """From equally long sequences, (examples, n), without a copy."""
        return cls(np.ascontiguousarray(rows).reshape(-1), np.arange(len(rows) + 1) * rows.shape[1], labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def towers(self) -> int:
        return self.members.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """(examples,) tokens of the longest sequence of each."""
        return np.diff(self.offsets)[self.members].max(1, initial=0)

    def take(self, rows: np.ndarray) -> Examples:
        """Those examples; the sequences stay where they are."""
        return Examples(self.tokens, self.offsets, self.labels[rows], self.members[rows])

    def sequence(self, index: int, limit: int | None = None) -> np.ndarray:
        """One sequence, cut at ``limit``."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return self.tokens[begin : end if limit is None else min(end, begin + limit)]

    def padded(self, rows: np.ndarray, limit: int, shift: int) -> np.ndarray:
        """(rows, towers, n) int64, n <= limit: tokens + shift, filled up with 0 to the longest of these rows."""
        members = self.members[rows]
        begin = self.offsets[members]
        length = np.minimum(self.offsets[members + 1] - begin, limit)
        at = np.arange(max(1, int(length.max(initial=0))))
        real = at < length[..., None]
        place = np.where(real, begin[..., None] + at, 0)
        return np.where(real, self.tokens[place].astype(np.int64) + shift if len(self.tokens) else 0, 0)


def grams(tokens: np.ndarray, size: int, vocabulary: int, buckets: int) -> np.ndarray:
    """Every run of ``size`` tokens as one integer below ``buckets``: exact where there are enough, else hashed."""
    count = max(0, len(tokens) - size + 1)
    code = np.zeros(count, dtype=np.uint64)
    for i in range(size):
        code = code * np.uint64(vocabulary) + tokens[i : i + count].astype(np.uint64)
    if vocabulary**size > buckets:
        code = (code * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)  # Fibonacci hashing, the upper 24 bits
    return (code % np.uint64(buckets)).astype(np.int64)
