from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Tile
from tests.encodings.case import EncodingCase


def brute_force(encoding: Any, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """The formula, one pair at a time."""
    w1, b1, w2, b2 = (encoding.state_dict()[f"mlp.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    c, limit = encoding.c.item(), abs(encoding.multiplier.item() * encoding.threshold)
    out = torch.zeros(1, encoding.heads, len(q_pos), len(k_pos), dtype=torch.float64)
    for a, i in enumerate(q_pos.tolist()):
        for b, j in enumerate(k_pos.tolist()):
            x = math.log1p(abs(c * (i - j))) / (math.log1p(abs(c * max(i, limit))) + 1e-6)
            out[0, :, a, b] = w2 @ torch.relu(w1[:, 0] * x + b1) + b2
    return out


class TestFIRE(EncodingCase):
    name = "fire"
    exact_shift = False

    def make(self) -> Any:
        encoding = rp.encodings.FIRE(self.heads, hidden=6, threshold=5)
        with torch.no_grad():
            encoding.c.fill_(0.37)
            encoding.multiplier.fill_(1.3)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return brute_force(encoding, q_pos, k_pos)

    def test_state_dict_has_the_settled_names(self) -> None:
        encoding = rp.encodings.FIRE(4)
        shapes = {name: tuple(value.shape) for name, value in encoding.state_dict().items()}
        assert shapes == {
            "mlp.0.weight": (32, 1), "mlp.0.bias": (32,), "mlp.2.weight": (4, 32), "mlp.2.bias": (4,),
            "c": (), "multiplier": (),
        }  # fmt: skip
        assert (encoding.threshold, encoding.c.item(), encoding.multiplier.item()) == (512, pytest.approx(0.1), 1.0)

    @pytest.mark.parametrize("multiplier", [0.0, -1.3, 1.3, 1e-12])
    def test_first_row_is_finite_and_the_threshold_counts_by_size(self, multiplier: float) -> None:
        encoding = self.build()
        with torch.no_grad():
            encoding.multiplier.fill_(multiplier)
        pos = torch.arange(9)
        bias = encoding.bias(rp.positions.Index(pos), rp.positions.Index(pos))
        torch.testing.assert_close(bias, brute_force(encoding, pos, pos)[0], rtol=0, atol=1e-12)
        grads = torch.autograd.grad(bias[:, 0, 0].sum(), list(encoding.parameters()), allow_unused=True)
        assert all(g is None or torch.isfinite(g).all() for g in grads)

    def test_rows_on_both_sides_of_the_threshold(self) -> None:
        """Below it a row depends on the lag alone; above it does not."""
        encoding = self.build()  # threshold 1.3 * 5 = 6.5
        pos = rp.positions.Index.arange(12)
        bias = encoding.bias(pos, pos)
        assert torch.equal(bias[:, 3, 1], bias[:, 6, 4])
        assert (bias[:, 8, 6] - bias[:, 6, 4]).abs().max() > 1e-4

    def test_gradients_of_c_and_multiplier(self) -> None:
        """c always learns, the multiplier only from rows that the threshold governs."""
        encoding = self.build()
        pos = rp.positions.Index.arange(12)
        bias = encoding.bias(pos, pos)
        (low,) = torch.autograd.grad(bias[:, 4, :4].sum(), encoding.multiplier, retain_graph=True)
        (high,) = torch.autograd.grad(bias[:, 9, :4].sum(), encoding.multiplier, retain_graph=True)
        (c,) = torch.autograd.grad(bias[:, 4, :4].sum(), encoding.c)
        assert low != 0 and high == 0 and c != 0

    def test_a_tile_is_its_part_of_the_whole(self) -> None:
        encoding = self.build()
        q, k, _, _ = self.inputs(5, 9)
        q_pos, k_pos = rp.positions.Index.arange(5, 4), rp.positions.Index.arange(9)
        states = encoding.prepare(q, k, q_pos, k_pos)
        whole = encoding.bias(q_pos, k_pos)
        for i0, i1, j0, j1 in [(0, 1, 0, 1), (4, 5, 8, 9), (1, 4, 2, 9), (0, 5, 0, 9)]:
            tile = Tile(i0, i1, j0, j1, 5, 9)
            slices = {name: tile.slice(state) for name, state in states.items()}
            got = encoding.tile(q[:, :, i0:i1], k[:, :, j0:j1], slices, tile)
            torch.testing.assert_close(got[0], whole[:, i0:i1, j0:j1], rtol=0, atol=1e-12)

    def test_short_parameters_are_computed_in_float32(self) -> None:
        """What a bfloat16 module loses is the rounding of its parameters, not that of positions and sums."""
        short = self.build().bfloat16()
        pos = rp.positions.Index.arange(300)
        bias = short.bias(pos, pos)
        assert bias.dtype == torch.float32
        torch.testing.assert_close(bias.double(), short.double().bias(pos, pos), rtol=0, atol=1e-5)

    def test_from_reference(self) -> None:
        """The names of the released code, behind a module path."""
        encoding = self.build()
        released = {f"layer.fire.{name}": value for name, value in encoding.state_dict().items()}
        released["layer.fire.L_multiplier"] = released.pop("layer.fire.multiplier")
        released["layer.fire.init_L"] = torch.tensor(5.0)
        other = rp.encodings.FIRE.from_reference(released)
        pos = rp.positions.Index.arange(12)
        assert torch.equal(other.bias(pos, pos), encoding.bias(pos, pos))
        with pytest.raises(ValueError, match="could be any of"):
            rp.encodings.FIRE.from_reference(released | {"other.c": torch.tensor(1.0)})

    def test_kernelised_attention_is_no_mixer_of_it(self) -> None:
        assert "kernelized" not in rp.encodings.FIRE.mixers
        assert not hasattr(rp.encodings.FIRE, "lags")

    def test_bad_options(self) -> None:
        for options in ({"heads": 0}, {"heads": 2, "hidden": 0}, {"heads": 2, "threshold": 0}):
            with pytest.raises(ValueError, match="got 0"):
                rp.encodings.FIRE(**options)
