"""Event sequences as the named positions of the library, padded to one length or packed into one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from relpos.positions import Index, Labels, Places, Profiles, Times
from relpos.tasks.events.sequences import Sequences


def padded(sequences: Sequences, side: str = "right") -> dict[str, Any]:
    """index, time, place, profile, mark (those that there are), each (count, longest, ..); mask: True = real event.

    Times are taken from the start of each window, so that they can be cast to float32. Pads have index and time of
    their neighbour, mark 0 and the place and profile 0; ``key_mask=mask`` hides them. side: of the pads.
    """
    if side not in ("right", "left"):
        raise ValueError(f"pads are on the side 'right' or 'left', got {side!r}")
    lengths = sequences.lengths
    longest = int(lengths.max(initial=0))
    columns = np.arange(longest)[None, :]
    first = (longest - lengths if side == "left" else np.zeros_like(lengths))[:, None]
    mask = (columns >= first) & (columns < first + lengths[:, None])
    # Pads repeat the nearest event of their own sequence, so that times never fall.
    inner = np.clip(columns - first, 0, np.maximum(lengths - 1, 0)[:, None])
    events = np.minimum(sequences.offsets[:-1, None] + inner, max(len(sequences.times) - 1, 0))
    since = sequences.times - np.repeat(sequences.start, lengths)
    empty = (lengths == 0)[:, None]

    def spread(values: np.ndarray, pads: bool = False) -> np.ndarray:
        if not len(values):
            return np.zeros((*mask.shape, *values.shape[1:]), dtype=values.dtype)
        taken = values[events]
        hidden = empty if pads else ~mask
        return np.where(hidden.reshape(*hidden.shape, *[1] * (taken.ndim - 2)), 0, taken)

    found: dict[str, Any] = {
        "index": Index(torch.from_numpy(np.ascontiguousarray(inner))),
        "time": Times(torch.from_numpy(spread(since, pads=True))),
    }
    _more(found, sequences, spread)
    return found | {"mask": torch.from_numpy(mask)}


def packed(sequences: Sequences) -> dict[str, Any]:
    """index, time, place, profile, mark, each (events, ..), and segments (events,): the sequence of each event.

    Times run on from sequence to sequence, so that they never fall; lags within a sequence are as they were, and
    ``segments`` keeps sequences from seeing each other.
    """
    lengths = sequences.lengths
    spans = sequences.end - sequences.start
    begin = np.concatenate([[0.0], np.cumsum(spans)])[:-1]
    since = sequences.times - np.repeat(sequences.start - begin, lengths)
    # Rounding must not let a sequence begin before the one before it has ended.
    since = np.maximum.accumulate(since) if len(since) else since
    inner = np.arange(len(since)) - np.repeat(sequences.offsets[:-1], lengths)
    found: dict[str, Any] = {"index": Index(torch.from_numpy(inner)), "time": Times(torch.from_numpy(since))}
    _more(found, sequences, lambda values: values)
    return found | {"segments": torch.from_numpy(sequences.rows)}


def _more(found: dict[str, Any], sequences: Sequences, spread: Any) -> None:
    kinds = {"place": (Places, sequences.places), "profile": (Profiles, sequences.profiles)}
    kinds["mark"] = (Labels, sequences.marks)
    for name, (kind, values) in kinds.items():
        if values is not None:
            found[name] = kind(torch.from_numpy(np.ascontiguousarray(spread(values))))
