"""Numbers of a code, laid out over the pairs of a tile, and their transposes; several channels share one lookup.

The codes of two channels of r and s rows are one code of r s rows, and their tables one table, its sums: a lookup and a
sum over pairs each cost the same for one channel as for all that fit.
"""

from __future__ import annotations

import math

from torch import Tensor

ROWS = 256  # rows of a joint table a query, up to which making it is cheap beside the pairs
NUMBERS = 4096  # entries of a joint table a head


def grouped(rows: list[int], most: int) -> list[list[int]]:
    """Which of the given tables go together: runs of them whose rows multiply to at most `most`."""
    groups: list[list[int]] = []
    size = most + 1
    for index, count in enumerate(rows):
        if size * count <= most:
            groups[-1].append(index)
            size *= count
        else:
            groups.append([index])
            size = count
    return groups


def strides(rows: list[int]) -> list[int]:
    """What each code counts for in the joint one."""
    return [math.prod(rows[index + 1 :]) for index in range(len(rows))]


def joint_table(tables: list[Tensor]) -> Tensor:
    """Sums of one entry of each: tables (.., r), (.., s), .. to (.., r s ..)."""
    whole = tables[0]
    for table in tables[1:]:
        whole = (whole.unsqueeze(-1) + table.unsqueeze(-2)).flatten(-2)
    return whole


def margins(sums: Tensor, rows: list[int]) -> list[Tensor]:
    """The transpose: (.., r s ..) to (.., r), (.., s), .."""
    if len(rows) == 1:
        return [sums]
    apart = sums.view(*sums.shape[:-1], *rows)
    first = sums.dim() - 1
    return [apart.sum([first + other for other in range(len(rows)) if other != own]) for own in range(len(rows))]


def spread(table: Tensor, code: Tensor) -> Tensor:
    """table (batch or 1, heads, t_q or 1, rows) by code (batch or 1, t_q, t_k) to (batch or 1, heads, t_q, t_k)."""
    lead = (max(len(table), len(code)), table.shape[1], code.shape[1])
    return table.expand(*lead, -1).gather(-1, code.unsqueeze(1).expand(*lead, -1))


def collect(pairs: Tensor, code: Tensor, rows: int) -> Tensor:
    """The transpose, a row a query: pairs (batch, heads, t_q, t_k) to (batch, heads, t_q, rows)."""
    sums = pairs.new_zeros(*pairs.shape[:-1], rows)
    return sums.scatter_add_(-1, code.unsqueeze(1).expand(pairs.shape), pairs)


def totals(pairs: Tensor, code: Tensor, rows: int) -> Tensor:
    """The same over all queries and sequences, a row a head: (heads, rows)."""
    if len(code) == 1:
        pairs = pairs.sum(0, keepdim=True)
    by_head = pairs.transpose(0, 1).flatten(1)
    sums = by_head.new_zeros(len(by_head), rows)
    return sums.scatter_add_(1, code.flatten().expand(len(by_head), -1), by_head)
