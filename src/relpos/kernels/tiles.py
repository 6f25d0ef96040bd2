"""Exact attention with any additive term, forward and backward, in O(n) memory, on any device.

The generic kernel: it slices the states of a term, calls `tile` (and `value_term`), keeps a running maximum and sum
over tiles of keys, and in the backward pass recomputes every tile from the log-sum-exp. Where a term has no
`tile_backward` of its own, `tile` is differentiated inside the tile.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
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


def parts(call: Call) -> Iterator[tuple[slice, Call]]:
    """The call in as many sequences at a time as fill a tile with whole blocks of queries: fewer, longer products, and
    gradients of keys that stay in the cache while the tiles of a sequence add to them."""
    batch, heads, n_q, n_k = call.shape
    pairs = heads * max(1, min(QUERIES, n_q)) * max(1, min(KEYS, n_k))
    apart = call.divisible and call.q.device.type == "cpu"
    count = max(1, min(batch, _scores(call) // pairs)) if apart else batch
    for b0 in range(0, batch, max(1, count)):
        b1 = min(b0 + count, batch)
        yield slice(b0, b1), call.of(b0, b1)


def _scores(call: Call) -> int:
    return SCORES // (1 if call.term is None else call.term.burden)


def blocks(call: Call) -> Iterator[tuple[tuple[int, int], list[Tile]]]:
    """Blocks of queries, each with the tiles of the keys that any of its queries may see."""
    batch, heads, n_q, n_k = call.shape
    t_k = max(1, min(KEYS, n_k))
    t_q = max(1, min(QUERIES, n_q, _scores(call) // max(1, batch * heads * t_k)))
    for i0 in range(0, n_q, t_q):
        i1 = min(i0 + t_q, n_q)
        j_first, j_last = call.mask.keys(i0, i1)
        yield (i0, i1), [Tile(i0, i1, j0, min(j0 + t_k, j_last), n_q, n_k) for j0 in range(j_first, j_last, t_k)]


def slices_of(states: dict[str, State], tile: Tile) -> dict[str, Tensor]:
    return {name: tile.slice(state) for name, state in states.items()}


def raw_score(call: Call, q: Tensor, k: Tensor, slices: dict[str, Tensor], tile: Tile) -> Tensor:
    """Scores of one tile, whoever sees them; q is already scaled."""
    raw, keys = call.q[:, :, tile.i0 : tile.i1], k[:, :, tile.j0 : tile.j1]
    term = None if call.term is None else call.term.tile(raw, keys, slices, tile)  # before: it may need room itself
    score = q[:, :, tile.i0 : tile.i1] @ keys.transpose(-1, -2)
    return score if term is None else score.add_(term)


def _score(call: Call, q: Tensor, k: Tensor, slices: dict[str, Tensor], tile: Tile) -> Tensor:
    """The same, minus infinity where nothing is to be seen."""
    score = raw_score(call, q, k, slices, tile)
    free = call.mask.free(tile.i0, tile.i1, tile.j0, tile.j1)
    seen = call.mask.block(tile.i0, tile.i1, tile.j0 + free, tile.j1, score.device)
    if seen is not None:
        score[..., free:].masked_fill_(~seen, -torch.inf)
    return score


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
    rows = call.first, call.first + batch
    return call.dropout.keep(*rows, heads, tile.i0, tile.i1, tile.j0, tile.j1, call.q.device, dtype)


def attend(call: Call, k: Tensor, v: Tensor, states: States) -> tuple[Tensor, Tensor]:
    """The output of call.q against these keys, in their type, and the log-sum-exp (batch, heads, n_q, 1) of each row;
    plus infinity for a row that sees none, so that every weight recomputed from it is exp(-inf) = 0."""
    call = replace(call, states=states)
    batch, heads, n_q, _ = call.shape
    out, lse = k.new_zeros(batch, heads, n_q, v.shape[-1]), k.new_full((batch, heads, n_q, 1), torch.inf)
    for rows, part in parts(call):
        _forward(part, part.q * call.scale, k[rows], v[rows], out[rows], lse[rows])
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
    call = replace(call, states=states)
    sums = Sums.zeros(call, (call.q, k, v), [name in wanted for name in states])
    saved = k, v, lse, delta, grad
    with exactly(grad):
        for rows, part in parts(call):
            own, share = [part.q * call.scale, *(x[rows] for x in saved)], sums.of(rows)
            for tile in (tile for _, row in blocks(part) for tile in row):
                _backward_tile(part, tile, own, share)
    return sums.tokens, {name: state.tensor for name, state in sums.states.items()}


class _Generic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, q: Tensor, k: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
        call = replace(call.with_states(tensors), q=q)
        out, lse = attend(call, k, v, call.states)
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.call = call
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        call = replace(ctx.call.with_states(tensors), q=q)
        wanted = {name for name, need in zip(call.states, ctx.needs_input_grad[4:], strict=True) if need}
        delta = (grad * out).sum(-1, keepdim=True)
        total, dstates = attend_backward(call, k, v, lse, delta, grad, call.states, wanted)
        return None, total["q"], total["k"], total["v"], *(dstates.get(name) for name in call.states)


def _forward(call: Call, scaled: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """Writes the output, and the logarithm of the sum of the weights."""
    batch, heads = call.shape[:2]
    for (i0, i1), row in blocks(call):
        high = scaled.new_full((batch, heads, i1 - i0, 1), -torch.inf)
        total, acc = torch.zeros_like(high), scaled.new_zeros(batch, heads, i1 - i0, v.shape[-1])
        for tile in row:
            slices = slices_of(call.states, tile)
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
        lse[:, :, i0:i1] = torch.where(seen, high + total.log(), torch.inf)  # +inf: every weight is exp(-inf) = 0


@dataclass(frozen=True)
class Sums:
    """Where the tiles add up their gradients: of q, k and v, and of the states that want one."""

    tokens: dict[str, Tensor]
    states: dict[str, State]

    @staticmethod
    def zeros(call: Call, tokens: Sequence[Tensor], wanted: Sequence[bool]) -> Sums:
        states = {
            name: state._replace(tensor=torch.zeros_like(state.tensor))
            for (name, state), need in zip(call.states.items(), wanted, strict=True)
            if need
        }
        return Sums({name: torch.zeros_like(x) for name, x in zip("qkv", tokens, strict=True)}, states)

    def of(self, rows: slice) -> Sums:
        """Those of some sequences, views."""
        states = {name: state.of(rows.start, rows.stop) for name, state in self.states.items()}
        return Sums({name: x[rows] for name, x in self.tokens.items()}, states)

    def add(self, found: dict[str, Tensor], tile: Tile) -> None:
        """One tile's share, by name."""
        for name, part in found.items():
            if name == "q":
                self.tokens["q"][:, :, tile.i0 : tile.i1] += part
            elif name == "k":
                self.tokens["k"][:, :, tile.j0 : tile.j1] += part
            elif name in self.states:
                target = tile.slice(self.states[name])
                target += part.sum_to_size(target.shape) if part.shape != target.shape else part

    def in_order(self, call: Call) -> tuple[Tensor | None, ...]:
        """As an autograd function returns them: q, k, v and every state."""
        found = {name: state.tensor for name, state in self.states.items()}
        return *self.tokens.values(), *(found.get(name) for name in call.states)


