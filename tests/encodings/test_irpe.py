from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.cells import with_class_tokens
from relpos.encodings.content._buckets import piecewise
from relpos.positions import Grid
from tests.encodings.test_decomposed_2d import ContentGridCase, largest
from tests.encodings.test_swin import cells

RATIO = 1.9


def g(x: float) -> int:
    """Equation 18 with the released cut-off: the fraction of beta = 3.8 is dropped, so indices end at 3."""
    alpha, beta, gamma = RATIO, 2 * RATIO, 8 * RATIO
    if abs(x) <= alpha:
        return round(x)
    y = min(round(alpha + math.log(abs(x) / alpha) / math.log(gamma / alpha) * (beta - alpha)), beta)
    return int(math.copysign(1, x) * y)


def row(method: str, y: int, x: int) -> list[int]:
    """The rows of the table for a lag (query - key), without class tokens."""
    if method == "product":
        return [(g(y) + 3) * 7 + g(x) + 3]
    if method == "cross":
        return [g(y) + 3, 7 + g(x) + 3]
    return [g(round(math.hypot(y, x))) + 3] if method == "euclidean" else [g(y * y + x * x) + 3]


class TestIRPE(ContentGridCase):
    name = "irpe"
    options_of: dict[str, Any] = {}

    def make(self) -> Any:
        encoding = rp.encodings.IRPE(self.dim, **self.options_of)
        for table in encoding.parameters():
            torch.nn.init.normal_(table)
        return encoding

    def rows(self, encoding: Any, q_pos: Tensor, k_pos: Tensor) -> list[list[list[int]]]:
        return [
            [row(encoding.method, y - s, x - t) for s, t in cells(k_pos).tolist()] for y, x in cells(q_pos).tolist()
        ]

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = q.new_zeros(*q.shape[:3], k.shape[2])
        there, back = self.rows(encoding, q_pos, k_pos), self.rows(encoding, k_pos, q_pos)
        for name, x, at in (("keys", q, there), ("queries", k, back)):
            table = getattr(encoding, name)
            for i in range(len(q_pos)):
                for j in range(len(k_pos)) if table is not None else ():
                    a, b = (i, j) if name == "keys" else (j, i)
                    for r in at[a][b]:
                        if encoding.mode == "bias":
                            out[:, :, i, j] += table[:, r]
                        else:
                            out[:, :, i, j] += (x[:, :, a] * table[..., r, :]).sum(-1) * self.dim**-0.5
        return out

    def value_truth(self, encoding: Any, p: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor | float:
        if encoding.values is None:
            return 0.0
        out = p.new_zeros(*p.shape[:3], self.dim)
        for i, of_query in enumerate(self.rows(encoding, q_pos, k_pos)):
            for j, rows in enumerate(of_query):
                for r in rows:
                    out[:, :, i] += p[:, :, i, j, None] * encoding.values[..., r, :]
        return out


class TestProductOnAll(TestIRPE):
    options_of = {"on": "qkv", "heads": 3}

    def test_gradcheck(self) -> None:
        """Along random directions: the parameters are too many to go through one by one."""
        encoding = self.build()
        q, k, v, content = (x.requires_grad_() for x in self.inputs(4, 4, batch=1))

        def f(*leaves: Tensor) -> Tensor:
            return self.run(encoding, q, k, v, content)

        assert torch.autograd.gradcheck(f, (q, k, v, *encoding.parameters()), fast_mode=True)


class TestCross(TestIRPE):
    options_of = {"method": "cross", "on": "kv"}


class TestEuclideanOnQueries(TestIRPE):
    options_of = {"method": "euclidean", "on": "q"}


class TestQuantBias(TestIRPE):
    options_of = {"method": "quant", "mode": "bias", "on": "qk", "heads": 3}


def test_piecewise_by_hand() -> None:
    """Ratio 1.9, as in all released models: cell 1 alone, 2 and 3 together, 4 and all beyond."""
    assert [piecewise(x, 1.9) for x in range(-6, 7)] == [-3, -3, -3, -2, -2, -1, 0, 1, 2, 2, 3, 3, 3]
    assert [piecewise(x, 1.9) for x in (16, 100, 10**6)] == [3] * 3
    wide = [piecewise(x, 20.0) for x in range(400)]
    assert wide[:21] == list(range(21)) and wide[160:] == [40] * 240
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(wide))


@pytest.mark.parametrize("method", ["product", "cross", "euclidean", "quant"])
@pytest.mark.parametrize("sides", [(14, 14), (5, 7), (1, 40)])
@pytest.mark.parametrize("skip", [0, 2])
def test_ids(method: Any, sides: tuple[int, int], skip: int) -> None:
    """Every pair of a grid, with and without class tokens in front: those take the last bucket, of each table."""
    encoding = rp.encodings.IRPE(4, method, skip=skip > 0)
    grid = Grid.of(*sides)
    got = encoding.ids(*[with_class_tokens(grid, skip) if skip else grid] * 2)
    count = 49 if method == "product" else 7
    at = [tuple(cell) for cell in grid.values[0].tolist()]
    seen = {lag: row(method, *lag) for lag in {(y - s, x - t) for y, x in at for s, t in at}}
    for part, ids in enumerate(got):
        want = torch.tensor([[seen[y - s, x - t][part] for s, t in at] for y, x in at])
        want = want + (skip > 0) * part  # a bucket more before the second table
        assert torch.equal(ids[skip:, skip:], want)
        last = count * (part + 1) + (part if skip else 0)
        assert skip == 0 or ((ids[:skip] == last).all() and (ids[:, :skip] == last).all())
    assert len(got) == (2 if method == "cross" else 1)
    assert encoding.buckets.rows == (count + (skip > 0)) * len(got)


