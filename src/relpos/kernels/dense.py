"""The definition of attention with a relative term, O(n_q n_k) memory. The oracle of every test: nothing clever."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.encodings.base import RowBias, Slices, Tile
from relpos.kernels.call import Call, computing


def scores(call: Call) -> tuple[Tensor, Slices, Tile]:
    """scale q k^T + term of all pairs, in at least float32, the states of the one tile that they are, and the tile."""
    _, _, n_q, n_k = call.shape
    dtype = computing(call.q.dtype)
    q, k = (x.to(dtype) for x in (call.q, call.k))
    score = q @ k.transpose(-1, -2) * call.scale
    everything = Tile(0, n_q, 0, n_k, n_q, n_k)
    states = {name: everything.slice(state) for name, state in call.states.items()}
    if isinstance(call.term, RowBias) and call.q_pos is not None and call.k_pos is not None:
        score = score + call.term.bias(call.q_pos, call.k_pos).to(dtype)
    elif call.term is not None:
        score = score + call.term.tile(q, k, states, everything).to(dtype)
    return score, states, everything


def dense(call: Call) -> Tensor:
    """softmax(scale q k^T + term) v, plus what the term adds to the values; a row that sees no key gives 0."""
    batch, heads, n_q, n_k = call.shape
    score, states, everything = scores(call)
    v = call.v.to(score.dtype)
    seen = call.mask.block(0, n_q, 0, n_k, score.device)
    if seen is not None:
        score = score.masked_fill(~seen, -torch.inf)
    highest = score.amax(-1, keepdim=True) if n_k else score.new_zeros(batch, heads, n_q, 1)
    weight = torch.exp(score - highest.masked_fill(highest == -torch.inf, 0).detach())
    total = weight.sum(-1, keepdim=True)
    p = weight / total.masked_fill(total == 0, 1)
    if call.dropout is not None:
        p = p * call.dropout.keep(0, batch, heads, 0, n_q, 0, n_k, p.device, p.dtype)
    out = p @ v
    extra = None if call.term is None else call.term.value_term(p, states, everything)
    return (out if extra is None else out + extra).to(call.q.dtype)
