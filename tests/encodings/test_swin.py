from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import Tile
from relpos.positions import Grid
from tests.encodings.case import EncodingCase

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rpe_swin.npz")
WIDTH = 8  # token t of the inherited suite is the cell (t // WIDTH, t % WIDTH)


def arrays(prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(GOLDEN[k]) for k in GOLDEN.files if k.startswith(prefix)}


def cells(tokens: Tensor) -> Tensor:
    return torch.stack([tokens.div(WIDTH, rounding_mode="floor"), tokens % WIDTH], -1)


def order(mask: Tensor) -> Tensor:
    """The masks of the golden file (window 0: none, window 1: the first tokens do not see the last two) as an order."""
    seen = mask == 0
    hidden = (~seen).any(1).to(torch.int64)  # (2, n): keys that some query does not see
    assert torch.equal(seen, hidden[:, None, :] <= hidden[:, :, None])
    return hidden[[0, 1, 0, 1]]


class GridCase(EncodingCase):
    """The inherited suite on a grid: the tokens are a row-major walk, with queries at the end of the keys."""

    def run(self, encoding: Any, q: Tensor, k: Tensor, v: Tensor, content: Tensor, **options: Any) -> Tensor:
        n_q, n_k = q.shape[2], k.shape[2]
        for name, start, n in (("q_pos", n_k - n_q, n_q), ("k_pos", 0, n_k)):
            tokens = options.pop(name, torch.arange(start, start + n))
            options[name] = tokens if tokens.is_floating_point() else Grid(cells(tokens))
        return super().run(encoding, q, k, v, content, **options)

    def test_shift_of_all_positions_changes_nothing(self) -> None:
        encoding = self.build()
        q, k, v, _ = self.inputs(6, 6)
        at = cells(torch.arange(6) * 3)
        near = rp.attention(q, k, v, encoding, q_pos=Grid(at), k_pos=Grid(at))
        far = at + torch.tensor([1000, -77])
        torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=far, k_pos=far), near, rtol=0, atol=1e-12)

    def test_positions_of_any_kind_agree(self) -> None:
        """One whole grid (a table), the same cells in another order (pairs), and rows of a batch: one answer."""
        encoding = self.build()
        q, k, v, _ = self.inputs(15, 15)
        grid = Grid.of(5, 3)
        whole = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid)
        order = torch.randperm(15)
        mixed = Grid(grid.values[:, order])
        parts = rp.attention(*(x[:, :, order] for x in (q, k, v)), encoding, q_pos=mixed, k_pos=mixed)
        torch.testing.assert_close(parts, whole[:, :, order], rtol=0, atol=1e-12)
        rows = grid.values + torch.tensor([[[0, 0]], [[7, 2]]])
        torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=rows, k_pos=rows), whole, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("sides", [(1, 1), (1, 4), (4, 1), (3, 5), (4, 4)])
    def test_tiles_of_a_grid(self, sides: tuple[int, int]) -> None:
        """Tile by tile equals the dense term, and `tile_backward` equals autograd of `tile`."""
        encoding = self.build()
        grid, n = Grid.of(*sides), sides[0] * sides[1]
        q, k, _, _ = self.inputs(n, n)
        states = encoding.prepare(q, k, grid, grid)
        assert set(states) == {"table", "q_code", "k_code"}
        term = encoding.bias(grid, grid)
        for i0, i1, j0, j1 in {
            (0, 1, 0, 1),
            (n - 1, n, 0, n),
            (0, n, n - 1, n),
            (n // 2, n, 0, n // 2 + 1),
            (0, n, 0, n),
        }:
            tile = Tile(i0, i1, j0, j1, n, n)
            slices = {name: tile.slice(state).detach() for name, state in states.items()}
            slices["table"].requires_grad_()
            got = encoding.tile(q[:, :, i0:i1], k[:, :, j0:j1], slices, tile)
            torch.testing.assert_close(got[0], term[:, i0:i1, j0:j1], rtol=0, atol=1e-13)
            grad = torch.randn(2, *got.shape[1:], dtype=got.dtype)
            (want,) = torch.autograd.grad(got.expand_as(grad), slices["table"], grad)
            torch.testing.assert_close(
                encoding.tile_backward(grad, q, k, slices, tile)["table"], want, rtol=0, atol=1e-12
            )

    def test_rectangles_of_two_grids(self) -> None:
        """Queries on one part of the window against keys on another."""
        encoding = self.build()
        queries, keys = Grid(Grid.of(2, 3).values + torch.tensor([1, 2])), Grid.of(3, 5)
        q, k, v, _ = self.inputs(6, 15)
        score = q @ k.transpose(-1, -2) / self.dim**0.5
        for i, (y, x) in enumerate(queries.values[0].tolist()):
            for j, (s, t) in enumerate(keys.values[0].tolist()):
                score[:, :, i, j] += encoding.at(torch.tensor([s - y, t - x]))
        got = rp.attention(q, k, v, encoding, q_pos=queries, k_pos=keys)
        torch.testing.assert_close(got, score.softmax(-1) @ v, rtol=0, atol=1e-12)

    def test_generator_equals_pointwise(self) -> None:
        encoding = self.build()
        lags = encoding.lags((4, 3))
        assert lags.shape == (self.heads, 7, 5)
        for y, x in ((-3, 2), (0, 0), (3, -2), (1, 1)):
            torch.testing.assert_close(lags[:, y + 3, x + 2], encoding.at(torch.tensor([y, x])), rtol=0, atol=1e-13)

    def test_positions_are_a_grid_of_two_axes(self) -> None:
        encoding = self.build()
        q, k, v, _ = self.inputs(4, 4)
        with pytest.raises(TypeError, match="takes Grid positions, got Index"):
            rp.attention(q, k, v, encoding)
        for axes in (1, 3):
            cell = torch.zeros(4, axes, dtype=torch.int64)
            with pytest.raises(ValueError, match="rows and columns"):
                rp.attention(q, k, v, encoding, q_pos=Grid(cell), k_pos=Grid(cell))


class TableCase(GridCase):
    """The inherited suite with a table of lags that is indexed query minus key, row by row."""

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        (h, w), out = encoding.window, torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for i, (y, x) in enumerate(cells(q_pos).tolist()):
            for j, (s, t) in enumerate(cells(k_pos).tolist()):
                out[0, :, i, j] = encoding.table[(y - s + h - 1) * (2 * w - 1) + x - t + w - 1]
        return out

    def test_the_generator_of_a_whole_window_is_the_table(self) -> None:
        encoding = self.build()
        (h, w), lags = encoding.window, encoding.lags(encoding.window)
        assert torch.equal(lags.flip(1, 2).flatten(1).T, encoding.table)
        torch.testing.assert_close(encoding.lags((h, w - 1)), lags[:, :, 1:-1], rtol=0, atol=0)


class TestSwinBias(TableCase):
    name = "swin"

    def make(self) -> Any:
        return rp.encodings.SwinBias(self.heads, (9, WIDTH))

    @pytest.mark.parametrize(("case", "window"), [("3x3", (3, 3)), ("4x2", (4, 2)), ("4x4_pre0", (4, 4))])
    def test_golden(self, case: str, window: tuple[int, int]) -> None:
        """The released window attention, plain and with the masks of shifted windows."""
        a = arrays(f"v1_{case}_")
        encoding = rp.encodings.SwinBias.from_reference(a, window)
        grid = Grid.of(*window)
        assert torch.equal(encoding.bias(grid, grid), a["bias"])
        qkv = a["x"] @ a["sd_qkv.weight"].T + a["sd_qkv.bias"]
        q, k, v = qkv.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        masked = {"causal": True, "q_order": order(a["mask"]), "k_order": order(a["mask"])}
        for want, options in ((a["y"], {}), (a["y_mask"], masked)):
            out = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid, **options)
            out = out.transpose(1, 2).flatten(2) @ a["sd_proj.weight"].T + a["sd_proj.bias"]
            torch.testing.assert_close(out, want, rtol=0, atol=1e-12)

    def test_sign_and_stride(self) -> None:
        """An entry of the table acts on the one pair that the released index names: query minus key, stride 2 w - 1."""
        encoding = rp.encodings.SwinBias(1, (2, 3))
        with torch.no_grad():
            encoding.table.zero_()
            encoding.table[(1 + 1) * 5 + (2 + 2)] = 1.0  # the query one row below the key and two columns to its right
        grid = Grid.of(2, 3)
        bias = encoding.bias(grid, grid)[0]
        assert bias.nonzero().tolist() == [[5, 0]]
        assert encoding.at(torch.tensor([-1, -2])).item() == 1.0

    def test_outside_the_window(self) -> None:
        encoding = rp.encodings.SwinBias(2, (3, 4))
        q = torch.randn(1, 2, 16, 8)
        for sides in ((4, 4), (2, 8)):
            with pytest.raises(ValueError, match=r"the lag \[.*\] lies outside the window 3 x 4 of SwinBias; .*resize"):
                rp.attention(q, q, q, encoding, q_pos=Grid.of(*sides), k_pos=Grid.of(*sides))
        for wrong in ((3, 4, 5), (3,), 2.5, None):
            with pytest.raises(ValueError, match=r"window is \(height, width\) or an integer for a square, got"):
                rp.encodings.SwinBias(2, wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="a side of window is a positive integer, got 0"):
            rp.encodings.SwinBias(2, (3, 0))

    def test_resize(self) -> None:
        """Bicubic in lags: the same size changes nothing, a linear table stays nearly linear inside, axes stay."""
        encoding = rp.encodings.SwinBias(2, (4, 3)).double()
        torch.testing.assert_close(encoding.resize((4, 3)).table, encoding.table, rtol=0, atol=1e-12)
        y, x = torch.meshgrid(torch.arange(7.0), torch.arange(5.0), indexing="ij")
        with torch.no_grad():
            encoding.table.copy_(torch.stack([y.flatten(), x.flatten()], -1))
        other = encoding.resize((7, 5))
        assert other.table.shape == (13 * 9, 2) and other.window == (7, 5)
        image = other.table.view(13, 9, 2)
        for axis, (new, old) in enumerate(((13, 7), (9, 5))):
            line = image[:, 4, 0] if axis == 0 else image[6, :, 1]
            want = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
            torch.testing.assert_close(line[3:-3], want[3:-3], rtol=0, atol=0.05)  # a step is 0.54 or more
        torch.testing.assert_close(image[6, 4], torch.tensor([3.0, 2.0], dtype=torch.float64))  # lag 0 stays lag 0


