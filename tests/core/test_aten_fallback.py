"""The private operators of torch, and the plain versions that stand in where they are missing: one answer."""

from __future__ import annotations

import pytest
import torch

import relpos as rp
from relpos.kernels import aten
from tests.core.naive import ToyBias, agree, inputs, naive_attention


@pytest.fixture(params=[True, False], ids=["private operators", "fallback"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(aten, "_FORWARD", None)
        monkeypatch.setattr(aten, "_BACKWARD", None)
        monkeypatch.setattr(aten, "ROWS", 5)
    assert aten.native(torch.zeros(1)) == request.param
    return bool(request.param)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (3, 2)}])
@pytest.mark.usefixtures("native")
def test_hankel_on_either(options: dict[str, object], learned: bool) -> None:
    encoding = ToyBias(2).double().requires_grad_(learned)
    q, k, v = inputs(2, 2, 12, 17, dim=4, dim_v=3, grad=True)
    want = naive_attention(q, k, v, encoding, **options)  # type: ignore[arg-type]
    got = rp.attention(q, k, v, encoding, kernel="hankel", **options)  # type: ignore[arg-type]
    agree(got, want, [q, k, v, *(encoding.parameters() if learned else ())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
def test_log_sum_exp_and_gradients(biased: bool, dtype: torch.dtype) -> None:
    q, k, v = inputs(2, 3, 7, 9, dtype=dtype)
    bias = torch.randn(1, 3, 7, 9, dtype=dtype) if biased else None
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    out, lse = aten.flash(q, k, v, bias, 0.4)
    plain_out, plain_lse = aten.plain(q, k, v, bias, 0.4)
    score = q @ k.transpose(-1, -2) * 0.4 + (0 if bias is None else bias)
    for got in (lse, plain_lse):
        assert (got - torch.logsumexp(score, -1)).abs().max() < tolerance
    assert (out - plain_out).abs().max() < tolerance and (out - score.softmax(-1) @ v).abs().max() < tolerance
    grad = torch.randn_like(out)
    one = aten.flash_backward(grad, q, k, v, out, lse, bias, 0.4)
    two = aten.plain_backward(grad, q, k, v, out, lse, bias, 0.4)
    for a, b in zip(one, two, strict=True):
        assert (a - b).abs().max() < 10 * tolerance


def test_a_row_that_sees_nothing_is_zero_in_the_fallback() -> None:
    q, k, v = inputs(1, 1, 2, 3)
    bias = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    bias[..., 0, :] = -torch.inf
    out, lse = aten.plain(q, k, v, bias, 1.0)
    assert not out[0, 0, 0].any() and torch.isfinite(out).all()
    grads = aten.plain_backward(torch.ones_like(out), q, k, v, out, lse, bias, 1.0)
    assert all(torch.isfinite(g).all() for g in grads) and not grads[0][0, 0, 0].any()
