from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index, Times
from tests.encodings.case import EncodingCase
from tests.encodings.test_rope import rotated_scores, rotation

GOLDEN = Path(__file__).parent.parent / "golden" / "ctes_time_encodings.npz"
UNIX = 1_700_000_000.0


def seconds(index: Tensor) -> Tensor:
    """Running numbers to uneven times that grow with them; a shift by 1000 numbers is one of 375 s."""
    return index * 0.375 + 0.125 * (index % 2)


class TestTimeRoPE(EncodingCase):
    name = "time_rope"
    options_of: dict[str, Any] = {}

    def make(self) -> Any:
        return rp.encodings.TimeRoPE(self.dim, shortest=0.5, longest=32.0, **self.options_of)

    def run(self, encoding: Any, q: Tensor, k: Tensor, v: Tensor, content: Tensor, **options: Any) -> Tensor:
        n_q, n_k = q.shape[2], k.shape[2]
        for name, start, n in (("q_pos", n_k - n_q, n_q), ("k_pos", 0, n_k)):
            index = options.get(name, torch.arange(start, start + n))
            options[name] = index if index.is_floating_point() else seconds(index)
        return super().run(encoding, q, k, v, content, **options)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        half = self.dim // 2
        pairs = [(2 * t, 2 * t + 1) for t in range(half)]
        periods = [0.5 * 64 ** (t / (half - 1)) for t in range(half)]
        turns = [
            [rotation(self.dim, pairs, [2 * math.pi * s / p for p in periods]) for s in seconds(pos).tolist()]
            for pos in (q_pos, k_pos)
        ]
        return rotated_scores(q, k, *turns) / self.dim**0.5


class TestLearnedTimeRoPE(TestTimeRoPE):
    options_of = {"learned": True}
    tolerance = 1e-5  # the parameter starts in float32

    def test_registered(self) -> None:
        assert [name for name, _ in self.make().named_parameters()] == ["log_periods"]


def test_periods_learn_at_unix_times() -> None:
    """The gradient of a period is that of the elapsed seconds, not of the seconds since 1970."""
    grads = []
    for origin in (0.0, UNIX):
        encoding = rp.encodings.TimeRoPE(8, learned=True)
        x = torch.linspace(-1, 1, 40).view(1, 1, 5, 8)
        times = origin + seconds(torch.arange(5)).double()
        rp.attention(x, x, x, encoding, q_pos=times, k_pos=times).square().sum().backward()
        assert encoding.log_periods.grad is not None and encoding.log_periods.grad.abs().max() > 1e-6
        grads.append(encoding.log_periods.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unix_times_are_exact_in_short_types(dtype: torch.dtype) -> None:
    encoding = rp.encodings.TimeRoPE(16, shortest=0.25).to(dtype)
    q, k, v = torch.randn(3, 2, 2, 9, 16).to(dtype).unbind(0)
    near = seconds(torch.arange(9)).double()
    want = rp.attention(q, k, v, encoding, q_pos=near, k_pos=near)
    far = torch.stack((near + UNIX, near + 2 * UNIX))  # rows with origins of their own
    assert torch.equal(rp.attention(q, k, v, encoding, q_pos=far, k_pos=far), want)


def test_a_stream_keeps_its_origin() -> None:
    encoding = rp.encodings.TimeRoPE(8, shortest=1.0)
    times = Times(UNIX + seconds(torch.arange(10)).double())
    q, k = torch.randn(2, 1, 1, 10, 8).unbind(0)
    codes = encoding.make_codes(times, times)
    whole = encoding.encode_q(q, times, codes=codes) @ encoding.encode_k(k, times, codes=codes).mT
    keys = [encoding.encode_k(k[:, :, j : j + 1], times.narrow(j, j + 1), codes=codes) for j in range(10)]
    query = encoding.encode_q(q[:, :, 9:], times.narrow(9, 10), codes=codes)
    torch.testing.assert_close(query @ torch.cat(keys, 2).mT, whole[:, :, 9:], rtol=0, atol=1e-6)
    without = encoding.encode_q(q, times) @ encoding.encode_k(k, times).mT  # origin 0 for both
    assert (without - whole).abs().max() < 2e-4


def test_units() -> None:
    hours = rp.encodings.TimeRoPE(8, shortest=1, longest=24, unit=3600)
    assert hours.periods.tolist() == pytest.approx([3600.0, 3600 * 24 ** (1 / 3), 3600 * 24 ** (2 / 3), 86400.0])
    day = torch.tensor([0.0, 86400.0], dtype=torch.float64)
    x = torch.ones(2, 8, dtype=torch.float64)
    torch.testing.assert_close(hours.rotate(x, day)[1, 6:], x[1, 6:], rtol=0, atol=1e-12)  # a whole turn


def test_torch_brain_golden() -> None:
    g = np.load(GOLDEN)
    shortest, longest = g["torchbrain_tmin_tmax"]
    encoding = rp.encodings.TimeRoPE(8, float(shortest), float(longest), partial=int(g["torchbrain_rotate_dim"]) / 8)
    np.testing.assert_allclose(2 * math.pi / encoding.periods.numpy(), g["torchbrain_omega"][:2], rtol=1e-6)
    times = Times(torch.from_numpy(g["timestamps"]))
    for name in "qk":
        got = encoding.encode_q(torch.from_numpy(g[name]), times)
        np.testing.assert_allclose(got.numpy(), g[f"torchbrain_{name}"], atol=2e-5)


def test_hotpp_golden() -> None:
    g = np.load(GOLDEN)
    low, high = float(g["hotpp_min_step"]), 5 * float(g["hotpp_max_duration"])
    periods = [2 * math.pi * low * (high / low) ** (2 * t / 8) for t in range(4)]
    np.testing.assert_allclose([2 * math.pi / p for p in periods], g["hotpp_freq"], rtol=1e-12)
    encoding = rp.encodings.TimeRoPE(8, periods=periods)
    times = Times(torch.from_numpy(g["timestamps"]))
    for name in "qk":
        got = encoding.encode_q(torch.from_numpy(g[name]), times)
        np.testing.assert_allclose(got.numpy(), g[f"hotpp_{name}"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": 7}, "multiple of 2"),
        ({"dim": 8, "shortest": 0.0}, "shortest is a positive"),
        ({"dim": 8, "shortest": 9.0, "longest": 3.0}, "longer than"),
        ({"dim": 8, "longest": math.inf}, "longest"),
        ({"dim": 8, "unit": -1.0}, "unit"),
        ({"dim": 8, "periods": (1.0, 2.0)}, "one period a rotated pair, 4, got 2"),
        ({"dim": 8, "partial": 0.4}, "even number from 2 to 8"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rp.encodings.TimeRoPE(**options)


def test_indices_are_not_seconds() -> None:
    x = torch.randn(1, 1, 3, 8)
    with pytest.raises(TypeError, match="Times positions, got Index"):
        rp.attention(x, x, x, rp.encodings.TimeRoPE(8))
    with pytest.raises(TypeError, match="Times positions, got Index"):
        rp.encodings.TimeRoPE(8).encode_q(x, Index.arange(3))
