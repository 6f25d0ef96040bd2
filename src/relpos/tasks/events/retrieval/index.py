"""Codes that are searched: by looking at all of them, or at those alone that share some bits with the query's.

`Index` is FAISS where it is installed (``pip install "relpos[retrieval]"``); both searches have a definition in numpy
here, which is what FAISS is held to, and what runs where it is missing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("scan", "tables")
BACKENDS = ("auto", "faiss", "numpy")
_ONES = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Found:
    """rows (queries, count) of the nearest codes, nearest first, and how far they are; -1 where there are no more.

    looked: codes that a query was compared with on average (Hamming distances taken).
    """

    rows: np.ndarray
    distances: np.ndarray
    looked: float


def hamming(queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(queries, codes) int64: bits that differ, of codes as bytes."""
    return _ONES[queries[:, None] ^ codes[None]].sum(-1, dtype=np.int64)


def faiss() -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


class Index:
    """Codes (count, bytes) uint8, to be searched.

    kind     "scan": every query is compared with every code, exactly. "tables": only with codes that agree with it in
             one of ``tables`` sets of ``bits`` bits, all but ``flips`` of them; the sets are drawn at random and apart
             from each other, so tables x bits is at most the length of a code
    backend  "faiss", "numpy", or "auto": faiss where it is installed. They find the same distances; of codes equally
             far numpy takes the lower row, FAISS any
    """

    def __init__(
        self,
        codes: np.ndarray,
        kind: str = "scan",
        *,
        tables: int = 4,
        bits: int = 12,
        flips: int = 0,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        if kind not in KINDS or backend not in BACKENDS:
            raise ValueError(
                f"kind is one of {', '.join(KINDS)} and backend of {', '.join(BACKENDS)}, got {kind!r} and {backend!r}"
            )
        self.codes = _bytes(codes)
        length = 8 * self.codes.shape[1]
        if kind == "tables" and not (tables >= 1 and 1 <= bits <= 62 and tables * bits <= length and flips >= 0):
            raise ValueError(f"{tables} tables of {bits} bits, {flips} flipped, do not fit a code of {length} bits")
        self.kind, self.tables, self.bits, self.flips = kind, tables, bits, flips
        self.order = np.random.default_rng(seed).permutation(length) if kind == "tables" else np.arange(length)
        module = None if backend == "numpy" else faiss()
        if backend == "faiss" and module is None:
            raise ModuleNotFoundError('FAISS is not installed: pip install "relpos[retrieval]", or backend="numpy"')
        self.backend = "numpy" if module is None else "faiss"
        self._module: Any = module
        self._built: Any = self._faiss(module) if module is not None else None

    def __len__(self) -> int:
        return len(self.codes)

    def search(self, queries: np.ndarray, count: int) -> Found:
        """The ``count`` nearest codes to each query (queries, bytes)."""
        queries = _bytes(queries)
        if queries.shape[1] != self.codes.shape[1]:
            raise ValueError(f"codes have {self.codes.shape[1]} bytes, queries {queries.shape[1]}")
        if count < 1:
            raise ValueError(f"count is 1 or more, got {count}")
        if self._built is None:
            return self._search_numpy(queries, count)
        return self._search_faiss(queries, count)

    # ---- the definition

    def _search_numpy(self, queries: np.ndarray, count: int) -> Found:
        rows = np.full((len(queries), count), -1, dtype=np.int64)
        far = np.full((len(queries), count), -1, dtype=np.int64)
        looked = 0
        for number, query in enumerate(queries):
            near = self.candidates(query)
            distances = hamming(query[None], self.codes[near])[0]
            best = np.argsort(distances, kind="stable")[:count]
            rows[number, : len(best)], far[number, : len(best)] = near[best], distances[best]
            looked += len(near)
        return Found(rows, far, looked / max(len(queries), 1))

    def candidates(self, query: np.ndarray) -> np.ndarray:
        """Rows of the codes that one query (bytes,) is compared with, rising."""
        if self.kind == "scan":
            return np.arange(len(self.codes))
        differ = self._shuffled(query[None] ^ self.codes)
        parts = differ[:, : self.tables * self.bits].reshape(len(differ), self.tables, self.bits)
        return np.flatnonzero((parts.sum(-1) <= self.flips).any(1))

    def _shuffled(self, codes: np.ndarray) -> np.ndarray:
        """(count, length) bits in the order in which the tables take them."""
        return np.unpackbits(codes, axis=1, bitorder="little")[:, self.order]

    # ---- FAISS

    def _faiss(self, module: Any) -> Any:
        length = 8 * self.codes.shape[1]
        if self.kind == "scan":
            built = module.IndexBinaryFlat(length)
        else:
            built = module.IndexBinaryMultiHash(length, self.tables, self.bits)
            built.nflip = self.flips
        built.add(self._packed(self.codes))
        return built

    def _packed(self, codes: np.ndarray) -> np.ndarray:
        return np.packbits(self._shuffled(codes), axis=1, bitorder="little")

    def _search_faiss(self, queries: np.ndarray, count: int) -> Found:
        if self.kind == "scan":
            distances, rows = self._built.search(self._packed(queries), count)
            looked = float(len(self.codes))
        else:
            statistics = self._module.cvar.indexBinaryHash_stats
            statistics.reset()
            distances, rows = self._built.search(self._packed(queries), count)
            looked = statistics.ndis / max(len(queries), 1)
        return Found(rows.astype(np.int64), np.where(rows < 0, -1, distances).astype(np.int64), looked)


def _bytes(codes: np.ndarray) -> np.ndarray:
    codes = np.ascontiguousarray(codes)
    if codes.dtype != np.uint8 or codes.ndim != 2 or not codes.shape[1]:
        raise ValueError(f"codes are uint8 (count, bytes), got {codes.dtype} {codes.shape}")
    return codes
