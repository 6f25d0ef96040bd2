"""ConvSPE against the released package's arrays, its closed form, and the laws of its noise."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.transform import conv_spe
from relpos.positions import Grid, Index, Position
from tests.core.test_memory import Largest

GOLDEN = Path(__file__).parent.parent / "golden" / "spe_conv1d.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays.files}


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def inputs(batch: int, heads: int, n: int, dim: int, start: int = 5) -> Tensor:
    return torch.randn(batch, heads, n, dim, generator=seed(start), dtype=torch.float64)


def make(heads: int = 2, dim: int = 3, kernel_size: Any = 4, axes: int = 1, **options: Any) -> Any:
    torch.manual_seed(3)
    encoding = rp.encodings.ConvSPE(heads, dim, kernel_size, axes, **options).double()
    with torch.no_grad():  # signs and no symmetry, so that a lag turned round is seen
        encoding.query_kernel.sub_(0.5)
    return encoding


def logits(encoding: Any, q: Tensor, k: Tensor, codes: Any, q_pos: Position, k_pos: Position) -> Tensor:
    return encoding.encode_q(q, q_pos, 1.0, codes) @ encoding.encode_k(k, k_pos, 1.0, codes).mT


def expected(encoding: Any, q: Tensor, k: Tensor, q_pos: Position, k_pos: Position) -> Tensor:
    """sum_d q_d P_d k_d with P by loops: kernel points p of the query and r of the key meet where i + p = j + r."""
    cells = [pos.values.view(len(pos), -1) for pos in (q_pos, k_pos)]
    p_d = torch.zeros(encoding.heads, encoding.dim, len(q_pos), len(k_pos), dtype=torch.float64)
    points = list(itertools.product(*(range(size) for size in encoding.kernel_size)))
    for (i, at), (j, to) in itertools.product(*(enumerate(c.tolist()) for c in cells)):
        for p, r in itertools.product(points, points):
            if all(a + b == c + d for a, b, c, d in zip(at, p, to, r)):
                every = slice(None)
                p_d[:, :, i, j] += encoding.query_kernel[(every, every, *p)] * encoding.key_kernel[(every, every, *r)]
    if encoding.gate is not None:
        share = encoding.gate.sigmoid()[..., None, None]
        p_d = share + (1 - share) * p_d
    return torch.einsum("bhid,hdij,bhjd->bhij", q, p_d, k)


# ---- the released package's numbers


def test_codes_equal_the_released_package(golden: dict[str, Tensor]) -> None:
    arrays = {f"conv_{side}.weight": golden[f"w_conv_{side}"].reshape(6, 1, 5) for side in "qk"}
    encoding = rp.encodings.ConvSPE.from_reference(arrays, heads=2, realizations=8)
    assert encoding.kernel_size == (5,) and encoding.query_kernel.dtype == torch.float64
    codes = encoding.codes_from(golden["noise"])
    ours_to_theirs = (8 / 3) ** 0.25
    for got, want in zip(codes.at(torch.arange(14)), (golden["qbar"], golden["kbar"]), strict=True):
        torch.testing.assert_close(got.transpose(0, 1) * ours_to_theirs, want, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="34 points"):
        codes.at(torch.arange(30))


def test_both_conventions_and_the_sign_of_the_lag(golden: dict[str, Tensor]) -> None:
    """The package counts query - key; its PyTorch half swaps the kernels, which turns the template round."""
    for convention in ("pytorch", "jax"):
        encoding = rp.encodings.ConvSPE.from_reference(golden, convention)  # type: ignore[arg-type]
        want = golden[f"P_lag_{convention}"]
        torch.testing.assert_close(encoding.template(-golden["lags"]), want, rtol=0, atol=1e-12)
        assert (encoding.template(golden["lags"]) - want).abs().max() > 0.1
        beyond = golden["lags"].abs() >= 5
        assert beyond.any() and not encoding.template(golden["lags"])[..., beyond].any()


def test_monte_carlo_of_the_package_agrees_with_the_template(golden: dict[str, Tensor]) -> None:
    encoding = rp.encodings.ConvSPE.from_reference(golden)
    lag = torch.arange(9) - torch.arange(9)[:, None]
    z = (golden["mc_mean"] - encoding.template(lag)) / golden["mc_std"]
    assert 0.7 < z.square().mean().sqrt() < 1.3 and z.abs().max() < 5


def test_import_of_gates_and_of_what_does_not_fit() -> None:
    weights = {f"conv_{side}.weight": torch.randn(6, 1, 2, 3) for side in "qk"}
    gate = torch.randn(2, 3)
    for convention, sign in (("pytorch", 1), ("jax", -1)):
        encoding = rp.encodings.ConvSPE.from_reference(weights | {"gate": gate}, convention)  # type: ignore[arg-type]
        assert encoding.axes == 2 and encoding.gate is not None and torch.equal(encoding.gate, sign * gate)
    with pytest.raises(ValueError, match="heads="):
        rp.encodings.ConvSPE.from_reference(weights)
    with pytest.raises(ValueError, match="4 heads"):
        rp.encodings.ConvSPE.from_reference(weights, heads=4)
    with pytest.raises(ValueError, match="conv_q"):
        rp.encodings.ConvSPE.from_reference({"gate": gate})


# ---- expectation and error

GEOMETRIES: list[tuple[Any, int, Position, Position]] = [
    (3, 1, Index.arange(4, 5), Index.arange(6, 2)),
    (3, 1, Index(torch.tensor([9, -70, 2])), Index(torch.tensor([-69, 8, 1, 1, 300]))),
    ((2, 3), 2, Grid.of(2, 3), Grid.of(3, 2)),
    (2, 3, Grid.of(2, 1, 2), Grid.of(2, 2, 1)),
]


@pytest.mark.parametrize(("kernel_size", "axes", "q_pos", "k_pos"), GEOMETRIES)
def test_logits_are_unbiased_with_the_predicted_variance(
    kernel_size: Any, axes: int, q_pos: Position, k_pos: Position
) -> None:
    """On runs, gaps and grids: mean -> L, and R Var = sX^2 sY^2 + L^2."""
    encoding = make(2, 2, kernel_size, axes, realizations=16)
    q, k = inputs(1, 2, len(q_pos), 2), inputs(1, 2, len(k_pos), 2, 6)
    generator = seed(1)
    with torch.no_grad():
        draws = torch.stack(
            [logits(encoding, q, k, encoding.make_codes(q_pos, k_pos, generator), q_pos, k_pos) for _ in range(250)]
        )
        want = expected(encoding, q, k, q_pos, k_pos)
        z = (draws.mean(0) - want) / (draws.std(0) / 250**0.5)
        assert z.square().mean().sqrt() < 1.6 and z.abs().max() < 5  # few independent entries
        share = encoding.gate.sigmoid()
        powers = [
            (1 - share) * w.square().flatten(2).sum(-1) + share for w in (encoding.query_kernel, encoding.key_kernel)
        ]
        s_q, s_k = ((x.square() * power[:, None]).sum(-1) for x, power in zip((q, k), powers))
        variance = (s_q[..., None] * s_k[..., None, :] + want.square()) / 16
        assert 0.85 < (draws.var(0) / variance).mean() < 1.15


def test_monte_carlo_of_codes_agrees_with_the_template() -> None:
    """The acceptance rule of the package's own averages, with the exact variance P^2 + S_q S_k of one realization."""
    encoding = make(6, 6, 3, realizations=3000)
    q_side, k_side = encoding.sample(3, generator=seed(8)).at()
    want = encoding.template(torch.arange(3) - torch.arange(3)[:, None])
    share = encoding.gate.sigmoid()
    s_q, s_k = (share + (1 - share) * w.square().sum(-1) for w in (encoding.query_kernel, encoding.key_kernel))
    z = (torch.einsum("hidr,hjdr->hdij", q_side, k_side) - want) / (
        (want.square() + (s_q * s_k)[..., None, None]) / 3000
    ).sqrt()
    assert 0.7 < z.square().mean().sqrt() < 1.3 and z.abs().max() < 5