def _backward_tile(call: Call, tile: Tile, saved: Sequence[Tensor], sums: Sums) -> None:
    """Adds one tile's share to the gradients of q, k, v and the states."""
    scaled, k, v, lse, delta, grad = saved
    rows, keys = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
    slices, total = slices_of(call.states, tile), sums.tokens
    g = grad[:, :, rows]
    p = _exp(_score(call, scaled, k, slices, tile).sub_(lse[:, :, rows]))
    keep = kept(call, tile, p.dtype)
    dropped = p if keep is None else p * keep
    total["v"][:, :, keys] += dropped.transpose(-1, -2) @ g
    found: dict[str, Tensor] = {}
    if call.term is not None and call.term.has_values:
        found = values_gradient(call, g, dropped, slices, tile, sums.states)
    dp = g @ v[:, :, keys].transpose(-1, -2)
    if "p" in found:
        dp += found.pop("p")
    dp = dp if keep is None else dp.mul_(keep)
    dscore = dp.sub_(delta[:, :, rows]).mul_(p)
    del p, dropped, keep  # room for the term
    total["q"][:, :, rows] += dscore @ k[:, :, keys] * call.scale
    total["k"][:, :, keys] += dscore.transpose(-1, -2) @ scaled[:, :, rows]
    sums.add(found, tile)
    if call.term is not None and (sums.states or call.term.reads_qk):
        sums.add(term_gradient(call, dscore, k, slices, tile, sums.states), tile)


def term_gradient(
    call: Call, dscore: Tensor, k: Tensor, slices: dict[str, Tensor], tile: Tile, wanted: Container[str]
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
    call: Call, grad: Tensor, p: Tensor, slices: dict[str, Tensor], tile: Tile, wanted: Container[str]
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
