"""relpos in the bench: one representative of each way of computing, built by its public name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import relpos as rp
from relpos.lab.bench.problem import Prepared, Problem, Refused

Make = Callable[[Problem], Prepared]


def _prepared(problem: Problem, encoding: Any, kernel: str = "auto") -> Prepared:
    parameters = [p for p in encoding.parameters() if p.requires_grad]
    for each in parameters:
        each.requires_grad_(problem.backward)
    return Prepared(
        lambda q, k, v: rp.attention(q, k, v, encoding, causal=problem.causal, kernel=kernel),
        parameters if problem.backward else (),
    )


def _built(problem: Problem, name: str, **options: Any) -> Any:
    if name not in rp.names():
        raise Refused(f"relpos {rp.__version__} has no encoding {name!r}")
    return rp.encoding(name, **options).to(problem.device)


def learned(problem: Problem, kernel: str = "auto") -> Prepared:
    """A free scalar for every lag and head, with its gradient."""
    encoding = _built(problem, "learned_bias", heads=problem.heads, max_lag=max(1, problem.n - 1))
    with torch.no_grad():
        encoding.table.copy_(problem.table()) if problem.n > 1 else None
    return _prepared(problem, encoding, kernel)


def generic(problem: Problem) -> Prepared:
    """The same table through the tiles that serve any term, without the view that serves biases."""
    return learned(problem, "generic")


def alibi(problem: Problem) -> Prepared:
    return _prepared(problem, _built(problem, "alibi", heads=problem.heads, symmetric=not problem.causal))


def t5(problem: Problem) -> Prepared:
    return _prepared(problem, _built(problem, "t5", heads=problem.heads, causal=problem.causal))


def shaw(problem: Problem) -> Prepared:
    return _prepared(problem, _built(problem, "shaw", dim=problem.dim, max_lag=128, values=False))


def rope(problem: Problem) -> Prepared:
    return _prepared(problem, _built(problem, "rope", dim=problem.dim))


def nope(problem: Problem) -> Prepared:
    return _prepared(problem, _built(problem, "nope"))


def in_channels(name: str) -> Make:
    """A causal bias as extra channels of q and k, then torch's causal fused attention."""

    def make(problem: Problem) -> Prepared:
        channels = getattr(rp, "channels", None)
        if channels is None:
            raise Refused(f"relpos {rp.__version__} has no channels")
        if not problem.causal:
            raise Refused("one-sided: defined for causal attention only")
        scale = problem.dim**-0.5
        encoding = _built(problem, name, heads=problem.heads)
        try:
            found = channels(encoding, problem.n, problem.kind, causal=True, scale=scale, device=problem.device)
        except ValueError as error:
            raise Refused(str(error)) from None
        return _prepared(problem, found.as_transform(), "fused")

    return make