@pytest.mark.parametrize(("kernel_size", "axes", "q_pos", "k_pos"), GEOMETRIES)
def test_template_equals_its_definition(kernel_size: Any, axes: int, q_pos: Position, k_pos: Position) -> None:
    encoding = make(2, 2, kernel_size, axes)
    lags = q_pos.lag(k_pos)
    template = encoding.template(lags if axes == 1 else lags.squeeze(0))
    assert template.shape == (2, 2, len(q_pos), len(k_pos))
    for d in range(2):  # a unit vector of content reads one feature
        one = torch.eye(2, dtype=torch.float64)[d].expand(1, 2, 1, 2)
        want = expected(encoding, *(one.expand(-1, -1, len(pos), -1) for pos in (q_pos, k_pos)), q_pos, k_pos)
        torch.testing.assert_close(template[:, d], want[0], rtol=0, atol=1e-12)


def test_error_falls_as_one_over_realizations() -> None:
    q, k, pos = inputs(2, 2, 12, 3), inputs(2, 2, 12, 3, 6), Index.arange(12)
    found = []
    for realizations in (32, 512):
        encoding = make(realizations=realizations)
        with torch.no_grad():
            want = expected(encoding, q, k, pos, pos)
            draws = [logits(encoding, q, k, encoding.sample(12, generator=seed(i)), pos, pos) for i in range(30)]
        found.append((torch.stack(draws) - want).square().mean())
    assert 11 < found[0] / found[1] < 23


