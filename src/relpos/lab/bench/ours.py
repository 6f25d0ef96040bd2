"""relpos in the bench: one representative of each way of computing, built by its public name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import relpos as rp
from relpos.lab.bench.problem import Attend, Prepared, Problem, Refused

CLIP = 128  # lags on either side of a clipped table

Make = Callable[[Problem], Prepared]


def _prepared(problem: Problem, encoding: Any, kernel: str = "auto") -> Prepared:
    return _trained(
        problem, encoding, lambda q, k, v: rp.attention(q, k, v, encoding, causal=problem.causal, kernel=kernel)
    )


def _trained(problem: Problem, encoding: nn.Module | None, attend: Attend) -> Prepared:
    parameters = [] if encoding is None else [p for p in encoding.parameters() if p.requires_grad]
    for each in parameters:
        each.requires_grad_(problem.backward)
    return Prepared(attend, parameters if problem.backward else ())


def _built(problem: Problem, name: str, **options: Any) -> Any:
    if name not in rp.names():
        raise Refused(f"relpos {rp.__version__} has no encoding {name!r}")
    return rp.encoding(name, **options).to(problem.device)


def learned(problem: Problem, kernel: str = "auto") -> Prepared:
    """A free scalar for every lag and head, with its gradient."""
    return _prepared(problem, free(problem), kernel)


def in_triton(problem: Problem) -> Prepared:
    """The same table by the Triton kernel, named: auto would take it for half precision alone."""
    return learned(problem, "triton")


def generic(problem: Problem) -> Prepared:
    """The same table through the tiles that serve any term, without the view that serves biases."""
    return learned(problem, "generic")


def alibi(problem: Problem) -> Prepared:
    return _prepared(problem, alibi_bias(problem))


def t5(problem: Problem) -> Prepared:
    return _prepared(problem, t5_bias(problem))


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


def linear(encoding: Callable[[Problem], Any]) -> Make:
    """The whole public call of kernelised attention: unit rows, positive random features, weighted sums."""

    def make(problem: Problem) -> Prepared:
        made = encoding(problem)
        made = None if made is None else made.to(problem.kind)
        features = random_features(problem)
        return _trained(
            problem,
            made,
            lambda q, k, v: rp.linear_attention(q, k, v, made, features=features, causal=problem.causal),
        )

    return make


def random_features(problem: Problem) -> Any:
    """The same draw for every contestant of one problem."""
    generator = torch.Generator().manual_seed(2)
    return rp.features.PRF(problem.dim, problem.features, generator=generator).to(problem.device, problem.kind)


def plain(problem: Problem) -> None:
    """No encoding."""


def clipped(problem: Problem) -> Any:
    """A learned table of lags -128..128, whose ends serve all lags beyond."""
    return _random_table(problem, min(CLIP, max(1, problem.n - 1)))


def free(problem: Problem) -> Any:
    """A learned scalar for each of the 2 n - 1 lags."""
    return _random_table(problem, max(1, problem.n - 1))


def _random_table(problem: Problem, reach: int) -> Any:
    encoding = _built(problem, "learned_bias", heads=problem.heads, max_lag=reach)
    middle = problem.n - 1
    with torch.no_grad():
        encoding.table.copy_(problem.table()[:, middle - reach : middle + reach + 1]) if problem.n > 1 else None
    return encoding


def alibi_bias(problem: Problem) -> Any:
    return _built(problem, "alibi", heads=problem.heads, symmetric=not problem.causal)


def t5_bias(problem: Problem) -> Any:
    return _built(problem, "t5", heads=problem.heads, causal=problem.causal)
