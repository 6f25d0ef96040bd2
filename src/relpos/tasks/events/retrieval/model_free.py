"""How far two sequences are apart without any model: event against event, in the order in which they come.

    time  = sum over the common length of |t_i - t'_i|, plus the time from each surplus event to the end of the window
    marks = marks that differ over the common length, plus the difference of the lengths

The time is the area between the two counting functions: what it costs to turn one into the other by moving events, and
by bringing in from the end of the window those that are missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.tasks.events.neural import Seen


def distances(queries: Seen, corpus: Seen, end: float) -> tuple[Tensor, Tensor]:
    """(queries, corpus) float64 distances in time and in marks, of all against all; differentiable in the times.

    end: of the window, on the clock of the times; later times count as being there. O(queries x corpus x length).
    """
    longest = max(queries.marks.shape[1], corpus.marks.shape[1])
    tq, tc = (_filled(each, longest, end) for each in (queries, corpus))
    # A missing event stands at the end of the window, so common and surplus events are one sum.
    time = (tq[:, None] - tc[None]).abs().sum(-1)
    kq, kc = (_marks(each, longest) for each in (queries, corpus))
    return time, (kq[:, None] != kc[None]).sum(-1).to(torch.float64)


def pairwise(queries: Seen, corpus: Seen, end: float) -> tuple[Tensor, Tensor]:
    """(pairs,) float64: as `distances`, of query i and corpus sequence i."""
    longest = max(queries.marks.shape[1], corpus.marks.shape[1])
    time = (_filled(queries, longest, end) - _filled(corpus, longest, end)).abs().sum(-1)
    return time, (_marks(queries, longest) != _marks(corpus, longest)).sum(-1).to(torch.float64)


def _filled(seen: Seen, longest: int, end: float) -> Tensor:
    times = torch.where(seen.mask, seen.times.to(torch.float64).clamp(max=end), end)
    return torch.nn.functional.pad(times, (0, longest - times.shape[1]), value=end)


def _marks(seen: Seen, longest: int) -> Tensor:
    marks = torch.where(seen.mask, seen.marks, -1)
    return torch.nn.functional.pad(marks, (0, longest - marks.shape[1]), value=-1)
