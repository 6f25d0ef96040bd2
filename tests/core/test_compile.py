"""torch.compile: one graph without breaks, two at most for all lengths, equal to eager, and no tensor of n x n in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos.encodings.registry import fitted
from torch._dynamo.backends.common import aot_autograd

LENGTHS = (64, 100, 257, 1024, 4096)
NAMES = ("nope", "rope", "alibi", "t5", "shaw", "kerple", "fire", "learned_bias", "transformer_xl", "deberta")
KNOWN = {"heads": 2, "dim": 8, "model_dim": 16, "causal": True}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps every graph, of operators and their gradients, and runs them as they are."""

    def __init__(self) -> None:
        self.seen: list[torch.fx.GraphModule] = []
        self.lowered: list[torch.fx.GraphModule] = []
        self._run = aot_autograd(fw_compiler=self._keep, bw_compiler=self._keep)

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.seen.append(graph)
        return self._run(graph, inputs)

    def _keep(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.lowered.append(graph)
        from functorch.compile import make_boxed_func

        return make_boxed_func(graph.forward)


def made(name: str) -> rp.Encoding:
    torch.manual_seed(0)
    return fitted(name, KNOWN)


def qkv(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(1, 2, n, 8, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def both(run: Callable[..., Tensor], compiled: Callable[..., Tensor], inputs: list[Tensor], module: Any) -> None:
    """Outputs and all gradients are equal."""
    leaves = [*inputs, *module.parameters()]
    found = []
    for one in (run, compiled):
        out = one(*inputs)
        found.append((out, torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)))
    (want, want_grads), (got, got_grads) = found
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for g, w in zip(got_grads, want_grads, strict=True):
        assert (g is None) == (w is None)
        if g is not None and w is not None:
            torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-4 * float(w.abs().max()) + 1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_attention(name: str, causal: bool) -> None:
    """Without a break, on lengths either side of the size at which eager changes its kernel."""
    encoding, graphs = fitted(name, KNOWN | {"causal": causal}), Graphs()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.attention(q, k, v, encoding, causal=causal)

    compiled = torch.compile(run, backend=graphs, fullgraph=True)
    for n in (64, 100, 300):
        both(run, compiled, qkv(n), encoding)
    assert len(graphs.seen) <= 2
