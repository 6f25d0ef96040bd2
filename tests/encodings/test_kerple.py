from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index
from tests.encodings.case import EncodingCase

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rpe_kerple.npz")


class TestKERPLE(EncodingCase):
    name = "kerple"
    causal = True

    def make(self) -> Any:
        return rp.encodings.KERPLE(self.heads)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        d = (q_pos[:, None] - k_pos[None]).clamp(min=0)
        p, a = encoding.p.clamp(min=0.01).view(1, -1, 1, 1), encoding.a.clamp(min=0.01).view(1, -1, 1, 1)
        return -p * torch.log(1 + a * d)


class TestPowerKERPLE(TestKERPLE):
    causal = False

    def make(self) -> Any:
        return rp.encodings.KERPLE(self.heads, "power", symmetric=True)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        d = (q_pos[:, None] - k_pos[None]).abs().double()
        p, a = encoding.p.clamp(0.01, 2).view(1, -1, 1, 1), encoding.a.clamp(min=0.01).view(1, -1, 1, 1)
        return -a * torch.where(d == 0, 0.0, torch.exp(p * torch.log(d.clamp(min=1))))


def reference(prefix: str, suffix: str = "", kind: Any = "log") -> rp.encodings.KERPLE:
    arrays = {}
    for name in ("bias_p", "bias_a"):
        key = f"{prefix}{name if kind == 'power' else name[-1]}{suffix}"
        if key in GOLDEN.files:
            arrays[name] = GOLDEN[key]
    return rp.encodings.KERPLE.from_reference(arrays, kind)


def test_golden_log() -> None:
    kerple = reference("log_", "_raw")
    pos = Index.arange(11)
    got = GOLDEN["x"] + kerple.bias(pos, pos).detach().numpy()
    np.testing.assert_allclose(got, GOLDEN["log_y"], atol=1e-12)
    row = GOLDEN["xq1"] + kerple.bias(Index.arange(1, 10), pos).detach().numpy()
    np.testing.assert_allclose(row, GOLDEN["log_y_q1"], atol=1e-12)
    assert kerple.a[3] == -0.5  # the value in use is clamped, the parameter is not written to


@pytest.mark.parametrize("variant", ["ap_", "a_", "p_", "original"])
def test_golden_power(variant: str) -> None:
    kerple = reference(f"kerple_power_{variant}_raw_", kind="power")
    pos = Index.arange(11)
    got = GOLDEN["x"] + kerple.bias(pos, pos).detach().numpy()
    np.testing.assert_allclose(got, GOLDEN[f"kerple_power_{variant}_y"], atol=1e-12)


@pytest.mark.parametrize("kind", ["log", "power"])
def test_gradient_at_the_clamp_is_that_of_the_clamped_value(kind: Any) -> None:
    lag = -torch.arange(9)

    def gradients(p: float, a: float) -> tuple[Tensor, Tensor, Tensor]:
        kerple = rp.encodings.KERPLE(1, kind).double()
        with torch.no_grad():
            kerple.p.fill_(p), kerple.a.fill_(a)
        bias = kerple.at(lag)
        return bias, *torch.autograd.grad((bias * torch.arange(9)).sum(), [kerple.p, kerple.a])

    for raw, clamped in [((-1.0, -0.5), (0.01, 0.01)), *([((3.0, 0.2), (2.0, 0.2))] if kind == "power" else [])]:
        for got, want in zip(gradients(*raw), gradients(*clamped), strict=True):
            assert torch.equal(got, want)
            assert torch.isfinite(got).all() and got.any()


def test_a_clamped_head_comes_back() -> None:
    kerple = rp.encodings.KERPLE(1)
    with torch.no_grad():
        kerple.a.fill_(-0.05)
    optimizer = torch.optim.SGD(kerple.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (kerple.at(torch.tensor([-5])) + 4).square().sum().backward()
        optimizer.step()
    assert kerple.a > 0.01


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="kind is"):
        rp.encodings.KERPLE(2, "sine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bias_p or bias_a"):
        rp.encodings.KERPLE.from_reference({"wei_p": 1})
