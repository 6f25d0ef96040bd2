"""Numbers that are constant between edges along the keys: laid out over pairs, and summed, by prefix sums.

Keys in rising order have their differences to a query in rising order too, so a bucket is a range of keys. Laying one
number a bucket out over the pairs is then one running sum over the jumps at the edges, and summing pairs by bucket
one running sum of them, read at the edges; either serves all channels at once, where gathers cost one a channel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relpos.positions import is_traced

AT_ONCE = 2**18  # edges looked for at a time
MOST = 64  # steps up to which this pays


def edges_of(step: Callable[[Tensor], Tensor], q: Tensor, k: Tensor, steps: int) -> Tensor:
    """For query values (rows, n_q) and rising key values (rows, n_k): the first key of step 1, 2, .., steps - 1 or of
    any later one, n_k where there is none; int32 (rows, n_q, steps - 1). By bisection, with `step` itself as judge, so
    that a pair belongs to the same bucket whichever way it is found. O(n_q steps log n_k)."""
    rows = max(len(q), len(k))
    q, k = q.expand(rows, -1), k.expand(rows, -1).contiguous()
    n_k = k.shape[1]
    ranks = torch.arange(1, steps, device=q.device)
    chunk = max(1, AT_ONCE // max(1, rows * (steps - 1)))
    found = []
    for i0 in range(0, q.shape[1], chunk):
        part = q[:, i0 : i0 + chunk]
        low = torch.zeros(*part.shape, steps - 1, dtype=torch.int64, device=q.device)
        high = torch.full_like(low, n_k)
        for _ in range(n_k.bit_length()):
            middle = (low + high) // 2
            keys = k.gather(1, middle.clamp(max=n_k - 1).flatten(1)).view_as(middle)
            past = step(keys - part.unsqueeze(-1)) >= ranks
            open_ = low < high
            high = torch.where(open_ & past, middle, high)
            low = torch.where(open_ & ~past, middle + 1, low)
        found.append(high.to(torch.int32))
    return torch.cat(found, 1) if found else q.new_zeros(rows, 0, steps - 1, dtype=torch.int32)


def is_rising(keys: Tensor) -> bool:
    """Whether every row of values is known to be in rising order: never in `torch.export`. O(n)."""
    return not is_traced() and bool((keys[..., 1:] >= keys[..., :-1]).all())


def local(edges: Tensor, j0: int, t_k: int) -> Tensor:
    """Edges of all keys as edges of keys j0 .. j0 + t_k - 1: 0 .. t_k, int64 (rows, 1, t_q, steps - 1)."""
    return (edges.to(torch.int64) - j0).clamp_(0, t_k).unsqueeze(1)


def spread(tables: list[Tensor], edges: list[Tensor], t_k: int) -> Tensor:
    """The sum over channels of the number of each pair's step: tables (batch, heads, t_q, steps), to (.., t_q, t_k)."""
    first: Tensor | None = None
    jumps, places = [], []
    for table, edge in zip(tables, edges):
        first = table[..., :1] if first is None else first + table[..., :1]
        beyond = edge == t_k
        jumps.append((table[..., 1:] - table[..., :-1]).masked_fill(beyond, 0))
        places.append(edge.clamp(max=t_k - 1).expand(*table.shape[:-1], -1))
    assert first is not None
    jump = torch.cat(jumps, -1)
    whole = torch.cat([first, jump.new_zeros(*jump.shape[:-1], t_k - 1)], -1)
    return whole.scatter_add_(-1, torch.cat(places, -1), jump).cumsum(-1)


def collect(pairs: Tensor, edges: list[Tensor]) -> list[Tensor]:
    """The transpose of `spread`: pairs (batch, heads, t_q, t_k) summed by step, (.., t_q, steps) a channel."""
    running = pairs.cumsum(-1)
    total = running[..., -1:]
    found = []
    for edge in edges:
        wide = edge.expand(*pairs.shape[:-1], -1)
        until = running.gather(-1, (wide - 1).clamp_(min=0)).masked_fill(wide == 0, 0)
        bounds = torch.cat([torch.zeros_like(total), until, total], -1)
        found.append(bounds[..., 1:] - bounds[..., :-1])
    return found
