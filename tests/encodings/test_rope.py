from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Grid, Index
from tests.encodings.case import EncodingCase


def rotation(dim: int, pairs: list[tuple[int, int]], angles: list[float]) -> Tensor:
    """The dim x dim matrix that turns each pair of channels (a, b) by its angle, float64."""
    matrix = torch.eye(dim, dtype=torch.float64)
    for (a, b), angle in zip(pairs, angles):
        c, s = math.cos(angle), math.sin(angle)
        matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def rotated_scores(q: Tensor, k: Tensor, q_turns: list[Tensor], k_turns: list[Tensor]) -> Tensor:
    """q_i^T R_i^T R_j k_j by one matrix a token."""
    turned_q = torch.stack([q[:, :, i] @ r.T for i, r in enumerate(q_turns)], 2)
    turned_k = torch.stack([k[:, :, j] @ r.T for j, r in enumerate(k_turns)], 2)
    return turned_q @ turned_k.transpose(-1, -2)


class TestRoPE(EncodingCase):
    name = "rope"
    options_of: dict[str, Any] = {}
    half, width = True, 8

    def make(self) -> Any:
        return rp.encodings.RoPE(self.dim, **self.options_of)

    def angle(self, position: float, t: int) -> float:
        return position * 10000.0 ** (-2 * t / self.width)

    def turns(self, positions: Tensor) -> list[Tensor]:
        half = self.width // 2
        pairs = [(t, t + half) if self.half else (2 * t, 2 * t + 1) for t in range(half)]
        return [rotation(self.dim, pairs, [self.angle(p, t) for t in range(half)]) for p in positions.tolist()]

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return rotated_scores(q, k, self.turns(q_pos), self.turns(k_pos)) / self.dim**0.5


class TestInterleaved(TestRoPE):
    options_of = {"layout": "interleaved"}
    half = False


class TestPartialAndLinear(TestRoPE):
    options_of = {"partial": 0.5, "scaling": {"rope_type": "linear", "factor": 2.0}}
    width = 4

    def angle(self, position: float, t: int) -> float:
        return position / 2 * 10000.0 ** (-2 * t / 4)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dim", [2, 6, 64])
def test_norms_stay_and_scores_follow_the_lag(layout: Any, dim: int) -> None:
    encoding = rp.encodings.RoPE(dim, layout=layout)
    q, k = torch.randn(2, 1, 3, 31, dim, dtype=torch.float64).unbind(0)
    near = encoding.rotate(q)
    torch.testing.assert_close(near.norm(dim=-1), q.norm(dim=-1), rtol=1e-13, atol=0)
    scores = near @ encoding.rotate(k).transpose(-1, -2)
    shifted = torch.arange(31) + 4000
    far = encoding.rotate(q, shifted) @ encoding.rotate(k, shifted).transpose(-1, -2)
    torch.testing.assert_close(far, scores, rtol=0, atol=2e-11)  # angles of 4030 radians carry 4e-13 each
    small = torch.arange(31) + 17
    close = encoding.rotate(q, small) @ encoding.rotate(k, small).transpose(-1, -2)
    torch.testing.assert_close(close, scores, rtol=0, atol=1e-12)


def test_scores_of_equal_lags_are_equal() -> None:
    encoding = rp.encodings.RoPE(16)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).expand(2, 1, 1, 40, 16).unbind(0)
    scores = (encoding.rotate(q) @ encoding.rotate(k).transpose(-1, -2))[0, 0]
    for lag in (-39, -7, 0, 1, 20):
        diagonal = scores.diagonal(lag)
        assert (diagonal - diagonal[0]).abs().max() < 1e-12


@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_layouts_convert(partial: float) -> None:
    """Permuting the rows of both projections turns one layout's model into the other's; mixing them does not."""
    heads, dim, model = 2, 8, 12
    x = torch.randn(1, 9, model, dtype=torch.float64)
    wq, wk = torch.randn(2, heads * dim, model, dtype=torch.float64).unbind(0)
    width = int(dim * partial)

    def scores(layout: Any, wq: Tensor, wk: Tensor) -> Tensor:
        encoding = rp.encodings.RoPE(dim, layout=layout, partial=partial)
        q, k = (encoding.rotate((x @ w.T).unflatten(-1, (heads, dim)).transpose(1, 2)) for w in (wq, wk))
        return q @ k.transpose(-1, -2)

    want = scores("interleaved", wq, wk)
    convert = rp.encodings.RoPE.convert_layout
    halves = [convert(w, heads, "half", width) for w in (wq, wk)]
    torch.testing.assert_close(scores("half", *halves), want, rtol=0, atol=1e-12)
    assert (scores("half", wq, wk) - want).abs().max() > 0.1
    assert all(torch.equal(convert(h, heads, "interleaved", width), w) for h, w in zip(halves, (wq, wk)))
    bias = torch.arange(heads * dim)
    assert convert(bias, heads, "half")[:dim].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_position_a_million_in_float32() -> None:
    encoding = rp.encodings.RoPE(64).float()
    positions = torch.tensor([999_999, 1_000_000])
    x = torch.randn(2, 64)
    exact = encoding.rotate(x.double(), positions)
    assert (encoding.rotate(x, positions).double() - exact).abs().max() < 1e-6
    theta = torch.tensor([10000.0 ** (-2 * t / 64) for t in range(32)], dtype=torch.float64)
    by_hand = x.double()[1, :32] * (1e6 * theta).cos() - x.double()[1, 32:] * (1e6 * theta).sin()
    torch.testing.assert_close(exact[1, :32], by_hand, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cast", ["float", "half", "bfloat16"])
def test_casting_the_module_leaves_the_frequencies(cast: str) -> None:
    encoding = rp.encodings.RoPE(16)
    exact = encoding.inv_freq.clone()
    holder = getattr(torch.nn.Sequential(encoding), cast)()
    assert holder[0].inv_freq.dtype == torch.float64 and torch.equal(holder[0].inv_freq, exact)
    assert not encoding.state_dict()
    assert torch.equal(pickle.loads(pickle.dumps(encoding)).inv_freq, exact)


def test_bfloat16_inputs_keep_positions() -> None:
    """Neighbours far out stay apart: a position in bfloat16 could not tell 5000 from 5001."""
    encoding = rp.encodings.RoPE(8).bfloat16()
    x = torch.ones(1, 1, 2, 8, dtype=torch.bfloat16)
    got = encoding.rotate(x, torch.tensor([5000, 5001]))
    want = encoding.rotate(x.double(), torch.tensor([5000, 5001]))
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).abs().max() < 0.01
    assert (got[..., 0, :] - got[..., 1, :]).abs().max() > 0.3