class TestLogCPB(GridCase):
    name = "log_cpb"
    tolerance = 1e-5  # the coordinates are float32, as released; the golden arrays pin them to 1e-12

    def make(self) -> Any:
        encoding = rp.encodings.LogCPB(self.heads, (9, WIDTH))
        torch.nn.init.normal_(encoding.mlp[0].bias, std=0.3)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        w1, b1, w2 = (encoding.state_dict()[f"mlp.{name}"] for name in ("0.weight", "0.bias", "2.weight"))

        def g(u: int, side: int) -> float:
            return math.copysign(math.log2(1 + abs(8 * u / (side - 1))) / math.log2(8), u) if u else 0.0

        out = torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for i, (y, x) in enumerate(cells(q_pos).tolist()):
            for j, (s, t) in enumerate(cells(k_pos).tolist()):
                coordinates = torch.tensor([g(y - s, 9), g(x - t, WIDTH)], dtype=torch.float64)
                out[0, :, i, j] = 16 * torch.sigmoid(w2 @ torch.relu(w1 @ coordinates + b1))
        return out

    @pytest.mark.parametrize(
        ("case", "window", "pretrained"),
        [("3x3", (3, 3), None), ("4x2", (4, 2), None), ("4x4_pre0", (4, 4), None), ("6x6_pre4", (6, 6), 4)],
    )
    def test_golden(self, case: str, window: tuple[int, int], pretrained: int | None) -> None:
        """The released attention; its cosine part belongs to the layer, so q and k are normalised here, scale is 1."""
        a = arrays(f"v2_{case}_")
        encoding = rp.encodings.LogCPB.from_reference(a, window, pretrained)
        grid = Grid.of(*window)
        sides = [torch.arange(1 - side, side) for side in window]
        lags = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)
        torch.testing.assert_close(encoding.coordinates(-lags).double(), a["coords"][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(encoding.bias(grid, grid), a["bias"], rtol=0, atol=1e-12)
        bias = torch.cat([a["sd_q_bias"], torch.zeros_like(a["sd_q_bias"]), a["sd_v_bias"]])
        q, k, v = (a["x"] @ a["sd_qkv.weight"].T + bias).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
        q = q * a["sd_logit_scale"].clamp(max=math.log(100)).exp()
        masked = {"causal": True, "q_order": order(a["mask"]), "k_order": order(a["mask"])}
        for want, options in ((a["y"], {}), (a["y_mask"], masked)):
            out = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid, scale=1.0, **options)
            out = out.transpose(1, 2).flatten(2) @ a["sd_proj.weight"].T + a["sd_proj.bias"]
            torch.testing.assert_close(out, want, rtol=0, atol=1e-12)

    def test_gradcheck(self) -> None:
        """Along random directions: the parameters are too many to go through one by one."""
        encoding = self.build()
        q, k, v, content = (x.requires_grad_() for x in self.inputs(4, 4, batch=1))

        def f(*leaves: Tensor) -> Tensor:
            return self.run(encoding, q, k, v, content)

        assert torch.autograd.gradcheck(f, (q, k, v, *encoding.parameters()), fast_mode=True)

    def test_the_network_runs_once_a_lag(self) -> None:
        """1024 pairs of a grid have 105 lags; 512 hidden units for every pair would be far more work than attention."""
        encoding, seen = self.build(), []
        encoding.mlp[1].register_forward_hook(lambda _, args, out: seen.append(out.numel() // 512))
        grid = Grid.of(8, 4)
        whole = encoding.bias(grid, grid)
        assert seen == [15 * 7]
        one = torch.stack([encoding.at(lag) for lag in grid.lag(grid)[0, 13]], 1)
        torch.testing.assert_close(whole[:, 13], one, rtol=0, atol=1e-13)

    def test_initial_state(self) -> None:
        encoding = rp.encodings.LogCPB(4, 7)
        shapes = {name: tuple(value.shape) for name, value in encoding.state_dict().items()}
        assert shapes == {"mlp.0.weight": (512, 2), "mlp.0.bias": (512,), "mlp.2.weight": (4, 512)}
        assert not encoding.mlp[0].bias.any() and encoding.mlp[0].weight.std() < 0.03

    def test_window_of_one_side(self) -> None:
        """A row or a column of cells: no 0/0, and the long axis counts as ever."""
        for window, at in (((1, 5), 1), ((5, 1), 0)):
            encoding = rp.encodings.LogCPB(2, window)
            grid = Grid.of(*window)
            bias = encoding.bias(grid, grid)
            grads = torch.autograd.grad(bias.sum(), list(encoding.parameters()))
            assert all(torch.isfinite(x).all() for x in (bias, *grads))
            coordinates = encoding.coordinates(grid.lag(grid))
            assert not coordinates[..., 1 - at].any() and coordinates[..., at].abs().max() > 1

    def test_resize_is_the_same_function_of_the_lag(self) -> None:
        encoding = rp.encodings.LogCPB(2, (4, 4))
        other = encoding.resize((7, 9))
        lag = torch.tensor([[0, 0], [2, -3], [-6, 8]])
        assert torch.equal(other.at(lag), encoding.at(lag))
        assert (other.window, other.pretrained) == ((7, 9), (4, 4))
        fresh = rp.encodings.LogCPB(2, (7, 9))
        fresh.load_state_dict(encoding.state_dict())
        assert not torch.equal(fresh.at(lag)[:, 1:], encoding.at(lag)[:, 1:])

    def test_sign(self) -> None:
        """A network that reads rows alone: the bias rises where the query is below the key."""
        encoding = rp.encodings.LogCPB(1, (3, 3))
        with torch.no_grad():
            for p in encoding.parameters():
                p.zero_()
            encoding.mlp[0].weight[0, 0] = encoding.mlp[2].weight[0, 0] = 1.0
        grid = Grid.of(3, 3)
        bias = encoding.bias(grid, grid)[0]
        assert bias[6, 0] > 8 and bias[0, 6] == 8 and bias[0, 2] == 8 and bias[2, 0] == 8
