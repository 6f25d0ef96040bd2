from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Grid
from tests.encodings.test_swin import GridCase, cells


class TestALiBi2D(GridCase):
    name = "alibi_2d"
    metric = "euclidean"

    def make(self) -> Any:
        return rp.encodings.ALiBi2D(self.heads, self.metric)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        slopes = [2.0**-4, 2.0**-8, 2.0**-2]  # of 2 heads, then the first of 4
        out = torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for i, (y, x) in enumerate(cells(q_pos).tolist()):
            for j, (s, t) in enumerate(cells(k_pos).tolist()):
                for h, slope in enumerate(slopes):
                    out[0, h, i, j] = -slope * self.distance(y - s, x - t)
        return out

    def distance(self, y: int, x: int) -> float:
        return math.sqrt(y**2 + x**2)

    def test_known_distances(self) -> None:
        encoding = rp.encodings.ALiBi2D(8, self.metric)
        lags = torch.tensor([[0, 0], [3, 4], [-3, 4], [0, -7]])
        want = [0.0, 5.0, 5.0, 7.0] if self.metric == "euclidean" else [0.0, 7.0, 7.0, 7.0]
        assert encoding.at(lags)[0].tolist() == [-d / 2 for d in want]
        assert torch.equal(encoding.at(lags)[7], encoding.at(lags)[0] / 128)

    def test_slopes_survive_a_cast(self) -> None:
        """In bfloat16 the slope of head 1 of 12 would be off by 0.2 per cent, at 100 cells by a tenth of a nat."""
        encoding = rp.encodings.ALiBi2D(12, self.metric)
        lag = torch.tensor([90, 120])
        exact = encoding.at(lag)
        torch.testing.assert_close(encoding.bfloat16().at(lag).double(), exact, rtol=1e-6, atol=0)

    def test_bad_metric(self) -> None:
        with pytest.raises(ValueError, match=r'metric is "euclidean" or "manhattan", got \'l1\''):
            rp.encodings.ALiBi2D(2, "l1")  # type: ignore[arg-type]


class TestManhattan(TestALiBi2D):
    metric = "manhattan"

    def distance(self, y: int, x: int) -> float:
        return float(abs(y) + abs(x))

    def test_one_row_is_alibi(self) -> None:
        """On a grid of one row both metrics are the symmetric ALiBi of the columns."""
        q, k, v = torch.randn(3, 1, 4, 9, 8, dtype=torch.float64)
        grid = Grid.of(1, 9)
        want = rp.attention(q, k, v, rp.encodings.ALiBi(4, symmetric=True))
        for metric in ("euclidean", "manhattan"):
            got = rp.attention(q, k, v, rp.encodings.ALiBi2D(4, metric), q_pos=grid, k_pos=grid)  # type: ignore[arg-type]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
