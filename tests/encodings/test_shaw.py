from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import State, Tile
from relpos.encodings.content._lags import Band, Coded, Extent
from relpos.positions import Index
from tests.encodings.case import EncodingCase

GOLDEN = Path(__file__).parents[1] / "golden" / "rpe_shaw_music_t2t.npz"
MAX_LAG = 4


def row(lag: int, max_lag: int) -> int:
    return min(max(lag, -max_lag), max_lag) + max_lag


class TestShaw(EncodingCase):
    """Tables shared by the heads, keys and values, clipped: the paper."""

    name = "shaw"

    def make(self) -> Any:
        return rp.encodings.Shaw(self.dim, MAX_LAG)

    def vector(self, table: Tensor, head: int, lag: int) -> Tensor:
        return (table if table.dim() == 2 else table[head])[row(lag, MAX_LAG)]

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = torch.zeros(len(q), self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for h in range(self.heads):
            for i, a in enumerate(q_pos.tolist()):
                for j, b in enumerate(k_pos.tolist()):
                    out[:, h, i, j] = (q[:, h, i] * self.vector(encoding.keys, h, b - a)).sum(-1) / self.dim**0.5
        return out

    def value_truth(self, encoding: Any, p: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor | float:
        if encoding.values is None:
            return 0.0
        out = torch.zeros(*p.shape[:3], self.dim, dtype=torch.float64)
        for h in range(self.heads):
            for i, a in enumerate(q_pos.tolist()):
                for j, b in enumerate(k_pos.tolist()):
                    out[:, h, i] += p[:, h, i, j, None] * self.vector(encoding.values, h, b - a)
        return out


class TestShawPerHead(TestShaw):
    """Keys only, a table a head, nothing beyond the table."""

    def make(self) -> Any:
        return rp.encodings.Shaw(self.dim, MAX_LAG, values=False, heads=self.heads, beyond="zero")

    def vector(self, table: Tensor, head: int, lag: int) -> Tensor:
        return super().vector(table, head, lag) * (abs(lag) <= MAX_LAG)

    def test_shapes(self) -> None:
        shapes = {name: tuple(p.shape) for name, p in self.make().named_parameters()}
        assert shapes == {"keys": (self.heads, 2 * MAX_LAG + 1, self.dim)}


# ---- the lookup by itself: every tile of several attentions, against a loop over pairs

EXTENTS = [
    Extent(-3, 3, True, True),
    Extent(-3, 3, False, False),
    Extent(0, 0, True, True),
    Extent(-5, 0, True, False),
    Extent(-20, 20, True, True),
]
TILES = [
    (0, 1, 0, 1),
    (0, 4, 0, 9),
    (5, 12, 0, 3),
    (0, 3, 8, 15),
    (2, 9, 4, 11),
    (0, 13, 0, 15),
    (12, 13, 0, 15),
    (3, 3, 0, 4),
]


@pytest.mark.parametrize("offset", [0, 2, -30, 30])
@pytest.mark.parametrize("where", TILES)
@pytest.mark.parametrize("extent", EXTENTS)
def test_spread_and_collect_equal_loops(extent: Extent, where: tuple[int, ...], offset: int) -> None:
    i0, i1, j0, j1 = where
    tile = Tile(i0, i1, j0, j1, 13, 15)
    q_code, k_code = torch.arange(i0, i1) + offset, torch.arange(j0, j1)
    full = torch.randn(2, i1 - i0, extent.rows, dtype=torch.float64)
    pairs = torch.randn(2, i1 - i0, j1 - j0, dtype=torch.float64)
    spread, collected = torch.zeros_like(pairs), torch.zeros_like(full)
    for i, a in enumerate(q_code.tolist()):
        for j, b in enumerate(k_code.tolist()):
            low, high = b - a < extent.low, b - a > extent.high
            if (low and not extent.clip_low) or (high and not extent.clip_high):
                continue
            r = min(max(b - a, extent.low), extent.high) - extent.low
            spread[:, i, j] = full[:, i, r]
            collected[:, i, r] += pairs[:, i, j]
    for lookup in (Band(extent, tile, offset), Coded(extent, q_code, k_code)):
        got = torch.zeros_like(full)
        got[..., lookup.rows] = lookup.collect(pairs.clone())
        torch.testing.assert_close(got, collected, rtol=0, atol=1e-14)
        if isinstance(lookup, Band):
            assert torch.equal(lookup.spread(full[..., lookup.rows]), spread)
        else:
            assert torch.equal(lookup.spread(full[:, None])[:, 0], spread)


def test_band_touches_only_rows_that_occur() -> None:
    """A tile outside the table takes one row (or none); one that straddles an end takes the rows of its own lags."""
    far = Tile(0, 256, 2048, 4096, 4096, 4096)
    assert Band(Extent(-128, 128, True, True), far, 0).rows == slice(256, 257)
    assert Band(Extent(-128, 128, False, False), far, 0).rows == slice(257, 257)
    near = Band(Extent(-128, 128, True, True), Tile(0, 256, 0, 2048, 4096, 4096), 0)
    assert near.rows == slice(0, 257) and (near.start, near.stop) == (0, 384)
    assert Band(Extent(-999, 999, True, True), Tile(0, 2, 0, 3, 9, 9), 0).rows == slice(998, 1002)


@pytest.mark.parametrize("consecutive", [True, False])
@pytest.mark.parametrize("where", [(0, 1, 0, 1), (0, 4, 0, 9), (5, 12, 0, 3), (2, 9, 4, 11), (0, 13, 0, 15)])
@pytest.mark.parametrize(("heads", "beyond"), [(None, "clip"), (3, "zero"), (3, "clip")])
def test_backward_of_a_tile_equals_autograd(heads: int | None, beyond: Any, where: Any, consecutive: bool) -> None:
    encoding = rp.encodings.Shaw(4, 3, heads=heads, beyond=beyond).double()
    q, k = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (13, 15))
    k_pos = torch.arange(15) + (0 if consecutive else torch.arange(15) // 6)
    states = encoding.prepare(q, k, Index(k_pos[2:]), Index(k_pos))
    assert ("offset" in states) is consecutive
    tile = Tile(*where, 13, 15)
    slices = {name: tile.slice(State(s.tensor.detach(), s.along, s.axis)) for name, s in states.items()}
    keys, values = (slices[name].requires_grad_() for name in ("keys", "values"))
    q_t, k_t = q[:, :, where[0] : where[1]].clone().requires_grad_(), k[:, :, where[2] : where[3]]
    term = encoding.tile(q_t, k_t, slices, tile)
    got = encoding.tile_backward(term.cos(), q_t, k_t, slices, tile)
    compare(got, term.sin().sum(), {"q": q_t, "keys": keys})
    p = torch.rand_like(term).requires_grad_()
    out = encoding.value_term(p, slices, tile)
    compare(encoding.values_backward(out.cos(), p, slices, tile), out.sin().sum(), {"p": p, "values": values})


def compare(got: dict[str, Tensor], loss: Tensor, leaves: dict[str, Tensor]) -> None:
    """The gradients by hand against autograd's, where a leaf that the loss never saw has the gradient 0."""
    loss = loss + sum(0 * leaf.sum() for leaf in leaves.values())
    want = torch.autograd.grad(loss, list(leaves.values()))
    assert set(got) == set(leaves)
    for name, expected in zip(leaves, want, strict=True):
        torch.testing.assert_close(got[name].detach().expand_as(expected), expected, rtol=0, atol=1e-12)


# ---- what a sceptic would check


@pytest.mark.parametrize("mode", ["bidir", "causal"])
@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_golden(mode: str, kernel: str) -> None:
    golden = np.load(GOLDEN)
    prefix = f"shaw_{mode}_sd_"
    arrays = {name.removeprefix(prefix): golden[name] for name in golden if name.startswith(prefix)}
    encoding = rp.encodings.Shaw.from_reference(arrays, scale=1.0)
    q, k, v = (torch.from_numpy(golden[name]) for name in "qkv")
    got = rp.attention(q, k, v, encoding, scale=1.0, causal=mode == "causal", kernel=kernel)
    np.testing.assert_allclose(got.detach().numpy(), golden[f"shaw_{mode}_y"], rtol=0, atol=2e-6)
    # The same through the usual scale: the source's q had been divided by sqrt(dim).
    plain = rp.encodings.Shaw.from_reference(arrays)
    again = rp.attention(q * 2, k, v, plain, causal=mode == "causal", kernel=kernel)
    np.testing.assert_allclose(again.detach().numpy(), golden[f"shaw_{mode}_y"], rtol=0, atol=2e-6)


def test_golden_index() -> None:
    golden = np.load(GOLDEN)
    e = torch.arange(7.0).expand(9, 7)
    spread = Band(Extent(-3, 3, True, True), Tile(0, 9, 0, 9, 9, 9), 0).spread(e)
    assert np.array_equal(spread.numpy(), golden["shaw_index_L9_k3"])
    decode = Band(Extent(-3, 3, True, True), Tile(0, 1, 0, 9, 1, 9), 8).spread(e[:1])
    assert np.array_equal(decode.numpy(), golden["shaw_index_decode_L9_k3"])


def test_max_lag_of_zero_is_one_vector() -> None:
    """Then the term depends on the query alone, which softmax ignores, and the output moves by the one value vector."""
    encoding = rp.encodings.Shaw(4, 0).double()
    q, k, v = (torch.randn(1, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    got = rp.attention(q, k, v, encoding)
    torch.testing.assert_close(got, rp.attention(q, k, v) + encoding.values[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_constant_value_vector_moves_the_output_by_itself(kernel: str) -> None:
    encoding = rp.encodings.Shaw(4, 3).double()
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    encoding.values.data.zero_()
    before = rp.attention(q, k, v, encoding, causal=True, kernel=kernel)
    moved = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    encoding.values.data += moved
    after = rp.attention(q, k, v, encoding, causal=True, kernel=kernel)
    torch.testing.assert_close(after - before, moved.expand_as(after), rtol=0, atol=1e-14)


def test_lag_is_key_minus_query() -> None:
    encoding = rp.encodings.Shaw(1, 2, values=False, scale=1.0).double()
    with torch.no_grad():
        encoding.keys.copy_(torch.tensor([[0.0], [0.0], [0.0], [9.0], [0.0]]))  # only the key right after the query
    q, k = torch.ones(1, 1, 5, 1, dtype=torch.float64), torch.zeros(1, 1, 5, 1, dtype=torch.float64)
    v = torch.arange(5.0, dtype=torch.float64).view(1, 1, 5, 1)
    out = rp.attention(q, k, v, encoding).flatten()
    assert (out[:4] - torch.arange(1.0, 5.0, dtype=torch.float64)).abs().max() < 0.01


def test_no_tensor_of_n_by_n_by_dim() -> None:
    """The largest tensor of a tile is the tile itself (with the lags beside it), whatever dim is."""
    encoding = rp.encodings.Shaw(64, 16)
    q, k = torch.randn(1, 2, 96, 64), torch.randn(1, 2, 96, 64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.untyped_storage().nbytes() // out.element_size())
            return out

    with Watch():
        rp.attention(q, k, k, encoding, kernel="tiled").sum().backward()
    assert 2 * 96 * 96 <= largest <= 2 * 96 * (2 * 96 + 32)


def test_beyond_error_and_bad_arguments() -> None:
    encoding = rp.encodings.Shaw(4, 3, beyond="error")
    q = torch.randn(1, 2, 9, 4)
    rp.attention(q[:, :, :4], q[:, :, :4], q[:, :, :4], encoding)
    with pytest.raises(ValueError, match=r"lags of -8\.\.8 leave Shaw's table, which holds -3\.\.3"):
        rp.attention(q, q, q, encoding)
    with pytest.raises(ValueError, match="dim=4, q has 6"):
        rp.attention(*(torch.randn(1, 2, 3, 6) for _ in range(3)), encoding)
    with pytest.raises(ValueError, match="max_lag"):
        rp.encodings.Shaw(4, -1)
    with pytest.raises(ValueError, match="beyond"):
        rp.encodings.Shaw(4, 3, beyond="wrap")
    with pytest.raises(ValueError, match="relative_positions_keys"):
        rp.encodings.Shaw.from_reference({"table": np.zeros((7, 4))})


def test_scale_of_the_tables_at_birth() -> None:
    bound = (6 / (2 * 50 + 1 + 16)) ** 0.5
    for table in rp.encodings.Shaw(16, 50).parameters():
        assert 0.9 * bound < table.abs().max() <= bound


@pytest.mark.parametrize("n", [5, 600])
@pytest.mark.parametrize("name", ["Shaw", "MusicTransformer"])
def test_values_of_another_width_are_refused_in_words(name: str, n: int) -> None:
    q, v = torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 12)
    with_values = {
        "Shaw": rp.encodings.Shaw(8, 3),
        "MusicTransformer": rp.encodings.MusicTransformer(2, 8, 3, values=True),
    }
    without = {
        "Shaw": rp.encodings.Shaw(8, 3, values=False),
        "MusicTransformer": rp.encodings.MusicTransformer(2, 8, 3),
    }
    with pytest.raises(ValueError, match="width 8 to the values, v has width 12"):
        rp.attention(q, q, v, with_values[name], causal=True)
    assert rp.attention(q, q, v, without[name], causal=True).shape == v.shape
