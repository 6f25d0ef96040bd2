"""Numbers that are constant between edges along the keys: laid out over pairs, and summed, by prefix sums.

Keys in rising order have their differences to a query in rising order too, so a bucket is a range of keys. Laying one
number a bucket out over the pairs is then one running sum over the jumps at the edges, and summing pairs by bucket
one running sum of them, read at the edges; either serves all channels at once, where gathers cost one a channel. The
bucket itself is such a number too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relpos.positions import is_traced

AT_ONCE = 2**18  # edges looked for at a time
MOST = 68  # steps up to which this is quicker than a lookup, where there are
KEYS = 15  # keys a step


Step = Callable[[Tensor], Tensor]


def edges_of(step: Step, q: Tensor, k: Tensor, bounds: Tensor) -> Tensor:
    """For query values (rows, n_q) and rising key values (rows, n_k): the first key of step 1, 2, .. or of any later
    one, n_k where there is none; int32 (rows, n_q, 2 reach). bounds (rows or 1, reach), float64: about where sizes
    begin. `step` itself is judge, so that a pair belongs to the same bucket whichever way it is found: where the bounds
    miss an edge, by rounding, it is bisected. O(n_q reach log n_k)."""
    rows, reach = max(len(q), len(k)), bounds.shape[-1]
    q, k = q.expand(rows, -1), k.expand(rows, -1).contiguous()
    ranks = torch.arange(1, 2 * reach + 1, device=q.device)
    chunk = max(1, AT_ONCE // max(1, rows * 2 * reach))
    found = []
    for i0 in range(0, q.shape[1], chunk):
        part = q[:, i0 : i0 + chunk, None]
        edges = _guessed(part, k, bounds.unsqueeze(1))
        found.append(edges if _right(step, part, k, ranks, edges) else _bisected(step, part, k, ranks))
    return torch.cat(found, 1) if found else q.new_zeros(rows, 0, 2 * reach, dtype=torch.int32)


def _guessed(q: Tensor, k: Tensor, bounds: Tensor) -> Tensor:
    keys = k.to(torch.float64)
    before = torch.searchsorted(keys, (q - bounds.flip(-1)).flatten(1), right=True, out_int32=True)
    after = torch.searchsorted(keys, (q + bounds).flatten(1), out_int32=True)
    shape = (*q.shape[:2], -1)
    return torch.cat([before.view(shape), after.view(shape)], -1)


def _past(step: Step, q: Tensor, k: Tensor, ranks: Tensor, at: Tensor) -> Tensor:
    """Whether the key there has the step of its rank, or a later one."""
    return step(k.gather(1, at.flatten(1)).view_as(at) - q) >= ranks


def _right(step: Step, q: Tensor, k: Tensor, ranks: Tensor, edges: Tensor) -> bool:
    n_k, at = k.shape[1], edges.to(torch.int64)
    here = _past(step, q, k, ranks, at.clamp(max=n_k - 1)) | (at == n_k)
    before = _past(step, q, k, ranks, (at - 1).clamp_(min=0)) & (at > 0)
    return bool((here & ~before).all())


def _bisected(step: Step, q: Tensor, k: Tensor, ranks: Tensor) -> Tensor:
    n_k = k.shape[1]
    low = torch.zeros(*q.shape[:2], len(ranks), dtype=torch.int64, device=q.device)
    high = torch.full_like(low, n_k)
    for _ in range(n_k.bit_length()):
        middle = (low + high) // 2
        past, open_ = _past(step, q, k, ranks, middle.clamp(max=n_k - 1)), low < high
        high = torch.where(open_ & past, middle, high)
        low = torch.where(open_ & ~past, middle + 1, low)
    return high.to(torch.int32)


def pays(steps: int, n_k: int) -> bool:
    """Whether edges beat a lookup a pair: every step costs a query one jump, whatever the number of its keys."""
    return 1 < steps <= MOST and steps * KEYS <= n_k


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
    whole = jump.new_zeros(*jump.shape[:-1], t_k)
    whole[..., :1] = first
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
