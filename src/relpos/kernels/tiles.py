"""Exact attention with any additive term, forward and backward, in O(n) memory, on any device.

The generic kernel: it slices the states of a term, calls `tile` (and `value_term`), keeps a running maximum and sum
over tiles of keys, and in the backward pass recomputes every tile from the log-sum-exp. Where a term has no
`tile_backward` of its own, `tile` is differentiated inside the tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import State, States, Tile
from relpos.kernels.call import Call, computing, exactly, once

SCORES = 2**20  # scores in one tile, over all batch rows and heads: some MiB in each of a few buffers
QUERIES, KEYS = 256, 1024
LOG2E = math.log2(math.e)


def generic(call: Call) -> Tensor:
    """softmax(scale q k^T + term) v, plus what the term adds to the values."""
    dtype = computing(call.q.dtype)
    names = tuple(call.states)
    tensors = [call.states[name].tensor for name in names]
    q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
    bare = replace(call, q=q.detach(), k=k.detach(), v=v.detach())
    out: Tensor = _Generic.apply(bare, q, k, v, *tensors)  # type: ignore[no-untyped-call]
    return out.to(call.q.dtype)


def blocks(call: Call) -> Iterator[tuple[tuple[int, int], list[Tile]]]:
    """Blocks of queries, each with the tiles of the keys that any of its queries may see."""
    batch, heads, n_q, n_k = call.shape
    t_k = max(1, min(KEYS, n_k))
    scores = SCORES // (1 if call.term is None else call.term.burden)
    t_q = max(1, min(QUERIES, n_q, scores // max(1, batch * heads * t_k)))
    for i0 in range(0, n_q, t_q):
        i1 = min(i0 + t_q, n_q)
        j_first, j_last = call.mask.keys(i0, i1)
        yield (i0, i1), [Tile(i0, i1, j0, min(j0 + t_k, j_last), n_q, n_k) for j0 in range(j_first, j_last, t_k)]


def slices_of(states: dict[str, State], tile: Tile) -> dict[str, Tensor]:
    return {name: tile.slice(state) for name, state in states.items()}


def raw_score(call: Call, q: Tensor, k: Tensor, slices: dict[str, Tensor], tile: Tile) -> Tensor:
    """Scores of one tile, whoever sees them; q is already scaled."""
    raw, keys = call.q[:, :, tile.i0 : tile.i1], k[:, :, tile.j0 : tile.j1]
    score = q[:, :, tile.i0 : tile.i1] @ keys.transpose(-1, -2)
    if call.term is not None:
        score += call.term.tile(raw, keys, slices, tile)
    return score


def _score(call: Call, q: Tensor, k: Tensor, slices: dict[str, Tensor], tile: Tile) -> Tensor:
    """The same, minus infinity where nothing is to be seen."""
    score = raw_score(call, q, k, slices, tile)
    seen = call.mask.block(tile.i0, tile.i1, tile.j0, tile.j1, score.device)
    return score if seen is None else score.masked_fill_(~seen, -torch.inf)


def _exp(score: Tensor) -> Tensor:
    """exp in place, by exp2, which runs several times as fast on the CPU; 0 where a weight would be denormal.

    Such a weight could not count, and would slow every product after it.
    """
    floor = -80.0 if score.dtype == torch.float32 else -700.0
    return torch.threshold_(score, floor, -torch.inf).mul_(LOG2E).exp2_()


def kept(call: Call, tile: Tile, dtype: torch.dtype) -> Tensor | None:
    if call.dropout is None:
        return None
    batch, heads = call.q.shape[:2]
    return call.dropout.keep(0, batch, heads, tile.i0, tile.i1, tile.j0, tile.j1, call.q.device, dtype)


def attend(call: Call, k: Tensor, v: Tensor, states: States) -> tuple[Tensor, Tensor]:
    """The output of call.q against these keys, in their type, and the log-sum-exp (batch, heads, n_q, 1) of each row;
    plus infinity for a row that sees none, so that every weight recomputed from it is exp(-inf) = 0."""
    batch, heads, n_q, _ = call.shape
    out, lse = k.new_zeros(batch, heads, n_q, v.shape[-1]), k.new_full((batch, heads, n_q, 1), torch.inf)
    scaled = call.q * call.scale
    for (i0, i1), row in blocks(call):
        high = k.new_full((batch, heads, i1 - i0, 1), -torch.inf)
        total, acc = torch.zeros_like(high), k.new_zeros(batch, heads, i1 - i0, v.shape[-1])
        for tile in row:
            slices = slices_of(states, tile)
            score = _score(call, scaled, k, slices, tile)
            higher = torch.maximum(high, score.amax(-1, keepdim=True))
            shift = higher.masked_fill(higher == -torch.inf, 0)
            p = _exp(score.sub_(shift))
            fade = torch.exp(high - shift)
            total = total * fade + p.sum(-1, keepdim=True)
            keep = kept(call, tile, p.dtype)
            p = p if keep is None else p * keep
            acc = acc * fade + p @ v[:, :, tile.j0 : tile.j1]
            extra = None if call.term is None else call.term.value_term(p, slices, tile)
            acc = acc if extra is None else acc + extra
            high = higher
        seen = total > 0
        out[:, :, i0:i1] = acc / total.masked_fill(~seen, 1)
        lse[:, :, i0:i1] = torch.where(seen, high + total.log(), torch.inf)
    return out, lse


def attend_backward(
    call: Call,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    states: States,
    wanted: set[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of q, k and v, and of the wanted states, from that of the output.

    lse    log-sum-exp of each row over all keys that it was normalised with, of which these may be a part
    delta  sum of grad * out over the width, (batch, heads, n_q, 1)
    """
    total = {"q": torch.zeros_like(call.q), "k": torch.zeros_like(k), "v": torch.zeros_like(v)}
    dstates = {n: torch.zeros_like(states[n].tensor) for n in wanted}
    saved = (call.q * call.scale, k, v, lse, delta, grad)
    with exactly(grad):
        for tile in (tile for _, row in blocks(call) for tile in row):
            _backward_tile(call, tile, saved, states, wanted, total, dstates)
    return total, dstates