def released(shape: tuple[int, ...], *names: str) -> dict[str, Tensor]:
    return {f"blocks.0.attn.{name}": torch.randn(shape, dtype=torch.float64) for name in names}


@pytest.mark.parametrize("heads", [1, 2])
def test_as_released(heads: int) -> None:
    """The released layout (heads or 1, dim, rows) on 5 x 5 cells and a class token, by its own look-up on scaled q."""
    weights = released((heads, 4, 50), "rpe_k.lookup_table_weight", "rpe_q.lookup_table_weight")
    weights |= released((heads, 50, 4), "rpe_v.lookup_table_weight")
    encoding = rp.encodings.IRPE.from_reference(weights)
    assert (encoding.skip, encoding.heads, encoding.dim, encoding.on) == (True, None if heads == 1 else 2, 4, "qkv")
    grid = with_class_tokens(Grid.of(5, 5))
    ids = torch.full((26, 26), 49)
    at = Grid.of(5, 5).values[0].tolist()
    ids[1:, 1:] = torch.tensor([[row("product", y - s, x - t)[0] for s, t in at] for y, x in at])
    q, k, v = torch.randn(3, 2, 2, 26, 4, dtype=torch.float64)
    w_q, w_k, w_v = (weights[f"blocks.0.attn.rpe_{s}.lookup_table_weight"].expand(2, -1, -1) for s in "qkv")
    index = ids.expand(2, 2, -1, -1)
    score = q / 2 @ k.mT + (q / 2 @ w_k).gather(-1, index) + (k / 2 @ w_q).gather(-1, index).mT
    p = score.softmax(-1)
    want = p @ v + torch.einsum("bhij,hijc->bhic", p, w_v[:, ids])
    for kernel in ("dense", "tiled"):
        got = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid, kernel=kernel)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_released_cross_and_bias() -> None:
    parts = [f"rpe_k.{part}.lookup_table_weight" for part in ("rp_rows", "rp_cols")]
    weights = released((1, 4, 7), *parts)
    encoding = rp.encodings.IRPE.from_reference(weights, "cross")
    rows, columns = (weights[f"blocks.0.attn.{part}"][0].mT for part in parts)
    assert torch.equal(encoding.keys, torch.cat([rows, columns])) and not encoding.skip
    bias = released((3, 50), "rpe_k.lookup_table_bias")
    encoding = rp.encodings.IRPE.from_reference(bias)
    assert (encoding.mode, encoding.heads, encoding.skip) == ("bias", 3, True)
    q, k, v = torch.randn(3, 1, 3, 6, 8, dtype=torch.float64)
    grid = Grid.of(2, 3)
    ids = encoding.ids(grid, grid)[0]
    want = (q @ k.mT * 8**-0.5 + bias["blocks.0.attn.rpe_k.lookup_table_bias"][:, ids]).softmax(-1) @ v
    torch.testing.assert_close(rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid), want, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"no array is called rpe_k\.lookup_table_weight.*rpe_x"):
        rp.encodings.IRPE.from_reference({"rpe_x": 1})


def test_sign() -> None:
    """A row of the table acts on the lag query - key: two rows down and one column left of the key."""
    encoding = rp.encodings.IRPE(4)
    at = Grid(torch.tensor([[5, 5], [3, 6]]))
    assert encoding.ids(at, at)[0].tolist() == [[24, (2 + 3) * 7 + (-1 + 3)], [(-2 + 3) * 7 + (1 + 3), 24]]


def test_starts_at_zero_and_learns() -> None:
    encoding = rp.encodings.IRPE(8, on="qkv")
    q, k, v = torch.randn(3, 1, 2, 12, 8)
    grid = Grid.of(3, 4)
    out = rp.attention(q, k, v, encoding, q_pos=grid, k_pos=grid)
    torch.testing.assert_close(out, rp.attention(q, k, v), rtol=0, atol=1e-6)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoding.parameters())


def test_memory_is_linear() -> None:
    """Nothing of n x n (a quarter of one float32 matrix), nor a table entry for every pair."""
    assert largest(rp.encodings.IRPE(8, on="qkv"), 48, 8) < 48**4


def test_bad_input() -> None:
    for options, says in (
        ({"method": "products"}, "method is one of product, cross, euclidean, quant, got 'products'"),
        ({"mode": "biased"}, 'mode is "contextual" or "bias"'),
        ({"on": "kx"}, "on is one or several"),
        ({"on": "kk"}, "on is one or several"),
        ({"on": ""}, "on is one or several"),
        ({"on": "kv", "mode": "bias"}, "values have none"),
        ({"ratio": 0.3}, "ratio is a number from 0.5"),
        ({"heads": 0}, "heads is a positive integer"),
    ):
        with pytest.raises(ValueError, match=says):
            rp.encodings.IRPE(8, **options)  # type: ignore[arg-type]
    q = torch.randn(1, 2, 7, 8)
    grid = with_class_tokens(Grid.of(2, 3))
    with pytest.raises(ValueError, match="skip=True"):
        rp.attention(q, q, q, rp.encodings.IRPE(8), q_pos=grid, k_pos=grid)
    with pytest.raises(ValueError, match="width dim=4, q has 8"):
        rp.attention(q, q, q, rp.encodings.IRPE(4, skip=True), q_pos=grid, k_pos=grid)
    for count in (-1, 1.5, True):
        with pytest.raises(ValueError, match="count is an integer of at least 0"):
            with_class_tokens(Grid.of(2, 3), count)  # type: ignore[arg-type]
