"""torch.compile and torch.func where sums are chosen by values: linear and pointwise attention, Toeplitz products and
gates. No break, few graphs, equal to eager."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import relpos as rp
from relpos.encodings.registry import fitted
from relpos.features import PRF
from tests.core.test_compile import KNOWN, Graphs, both, fresh, qkv

__all__ = ["fresh"]  # a fixture for every test here

WIDTHS = {"permuteformer": 16, "rope": 16}  # these act on features, twice 8 of them
N = 300  # beyond the plain formula


class Linear(nn.Module):
    def __init__(self, name: str | None, causal: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        known = KNOWN | {"causal": causal, "dim": WIDTHS.get(name or "", 8)}
        self.encoding = None if name is None else fitted(name, known).double()
        self.features = PRF(8, 16).double()
        self.options = {"causal": causal, **options}

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.linear_attention(q, k, v, self.encoding, features=self.features, **self.options)


@pytest.mark.slow(5)
@pytest.mark.parametrize(
    ("name", "causal"),
    [(None, True), ("alibi", True), ("t5", False), ("learned_bias", True), ("kerple", True), ("rope", True),
     ("permuteformer", False), ("cosformer", False)],
)  # fmt: skip
def test_linear_attention(name: str | None, causal: bool) -> None:
    """Two lengths of the plain formula and of what eager picks beyond it: gradients of tables and rates too."""
    module, graphs = Linear(name, causal), Graphs()
    compiled = torch.compile(module, backend=graphs, fullgraph=True)
    for n in (64, 100, N):
        both(module, compiled, qkv(n), module)
    assert len(graphs.seen) <= 2


@pytest.mark.parametrize("kernel", ["dense", "tiled", "band", "split"])
def test_every_kernel_of_linear_attention(kernel: str) -> None:
    module = Linear("t5", True, kernel=kernel)
    both(module, torch.compile(module, backend="aot_eager", fullgraph=True), qkv(N), module)


def test_padding_documents_and_a_class_token() -> None:
    graphs, at = Graphs(), torch.arange(N)
    for options in ({"segments": at // 120, "key_mask": (at < 290)[None]}, {"prefix": 1}):
        module = Linear("t5", True, **options)
        both(module, torch.compile(module, backend=graphs, fullgraph=True), qkv(N), module)
    assert len(graphs.seen) == 2


@pytest.mark.parametrize("kernel", ["auto", "dense"])
def test_nan_reaches_nobody_who_does_not_see_it(kernel: str) -> None:
    module, inputs = Linear("alibi", True, kernel=kernel), qkv(N)
    with torch.no_grad():
        inputs[1][:, :, 200] = torch.nan
    out, want = (run(*inputs) for run in (torch.compile(module, backend="aot_eager", fullgraph=True), module))
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12, equal_nan=True)
    assert torch.isfinite(out[:, :, :200]).all() and torch.isnan(out[:, :, 200:]).all()


def test_the_features_of_another_draw_are_those_that_count() -> None:
    """The projection goes into the program as a tensor: drawn anew, it is the new one."""
    module, inputs = Linear("t5", True), qkv(N)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    first = compiled(*inputs)
    module.features.redraw(torch.Generator().manual_seed(9))
    second = compiled(*inputs)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(second, module(*inputs), rtol=0, atol=1e-12)


@pytest.mark.slow(5)
def test_a_network_of_linear_attention() -> None:
    network = rp.models.Transformer(11, 16, 2, 2, "t5", mixer="kernelized", features=PRF(8, 16))
    graphs = Graphs()
    compiled = torch.compile(network, backend=graphs, fullgraph=True)
    for n in (64, N, 700):
        tokens = torch.randint(11, (1, n))
        with torch.no_grad():
            torch.testing.assert_close(compiled(tokens), network(tokens), rtol=1e-4, atol=1e-5)
    assert len(graphs.seen) <= 2


@pytest.mark.slow(4)
@pytest.mark.parametrize(("name", "kernel"), [(None, "auto"), ("t5", "auto"), ("fire", "auto"), ("t5", "dense")])
def test_pointwise_attention(name: str | None, kernel: str) -> None:
    encoding = None if name is None else fitted(name, KNOWN).double()
    graphs = Graphs()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.pointwise_attention(q, k, v, encoding, causal=True, kernel=kernel)

    compiled = torch.compile(run, backend=graphs, fullgraph=True)
    for n in (64, 100, N):
        both(run, compiled, qkv(n), encoding or nn.Module())
    assert len(graphs.seen) <= 2


def test_pointwise_dropout_has_one_mask_for_both_passes() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rp.pointwise_attention(q, k, v, dropout=0.5, length=10)

    q, k, v = qkv(N)
    out = torch.compile(run, backend="aot_eager", fullgraph=True)(q, k, v)
    (dv,) = torch.autograd.grad(out.sum(), v)
    torch.testing.assert_close((dv * v).sum(), out.sum(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "dense", "fft", "split"])
@pytest.mark.parametrize("causal", [True, False])
def test_toeplitz_matmul(method: str, causal: bool) -> None:
    def run(c: Tensor, x: Tensor) -> Tensor:
        return rp.toeplitz_matmul(c, x, causal=causal, method=method)

    graphs = Graphs()
    compiled = torch.compile(run, backend=graphs, fullgraph=True)
    for n in (50, 70, 600):
        g = torch.Generator().manual_seed(n)
        sizes = (2, 2 * n - 1), (3, 2, n, 5)
        inputs = [torch.randn(size, generator=g, dtype=torch.float64).requires_grad_() for size in sizes]
        both(run, compiled, inputs, nn.Module())
    assert len(graphs.seen) <= 2


def test_no_tokens() -> None:
    """As in eager, each of them: an empty result."""
    q = torch.zeros(1, 2, 0, 8)
    works: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (Linear("t5", True).float(), (q, q, q)),
        (lambda q: rp.pointwise_attention(q, q, q, causal=True), (q,)),
        (lambda c, x: rp.toeplitz_matmul(c, x), (torch.zeros(2, 0), torch.zeros(2, 0, 3))),
        (rp.PoSGU(8, (5, 4), "gqpe", groups=2), (torch.zeros(0, 20, 8),)),
    ]
    for work, inputs in works:
        want = work(*inputs).shape
        assert torch.compile(work, backend="aot_eager", fullgraph=True)(*inputs).shape == want and 0 in want


def test_toeplitz_matmul_on_a_grid() -> None:
    def run(c: Tensor, x: Tensor) -> Tensor:
        return rp.toeplitz_matmul(c, x, grid=(9, 7))

    inputs = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in ((2, 17, 13), (2, 63, 5))]
    both(run, torch.compile(run, backend="aot_eager", fullgraph=True), inputs, nn.Module())


@pytest.mark.parametrize("kind", ["lrpe", "gqpe"])
@pytest.mark.parametrize("window", [(7, 5), (33,)])
def test_gates(kind: str, window: Any) -> None:
    torch.manual_seed(0)
    gate = rp.PoSGU(16, window, encoding=kind, groups=2).double()
    x = torch.randn(2, math.prod(window), 16, dtype=torch.float64).requires_grad_()
    both(gate, torch.compile(gate, backend="aot_eager", fullgraph=True), [x], gate)


def _cases() -> dict[str, Callable[..., Tensor]]:
    encoding = fitted("t5", KNOWN | {"causal": False}).double()
    features, g = PRF(8, 16).double(), torch.Generator().manual_seed(0)
    c = torch.randn(2, 2 * N - 1, generator=g, dtype=torch.float64)
    return {
        "linear": lambda q, k, v: rp.linear_attention(q, k, v, encoding, features=features, causal=True),
        "pointwise": lambda q, k, v: rp.pointwise_attention(q, k, v, encoding),
        "toeplitz": lambda q, k, v: rp.toeplitz_matmul(c, q, method="split") * k * v,
    }


@pytest.mark.parametrize("name", ["linear", "pointwise", "toeplitz"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_torch(name: str) -> None:
    run = _cases()[name]
    inputs = [torch.cat([x.detach(), 0.5 * x.detach()]) for x in qkv(N)]

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(q, k, v).square().sum()

    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    rows = vmap(grad(lambda q, k, v: loss(q[None], k[None], v[None]), (0, 1, 2)))
    for each in (grad(loss, (0, 1, 2)), rows):
        for got, wanted in zip(each(*inputs), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    with pytest.raises(NotImplementedError, match='kernel="dense"'):
        jvp(loss, tuple(inputs), tuple(inputs))


def test_an_ensemble_of_networks() -> None:
    """Each network has features and a table of its own, which the one program takes in."""
    networks = [Linear("t5", True) for _ in range(2)]
    networks[1].features.redraw(torch.Generator().manual_seed(5))
    with torch.no_grad():
        for x in networks[1].parameters():
            x.normal_()
    parameters, buffers = stack_module_state(networks)
    inputs = [x.detach() for x in qkv(N)]
    out = vmap(lambda p, b: functional_call(networks[0], (p, b), tuple(inputs)))(parameters, buffers)
    for one, network in zip(out, networks, strict=True):
        torch.testing.assert_close(one, network(*inputs), rtol=0, atol=1e-11)


def test_export() -> None:
    """Linear attention as its definition; products with a Toeplitz matrix as the node, by any method."""
    module, inputs = Linear("t5", True, kernel="dense"), tuple(x.detach() for x in qkv(40))
    n = torch.export.Dim("n", min=3, max=4096)
    program = torch.export.export(module, inputs, dynamic_shapes=({2: n},) * 3, strict=False).module()
    longer = tuple(x.detach() for x in qkv(90))
    torch.testing.assert_close(program(*longer), module(*longer), rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match='kernel="dense" exports its definition'):
        torch.export.export(Linear("t5", True), inputs, dynamic_shapes=({2: n},) * 3, strict=False)
