"""The kernel "flex": what it hands to flex_attention, by its uncompiled version on the CPU, and what it refuses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor

import relpos as rp
from relpos.kernels import flex
from relpos.kernels.call import Refusal
from relpos.kernels.dense import dense
from relpos.kernels.mask import Mask
from relpos.mixers.functional import request_of
from tests.core.naive import ToyContent


def call_of(encoding: Any, leaves: list[Tensor], **options: Any) -> Any:
    return request_of(*leaves, encoding, **options).call()


def options_of(n: int) -> list[dict[str, Any]]:
    names = torch.arange(n) // (n // 3 + 1)
    scattered = names[torch.randperm(n)]
    mask = torch.rand(2, n) > 0.4
    return [
        {},
        {"causal": True},
        {"window": (7, 130)},
        {"segments": names, "causal": True},
        {"segments": torch.stack([names, scattered]), "key_mask": mask},
    ]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("n", [37, 261])
def test_values_and_gradients_of_the_uncompiled_version(n: int, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a gradient on the CPU at its door; behind it, the mathematics is there."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    options = options_of(n)[index]
    encoding = rp.encoding("learned_bias", heads=2, max_lag=n)
    torch.nn.init.normal_(encoding.table)
    tensors = [torch.randn(2, 2, n, width) for width in (16, 16, 24)]
    found = []
    for kernel in (dense, lambda call: flex.attend(call, torch_flex.flex_attention)):
        leaves = [x.clone().requires_grad_() for x in tensors]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it runs unfused is what is wanted here
            out = kernel(call_of(encoding, leaves, **options))
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        found.append([out, *torch.autograd.grad((out * weights).sum(), [*leaves, encoding.table])])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_q", [1, 128, 200, 300])
@pytest.mark.parametrize("sides", [(None, 0), (5, None), (140, 3), (0, 0)])
def test_blocks_that_are_left_out_and_taken_whole(sides: tuple[int | None, int | None], n_q: int) -> None:
    mask = Mask(n_q, 300, 300 - n_q, *sides)
    pairs = mask.block(0, n_q, 0, 300, torch.device("cpu"))
    pairs = torch.ones(1, 1, n_q, 300, dtype=torch.bool) if pairs is None else pairs
    some, every = flex._flags(mask, None, torch.device("cpu"))
    for i in range(some.shape[2]):
        for j in range(some.shape[3]):
            block = pairs[0, 0, 128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
            assert bool(some[0, 0, i, j] | every[0, 0, i, j]) == bool(block.any())
            assert bool(every[0, 0, i, j]) == bool(block.all())


def test_refusals_say_why() -> None:
    q = torch.randn(1, 2, 6, 16)
    for words, x, encoding, options in (
        ("not torch.float64", q.double(), None, {}),
        ("width 16 or more, not 8", q[..., :8], None, {}),
        ("no dropout", q, None, {"dropout": 0.1}),
        ("ToyContent is not a bias", q, ToyContent(2, 16), {}),
        ("no backward on the CPU", q.clone().requires_grad_(), None, {}),
        ("no backward on the CPU", q, rp.encoding("learned_bias", heads=2, max_lag=5), {}),
    ):
        with pytest.raises(Refusal, match=words):
            rp.attention(x, x, x, encoding, kernel="flex", **options)


@pytest.mark.slow(15)
def test_compiled_on_the_cpu_without_gradients() -> None:
    q, k, v = (torch.randn(1, 2, 150, 16) for _ in range(3))
    encoding = rp.encoding("learned_bias", heads=2, max_lag=150)
    torch.nn.init.normal_(encoding.table)
    with torch.no_grad():
        got = rp.attention(q, k, v, encoding, causal=True, kernel="flex")
        torch.testing.assert_close(got, rp.attention(q, k, v, encoding, causal=True), rtol=0, atol=1e-5)
