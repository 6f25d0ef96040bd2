from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.cells import with_class_tokens
from relpos.encodings.transform.axial import with_prefix
from relpos.positions import Grid, Index
from tests.encodings.case import EncodingCase
from tests.encodings.test_rope import rotated_scores, rotation

WIDTH = 4  # a shift of the running number by 1000 is a whole number of rows


def cells(index: Tensor) -> Tensor:
    """Running numbers to (.., n, 2) cells (y, x) of a strip that is WIDTH wide."""
    return torch.stack((index.div(WIDTH, rounding_mode="floor"), index % WIDTH), -1)


class GridCase(EncodingCase):
    """The suite on cells: the running number of the suite is a place on a strip."""

    __test__ = False

    def run(self, encoding: Any, q: Tensor, k: Tensor, v: Tensor, content: Tensor, **options: Any) -> Tensor:
        n_q, n_k = q.shape[2], k.shape[2]
        for name, start, n in (("q_pos", n_k - n_q, n_q), ("k_pos", 0, n_k)):
            index = options.get(name, torch.arange(start, start + n))
            options[name] = index if index.is_floating_point() else Grid(cells(index))
        return super().run(encoding, q, k, v, content, **options)

    def angle(self, encoding: Any, head: int, t: int, x: int, y: int) -> float:
        raise NotImplementedError

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        pairs = [(2 * t, 2 * t + 1) for t in range(self.dim // 2)]
        scores = []
        for head in range(self.heads):
            turns = [
                [
                    rotation(self.dim, pairs, [self.angle(encoding, head, t, x, y) for t in range(len(pairs))])
                    for y, x in cells(pos).tolist()
                ]
                for pos in (q_pos, k_pos)
            ]
            scores.append(rotated_scores(q[:, head : head + 1], k[:, head : head + 1], *turns))
        return torch.cat(scores, 1) / self.dim**0.5


class TestAxialRoPE(GridCase):
    __test__ = True
    name = "axial_rope"

    def make(self) -> Any:
        return rp.encodings.AxialRoPE(self.dim)

    def angle(self, encoding: Any, head: int, t: int, x: int, y: int) -> float:
        quarter = self.dim // 4
        return (x if t < quarter else y) * 100.0 ** (-4 * (t % quarter) / self.dim)


class TestMixedRoPE(GridCase):
    __test__ = True
    name = "mixed_rope"

    def make(self) -> Any:
        return rp.encodings.MixedRoPE(self.heads, self.dim)

    def angle(self, encoding: Any, head: int, t: int, x: int, y: int) -> float:
        f_x, f_y = encoding.frequencies[:, head, t].tolist()
        return float(x * f_x + y * f_y)


@pytest.mark.parametrize("name", ["axial_rope", "mixed_rope"])
def test_scores_follow_both_lags(name: str) -> None:
    encoding = _fitted(name)
    q, k, v = torch.randn(3, 1, 2, 15, 16, dtype=torch.float64).unbind(0)
    grid = Grid.of(3, 5)
    near = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid)
    for shift in ([0, 40], [-30, 0], [7, 9]):
        moved = Grid(grid.values + torch.tensor(shift))
        torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=moved, k_pos=moved), near, rtol=0, atol=1e-12)
    for shift in ([0, 1], [1, 0]):
        moved = Grid(grid.values + torch.tensor(shift))
        assert (rp.attention(q, k, v, encoding, q_pos=moved, k_pos=grid) - near).abs().max() > 1e-3


def _fitted(name: str) -> Any:
    from relpos.encodings.registry import fitted

    return fitted(name, {"heads": 2, "dim": 16}).double()


def test_x_turns_the_first_channels() -> None:
    """A move along x leaves the second half of the channels as it was; axes of a Grid are (y, x)."""
    encoding = rp.encodings.AxialRoPE(8)
    x = torch.randn(1, 8, dtype=torch.float64)
    along_x, along_y = (encoding.rotate(x, torch.tensor([[cell]])) for cell in ([0, 3], [3, 0]))
    assert torch.equal(along_x[:, 4:], x[:, 4:]) and (along_x[:, :4] != x[:, :4]).all()
    assert torch.equal(along_y[:, :4], x[:, :4]) and (along_y[:, 4:] != x[:, 4:]).all()


def test_axial_by_complex_numbers() -> None:
    """Row-major 3 x 5 cells, token n at x = n mod 5: the complex product of the source, base 100."""
    encoding = rp.encodings.AxialRoPE(16)
    q = torch.randn(2, 3, 15, 16, dtype=torch.float64)
    n = torch.arange(15, dtype=torch.float64)
    theta = 100.0 ** (-torch.arange(0, 16, 4, dtype=torch.float64) / 16)
    angle = torch.cat((torch.outer(n % 5, theta), torch.outer(n.div(5, rounding_mode="floor"), theta)), -1)
    z = torch.view_as_complex(q.unflatten(-1, (8, 2))) * torch.polar(torch.ones_like(angle), angle)
    got = encoding.rotate(q, Grid.of(3, 5))
    torch.testing.assert_close(got, torch.view_as_real(z).flatten(-2), rtol=0, atol=1e-13)