def test_fresh_kernels_decay_in_a_line() -> None:
    template = rp.encodings.ConvSPE(4, 32, 50, gated=False).template(torch.tensor([0, 25, -25, 50])).mean((0, 1))
    assert template.tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0], abs=0.02)


# ---- codes


def test_softmax_attention_approaches_the_template() -> None:
    encoding, pos = make(realizations=2048), Index.arange(10)
    q, k, v = inputs(2, 2, 10, 3), inputs(2, 2, 10, 3, 6), inputs(2, 2, 10, 5, 7)
    want = (expected(encoding, q, k, pos, pos) / 3**0.5).softmax(-1) @ v
    assert (rp.attention(q, k, v, encoding, generator=seed(1)) - want).abs().mean() < 0.05
    codes = encoding.sample(10)
    by_hand = (logits(encoding, q, k, codes, pos, pos) / 3**0.5).softmax(-1) @ v
    for _ in range(2):
        torch.testing.assert_close(rp.attention(q, k, v, encoding.eval(), codes=codes), by_hand, rtol=0, atol=1e-12)


def test_a_generator_fixes_the_draw() -> None:
    encoding = make()
    q, k, v = (inputs(1, 2, 6, 3, i) for i in range(3))
    once, again, other = (rp.attention(q, k, v, encoding, generator=seed(i)) for i in (4, 4, 5))
    assert torch.equal(once, again) and (once - other).abs().max() > 1e-4
    codes = encoding.sample(6)
    copied = pickle.loads(pickle.dumps(codes))
    assert torch.equal(copied.at()[0], codes.at()[0])


def test_noise_is_white() -> None:
    """Cells, neighbours of all kinds, heads, features: no correlation, unit power."""
    lattice = conv_spe.Lattice((4, 50), seed=12345)
    noise = lattice.window([-20, -3], [40, 6], torch.device("cpu")).double()
    flat = noise.flatten(0, 2).view(960, 50)
    assert noise.mean().abs() < 4 / noise.numel() ** 0.5 and (noise.var() - 1).abs() < 0.03
    products = flat @ flat.T / 50**0.5
    off = products[~torch.eye(960, dtype=torch.bool)]
    assert (off.var() - 1).abs() < 0.02 and off.abs().max() < 8
    assert len({conv_spe._mixed(7, (t,)) for t in range(-5000, 5000)}) == 10000
    assert len({conv_spe._mixed(7, (s, t)) for s in range(64) for t in range(64)}) >= 4095


