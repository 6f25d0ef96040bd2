from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.bias.alibi import alibi_slopes
from relpos.positions import Index
from tests.encodings.case import EncodingCase

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rpe_alibi.npz")


class TestALiBi(EncodingCase):
    name = "alibi"
    causal = True

    def make(self) -> Any:
        return rp.encodings.ALiBi(self.heads)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        slopes = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2], dtype=torch.float64)  # 2 heads' slopes, then the first of 4
        return -slopes.view(1, 3, 1, 1) * (q_pos[:, None] - k_pos[None]).clamp(min=0)


class TestSymmetricALiBi(TestALiBi):
    causal = False

    def make(self) -> Any:
        return rp.encodings.ALiBi(self.heads, symmetric=True)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        slopes = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2], dtype=torch.float64)
        return -slopes.view(1, 3, 1, 1) * (q_pos[:, None] - k_pos[None]).abs()


@pytest.mark.parametrize("heads", [int(name[7:]) for name in GOLDEN.files if name.startswith("slopes_")])
def test_golden_slopes(heads: int) -> None:
    np.testing.assert_allclose(rp.encodings.ALiBi(heads).slopes.numpy(), GOLDEN[f"slopes_{heads}"], atol=1e-15, rtol=0)


@pytest.mark.parametrize("heads", [8, 12])
def test_golden_bias(heads: int) -> None:
    pos = Index.arange(40)
    got = rp.encodings.ALiBi(heads).bias(pos, pos)
    np.testing.assert_allclose(got.numpy(), GOLDEN[f"bias_causal_{heads}"], atol=1e-15, rtol=0)
    got = rp.encodings.ALiBi(heads, symmetric=True).bias(pos, pos)
    np.testing.assert_allclose(got.numpy(), GOLDEN[f"bias_sym_{heads}"], atol=1e-15, rtol=0)


def test_the_rules_differ_off_powers_of_two() -> None:
    assert torch.equal(alibi_slopes(16), alibi_slopes(16, "geometric"))
    assert alibi_slopes(12)[:9].tolist() == [2.0**-h for h in range(1, 9)] + [2.0**-0.5]
    assert alibi_slopes(12, "geometric").tolist() == pytest.approx([2 ** (-2 * h / 3) for h in range(1, 13)], rel=1e-15)
    assert torch.equal(rp.encodings.ALiBi(12, slopes="geometric").slopes, alibi_slopes(12, "geometric"))
    with pytest.raises(ValueError, match="slopes is"):
        rp.encodings.ALiBi(4, slopes="steep")  # type: ignore[arg-type]


def test_a_layer_that_is_not_causal_gets_the_symmetric_form() -> None:
    from relpos.encodings.registry import fitted

    assert fitted("alibi", {"heads": 2, "causal": False}).symmetric
    assert not fitted("alibi", {"heads": 2, "causal": True}).symmetric


def test_symmetric_rows_end_at_the_last_key() -> None:
    """More keys than queries: queries sit at the end, -m |i + n_k - n_q - j|, as FlashAttention's alibi_slopes."""
    alibi = rp.encodings.ALiBi(2, symmetric=True)
    q, k = torch.zeros(1, 2, 3, 4).double(), torch.zeros(1, 2, 7, 4).double()
    out = rp.attention(q, k, torch.eye(7).double().expand(1, 2, 7, 7), alibi)
    distance = (torch.arange(3)[:, None] + 4 - torch.arange(7)).abs()
    torch.testing.assert_close(out[0], (-alibi.slopes.view(2, 1, 1) * distance).softmax(-1), rtol=0, atol=1e-12)


def test_a_cast_model_keeps_its_slopes() -> None:
    alibi = rp.encodings.ALiBi(12).to(torch.bfloat16)
    assert torch.equal(alibi.slopes, alibi_slopes(12))
    assert rp.encodings.ALiBi(12).float().slopes.dtype == torch.float32
    assert alibi.float().slopes.dtype == torch.float32
    assert set(alibi.state_dict()) == {"slopes"}