def test_three_axes() -> None:
    encoding = rp.encodings.AxialRoPE(12, axes=3)
    x = torch.randn(1, 12, dtype=torch.float64)
    for axis, part in ((2, slice(0, 4)), (1, slice(4, 8)), (0, slice(8, 12))):
        cell = torch.zeros(1, 1, 3, dtype=torch.int64)
        cell[..., axis] = 2
        moved = encoding.rotate(x, cell) != x
        assert moved[:, part].all() and int(moved.sum()) == 4


def test_mixed_starts_as_the_source_does() -> None:
    """Magnitudes 10^(-4t/dim), the two halves at right angles, one direction a head."""
    f = rp.encodings.MixedRoPE(5, 16).double().frequencies
    assert f.shape == (2, 5, 8)
    magnitude = 10.0 ** (-4 * torch.arange(4, dtype=torch.float64) / 16)
    torch.testing.assert_close(f.norm(dim=0), magnitude.repeat(2).expand(5, 8), rtol=1e-6, atol=0)
    first, second = f[..., :4], f[..., 4:]
    assert (first * second).sum(0).abs().max() < 1e-6
    direction = torch.atan2(first[1], first[0])
    assert (direction - direction[:, :1]).abs().max() < 1e-5
    assert len(set(direction[:, 0].tolist())) == 5
    torch.testing.assert_close(second[0], -first[1], rtol=0, atol=1e-6)  # turned by +90 degrees
    torch.testing.assert_close(second[1], first[0], rtol=0, atol=1e-6)


def test_mixed_reproduces_axial() -> None:
    axial, mixed = rp.encodings.AxialRoPE(8), rp.encodings.MixedRoPE(2, 8).double()
    with torch.no_grad():
        mixed.frequencies.zero_()
        mixed.frequencies[0, :, :2] = mixed.frequencies[1, :, 2:] = axial.inv_freq
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(mixed.rotate(x, Grid.of(2, 3)), axial.rotate(x, Grid.of(2, 3)), rtol=0, atol=1e-14)


def test_mixed_expands_grouped_keys() -> None:
    encoding = rp.encodings.MixedRoPE(4, 8).double()
    q = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 6, 8, dtype=torch.float64).unbind(0)
    grid = Grid.of(2, 3)
    got = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid)
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    torch.testing.assert_close(got, rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid), rtol=0, atol=1e-14)


def test_frequencies_learn() -> None:
    encoding = rp.encodings.MixedRoPE(2, 8)
    x = torch.randn(1, 2, 6, 8)
    grid = Grid.of(2, 3)
    rp.attention(x, x, x, encoding, q_pos=grid, k_pos=grid).square().sum().backward()
    assert encoding.frequencies.grad is not None and encoding.frequencies.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["axial_rope", "mixed_rope"])
def test_class_tokens_are_not_rotated(name: str) -> None:
    encoding = _fitted(name)
    positions = with_prefix(Grid.of(2, 3), 2)
    assert len(positions) == 8
    x = torch.randn(1, 2, 8, 16, dtype=torch.float64)
    got = encoding.rotate(x, positions)
    assert torch.equal(got[:, :, :2], x[:, :, :2])
    assert torch.equal(got[:, :, 2:], encoding.rotate(x[:, :, 2:], Grid.of(2, 3)))


