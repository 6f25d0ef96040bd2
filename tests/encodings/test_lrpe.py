from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from tests.encodings.case import EncodingCase
from tests.encodings.test_swin import WIDTH, TableCase

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rpe_posmlp.npz")


def arrays(prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(GOLDEN[k]) for k in GOLDEN.files if k.startswith(prefix)}


class TestLRPE(TableCase):
    name = "lrpe"

    def make(self) -> Any:
        return rp.encodings.LRPE(self.heads, (9, WIDTH))

    @pytest.mark.parametrize("side", [3, 4])
    def test_golden(self, side: int) -> None:
        """The released maps, and what comes of them with token biases and with a free matrix besides."""
        a = arrays(f"lrpe{side}_")
        encoding = rp.encodings.LRPE.from_reference(a)
        assert encoding.window == (side, side) and encoding.groups == len(a["map"])
        grid = rp.positions.Grid.of(side, side)
        assert torch.equal(encoding.bias(grid, grid), a["map"])
        for method in ("dense", "axes"):
            got = rp.window_mix(a["x"], encoding, side, method=method) + a["tokbias"].reshape(-1, 1)
            torch.testing.assert_close(got, a["y"], rtol=0, atol=1e-12)
            torch.testing.assert_close(got + a["extra_weight"][0] @ a["x"], a["y_extra"], rtol=0, atol=1e-12)

    def test_the_released_start_is_zero_and_ours_is_not(self) -> None:
        assert torch.equal(rp.encodings.LRPE(2, 3, as_released=True).table, torch.zeros(25, 2))
        assert 0.01 < rp.encodings.LRPE(8, 14).table.std() < 0.03

    def test_weights_of_another_window_do_not_load(self) -> None:
        small, large = rp.encodings.LRPE(2, (3, 5)), rp.encodings.LRPE(2, (4, 5))
        with pytest.raises(RuntimeError, match=r"45 lags.*resize\(\(4, 5\)\)"):
            large.load_state_dict(small.state_dict())
        large.load_state_dict(small.resize((4, 5)).state_dict())

    def test_a_square_is_guessed_and_anything_else_is_asked_for(self) -> None:
        with pytest.raises(ValueError, match="45 lags belongs to no square window; give window"):
            rp.encodings.LRPE.from_reference({"table": torch.zeros(45, 2)})
        assert rp.encodings.LRPE.from_reference({"table": torch.zeros(45, 2)}, (3, 5)).window == (3, 5)
        for wrong, message in (((2, 2, 2), "window is"), ((0, 3), "a side of window is a positive integer, got 0")):
            with pytest.raises(ValueError, match=message):
                rp.encodings.LRPE(2, wrong)


class TestLRPEOnALine(EncodingCase):
    name = "lrpe"
    length = 128

    def make(self) -> Any:
        return rp.encodings.LRPE(self.heads, (self.length,))

    def test_positions_of_any_kind_agree(self) -> None:
        self.length = 6000  # some of them are wild
        super().test_positions_of_any_kind_agree()

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for i, m in enumerate(q_pos.tolist()):
            for j, n in enumerate(k_pos.tolist()):
                out[0, :, i, j] = encoding.table[m - n + self.length - 1]
        return out

    def test_golden(self) -> None:
        a = arrays("lrpe1d_")
        encoding = rp.encodings.LRPE.from_reference(a, (5,))
        line = torch.arange(5)
        assert torch.equal(encoding.bias(rp.positions.Index(line), rp.positions.Index(line)), a["map"])
        got = rp.window_mix(a["x"], encoding, (5,)) + a["tokbias"].reshape(-1, 1)
        torch.testing.assert_close(got, a["y"], rtol=0, atol=1e-12)

    def test_outside_the_window(self) -> None:
        with pytest.raises(ValueError, match=r"the lag -5 lies outside the window 4 of LRPE; .*resize"):
            rp.encodings.LRPE(1, (4,)).at(torch.tensor([0, -5]))
