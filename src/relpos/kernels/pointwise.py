"""Attention whose weights are silu(score) / n: no softmax, so a weight depends on its own pair alone.

    out_i = sum_j silu(scale q_i . k_j + term(i, j)) / n (v_j + value term)

`dense` is the definition; `tiled` computes the same, forward and backward, from tiles of scores, in O(n) memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Pairwise, Tile
from relpos.kernels import node, tiles
from relpos.kernels.call import Call, Refusal, computing, exactly, once
from relpos.kernels.choose import SMALL
from relpos.kernels.dense import scores
from relpos.kernels.dropout import Dropout
from relpos.kernels.operators import LAGS
from relpos.positions import is_exporting

KERNELS = ("dense", "tiled")


def pick(call: Call, kernel: str = "auto") -> str:
    if kernel == "auto":
        n_q, n_k = call.shape[2:]
        small = node.known_small(n_q, n_k, SMALL) if node.wanted() else n_q * n_k <= SMALL
        return "dense" if small else "tiled"
    if kernel not in KERNELS:
        raise ValueError(f"kernel is auto, {' or '.join(KERNELS)} in pointwise attention, got {kernel!r}")
    return kernel


def run(call: Call, kernel: str = "auto", length: float | None = None) -> Tensor:
    """The output of the call; length: what weights are divided by, None for the number of keys."""
    name = pick(call, kernel)
    if node.wanted():
        return _traced(call, name, length)
    if 0 in call.shape:
        nothing = sum(x[..., :0].sum() for x in (call.q, call.k, call.v))
        return call.q.new_zeros(*call.shape[:3], call.v.shape[-1]) + nothing
    by = float(call.shape[3] if length is None else length)
    return dense(call, by) if name == "dense" else tiled(call, by)


KIND = "pointwise_attention"


def _traced(call: Call, name: str, length: float | None) -> Tensor:
    """The tiles as one node; the plain formula in the program itself."""
    if name == "dense":
        return dense(call, call.shape[3] if length is None else length)
    term = None if call.term is None or call.toeplitz else call.term
    if term is not None and is_exporting():
        raise Refusal(
            f"the tiles of {type(term).__name__} are Python code, which an exported program cannot hold; "
            'kernel="dense" exports its definition, n_q x n_k, in plain operators'
        )
    given = node.Given({"q": call.q, "k": call.k, "v": call.v}, factors={"scale": call.scale})
    given.mask(call.mask)
    given.states(call.states)
    given.module("term", term)
    if length is not None:
        given.factors["length"] = length
    if call.dropout is not None:
        given.factors["rate"] = call.dropout.rate
        given.tensors["seed"] = torch.as_tensor(call.dropout.seed)
    return node.compute(KIND, given)[0]


def _run(given: node.Given) -> tuple[Tensor]:
    tensors, states, factors = given.tensors, given.states_of(), given.factors
    term = given.module_of("term", Pairwise) or (LAGS if states else None)
    drop = Dropout(factors["rate"], int(tensors["seed"])) if "rate" in factors else None
    q, k, v = (tensors[name] for name in ("q", "k", "v"))
    call = Call(q, k, v, factors["scale"], given.mask_of(), term, states, dropout=drop)
    return (run(call, "tiled", factors.get("length")),)


def _shapes(given: node.Given) -> tuple[Tensor]:
    q, v = given.tensors["q"], given.tensors["v"]
    return (q.new_empty(*q.shape[:3], v.shape[-1]),)


node.JOBS[KIND] = node.Job(_run, _shapes)


def dense(call: Call, length: float) -> Tensor:
    """O(n_q n_k) memory, differentiable any number of times."""
    batch, heads, n_q, n_k = call.shape
    score, states, everything = scores(call)
    seen = call.mask.block(0, n_q, 0, n_k, score.device)
    score = score if seen is None else score.masked_fill(~seen, 0)  # silu(0) = 0
    p = torch.nn.functional.silu(score) / length
    if call.dropout is not None:
        p = p * call.dropout.keep(0, batch, heads, 0, n_q, 0, n_k, p.device, p.dtype)
    out = p @ call.v.to(p.dtype)
    extra = None if call.term is None else call.term.value_term(p, states, everything)
    return (out if extra is None else out + extra).to(call.q.dtype)


def tiled(call: Call, length: float) -> Tensor:
    dtype = computing(call.q.dtype)
    tensors = [state.tensor for state in call.states.values()]
    q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
    bare = replace(call, q=q.detach(), k=k.detach(), v=v.detach())
    out: Tensor = _Tiled.apply(bare, length, q, k, v, *tensors)  # type: ignore[no-untyped-call]
    return out.to(call.q.dtype)


def _score(
    call: Call, scaled: Tensor, k: Tensor, slices: dict[str, Tensor], tile: Tile
) -> tuple[Tensor, Tensor | None]:
    """The scores of one tile, 0 where nothing is to be seen, and where that is."""
    score = tiles.raw_score(call, scaled, k, slices, tile)
    seen = call.mask.block(tile.i0, tile.i1, tile.j0, tile.j1, score.device)
    return (score, None) if seen is None else (score.masked_fill_(~seen, 0), ~seen)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, length: float, q: Tensor, k: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
        out = q.new_zeros(*call.shape[:3], v.shape[-1])
        for rows, part in tiles.parts(replace(call.with_states(tensors), q=q)):
            own = part.q * call.scale, k[rows], v[rows]
            for tile in (tile for _, row in tiles.blocks(part) for tile in row):
                _forward_tile(part, tile, own, length, out[rows])
        ctx.save_for_backward(q, k, v, *tensors)
        ctx.call, ctx.length = call, length
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *tensors = ctx.saved_tensors
        call: Call = replace(ctx.call.with_states(tensors), q=q)
        sums = tiles.Sums.zeros(call, (q, k, v), ctx.needs_input_grad[5:])
        with exactly(grad):
            for rows, part in tiles.parts(call):
                own, share = [part.q * call.scale, k[rows], v[rows], grad[rows]], sums.of(rows)
                for tile in (tile for _, row in tiles.blocks(part) for tile in row):
                    _backward_tile(part, tile, own, ctx.length, share)
        return None, None, *sums.in_order(call)


def _forward_tile(call: Call, tile: Tile, saved: Sequence[Tensor], length: float, out: Tensor) -> None:
    """Adds one tile's share to the output."""
    scaled, k, v = saved
    slices, target = tiles.slices_of(call.states, tile), out[:, :, tile.i0 : tile.i1]
    score, _ = _score(call, scaled, k, slices, tile)
    p = torch.nn.functional.silu(score, inplace=True).div_(length)
    keep = tiles.kept(call, tile, p.dtype)
    p = p if keep is None else p.mul_(keep)
    target += p @ v[:, :, tile.j0 : tile.j1]
    extra = None if call.term is None else call.term.value_term(p, slices, tile)
    if extra is not None:
        target += extra