def test_far_cells_are_exact_in_float32() -> None:
    encoding = rp.encodings.AxialRoPE(8).float()
    x = torch.randn(2, 8)
    far = torch.tensor([[[1_000_000, 999_999], [3, 1_000_000]]])
    assert (encoding.rotate(x, far).double() - encoding.rotate(x.double(), far)).abs().max() < 1e-6
    assert math.isclose(float(encoding.rotate(x, far).norm()), float(x.norm()), rel_tol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got dim=6; 4 and 8"):
        rp.encodings.AxialRoPE(6)
    with pytest.raises(ValueError, match="multiple of 4, got dim=10"):
        rp.encodings.MixedRoPE(2, 10)
    with pytest.raises(ValueError, match="1 to 3 axes"):
        rp.encodings.AxialRoPE(8, axes=4)
    x = torch.randn(1, 2, 8, 8)
    for encoding in (rp.encodings.AxialRoPE(8), rp.encodings.MixedRoPE(2, 8)):
        with pytest.raises(TypeError, match="Grid positions, got Index"):
            rp.attention(x, x, x, encoding)
        with pytest.raises(ValueError, match="2 axes, got Grid positions with 3"):
            encoding.rotate(x, Grid.of(2, 2, 2))
        with pytest.raises(TypeError, match="Grid"):
            encoding.encode_q(x, Index.arange(8))
    with pytest.raises(ValueError, match="built for 2 heads, got 3"):
        rp.encodings.MixedRoPE(2, 8).encode_q(torch.randn(1, 3, 8, 8), Grid.of(2, 4))


def _windowed(name: str, **options: Any) -> Any:
    torch.manual_seed(3)
    heads = {"heads": 2} if name == "mixed_rope" else {}
    return rp.encoding(name, dim=16, **heads, **options).double()


@pytest.mark.parametrize("name", ["axial_rope", "mixed_rope"])
def test_without_a_window_the_grid_may_have_any_size(name: str) -> None:
    """The same cells turn alike on a larger grid, which also has angles that the smaller one never had."""
    encoding = _windowed(name)
    ones = torch.ones(1, 2, 48, 16, dtype=torch.float64)
    inside = (Grid.of(6, 8).values[0] < torch.tensor([3, 4])).all(-1)
    small, large = encoding.rotate(ones[:, :, :12], Grid.of(3, 4)), encoding.rotate(ones, Grid.of(6, 8))
    torch.testing.assert_close(large[:, :, inside], small, rtol=0, atol=1e-14)
    assert (large[:, :, -1:] - small).abs().amax(-1).min() > 1e-3
    resized = encoding.resize((6, 8))
    assert resized is not encoding and torch.equal(resized.rotate(ones, Grid.of(6, 8)), large)


@pytest.mark.parametrize("name", ["axial_rope", "mixed_rope"])
def test_resize_interpolates_positions(name: str) -> None:
    """Twice the height and three times the width: every second row and third column turns as a cell did in training."""
    encoding = _windowed(name, window=(3, 4))
    large = encoding.resize((6, 12))
    assert (large.window, large.pretrained) == ((6, 12), (3, 4))
    assert (encoding.window, encoding.pretrained) == ((3, 4), (3, 4))
    ones = torch.ones(1, 2, 72, 16, dtype=torch.float64)
    coarse = (Grid.of(6, 12).values[0] % torch.tensor([2, 3]) == 0).all(-1)
    got = large.rotate(ones, Grid.of(6, 12))[:, :, coarse]
    torch.testing.assert_close(got, encoding.rotate(ones[:, :, :12], Grid.of(3, 4)), rtol=0, atol=1e-14)
    fresh = _windowed(name, window=(6, 12), pretrained=(3, 4))
    fresh.load_state_dict(encoding.state_dict())
    assert torch.equal(fresh.rotate(ones, Grid.of(6, 12)), large.rotate(ones, Grid.of(6, 12)))
    back = large.resize((3, 4))
    assert torch.equal(back.rotate(ones[:, :, :12], Grid.of(3, 4)), encoding.rotate(ones[:, :, :12], Grid.of(3, 4)))
    assert "pretrained=(3, 4)" in repr(large) and "pretrained" not in repr(encoding)


@pytest.mark.parametrize("name", ["axial_rope", "mixed_rope"])
def test_resized_scores_depend_on_lags_only(name: str) -> None:
    encoding = _windowed(name, window=4, pretrained=3)
    q, k, v = torch.randn(3, 1, 2, 16, 16, dtype=torch.float64)
    grid = Grid.of(4, 4)
    near = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid)
    moved = Grid(grid.values + torch.tensor([9, -500]))
    torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=moved, k_pos=moved), near, rtol=0, atol=1e-12)
    plain = rp.attention(q, k, v, _windowed(name), q_pos=grid, k_pos=grid)
    assert (plain - near).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["axial_rope", "mixed_rope"])
def test_class_tokens_that_are_nowhere(name: str) -> None:
    """As those of `with_prefix`: unrotated, beside a grid that may lie anywhere."""
    encoding = _windowed(name, window=(2, 3), pretrained=(4, 4))
    x = torch.randn(1, 2, 8, 16, dtype=torch.float64)
    got = encoding.rotate(x, with_class_tokens(Grid.of(2, 3), 2))
    assert torch.equal(got, encoding.rotate(x, with_prefix(Grid.of(2, 3), 2))) and torch.equal(
        got[:, :, :2], x[:, :, :2]
    )


def test_bad_windows() -> None:
    with pytest.raises(ValueError, match=r"window is \(height, width\) or an integer for a square, got \(3, 4, 5\)"):
        rp.encodings.AxialRoPE(8, window=(3, 4, 5))
    with pytest.raises(ValueError, match="window is 3 sides or an integer for equal ones"):
        rp.encodings.AxialRoPE(12, axes=3, window=(3, 4))
    with pytest.raises(ValueError, match="a side of pretrained is a positive integer, got 0"):
        rp.encodings.MixedRoPE(2, 8, window=3, pretrained=(3, 0))
    with pytest.raises(ValueError, match="pretrained=7 needs the window"):
        rp.encodings.AxialRoPE(8, pretrained=7)
    assert rp.encodings.AxialRoPE(12, axes=3, window=(2, 3, 4)).resize(6).window == (6, 6, 6)