class _Generic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, q: Tensor, k: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
        states = {n: State(t, s.along, s.axis) for (n, s), t in zip(call.states.items(), tensors, strict=True)}
        out, lse = attend(replace(call, q=q), k, v, states)
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.call = call
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        call: Call = ctx.call
        states = {n: State(t, s.along, s.axis) for (n, s), t in zip(call.states.items(), tensors, strict=True)}
        wanted = {n for n, need in zip(states, ctx.needs_input_grad[4:], strict=True) if need}
        delta = (grad * out).sum(-1, keepdim=True)
        total, dstates = attend_backward(replace(call, q=q), k, v, lse, delta, grad, states, wanted)
        return None, total["q"], total["k"], total["v"], *(dstates.get(n) for n in states)


def _backward_tile(
    call: Call,
    tile: Tile,
    saved: tuple[Tensor, ...],
    states: dict[str, State],
    wanted: set[str],
    total: dict[str, Tensor],
    dstates: dict[str, Tensor],
) -> None:
    """Adds one tile's share to the gradients of q, k, v and the states."""
    scaled, k, v, lse, delta, grad = saved
    rows, keys = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
    slices = slices_of(states, tile)
    g = grad[:, :, rows]
    p = _exp(_score(call, scaled, k, slices, tile).sub_(lse[:, :, rows]))
    keep = kept(call, tile, p.dtype)
    dropped = p if keep is None else p * keep
    total["v"][:, :, keys] += dropped.transpose(-1, -2) @ g
    dp = g @ v[:, :, keys].transpose(-1, -2)
    found: dict[str, Tensor] = {}
    if call.term is not None and call.term.has_values:
        found = values_gradient(call, g, dropped, slices, tile, wanted)
        dp += found.pop("p")
    dp = dp if keep is None else dp.mul_(keep)
    dscore = dp.sub_(delta[:, :, rows]).mul_(p)
    total["q"][:, :, rows] += dscore @ k[:, :, keys] * call.scale
    total["k"][:, :, keys] += dscore.transpose(-1, -2) @ scaled[:, :, rows]
    add(found, tile, states, wanted, total, dstates)
    if call.term is not None and (wanted or call.term.reads_qk):
        add(term_gradient(call, dscore, k, slices, tile, wanted), tile, states, wanted, total, dstates)


def add(
    found: dict[str, Tensor],
    tile: Tile,
    states: dict[str, State],
    wanted: set[str],
    total: dict[str, Tensor],
    dstates: dict[str, Tensor],
) -> None:
    for name, part in found.items():
        if name == "q":
            total["q"][:, :, tile.i0 : tile.i1] += part
        elif name == "k":
            total["k"][:, :, tile.j0 : tile.j1] += part
        elif name in wanted:
            target = tile.slice(State(dstates[name], states[name].along, states[name].axis))
            target += part.sum_to_size(target.shape) if part.shape != target.shape else part


def term_gradient(
    call: Call, dscore: Tensor, k: Tensor, slices: dict[str, Tensor], tile: Tile, wanted: set[str]
) -> dict[str, Tensor]:
    assert call.term is not None
    raw, keys = call.q[:, :, tile.i0 : tile.i1], k[:, :, tile.j0 : tile.j1]
    found = call.term.tile_backward(dscore, raw, keys, slices, tile)
    if found is not None:
        return found
    leaves = {name: slices[name].detach().requires_grad_() for name in slices if name in wanted}
    if call.term.reads_qk:
        leaves |= {"q": raw.detach().requires_grad_(), "k": keys.detach().requires_grad_()}
    with torch.enable_grad():
        term = call.term.tile(leaves.get("q", raw), leaves.get("k", keys), slices | leaves, tile)
    return _gradients(term, leaves, dscore)


def values_gradient(
    call: Call, grad: Tensor, p: Tensor, slices: dict[str, Tensor], tile: Tile, wanted: set[str]
) -> dict[str, Tensor]:
    assert call.term is not None
    found = call.term.values_backward(grad, p, slices, tile)
    if found is not None:
        return found
    leaves = {name: slices[name].detach().requires_grad_() for name in slices if name in wanted}
    leaves["p"] = p.detach().requires_grad_()
    with torch.enable_grad():
        out = call.term.value_term(leaves["p"], slices | leaves, tile)
    assert out is not None
    return _gradients(out, leaves, grad)


def _gradients(out: Tensor, leaves: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    if not out.requires_grad:
        return {}
    parts = torch.autograd.grad(out, list(leaves.values()), grad.sum_to_size(out.shape), allow_unused=True)
    return {name: part for name, part in zip(leaves, parts, strict=True) if part is not None}
