from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

import relpos as rp
from relpos.encodings.registry import fitted
from relpos.positions import Grid, Index, Times


def sinusoid(layout: str, p: float, dim: int, base: float = 10000.0) -> list[float]:
    half = dim // 2
    if layout == "interleaved":
        return [(math.sin, math.cos)[c % 2](p / base ** (2 * (c // 2) / dim)) for c in range(dim)]
    last = half - 1 if layout == "tensor2tensor" else half
    theta = [base ** (-t / last) if last else 1.0 for t in range(half)]
    return [math.sin(p * f) for f in theta] + [math.cos(p * f) for f in theta]


@pytest.mark.parametrize("layout", ["interleaved", "halves", "tensor2tensor"])
@pytest.mark.parametrize("dim", [2, 6, 32])
def test_sinusoid_is_the_formula(layout: Any, dim: int) -> None:
    encoding = rp.encodings.Sinusoidal(dim, layout)
    x = torch.randn(2, 31, dim, dtype=torch.float64)
    want = torch.tensor([sinusoid(layout, p, dim) for p in range(31)], dtype=torch.float64)
    torch.testing.assert_close(encoding.add(x) - x, want.expand(2, -1, -1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("layout", ["interleaved", "halves", "tensor2tensor"])
def test_positions_real_offset_and_by_row(layout: Any) -> None:
    encoding = rp.encodings.Sinusoidal(8, layout)
    x = torch.zeros(2, 3, 8, dtype=torch.float64)
    rows = torch.tensor([[0, 1, 2], [7, 1000, 1_000_000]])
    want = torch.tensor([[sinusoid(layout, p, 8) for p in row] for row in rows.tolist()], dtype=torch.float64)
    torch.testing.assert_close(encoding.add(x, Index(rows)), want, rtol=0, atol=1e-9)
    assert torch.equal(encoding.add(x, rows), encoding.add(x, Index(rows)))  # type: ignore[arg-type]
    real = encoding.add(x, Times(torch.tensor([0.25, 0.5, 1.75])))
    want = torch.tensor([sinusoid(layout, p, 8) for p in (0.25, 0.5, 1.75)], dtype=torch.float64)
    torch.testing.assert_close(real[0], want, rtol=0, atol=1e-14)


def test_sinusoid_far_out_in_short_types() -> None:
    encoding = rp.encodings.Sinusoidal(16)
    far = Index(torch.tensor([999_999, 1_000_000]))
    exact = encoding.add(torch.zeros(1, 2, 16, dtype=torch.float64), far)
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
        got = copy.deepcopy(encoding).to(dtype).add(torch.zeros(1, 2, 16, dtype=dtype), far)
        assert got.dtype == dtype and (got.double() - exact).abs().max() < limit


def test_learned_adds_its_rows() -> None:
    encoding = rp.encodings.Learned(6, 5).double()
    assert encoding.table.shape == (5, 6)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    rows = torch.tensor([[4, 0, 2], [1, 1, 3]])
    got = encoding.add(x, Index(rows)) - x
    for b in range(2):
        for i in range(3):
            torch.testing.assert_close(got[b, i], encoding.table[rows[b, i]], rtol=0, atol=1e-15)
    assert torch.equal(encoding.add(x), x + encoding.table[:3])
    encoding.add(x, Index(rows)).sum().backward()
    assert encoding.table.grad is not None
    assert encoding.table.grad[:, 0].tolist() == [1, 2, 1, 1, 1]


@pytest.mark.parametrize("positions", [[0, 1, 5], [-1, 0, 1]])
def test_learned_ends_with_its_table(positions: list[int]) -> None:
    encoding = rp.encodings.Learned(6, 5)
    with pytest.raises(ValueError, match="larger max_length"):
        encoding.add(torch.randn(1, 3, 6), Index(torch.tensor(positions)))
    with pytest.raises(ValueError, match=r"positions 0\.\.5 reach outside the learned table 0\.\.4"):
        encoding.add(torch.randn(1, 6, 6))
    assert not encoding.extrapolates


@pytest.mark.parametrize("name", ["sinusoidal", "learned"])
def test_both_as_a_layer_meets_them(name: str) -> None:
    encoding = fitted(name, {"heads": 4, "dim": 8, "model_dim": 12, "causal": True})
    description = rp.names()[name]
    assert description.form == encoding.form == "Absolute" and encoding.cite().startswith("@")
    assert description.learned == any(True for _ in encoding.parameters())
    x = torch.randn(2, 7, 12)
    for copied in (copy.deepcopy(encoding), pickle.loads(pickle.dumps(encoding))):
        assert torch.equal(copied.add(x), encoding.add(x))
    for dtype in (torch.bfloat16, torch.float16):
        assert encoding.add(x.to(dtype)).dtype == dtype
    assert encoding.add(x[:, :0]).shape == (2, 0, 12)
    alone = encoding.add(x[:, 5:6], Index.arange(1, 5))  # one step of a decoder
    torch.testing.assert_close(alone, encoding.add(x)[:, 5:6])
    with pytest.raises(ValueError, match="model_dim=12, got x with 10"):
        encoding.add(torch.randn(1, 3, 10))
    with pytest.raises(ValueError, match="5 positions"):
        encoding.add(x, Index.arange(5))
    with pytest.raises(TypeError, match="got Grid"):
        encoding.add(x[:, :6], Grid.of(2, 3))
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(TypeError, match="acts on the network's input"):
        rp.attention(q, q, q, encoding)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sinusoidal", {"model_dim": 7}),
        ("sinusoidal", {"model_dim": 8, "layout": "t2t"}),
        ("sinusoidal", {"model_dim": 8, "base": 1.0}),
        ("learned", {"model_dim": 0}),
        ("learned", {"model_dim": 8, "max_length": 0}),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        rp.encoding(name, **options)
