"""softmax(scale q k^T + b[j - i]) v in Triton, forward and backward, for a bias of the lag or none.

Forward: a program a block of queries, which walks over the keys with a running maximum and sum, as flash attention
does; the bias of a tile is read from the generator, 2 n - 1 numbers that stay in the cache. Backward: the weights are
computed again from the log-sum-exp, in three kernels, none of which adds to what another program wrote:

    keys_backward     a program a block of keys walks over the queries: gradients of k and v
    queries_backward  a program a block of queries walks over the keys: gradient of q
    bias_backward     a program walks along one diagonal of blocks, where a pair of places in the tile has one and the
                      same lag: it adds up whole tiles in registers, and sums along diagonals once, at its end

So the results of two runs agree bit by bit. The last kernel costs two more matrix products a tile; it is left out where
the bias wants no gradient. A walk along a diagonal of blocks that leaves the matrix goes on along the opposite one, so
that all programs have as much to do.

Scores are kept in base 2: scale and bias carry log2(e). Sums and softmax are float32; products are of the input's type,
float32 without TF32. Memory beyond inputs and outputs: the log-sum-exp, and 4 n floats a head for the table's gradient.
Source: Dao 2023, arXiv 2307.08691 (the walk and the two backward kernels); the diagonals are ours.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relpos.kernels.triton.blocks import cached, hidden_as, load_rows, product, span, store_diagonals, store_rows


@triton.jit
def _ids(ids, rows, n, MARKED: tl.constexpr):
    """Which document each row belongs to; rows beyond the end match nothing."""
    if MARKED:
        return tl.load(ids + rows, mask=rows < n, other=-2)
    else:
        return rows


@triton.jit
def _bounds(spans, low, high, STEP: tl.constexpr):
    """The walk narrowed to what the documents of one block may see; spans holds the first place and the end."""
    first = tl.load(spans)
    last = tl.load(spans + 1)
    return tl.maximum(low, first // STEP * STEP), tl.minimum(high, last)


@triton.jit
def forward(
    q, k, v, bias, q_ids, k_ids, spans, out, lse,
    heads, n_q, n_k, lags, offset, left, right, scale,
    DIM: tl.constexpr, DIM_V: tl.constexpr, D: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PAD: tl.constexpr, BIASED: tl.constexpr, ORDERED: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    batch = (row // heads).to(tl.int64)
    wide = row.to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    own = load_rows(q + wide * n_q * DIM, i, n_q, DIM, D)
    q_id = _ids(q_ids + batch * n_q, i, n_q, MARKED)
    bias += (row % heads).to(tl.int64) * lags + PAD + n_q - 1
    low, full_low, full_high, high = span(block * ROWS, ROWS, n_k, offset, left, right, KEYS, ORDERED)
    if MARKED:
        low, high = _bounds(spans + 2 * (batch * tl.num_programs(0) + block), low, high, KEYS)
        full_low = tl.maximum(high, low)
        full_high = full_low
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, W), tl.float32)
    for part in tl.static_range(3):  # before, inside and after what is visible without a look
        start = low if part == 0 else (full_low if part == 1 else full_high)
        stop = full_low if part == 0 else (full_high if part == 1 else high)
        for j0 in range(start, stop, KEYS):
            j = j0 + tl.arange(0, KEYS)
            keys = load_rows(k + wide * n_k * DIM, j, n_k, DIM, D)
            score = product(own, tl.trans(keys)) * scale
            if BIASED:
                score += cached(bias + (j[None, :] - i[:, None]))
            if part != 1:
                k_id = _ids(k_ids + batch * n_k, j, n_k, MARKED)
                score = hidden_as(
                    score,
                    i[:, None],
                    j[None, :],
                    q_id[:, None],
                    k_id[None, :],
                    n_k,
                    offset,
                    left,
                    right,
                    ORDERED,
                    MARKED,
                )
            higher = tl.maximum(most, tl.max(score, 1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(score - shift[:, None])
            fade = tl.exp2(most - shift)
            total = total * fade + tl.sum(weight, 1)
            values = load_rows(v + wide * n_k * DIM_V, j, n_k, DIM_V, W)
            acc = product(weight.to(values.dtype), values, acc * fade[:, None])
            most = higher
    seen = total > 0
    store_rows(out + wide * n_q * DIM_V, i, n_q, acc / tl.where(seen, total, 1.0)[:, None], DIM_V, W)
    tl.store(
        lse + wide * n_q + i, tl.where(seen, most + tl.log2(tl.where(seen, total, 1.0)), float("inf")), mask=i < n_q
    )


@triton.jit
def keys_backward(
    q, k, v, bias, q_ids, k_ids, spans, grad, lse, delta, dk, dv,
    heads, n_q, n_k, lags, offset, left, right, scale, factor,
    DIM: tl.constexpr, DIM_V: tl.constexpr, D: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PAD: tl.constexpr, BIASED: tl.constexpr, ORDERED: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    """Tiles here are keys x queries. Rows beyond n_q weigh nothing, since their log-sum-exp is infinite."""
    block, row = tl.program_id(0), tl.program_id(1)
    batch = (row // heads).to(tl.int64)
    wide = row.to(tl.int64)
    j = block * KEYS + tl.arange(0, KEYS)
    keys = load_rows(k + wide * n_k * DIM, j, n_k, DIM, D)
    values = load_rows(v + wide * n_k * DIM_V, j, n_k, DIM_V, W)
    k_id = _ids(k_ids + batch * n_k, j, n_k, MARKED)
    bias += (row % heads).to(tl.int64) * lags + PAD + n_q - 1
    low, full_low, full_high, high = span(block * KEYS, KEYS, n_q, -offset, right, left, ROWS, ORDERED)
    if MARKED:
        low, high = _bounds(spans + 2 * (batch * tl.num_programs(0) + block), low, high, ROWS)
        full_low = tl.maximum(high, low)
        full_high = full_low
    dkeys = tl.zeros((KEYS, D), tl.float32)
    dvalues = tl.zeros((KEYS, W), tl.float32)
    for part in tl.static_range(3):
        start = low if part == 0 else (full_low if part == 1 else full_high)
        stop = full_low if part == 0 else (full_high if part == 1 else high)
        for i0 in range(start, stop, ROWS):
            i = i0 + tl.arange(0, ROWS)
            other = load_rows(q + wide * n_q * DIM, i, n_q, DIM, D)
            score = product(keys, tl.trans(other)) * scale
            if BIASED:
                score += cached(bias + (j[:, None] - i[None, :]))
            if part != 1:
                q_id = _ids(q_ids + batch * n_q, i, n_q, MARKED)
                score = hidden_as(
                    score,
                    i[None, :],
                    j[:, None],
                    q_id[None, :],
                    k_id[:, None],
                    n_k,
                    offset,
                    left,
                    right,
                    ORDERED,
                    MARKED,
                )
            weight = tl.exp2(score - tl.load(lse + wide * n_q + i, mask=i < n_q, other=float("inf"))[None, :])
            above = load_rows(grad + wide * n_q * DIM_V, i, n_q, DIM_V, W)
            dvalues = product(weight.to(above.dtype), above, dvalues)
            dweight = product(values, tl.trans(above))
            dscore = weight * (dweight - tl.load(delta + wide * n_q + i, mask=i < n_q, other=0.0)[None, :])
            dkeys = product(dscore.to(other.dtype), other, dkeys)
    store_rows(dk + wide * n_k * DIM, j, n_k, dkeys * factor, DIM, D)
    store_rows(dv + wide * n_k * DIM_V, j, n_k, dvalues, DIM_V, W)


@triton.jit
def queries_backward(
    q, k, v, bias, q_ids, k_ids, spans, grad, lse, delta, dq,
    heads, n_q, n_k, lags, offset, left, right, scale, factor,
    DIM: tl.constexpr, DIM_V: tl.constexpr, D: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PAD: tl.constexpr, BIASED: tl.constexpr, ORDERED: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    batch = (row // heads).to(tl.int64)
    wide = row.to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    own = load_rows(q + wide * n_q * DIM, i, n_q, DIM, D)
    above = load_rows(grad + wide * n_q * DIM_V, i, n_q, DIM_V, W)
    peak = tl.load(lse + wide * n_q + i, mask=i < n_q, other=float("inf"))
    mean = tl.load(delta + wide * n_q + i, mask=i < n_q, other=0.0)
    q_id = _ids(q_ids + batch * n_q, i, n_q, MARKED)
    bias += (row % heads).to(tl.int64) * lags + PAD + n_q - 1
    low, full_low, full_high, high = span(block * ROWS, ROWS, n_k, offset, left, right, KEYS, ORDERED)
    if MARKED:
        low, high = _bounds(spans + 2 * (batch * tl.num_programs(0) + block), low, high, KEYS)
        full_low = tl.maximum(high, low)
        full_high = full_low
    dqueries = tl.zeros((ROWS, D), tl.float32)
    for part in tl.static_range(3):
        start = low if part == 0 else (full_low if part == 1 else full_high)
        stop = full_low if part == 0 else (full_high if part == 1 else high)
        for j0 in range(start, stop, KEYS):
            j = j0 + tl.arange(0, KEYS)
            keys = load_rows(k + wide * n_k * DIM, j, n_k, DIM, D)
            score = product(own, tl.trans(keys)) * scale
            if BIASED:
                score += cached(bias + (j[None, :] - i[:, None]))
            if part != 1:
                k_id = _ids(k_ids + batch * n_k, j, n_k, MARKED)
                score = hidden_as(
                    score,
                    i[:, None],
                    j[None, :],
                    q_id[:, None],
                    k_id[None, :],
                    n_k,
                    offset,
                    left,
                    right,
                    ORDERED,
                    MARKED,
                )
            weight = tl.exp2(score - peak[:, None])
            values = load_rows(v + wide * n_k * DIM_V, j, n_k, DIM_V, W)
            dweight = product(above, tl.trans(values))
            dscore = weight * (dweight - mean[:, None])
            dqueries = product(dscore.to(keys.dtype), keys, dqueries)
    store_rows(dq + wide * n_q * DIM, i, n_q, dqueries * factor, DIM, D)


@triton.jit
def bias_backward(
    q, k, v, bias, q_ids, k_ids, grad, lse, delta, partial,
    heads, n_q, n_k, lags, offset, left, right, scale,
    DIM: tl.constexpr, DIM_V: tl.constexpr, D: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr,
    PAD: tl.constexpr, ORDERED: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    """partial (rows, 2 N, 2 SIDE), N blocks on the longer side: the sums along the block diagonal of lag D at D + N."""
    turn, row = tl.program_id(0), tl.program_id(1)
    turns = tl.num_programs(0)
    batch = (row // heads).to(tl.int64)
    wide = row.to(tl.int64)
    bias += (row % heads).to(tl.int64) * lags + PAD + n_q - 1
    place = tl.arange(0, SIDE)
    for part in tl.static_range(2):
        lag = turn - part * turns  # in blocks
        first = tl.maximum(0, -lag)
        last = tl.minimum(tl.cdiv(n_q, SIDE), tl.cdiv(n_k, SIDE) - lag)
        if ORDERED:
            reached = (lag * SIDE - SIDE < right + offset) & (lag * SIDE + SIDE > offset - left)
            last = tl.where(reached, last, first)
        at = lag * SIDE + (place[None, :] - place[:, None])
        own = tl.load(bias + at, mask=(at > -n_q) & (at < n_k), other=0.0)
        total = tl.zeros((SIDE, SIDE), tl.float32)
        for block in range(first, last):
            i = block * SIDE + place
            j = (block + lag) * SIDE + place
            queries = load_rows(q + wide * n_q * DIM, i, n_q, DIM, D)
            keys = load_rows(k + wide * n_k * DIM, j, n_k, DIM, D)
            score = product(queries, tl.trans(keys)) * scale + own
            q_id = _ids(q_ids + batch * n_q, i, n_q, MARKED)
            k_id = _ids(k_ids + batch * n_k, j, n_k, MARKED)
            score = hidden_as(
                score, i[:, None], j[None, :], q_id[:, None], k_id[None, :], n_k, offset, left, right, ORDERED, MARKED
            )
            weight = tl.exp2(score - tl.load(lse + wide * n_q + i, mask=i < n_q, other=float("inf"))[:, None])
            above = load_rows(grad + wide * n_q * DIM_V, i, n_q, DIM_V, W)
            values = load_rows(v + wide * n_k * DIM_V, j, n_k, DIM_V, W)
            dweight = product(above, tl.trans(values))
            total += weight * (dweight - tl.load(delta + wide * n_q + i, mask=i < n_q, other=0.0)[:, None])
        store_diagonals(partial + (wide * 2 * turns + lag + turns) * 2 * SIDE, total, SIDE)