def test_rows_of_a_batch_have_positions_of_their_own() -> None:
    encoding = rp.encodings.RoPE(8)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    got = encoding.rotate(x, positions)
    for row in range(2):
        assert torch.equal(got[row], encoding.rotate(x[row], positions[row]))
    with pytest.raises(ValueError, match="batch, heads, n, dim"):
        encoding.rotate(x[:, 0], positions)


def test_real_positions_interpolate() -> None:
    encoding, linear = rp.encodings.RoPE(8), rp.encodings.RoPE(8, scaling={"rope_type": "linear", "factor": 4.0})
    x = torch.randn(7, 8, dtype=torch.float64)
    torch.testing.assert_close(encoding.rotate(x, torch.arange(7) / 4), linear.rotate(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("interleaved", [False, True])
def test_sections_with_equal_axes_are_plain(interleaved: bool) -> None:
    plain = rp.encodings.RoPE(64)
    sectioned = rp.encodings.RoPE(64, sections=(12, 10, 10), interleave_sections=interleaved)
    x = torch.randn(1, 2, 9, 64, dtype=torch.float64)
    equal = Grid(torch.arange(9)[:, None].expand(9, 3))
    assert torch.equal(sectioned.rotate(x, equal), plain.rotate(x))
    assert torch.equal(sectioned.rotate(x), plain.rotate(x))


def test_sections_read_their_axis() -> None:
    """Bands t, y, x for Qwen2-VL; dealt t y x t y x .. for Qwen3-VL, where t takes what is left."""
    bands = rp.encodings.RoPE(16, sections=(2, 3, 3)).axis_of_pair
    dealt = rp.encodings.RoPE(16, scaling={"type": "mrope", "mrope_section": [4, 2, 2], "mrope_interleaved": True})
    assert bands.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert dealt.axis_of_pair.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    cells = torch.tensor([[5, 7, 11]])
    cos, _ = dealt.cos_sin(Grid(cells))
    theta = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    want = (cells[0, [0, 1, 2, 0, 1, 2, 0, 0]] * theta).cos()
    torch.testing.assert_close(cos[0], want, rtol=0, atol=1e-14)


def test_sections_attend_by_lag_on_a_grid() -> None:
    encoding = rp.encodings.RoPE(8, sections=(2, 1, 1))
    q, k, v = torch.randn(3, 1, 2, 8, 8, dtype=torch.float64).unbind(0)
    cells = Grid.of(2, 2, 2).values[0]
    near = rp.attention(q, k, v, encoding, q_pos=cells, k_pos=cells)
    moved = cells + torch.tensor([40, -7, 3])
    far = rp.attention(q, k, v, encoding, q_pos=moved, k_pos=moved)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-11)


def test_grouped_keys_are_rotated_as_they_are() -> None:
    encoding = rp.encodings.RoPE(8)
    k = torch.randn(1, 2, 5, 8)
    assert encoding.encode_k(k, Index.arange(5)).shape == k.shape


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": 7}, "multiple of 2, got dim=7; 6 and 8"),
        ({"dim": 0}, "dim is a positive integer"),
        ({"dim": 8, "partial": 0.4}, r"int\(8 \* 0.4\) = 3"),
        ({"dim": 8, "partial": 0.0}, "partial"),
        ({"dim": 8, "base": 1.0}, "base"),
        ({"dim": 8, "layout": "neox"}, "layout"),
        ({"dim": 8, "sections": (2, 1)}, "sum to 4"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rp.encodings.RoPE(**options)


def test_bad_calls() -> None:
    encoding = rp.encodings.RoPE(8)
    with pytest.raises(ValueError, match="width 8, got 6"):
        encoding.rotate(torch.randn(3, 6))
    with pytest.raises(TypeError, match="AxialRoPE"):
        encoding.rotate(torch.randn(4, 8), Grid.of(2, 2))
    with pytest.raises(ValueError, match="3 sections, the Grid positions 2 axes"):
        rp.encodings.RoPE(8, sections=(2, 1, 1)).rotate(torch.randn(4, 8), Grid.of(2, 2))
    with pytest.raises(ValueError, match="floating"):
        encoding.rotate(torch.arange(8).view(1, 8))
