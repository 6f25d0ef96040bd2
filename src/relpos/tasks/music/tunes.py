"""Which pieces are harmonisations of one tune, and a split that keeps them together.

Bach set many hymn tunes several times, and one tune goes by several hymns' titles ("Befiehl du deine Wege",
"O Haupt voll Blut und Wunden"); a split by piece or by title would put a test melody into training. So pieces
are joined if their titles agree, or if their melodies do: the sopranos' notes on the quarter beats as intervals without
repetitions, of which runs of eight are compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from relpos.tasks.music.piece import SILENT, TICKS_PER_QUARTER, Piece

RUN = 8
SHARED = 0.2


def melody_runs(piece: Piece, run: int = RUN) -> set[tuple[int, ...]]:
    """All runs of ``run`` successive intervals of the melody on the beats; the same in every key."""
    notes = piece.pitch[piece.beat % TICKS_PER_QUARTER == 0, 0].astype(int)
    intervals = np.diff(notes[notes != SILENT])
    moves = [int(step) for step in intervals if step]
    return {tuple(moves[i : i + run]) for i in range(len(moves) - run + 1)}


def groups(pieces: Sequence[Piece], shared: float = SHARED) -> np.ndarray:
    """(pieces,) int64: equal numbers for pieces of one tune, numbered by first appearance.

    Two pieces are joined by equal titles (letters only), or where more than ``shared`` of the runs of the one with
    fewer occur in the other; joining is transitive.
    """
    parent = list(range(len(pieces)))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i] = parent[parent[i]]
        return i

    runs = [melody_runs(piece) for piece in pieces]
    titles = [_letters(piece.title) for piece in pieces]
    for i in range(len(pieces)):
        for j in range(i):
            fewer = min(len(runs[i]), len(runs[j]))
            same_melody = fewer > 0 and len(runs[i] & runs[j]) > shared * fewer
            if same_melody or (titles[i] and titles[i] == titles[j]):
                parent[find(i)] = find(j)
    roots = [find(i) for i in range(len(pieces))]
    number = {root: k for k, root in enumerate(dict.fromkeys(roots))}
    return np.array([number[root] for root in roots], dtype=np.int64)


def split(group: np.ndarray, seed: int = 0, share: float = 0.1) -> dict[str, np.ndarray]:
    """Indices of the pieces in "train", "validation" and "test"; a group lies on one side as a whole.

    Groups are shuffled by ``seed``, then test and validation each take groups that still fit into ``share`` of the
    pieces; the rest is for training.
    """
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    sizes = np.bincount(group)
    side = np.full(len(sizes), "train", dtype="U10")
    for name in ("test", "validation"):
        room = round(share * len(group))
        for g in order:
            if side[g] == "train" and sizes[g] <= room:
                side[g] = name
                room -= sizes[g]
    return {name: np.flatnonzero(side[group] == name) for name in ("train", "validation", "test")}


def _letters(title: str) -> str:
    return re.sub("[^a-z]", "", unicodedata.normalize("NFKD", title.lower()))