def test_codes_at_an_offset_are_the_rows_from_there_on() -> None:
    encoding = make(kernel_size=7)
    whole, rest = encoding.sample(200, generator=seed(2)), encoding.sample(110, offset=90, generator=seed(2))
    for long, short in zip(whole.at(), rest.at(), strict=True):
        torch.testing.assert_close(short, long[:, 90:], rtol=0, atol=1e-12)
    far = torch.tensor([199, 3, 3, 2_000_000])
    for long, some in zip(whole.at(), rest.at(far), strict=True):
        torch.testing.assert_close(some[:, :3], long[:, far[:3]], rtol=0, atol=1e-12)


def test_decoding_equals_the_whole() -> None:
    encoding = make(kernel_size=5)
    q, k, v = (inputs(2, 2, 70, 3, i) for i in range(3))
    stream = rp.Stream(encoding)
    torch.manual_seed(11)
    steps = torch.cat([stream.step(*(x[:, :, i : i + 1] for x in (q, k, v))) for i in range(70)], 2)
    torch.manual_seed(11)
    whole = rp.attention(q, k, v, encoding, causal=True)
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-12)


def test_positions_that_differ_by_row() -> None:
    """Left-padded rows see one lattice: each row is what it would be alone."""
    encoding, codes = make(), make().sample(9)
    x = inputs(2, 2, 9, 3)
    pos = torch.stack([torch.arange(9), torch.arange(9) + 60])
    both = encoding.encode_q(x, Index(pos), 1.0, codes)
    for row in range(2):
        alone = encoding.encode_q(x[row : row + 1], Index(pos[row]), 1.0, codes)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-12)
    crowd = encoding.encode_q(inputs(1, 2, 300, 3), Index(torch.arange(300) % 7), 1.0, codes)
    few = encoding.encode_q(inputs(1, 2, 300, 3)[:, :, 203:210], Index.arange(7), 1.0, codes)
    torch.testing.assert_close(crowd[:, :, 203:210], few, rtol=0, atol=1e-12)


def test_a_grid_and_a_part_of_it_agree() -> None:
    encoding = make(2, 3, (3, 5), 2)
    codes = encoding.sample(0)
    x, grid = inputs(1, 2, 35 * 40, 3), Grid.of(35, 40)
    whole = encoding.encode_k(x, grid, 1.0, codes)
    for part in (slice(37, 45), slice(900, 901), slice(0, None, 7)):
        some = encoding.encode_k(x[:, :, part], Grid(grid.values[:, part]), 1.0, codes)
        torch.testing.assert_close(some, whole[:, :, part], rtol=0, atol=1e-12)


def test_keys_of_fewer_heads_and_another_count() -> None:
    encoding = make(4)
    q, k, v = inputs(2, 4, 3, 3), inputs(2, 2, 8, 3, 6), inputs(2, 2, 8, 3, 7)
    codes = encoding.sample(3, 8)
    full = rp.attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), encoding, codes=codes)
    torch.testing.assert_close(rp.attention(q, k, v, encoding, codes=codes), full, rtol=0, atol=1e-12)


# ---- gradients, types, memory


