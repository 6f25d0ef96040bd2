"""torch.compile: no break, at most two graphs for all lengths, equal to eager, and no tensor of n x n in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

import relpos as rp
from relpos.encodings.handles import handled
from relpos.encodings.registry import fitted

LENGTHS = (64, 100, 257, 1024, 4096)
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


def qkv(n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(1, 2, n, 8, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def both(
    run: Callable[..., Tensor], compiled: Callable[..., Tensor], inputs: list[Tensor], module: Any, near: float = 1e-11
) -> None:
    """Outputs and all gradients are equal."""
    leaves = [*inputs, *module.parameters()]
    found = []
    for one in (run, compiled):
        out = one(*inputs)
        found.append((out, torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)))
    (want, want_grads), (got, got_grads) = found
    torch.testing.assert_close(got, want, rtol=near, atol=near)
    for g, w in zip(got_grads, want_grads, strict=True):
        assert (g is None) == (w is None)
        if g is not None and w is not None:
            torch.testing.assert_close(g, w, rtol=near, atol=near * max(1.0, float(w.abs().max())))


def attending(encoding: Any, **options: Any) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.attention(q, k, v, encoding, **options)

    return run


@pytest.mark.parametrize(
    ("name", "causal"), [("nope", True), ("rope", True), ("xpos", True), ("alibi", True), ("t5", False),
                         ("kerple", True), ("shaw", True), ("fire", False), ("transformer_xl", True),
                         ("deberta", False)],
)  # fmt: skip
def test_attention(name: str, causal: bool) -> None:
    """Without a break, at lengths on either side of that at which eager changes its kernel."""
    encoding, graphs = fitted(name, KNOWN | {"causal": causal}).double(), Graphs()
    run = attending(encoding, causal=causal)
    compiled = torch.compile(run, backend=graphs, fullgraph=True)
    for n in (64, 100, 260):
        both(run, compiled, qkv(n), encoding)
    assert len(graphs.seen) <= 2


@pytest.mark.parametrize("name", ["alibi", "shaw"])
def test_masks(name: str) -> None:
    """Padding, documents and windows: who sees whom is looked at when the program runs, not when it is made."""
    encoding, graphs, n = fitted(name, KNOWN).double(), Graphs(), 300
    at = torch.arange(n)
    masks = [at < 280, at > 20, (at % 3 > 0), at > -1]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.attention(q, k, v, encoding, causal=True, key_mask=mask, segments=at // 120, window=70)

    compiled = torch.compile(run, backend=graphs, fullgraph=True)
    for mask in (mask.unsqueeze(0) for mask in masks):  # noqa: B007
        both(run, compiled, qkv(n), encoding)
    assert len(graphs.seen) == 1


def test_tokens_of_nan_reach_nobody_who_does_not_see_them() -> None:
    encoding = made("t5").double()
    run = attending(encoding, causal=True)
    compiled = torch.compile(run, backend=Graphs(), fullgraph=True)
    inputs = qkv(280)
    with torch.no_grad():
        inputs[2][:, :, 200] = torch.nan
    out, want = compiled(*inputs), run(*inputs)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12, equal_nan=True)
    assert torch.isfinite(out[:, :, :200]).all() and torch.isnan(out[:, :, 200:]).all()
    found, wanted = (torch.autograd.grad(x[:, :, :200].sum(), inputs) for x in (out, want))
    for g, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


def test_dropout() -> None:
    """Another mask each time, of the rate asked for; the gradient has the mask of its own forward pass."""
    compiled = torch.compile(attending(None, dropout=0.5, causal=False), backend=Graphs(), fullgraph=True)
    q, k, v = qkv(300)
    with torch.no_grad():
        q.zero_()
        v.fill_(1.0)
    first, second = compiled(q, k, v), compiled(q, k, v)
    assert not torch.equal(first, second) and abs(float(first.detach().mean()) - 1) < 0.05
    (dv,) = torch.autograd.grad(first.sum(), v)
    torch.testing.assert_close((dv * v).sum(), first.sum(), rtol=0, atol=1e-9)


@pytest.mark.slow(12)
def test_two_graphs_a_network_over_all_lengths() -> None:
    """Four networks of one class in one process, each at five lengths, without any mark on the shapes."""
    for name in ("nope", "rope", "alibi", "shaw"):
        torch.manual_seed(0)
        network, graphs = rp.models.Transformer(11, 16, 2, 2, name), Graphs()
        compiled = torch.compile(network, backend=graphs, fullgraph=True)
        for n in LENGTHS:
            tokens = torch.randint(11, (1, n))
            with torch.no_grad():
                torch.testing.assert_close(compiled(tokens), network(tokens), rtol=1e-4, atol=1e-5)
        assert len(graphs.seen) <= 2, (name, len(graphs.seen))


@pytest.mark.parametrize("name", ["rope", "t5", "shaw", "fire"])
def test_no_tensor_of_n_by_n(name: str) -> None:
    """Of all that forward and backward graphs hold, nothing grows with the square of the length."""
    encoding, graphs, n = made(name).double(), Graphs(), 1024
    out = torch.compile(attending(encoding, causal=True), backend=graphs, fullgraph=True)(*qkv(n))
    out.sum().backward()
    assert len(graphs.lowered) == 2
    sizes = {0}
    for graph in graphs.lowered:
        for node in graph.graph.nodes:
            value = node.meta.get("val")
            sizes |= {x.numel() for x in (value if isinstance(value, list | tuple) else [value])
                      if isinstance(x, Tensor)}  # fmt: skip
    assert 2 * n * 8 <= max(sizes) < n * n / 8


def test_a_copy_is_another_object() -> None:
    """A program holds the number of its encoding: copies have their own, and one that is gone is said to be."""
    first = made("shaw")
    second = copy.deepcopy(first)
    assert first.handle != second.handle and handled(second.handle, torch.nn.Module) is second
    gone = second.handle
    del second
    with pytest.raises(RuntimeError, match="which is gone; make the program again"):
        handled(gone, torch.nn.Module)


@pytest.mark.slow(20)
def test_inductor() -> None:
    """The compiler that users get."""
    encoding = made("t5")
    run = attending(encoding, causal=True)
    both(run, torch.compile(run, fullgraph=True, dynamic=True), [x.detach().float().requires_grad_() for x in qkv(300)],
         encoding, 1e-4)  # fmt: skip


@pytest.mark.parametrize("name", ["nope", "t5", "shaw"])
def test_no_tokens(name: str) -> None:
    encoding = None if name == "nope" else made(name)
    run = torch.compile(attending(encoding, causal=True), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert run(*(x[:, :, :0] for x in qkv(3))).shape == qkv(3)[0][:, :, :0].shape


@pytest.mark.parametrize("given", ["alibi", None])
def test_an_encoding_that_is_made_inside_is_an_error_that_says_so(given: str | None) -> None:
    places = 3 * torch.arange(40)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        encoding = rp.encodings.ALiBi(2) if given is None else given
        return rp.attention(q, k, v, encoding, causal=True, q_pos=places, k_pos=places)

    with pytest.raises(RuntimeError, match="made inside of the function that is compiled"):
        torch.compile(run, backend="aot_eager")(*qkv(40))
