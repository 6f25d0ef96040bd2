from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.base import State, Tile
from relpos.encodings.content._lags import Band, Extent
from relpos.positions import Index
from tests.encodings.case import EncodingCase

GOLDEN = Path(__file__).parents[1] / "golden" / "rpe_shaw_music_t2t.npz"


class TestMusicTransformer(EncodingCase):
    """Causal, a table a head, zero beyond it: the released default."""

    name = "music_transformer"
    causal = True
    max_lag = 5

    def make(self) -> Any:
        return rp.encodings.MusicTransformer(self.heads, self.dim, self.max_lag)

    def vector(self, table: Tensor, head: int, lag: int) -> Tensor:
        return table[head, lag + 4] if -4 <= lag <= 0 else torch.zeros(self.dim, dtype=torch.float64)

    def visible(self, a: int, b: int) -> bool:
        return True

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = torch.full((len(q), self.heads, len(q_pos), len(k_pos)), -torch.inf, dtype=torch.float64)
        for h in range(self.heads):
            for i, a in enumerate(q_pos.tolist()):
                for j, b in enumerate(k_pos.tolist()):
                    if self.visible(a, b):
                        product = q[:, h, i] * self.vector(encoding.table, h, b - a)
                        out[:, h, i, j] = product.sum(-1) / self.dim**0.5
        return out

    def value_truth(self, encoding: Any, p: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor | float:
        if encoding.value_table is None:
            return 0.0
        out = torch.zeros(*p.shape[:3], self.dim, dtype=torch.float64)
        for h in range(self.heads):
            for i, a in enumerate(q_pos.tolist()):
                for j, b in enumerate(k_pos.tolist()):
                    out[:, h, i] += p[:, h, i, j, None] * self.vector(encoding.value_table, h, b - a)
        return out


class TestBidirectional(TestMusicTransformer):
    """Both sides, shared by the heads, with value vectors, clipped."""

    causal = False

    def make(self) -> Any:
        return rp.encodings.MusicTransformer(
            self.heads, self.dim, self.max_lag, "clip", causal=False, values=True, shared=True
        )

    def vector(self, table: Tensor, head: int, lag: int) -> Tensor:
        return table[min(max(lag, -4), 4) + 4]


class TestLocal(TestMusicTransformer):
    """Blocks of 3 counted from position 0, so a shift by what is no multiple of 3 changes who sees whom."""

    exact_shift = False

    def make(self) -> Any:
        return rp.encodings.MusicTransformer(self.heads, self.dim, 12, block=3, values=True)

    def visible(self, a: int, b: int) -> bool:
        return b // 3 in (a // 3, a // 3 - 1)

    def vector(self, table: Tensor, head: int, lag: int) -> Tensor:
        return table[head, lag + 11] if -11 <= lag <= 0 else torch.zeros(self.dim, dtype=torch.float64)

    def test_shift_by_whole_blocks_changes_nothing(self) -> None:
        encoding, (q, k, v, _) = self.build(), self.inputs(8, 8)
        near = rp.attention(q, k, v, encoding, causal=True)
        far = torch.arange(8) + 300
        shifted = rp.attention(q, k, v, encoding, causal=True, q_pos=far, k_pos=far)
        torch.testing.assert_close(shifted, near, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 11])
    def test_window_that_skips_tiles_changes_nothing(self, n: int) -> None:
        encoding, (q, k, v, _) = self.build(), self.inputs(n, n)
        whole = rp.attention(q, k, v, encoding, causal=True)
        skipped = rp.attention(q, k, v, encoding, causal=True, window=5, kernel="tiled")
        torch.testing.assert_close(skipped, whole, rtol=0, atol=1e-12)


# ---- golden arrays


