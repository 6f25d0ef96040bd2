"""Pointwise attention: against loops over pairs, tiles against the definition, masks, NaN, decoding, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.mixers import functional
from tests.core.naive import ToyBias, ToyContent, ToyRow, ToyTurn, agree, gradients, inputs, visible
from tests.core.test_memory import Largest

POINTWISE = rp.pointwise_attention


def naive(q: Tensor, k: Tensor, v: Tensor, encoding: Any = None, *, scale: float = 1.0, length: int | None = None,
          keep: Tensor | None = None, **masks: Any) -> Tensor:  # fmt: skip
    """One query, one key at a time."""
    batch, heads, n_q, _ = q.shape
    n_k = k.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    at_q, at_k = torch.arange(n_k - n_q, n_k), torch.arange(n_k)
    seen = visible(batch, n_q, n_k, at_q, at_k, **masks)
    rows = []
    for b in range(batch):
        for i in range(n_q):
            total = q.new_zeros(heads, v.shape[-1])
            for j in range(n_k):
                if not seen[b][i][j]:
                    continue
                pair, at = (q[b, :, i], k[b, :, j]), (int(at_q[i]), int(at_k[j]))
                turned = hasattr(encoding, "naive_logit")
                score = (encoding.naive_logit(*pair, *at) if turned else (pair[0] * pair[1]).sum(-1)) * scale
                score = score + (encoding.naive(*pair, *at) if hasattr(encoding, "naive") else 0)
                weight = score * torch.sigmoid(score) / (length or n_k)
                weight = weight if keep is None else weight * keep[b, :, i, j]
                value = v[b, :, j] + (encoding.naive_value(*at) if hasattr(encoding, "naive_value") else 0)
                total = total + weight.unsqueeze(-1) * value
            rows.append(total)
    return torch.stack(rows).view(batch, n_q, heads, -1).transpose(1, 2)


def masks(n_q: int, n_k: int) -> dict[str, dict[str, Any]]:
    real = torch.ones(2, n_k, dtype=torch.bool)
    real[0, n_k // 2 :], real[1, : n_k // 3] = False, False
    segments = (torch.arange(n_q).expand(2, -1) // 2, torch.arange(n_k).expand(2, -1) // 2)
    return {
        "none": {},
        "causal": {"causal": True},
        "window": {"window": (2, 1)},
        "padding": {"key_mask": real, "causal": True},
        "documents": {"segments": segments},
    }


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("mask", list(masks(1, 1)))
@pytest.mark.parametrize("make", [lambda: None, lambda: ToyBias(2), lambda: ToyRow(2), lambda: ToyContent(2, 4),
                                  lambda: ToyTurn(4)])  # fmt: skip
def test_it_is_the_formula(make: Any, mask: str, kernel: str) -> None:
    encoding = make()
    encoding = encoding if encoding is None else encoding.double()
    for n_q, n_k in ((1, 1), (5, 5), (3, 7)):
        q, k, v = inputs(n_q=n_q, n_k=n_k, grad=True)
        options = masks(n_q, n_k)[mask]
        leaves = [q, k, v, *(encoding.parameters() if encoding is not None else ())]
        got = POINTWISE(q, k, v, encoding, kernel=kernel, **options)
        agree(got, naive(q, k, v, encoding, **options), leaves)


def test_many_tiles_key_heads_scale_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relpos.kernels.tiles.KEYS", 7)
    monkeypatch.setattr("relpos.kernels.tiles.QUERIES", 5)
    encoding = ToyContent(4, 4, reach=3).double()
    q, k, v = inputs(heads=4, kv_heads=2, n_q=17, n_k=23, grad=True)
    leaves = [q, k, v, *encoding.parameters()]
    options: dict[str, Any] = {"scale": 0.3, "length": 50, "causal": True}
    got = POINTWISE(q, k, v, encoding, kernel="tiled", **options)
    agree(got, naive(q, k, v, encoding, **options), leaves)
    agree(got, POINTWISE(q, k, v, encoding, kernel="dense", **options), leaves)


def test_dropout_is_the_same_in_every_kernel() -> None:
    q, k, v = inputs(n_q=40, grad=True)
    bias = ToyBias(2).double()
    outs = []
    for kernel in ("dense", "tiled"):
        generator = torch.Generator().manual_seed(3)
        outs.append(POINTWISE(q, k, v, bias, dropout=0.4, generator=generator, kernel=kernel))
    agree(*outs, [q, k, v, *bias.parameters()])
    assert not torch.allclose(outs[0], POINTWISE(q, k, v, bias))


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_the_future_may_hold_nan(kernel: str, poison: float) -> None:
    results = []
    for bad in (None, poison):
        torch.manual_seed(0)
        bias = ToyBias(2).double()
        q, k, v = inputs(n_q=8)
        for x in (q, k, v):
            x[..., 5:, :] = x[..., 5:, :] if bad is None else bad
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = POINTWISE(*leaves, bias, causal=True, kernel=kernel)
        assert bad is None or out[:, :, 5:].isnan().all()
        found = gradients(out[:, :, :5], [*leaves, *bias.parameters()])
        assert not any(g[..., 5:, :].any() for g in found[:3])
        results.append([out[:, :, :5], *found])
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_padding_does_nothing_where_the_length_is_fixed() -> None:
    q, k, v = inputs(n_q=5)
    bias = ToyBias(2).double()
    want = POINTWISE(q, k, v, bias, causal=True, length=9)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 3), value=torch.nan) for x in (q, k, v)]
    mask = (torch.arange(8) < 5).expand(2, -1)
    got = POINTWISE(*padded, bias, causal=True, length=9, key_mask=mask)
    torch.testing.assert_close(got[:, :, :5], want, rtol=0, atol=1e-12)
    nothing = POINTWISE(q, k, v, bias, key_mask=torch.zeros(2, 5, dtype=torch.bool))
    assert not nothing.any()
    torch.testing.assert_close(POINTWISE(q, k, v, bias, causal=True) * 5 / 9, want, rtol=0, atol=1e-12)


def test_a_constant_in_the_bias_counts() -> None:
    """Where a softmax forgets it."""
    q, k, v = inputs()
    bias = ToyBias(2).double()
    before = [f(q, k, v, bias) for f in (rp.attention, POINTWISE)]
    with torch.no_grad():
        bias.table.add_(1.0)
    after = [f(q, k, v, bias) for f in (rp.attention, POINTWISE)]
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_types(dtype: torch.dtype) -> None:
    bias = ToyBias(2).double()
    x = inputs(n_q=300, dtype=dtype)
    want = POINTWISE(*(t.double() for t in x), bias, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = POINTWISE(*x, bias.float(), causal=True)
    assert got.dtype == dtype and (got.double() - want).abs().max() < (2e-5 if dtype == torch.float32 else 1e-2)


def test_layers_learn_and_decode() -> None:
    torch.manual_seed(0)
    layer = rp.SelfAttention(8, 2, "t5", "pointwise", causal=True, length=12, window=6).double()
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    whole = layer(x)
    whole.sum().backward()
    assert all(p.grad is not None for name, p in layer.named_parameters())
    stream = layer.stream()
    parts = [layer(part, stream=stream) for part in x.split([1, 5, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="fix length for a stream"):
        rp.SelfAttention(8, 2, "t5", "pointwise", causal=True).stream()
    with pytest.raises(ValueError, match='length divides the weights of mixer="pointwise"'):
        rp.SelfAttention(8, 2, "t5", length=3)
    with pytest.raises(ValueError, match="mixer is one of softmax, kernelized, pointwise"):
        rp.SelfAttention(8, 2, mixer="linear")
    with pytest.raises(ValueError, match="KernelStream serves"):
        rp.Stream(mixer="kernelized")


def test_bad_input() -> None:
    q, k, v = inputs()
    with pytest.raises(ValueError, match="length is a positive integer"):
        POINTWISE(q, k, v, length=0)
    with pytest.raises(ValueError, match="kernel is auto, dense or tiled in pointwise attention, got 'fused'"):
        POINTWISE(q, k, v, kernel="fused")
    with pytest.raises(ValueError, match="agree in batch"):
        POINTWISE(q, k[:1], v)
    with pytest.raises(TypeError, match="no meaning in pointwise attention"):
        POINTWISE(q, k, v, OnlyGates(2))
    x = [t.requires_grad_() for t in (q, k, v)]
    (first,) = torch.autograd.grad(POINTWISE(*x, kernel="tiled").sum(), x[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        first.sum().backward()


class OnlyGates(ToyBias):
    mixers = ("gate",)


def test_empty_calls() -> None:
    q, k, v = inputs(n_q=3, n_k=3)
    assert POINTWISE(q, k[:, :, :0], v[:, :, :0]).eq(0).all() and POINTWISE(q[:, :, :0], k, v).shape == (2, 2, 0, 4)


@pytest.mark.parametrize("make", [lambda: None, lambda: ToyBias(2), lambda: ToyContent(2, 8, reach=1)])
def test_nothing_quadratic_is_allocated(make: Any) -> None:
    encoding = make()

    def largest(n: int) -> Largest:
        q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for _ in range(3))
        with Largest() as seen:
            POINTWISE(q, k, v, encoding, causal=True).sum().backward()
        return seen

    small, large = largest(1024), largest(2048)
    assert large.bytes < 2048 * 2048 * 4 and large.bytes <= 2.1 * small.bytes, (small.operation, large.operation)


def test_softmax_attention_is_what_it_was() -> None:
    """The request of a call has its kernels with it; that of `attention` has the softmax ones."""
    q, k, v = inputs()
    request = functional.request_of(q, k, v)
    torch.testing.assert_close(request.run(), (q @ k.mT / 2).softmax(-1) @ v)
