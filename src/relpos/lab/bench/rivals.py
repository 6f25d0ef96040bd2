"""What users have without this library: attention without a bias, and the ways to add one in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from relpos.lab.bench.problem import Prepared, Problem, Refused, lag_index


def unbiased(problem: Problem) -> Prepared:
    """torch's fused attention without any bias."""
    return Prepared(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=problem.causal))


def _visible(table: Tensor, problem: Problem) -> Tensor:
    """The table with minus infinity at the lags that causality hides, so that one gather yields bias and mask."""
    if not problem.causal:
        return table
    n = problem.n
    return torch.cat([table[:, :n], table.new_full((table.shape[0], n - 1), -torch.inf)], 1)


def _learned(problem: Problem) -> Tensor:
    table = problem.table().to(problem.kind)
    return table.requires_grad_() if problem.backward else table


def ready(problem: Problem) -> Prepared:
    """Fused attention with an n x n bias that is there before the clock starts and gets no gradient."""
    bias = _visible(problem.table().to(problem.kind), problem)[:, lag_index(problem.n, problem.device)][None]
    return Prepared(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=bias))


def materialised(problem: Problem) -> Prepared:
    """A learned table gathered to n x n, then torch's attention with it as mask; gradient to the table."""
    table, index = _learned(problem), lag_index(problem.n, problem.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=_visible(table, problem)[:, index][None])

    return Prepared(attend, (table,) if problem.backward else ())


def plain(problem: Problem) -> Prepared:
    """Two matrix products, a gathered bias and a softmax, as in most released code."""
    table, index = _learned(problem), lag_index(problem.n, problem.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        score = q @ k.transpose(-1, -2) * problem.dim**-0.5 + _visible(table, problem)[:, index]
        return torch.softmax(score, -1) @ v

    return Prepared(attend, (table,) if problem.backward else ())


def flex(problem: Problem) -> Prepared:
    """Compiled flex_attention with the table captured by its score function.

    To be run in a process of its own: after nine shapes, or one refusal, a process silently runs it unfused.
    """
    if problem.backward and problem.device == "cpu":
        raise Refused("flex_attention has no backward on the CPU")
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError:
        raise Refused(f"torch {torch.__version__} has no flex_attention") from None
    table, n = _learned(problem), problem.n
    mask = None
    if problem.causal:
        mask = create_block_mask(lambda b, h, i, j: j <= i, None, None, n, n, device=problem.device)
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = compiled(q, k, v, score_mod=lambda s, b, h, i, j: s + table[h, j - i + n - 1], block_mask=mask)
        assert isinstance(out, Tensor)
        return out

    return Prepared(attend, (table,) if problem.backward else ())
