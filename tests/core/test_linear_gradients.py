"""Gradients of linear attention: by differences, of all that can be learned, and exactly 0 where nothing is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relpos as rp
from relpos import features
from tests.core.naive import gradients, inputs
from tests.core.naive_linear import DIM, HEADS, KERNELS, build, made, naive_linear, seed, shrink, width_for

L = rp.linear_attention


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def learned_weight(f: features.Random) -> None:
    """Makes the projection one that is trained."""
    weight = f.weight
    del f.weight
    f.register_parameter("weight", nn.Parameter(weight.clone()))


class Attend(nn.Module):
    """Linear attention as a module, so that all that it learns can be given from outside."""

    def __init__(self, encoding: Any, f: features.Features, **options: Any) -> None:
        super().__init__()
        self.encoding, self.features, self.options = encoding, f, options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return L(q, k, v, self.encoding, features=self.features, **self.options)


def differences(layer: Attend, x: tuple[Tensor, ...]) -> bool:
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(*given: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, dict(zip(names, given[3:], strict=True)), given[:3])
        return found

    return bool(torch.autograd.gradcheck(run, (*x, *parameters), atol=1e-7, fast_mode=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["prf", "prf_scaled", "trf"])
def test_by_differences(name: str, kernel: str) -> None:
    """q, k, v, the table, and the projection W where that is learned."""
    f = made(name)
    assert isinstance(f, features.Random)
    learned_weight(f)
    encoding = rp.encodings.LearnedBias(HEADS, 2).double()
    x = inputs(1, HEADS, 11, 12, DIM, 2, kv_heads=1, grad=True)
    for causal in (False, True):
        layer = Attend(encoding, f, causal=causal, kernel=kernel)
        assert len(list(layer.parameters())) == 2
        assert differences(layer, x)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "dense"])
def test_a_learned_projection_whose_features_are_made_at_once(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features no wider than the values are made before the kernel, some rows at a time."""
    monkeypatch.setattr("relpos.kernels.linear.call.ROWS", 5)
    f = made("prf")
    assert isinstance(f, features.Random)
    learned_weight(f)
    x = inputs(1, HEADS, 11, 12, DIM, f.width, kv_heads=1, grad=True)
    assert differences(Attend(rp.encodings.LearnedBias(HEADS, 2).double(), f, causal=True, kernel=kernel), x)


@pytest.mark.parametrize("name", ["alibi", "kerple_log", "hype", "flt", "spe", "rope", "permuteformer", "cosformer"])
def test_of_every_parameter_by_differences(name: str) -> None:
    encoding, serve = build(name)
    x = inputs(1, HEADS, 9, grad=True)
    codes = encoding.codes_from(*noise(encoding)) if name == "spe" else None
    for kernel in serve:
        layer = Attend(encoding, made("prf", width_for(name)), causal=True, kernel=kernel, codes=codes)
        if name == "spe":  # its codes hold the module's own parameters
            out, parameters = layer(*x), list(layer.parameters())
            want = naive_linear(*x, encoding, features=made("prf", 7), causal=True, codes=codes)
            for a, b in zip(gradients(out, parameters), gradients(want, parameters), strict=True):
                assert b.any()
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        else:
            assert differences(layer, x)


def noise(encoding: Any) -> tuple[Tensor, Tensor]:
    shape = (HEADS, DIM, 2 * encoding.sines, encoding.realizations)
    z = torch.randn(shape, generator=seed(6), dtype=torch.float64)
    return z, torch.randn(HEADS, DIM, encoding.realizations, generator=seed(7), dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["tiled", "band", "split"])