def reference(name: str, **options: Any) -> tuple[rp.encodings.MusicTransformer, Any]:
    golden = np.load(GOLDEN)
    prefix = f"{name}_sd_"
    arrays = {key.removeprefix(prefix): golden[key] for key in golden if key.startswith(prefix)}
    assert arrays
    return rp.encodings.MusicTransformer.from_reference(arrays, scale=1.0, **options), golden


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("max_lag", [6, 9, 14])
@pytest.mark.parametrize("kind", ["shared_k", "shared_kv", "perhead_k", "perhead_kv"])
def test_golden_global(max_lag: int, kind: str, kernel: str) -> None:
    encoding, golden = reference(f"music_M{max_lag}_{kind}", heads=2)
    assert encoding.max_lag == max_lag
    q, k, v = (torch.from_numpy(golden[name]) for name in "qkv")
    got = rp.attention(q, k, v, encoding, scale=1.0, causal=True, kernel=kernel).detach()
    np.testing.assert_allclose(got.numpy(), golden[f"music_M{max_lag}_{kind}_y"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("max_lag", [5, 9])
def test_golden_bidirectional(max_lag: int, kernel: str) -> None:
    encoding, golden = reference(f"bidir_M{max_lag}", causal=False)
    assert encoding.max_lag == max_lag
    q, k, v = (torch.from_numpy(golden[name]) for name in "qkv")
    got = rp.attention(q, k, v, encoding, scale=1.0, kernel=kernel).detach()
    np.testing.assert_allclose(got.numpy(), golden[f"bidir_M{max_lag}_y"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize(
    "case", ["b3_L9_k", "b3_L9_kv", "b3_L11_k", "b3_L11_kv", "b4_L16_k", "b4_L16_kv", "b6_L9_k", "b6_L9_kv"]
)
def test_golden_local(case: str, kernel: str) -> None:
    """L = 11 is no multiple of its block, and b6_L9 is shorter than two blocks."""
    with_values = case.endswith("kv")
    encoding, golden = reference(f"local_{case}", block=int(case[1]), as_released=with_values)
    q, k, v = (torch.from_numpy(golden[f"local_{case}_{name}"]) for name in "qkv")
    want = golden[f"local_{case}_y"]
    got = rp.attention(q, k, v, encoding, scale=1.0, causal=True, kernel=kernel).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    if with_values:  # the sane default differs exactly where the released code leaves the vectors out
        sane, _ = reference(f"local_{case}", block=int(case[1]))
        got = rp.attention(q, k, v, sane, scale=1.0, causal=True, kernel=kernel).detach().numpy()
        first = got.shape[2] if case.startswith("b6") else int(case[1])
        assert np.abs(got - want)[:, :, :first].max(-1).min() > 1e-3
        np.testing.assert_allclose(got[:, :, first:], want[:, :, first:], rtol=0, atol=2e-6)


def test_golden_skews() -> None:
    golden = np.load(GOLDEN)
    lower = np.tril(np.ones((5, 5), dtype=bool))
    causal, full = (
        Band(extent, Tile(0, 5, 0, 5, 5, 5), 0) for extent in (Extent(-4, 0, False, False), Extent(-4, 4, False, False))
    )
    got = causal.spread(torch.from_numpy(golden["skew_masked_in"])).numpy()
    assert np.array_equal(got[..., lower], golden["skew_masked_out"][..., lower])
    assert not got[..., ~lower].any()
    assert np.array_equal(full.spread(torch.from_numpy(golden["skew_full_in"])).numpy(), golden["skew_full_out"])
    unskewed = full.collect(torch.from_numpy(golden["unskew_full_in"]).clone()).numpy()
    assert np.array_equal(unskewed, golden["unskew_full_out"])


# ---- what a sceptic would check


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_poison_above_the_diagonal_reaches_nothing(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in the skewed product wherever the key is later than the query: no output and no gradient sees it."""
    results = []
    for poisoned in (False, True):
        if poisoned:
            spread = Band.spread

            def with_nan(self: Band, e: Tensor, clean: Any = spread) -> Tensor:
                out = clean(self, e)
                lag = torch.arange(self.t_k)[None] - torch.arange(self.t_q)[:, None]
                return out.masked_fill(lag > 0, torch.nan)

            monkeypatch.setattr(Band, "spread", with_nan)
        torch.manual_seed(3)
        encoding = rp.encodings.MusicTransformer(2, 4, 6).double()
        q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
        out = rp.attention(q, k, v, encoding, causal=True, kernel=kernel)
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v, encoding.table))])
    for clean, got in zip(*results, strict=True):
        assert torch.equal(got, clean)


@pytest.mark.parametrize("where", [(0, 1, 0, 1), (0, 5, 0, 11), (4, 9, 2, 7), (6, 11, 0, 3), (0, 11, 0, 11)])
@pytest.mark.parametrize("options", [{}, {"block": 3, "as_released": True}, {"causal": False, "beyond": "clip"}])
def test_backward_of_a_tile_equals_autograd(options: dict[str, Any], where: Any) -> None:
    encoding = rp.encodings.MusicTransformer(3, 4, 6, values=True, **options).double()
    q, k = (torch.randn(2, 3, 11, 4, dtype=torch.float64) for _ in range(2))
    states = encoding.prepare(q, k, Index.arange(11), Index.arange(11))
    tile = Tile(*where, 11, 11)
    slices = {name: tile.slice(State(s.tensor.detach(), s.along, s.axis)) for name, s in states.items()}
    leaves = {name: slices[name].requires_grad_() for name in ("keys", "values")}
    leaves |= {"q": q[:, :, where[0] : where[1]].clone().requires_grad_()}
    leaves |= {"p": torch.rand(2, 3, tile.t_q, tile.t_k, dtype=torch.float64, requires_grad=True)}
    term, out = encoding.tile(leaves["q"], k, slices, tile), encoding.value_term(leaves["p"], slices, tile)
    grads = [torch.randn_like(term), torch.randn_like(out)]
    got = encoding.tile_backward(grads[0], leaves["q"], k, slices, tile)
    got |= encoding.values_backward(grads[1], leaves["p"], slices, tile)
    finite = term.masked_fill(term == -torch.inf, 0)
    loss = (finite * grads[0]).sum() + (out * grads[1]).sum() + sum(0 * leaf.sum() for leaf in leaves.values())
    for name, want in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(got[name].detach().expand_as(want), want, rtol=0, atol=1e-12)


def test_three_rules_past_the_end() -> None:
    q, k, v = (torch.randn(1, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    terms = {}
    for beyond in ("zero", "clip"):
        torch.manual_seed(0)
        encoding = rp.encodings.MusicTransformer(2, 4, 3, beyond).double()
        states = encoding.prepare(q, k, Index.arange(7), Index.arange(7))
        tile = Tile(0, 7, 0, 7, 7, 7)
        terms[beyond] = encoding.tile(q, k, {n: s.tensor for n, s in states.items()}, tile)[0]
    near = torch.tensor([[-2 <= j - i <= 0 for j in range(7)] for i in range(7)])
    assert torch.equal(terms["zero"][:, near], terms["clip"][:, near])
    assert not terms["zero"][:, ~near].any()
    assert torch.equal(terms["clip"][:, 6, :4], terms["clip"][:, 6, 4:5].expand(2, 4))
    assert not terms["clip"].triu(1).any()
    strict = rp.encodings.MusicTransformer(2, 4, 3, "error").double()
    rp.attention(q[:, :, :3], k[:, :, :3], v[:, :, :3], strict, causal=True)
    with pytest.raises(ValueError, match=r"leave MusicTransformer's table, which holds -2\.\.0"):
        rp.attention(q, k, v, strict, causal=True)


def test_refuses() -> None:
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match="causal"):
        rp.attention(q, q, q, rp.encodings.MusicTransformer(2, 4, 3))
    with pytest.raises(ValueError, match="at least 8"):
        rp.encodings.MusicTransformer(2, 4, 7, block=4)
    with pytest.raises(ValueError, match="causal"):
        rp.encodings.MusicTransformer(2, 4, 16, block=4, causal=False)
    with pytest.raises(ValueError, match="as_released"):
        rp.encodings.MusicTransformer(2, 4, 16, block=4, as_released=True)
    with pytest.raises(ValueError, match="pass heads"):
        rp.encodings.MusicTransformer.from_reference({"key_relative_embeddings": np.zeros((6, 4))})
    with pytest.raises(ValueError, match="two arrays"):
        names = ("width_key_relative_embeddings", "height_key_relative_embeddings")
        rp.encodings.MusicTransformer.from_reference({name: np.zeros((2, 6, 4)) for name in names})
    with pytest.raises(ValueError, match="no name"):
        rp.encodings.MusicTransformer.from_reference({})


def test_spread_of_the_table_at_birth() -> None:
    table = rp.encodings.MusicTransformer(4, 64, 128).table.detach()
    assert abs(float(table.std()) - 64**-0.5) < 0.002