@pytest.mark.parametrize(("kernel_size", "axes", "n"), [(3, 1, 5), (3, 1, 9), ((2, 3), 2, 6)])
def test_gradients_reach_every_parameter(kernel_size: Any, axes: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = make(1, 2, kernel_size, axes, realizations=3)
    pos = Index.arange(n) if axes == 1 else Grid.of(2, 3)
    q, k = inputs(1, 1, n, 2).requires_grad_(), inputs(1, 1, n, 2, 6).requires_grad_()
    codes = encoding.sample(n, generator=seed(1))
    leaves = [q, k, *encoding.parameters()]
    assert len(leaves) == 5

    def f(*_: Tensor) -> Tensor:
        return logits(encoding, q, k, codes, pos, pos)

    weights = torch.linspace(-1, 1, n * n, dtype=torch.float64).view(1, 1, n, n)
    whole = torch.autograd.grad((f() * weights).sum(), leaves)
    monkeypatch.setattr(conv_spe, "TILE", 4)  # several tiles, computed again in the backward pass
    assert torch.autograd.gradcheck(f, leaves)
    for a, b in zip(whole, torch.autograd.grad((f() * weights).sum(), leaves), strict=True):
        assert a.abs().max() > 1e-4
        torch.testing.assert_close(b, a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_types(dtype: torch.dtype) -> None:
    encoding, x, pos = make(), inputs(1, 2, 9, 3), Index.arange(9)
    codes = encoding.sample(9)
    want = encoding.encode_q(x, pos, 1.0, codes)
    got = encoding.float().encode_q(x.to(dtype), pos, 1.0, codes)
    assert got.dtype == dtype and (got.double() - want).abs().max() < {torch.float32: 1e-6}.get(dtype, 3e-2)
    short = encoding.to(dtype)
    assert short.encode_k(x.to(dtype), pos, 1.0, codes).dtype == dtype
    assert short.template(torch.arange(3)).dtype == dtype


def largest(n: int) -> Largest:
    encoding = rp.encodings.ConvSPE(2, 8, 16, realizations=16)
    codes = encoding.sample(n)
    x = torch.randn(1, 2, n, 8, requires_grad=True)
    with Largest() as seen:
        encoding.encode_q(x, Index.arange(n), 1.0, codes).sum().backward()
    return seen


def test_codes_of_every_feature_are_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor, forward and backward, is the output, not n x dim x realizations a head."""
    monkeypatch.setattr(conv_spe, "TILE", 16)
    small, large = largest(700), largest(1400)
    assert large.bytes <= 4 * 2 * 1400 * 16, large.operation
    assert large.bytes <= 2.1 * small.bytes


# ---- what does not fit


def test_what_does_not_fit_is_refused() -> None:
    encoding, plane = make(), make(2, 3, 2, 2)
    x = inputs(1, 2, 4, 3)
    for noise in ("orthogonal", "exact"):
        with pytest.raises(ValueError, match="finite form"):
            make(noise=noise)
    for wrong in ({"axes": 4}, {"kernel_size": 0}, {"kernel_size": (2, 2)}, {"noise": "white"}):
        with pytest.raises(ValueError):
            make(**wrong)
    with pytest.raises(TypeError, match="Grid"):
        rp.attention(x, x, x, plane)
    with pytest.raises(ValueError, match="1 axes"):
        rp.attention(x, x, x, encoding, q_pos=Grid.of(2, 2), k_pos=Grid.of(2, 2))
    with pytest.raises(ValueError, match="sample"):
        encoding.encode_q(x, Index.arange(4))
    with pytest.raises(ValueError, match="kernel_size"):
        encoding.encode_q(x, Index.arange(4), 1.0, make(kernel_size=5).sample(4))
    with pytest.raises(ValueError, match=r"Grid\.of"):
        plane.sample(4).at()
    with pytest.raises(TypeError, match="integers"):
        encoding.template([0.5])
    with pytest.raises(ValueError, match="axes"):
        plane.template(torch.arange(4))
    assert plane.sample(4).at(Grid.of(2, 2))[0].shape == (2, 4, 3, 64)
    rp.attention(x, x, x, plane, q_pos=Grid.of(2, 2), k_pos=Grid.of(2, 2))


def test_registered() -> None:
    encoding = rp.encoding("conv_spe", heads=2, dim=3)
    assert encoding.side == "before" and encoding.width_after(3) == 64 and encoding.kernel_size == (32,)
    assert rp.names()["conv_spe"].form == "Transform" and encoding.cite().startswith("@")


def test_no_tokens() -> None:
    encoding = make()
    x = inputs(1, 2, 0, 3).requires_grad_()
    assert encoding.encode_q(x, Index.arange(0), 1.0, encoding.sample(0)).shape == (1, 2, 0, 64)
    (encoding.encode_k(x, Index.arange(0), 1.0, encoding.sample(0)).sum()).backward()