def test_twice_raises(kernel: str) -> None:
    q, k, v = inputs(1, HEADS, 13, grad=True)
    encoding = rp.encodings.LearnedBias(HEADS, 2).double()
    for leaf in (q, k, v, encoding.table):
        out = L(q, k, v, encoding, features=made("prf"), kernel=kernel)
        (grad,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=r'differentiated again.*kernel="dense" does'):
            torch.autograd.grad(grad.square().sum(), (q, k, v))
    f = made("prf")
    frozen = [x.detach() for x in (q, k, v)]
    out = L(*frozen, encoding, features=f, kernel=kernel)
    (grad,) = torch.autograd.grad(out.sum(), encoding.table, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        grad.sum().backward()


def test_twice_by_the_dense_kernel() -> None:
    q, k, v = inputs(1, 1, 5, grad=True)
    encoding = rp.encodings.LearnedBias(1, 2).double()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return L(q, k, v, encoding, features=made("prf"), kernel="dense")

    assert torch.autograd.gradgradcheck(run, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_future_and_forbidden_lags_get_exactly_nothing(kernel: str) -> None:
    q, k, v = inputs(2, HEADS, 21, grad=True)
    encoding = rp.encodings.LearnedBias(HEADS, 20).double()
    out = L(q, k, v, encoding, features=made("prf"), causal=True, kernel=kernel)
    assert not torch.autograd.grad(out.sum(), encoding.table, retain_graph=True)[0][:, 21:].any()
    for i in (0, 3, 7, 8, 15):
        found = torch.autograd.grad(out[:, :, i].square().sum(), [q, k, v], retain_graph=True)
        assert not found[0][:, :, i + 1 :].any() and not found[0][:, :, :i].any()
        for grad in found[1:]:
            assert not grad[:, :, i + 1 :].any()
            if i:
                assert grad[:, :, : i + 1].abs().amax(-1).min() > 0
    mask = torch.arange(21) % 4 != 1
    out = L(q, k, v, encoding, features=made("prf"), key_mask=mask.expand(2, -1), kernel=kernel)
    for grad in torch.autograd.grad(out.sum(), [k, v]):
        assert not grad[:, :, ~mask].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_of_minus_infinity(kernel: str) -> None:
    """A lag that is shut gets gradient 0, and shuts nothing else."""
    q, k, v = inputs(1, HEADS, 19, grad=True)
    encoding = rp.encodings.LearnedBias(HEADS, 4).double()
    with torch.no_grad():
        encoding.table[:, 2] = -torch.inf
        encoding.table[1, 6] = -torch.inf
    for causal in (False, True):
        out = L(q, k, v, encoding, features=made("prf"), causal=causal, kernel=kernel)
        want = naive_linear(q, k, v, encoding, features=made("prf"), causal=causal)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
        found = torch.autograd.grad(out.sum(), [q, k, v, encoding.table])
        assert all(torch.isfinite(g).all() for g in found)
        assert not found[3][:, 2].any() and not found[3][1, 6]


def test_a_row_of_zeros_gets_no_gradient() -> None:
    """Rows of length 0 cannot be normalised: they stay, and are finite in and out."""
    q, k, v = (x.detach() for x in inputs(1, 1, 6))
    q[:, :, 2], k[:, :, 3] = 0, 0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = L(*leaves, features=made("prf"))
    assert torch.isfinite(out).all()
    grads = torch.autograd.grad(out.square().sum(), leaves)
    assert all(torch.isfinite(g).all() for g in grads)
    assert not grads[0][:, :, 2].any() and not grads[1][:, :, 3].any()
    assert grads[0][:, :, 0].any() and grads[1][:, :, 0].any()


@pytest.mark.parametrize("kernel", ["tiled", "band", "split"])
def test_features_redrawn_before_the_gradient_are_refused(kernel: str) -> None:
    f = made("prf", DIM, 16)
    assert isinstance(f, features.Random)
    q, k, v = inputs(1, HEADS, 13, grad=True)
    out = L(q, k, v, rp.encodings.LearnedBias(HEADS, 2).double(), features=f, kernel=kernel)
    f.redraw()
    with pytest.raises(RuntimeError, match=r"features changed in place \(redraw.*call backward first"):
        out.sum().backward()


def test_only_what_is_wanted() -> None:
    """Any one leaf alone has the gradient that it has among all."""
    encoding = rp.encodings.LearnedBias(HEADS, 2).double()
    x = inputs(1, HEADS, 17)
    for kernel in KERNELS:
        for causal in (False, True):
            every = [t.clone().requires_grad_() for t in x]
            out = L(*every, encoding, features=made("prf"), causal=causal, kernel=kernel)
            all_of_them = gradients(out, [*every, encoding.table])
            for i in range(4):
                leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(x)]
                encoding.table.requires_grad_(i == 3)
                out = L(*leaves, encoding, features=made("prf"), causal=causal, kernel=kernel)
                got = gradients(out, [encoding.table if i == 3 else leaves[i]])[0]
                torch.testing.assert_close(got, all_of_them[i], rtol=0, atol=1e-13)
            encoding.table.requires_grad_(True)


def test_under_no_grad_and_inference_mode() -> None:
    q, k, v = inputs(1, HEADS, 17)
    encoding = rp.encodings.LearnedBias(HEADS, 2).double()
    for kernel in KERNELS:
        want = L(q, k, v, encoding, features=made("prf"), kernel=kernel)
        with torch.inference_mode():
            got = L(q, k, v, encoding, features=made("prf"), kernel=kernel)
        assert torch.equal(want, got)