def _backward_tile(call: Call, tile: Tile, saved: Sequence[Tensor], length: float, sums: tiles.Sums) -> None:
    """Adds one tile's share to the gradients of q, k, v and the states."""
    scaled, k, v, grad = saved
    rows, keys = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
    slices, total = tiles.slices_of(call.states, tile), sums.tokens
    g = grad[:, :, rows]
    score, hidden = _score(call, scaled, k, slices, tile)
    gate = torch.sigmoid(score)
    p = score * gate / length
    keep = tiles.kept(call, tile, p.dtype)
    p = p if keep is None else p * keep
    total["v"][:, :, keys] += p.mT @ g
    dp = g @ v[:, :, keys].mT
    found: dict[str, Tensor] = {}
    if call.term is not None and call.term.has_values:
        found = tiles.values_gradient(call, g, p, slices, tile, sums.states)
        dp += found.pop("p")
    dp = dp if keep is None else dp.mul_(keep)
    dscore = dp.mul_((1 - gate).mul_(score).add_(1).mul_(gate)).div_(length)
    dscore = dscore if hidden is None else dscore.masked_fill_(hidden, 0)
    total["q"][:, :, rows] += dscore @ k[:, :, keys] * call.scale
    total["k"][:, :, keys] += dscore.mT @ scaled[:, :, rows]
    sums.add(found, tile)
    if call.term is not None and (sums.states or call.term.reads_qk):
        sums.add(tiles.term_gradient(call, dscore, k, slices, tile, sums.states), tile)
