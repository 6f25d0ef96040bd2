"""What is learned from and what is scored: each part is a set of sequences, and which of their events count.

Events that are seen and not scored are history. Nothing of a part's future is in it: sequences are cut after the last
scored event, or at the end of the window. By sequence, take `Sequences.select` of the rows of a data set's split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from relpos.tasks.events.sequences import Sequences


@dataclass(frozen=True)
class Part:
    """scored: (events,) bool."""

    sequences: Sequences
    scored: np.ndarray

    def __post_init__(self) -> None:
        if self.scored.shape != self.sequences.times.shape:
            raise ValueError(f"scored has the shape {self.scored.shape}, events {self.sequences.times.shape}")


def leave_last_out(sequences: Sequences, least: int = 3) -> dict[str, Part]:
    """The last event of each sequence is the test, the one before it the validation, the rest is learned from.

    Which is last follows the order of the sequence, so events at one time keep the order of the input. Sequences of
    fewer than ``least`` events (3 at least) are in train alone.
    """
    if least < 3:
        raise ValueError(f"leaving the last event out takes at least 3 events a sequence, got least={least}")
    long = sequences.lengths >= least
    from_end = np.repeat(sequences.offsets[1:], sequences.lengths) - 1 - np.arange(len(sequences.times))
    parts = {}
    for side, dropped in (("train", 2), ("validation", 1), ("test", 0)):
        kept = (from_end >= dropped) | ~np.repeat(long, sequences.lengths)
        seen = _ended(sequences.keep(kept), long if dropped else np.zeros_like(long))
        if side == "train":
            parts[side] = Part(seen, np.ones(len(seen.times), dtype=bool))
            continue
        seen = seen.select(long)
        scored = np.zeros(len(seen.times), dtype=bool)
        scored[seen.offsets[1:] - 1] = True
        parts[side] = Part(seen, scored)
    return parts


def _ended(sequences: Sequences, cut: np.ndarray) -> Sequences:
    """Windows of the sequences that were cut end with what is left of them: the rest is not known to be quiet."""
    end = np.where(cut, sequences.latest, sequences.end)
    windowed = sequences.windowed and not cut.any()
    return sequences.replace(np.arange(len(sequences.times)), sequences.offsets, end=end, windowed=windowed)


def by_time(sequences: Sequences, cuts: Mapping[str, float]) -> dict[str, Part]:
    """Sides one after the other in time: {"train": 0.7, "validation": 0.8, "test": 1.0} are shares of each window at
    which a side ends; one cut in absolute time for all is a set of equal windows.

    A side sees all that came before its end, and scores what came after the end of the side before. ValueError unless
    the shares rise to at most 1.
    """
    shares = list(cuts.values())
    if not shares or any(low >= high for low, high in zip([0.0, *shares], shares)) or shares[-1] > 1:
        raise ValueError(f"shares rise above 0, up to at most 1, got {dict(cuts)}")
    parts = {}
    before = np.full(len(sequences), -np.inf)
    for side, share in cuts.items():
        end = sequences.end if share == 1 else sequences.start + share * (sequences.end - sequences.start)
        seen = sequences.until(end)
        parts[side] = Part(seen, seen.times > np.repeat(before, seen.lengths))
        before = end
    return parts
