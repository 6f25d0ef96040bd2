from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Grid, Index, Labels, Places, Profiles, Times
from tests.encodings.case import EncodingCase


def scores(encoding: Any, q: Tensor, k: Tensor, q_points: Tensor, k_points: Tensor) -> Tensor:
    """Both forms by their definition, one matrix Omega_d a channel; points (n, axes)."""
    total = 0.0
    rows: list[list[Tensor]] = [[], []]
    for d in range(encoding.dim):
        waves = []
        for points, phase in ((q_points, encoding.query_phases), (k_points, encoding.key_phases)):
            angle = 2 * math.pi * torch.einsum("hfa,na->hnf", encoding.frequencies[:, d], points) + phase[:, d, None]
            gain = encoding.gains[:, d, None]
            waves.append(torch.cat((gain * angle.cos(), gain * angle.sin()), -1) / encoding.features**0.5)
        rows[0].append(q[..., d : d + 1] * waves[0])
        rows[1].append(k[..., d : d + 1] * waves[1])
        total = total + rows[0][-1] @ rows[1][-1].mT
    return sum(rows[0]) @ sum(rows[1]).mT if encoding.pooled else total  # type: ignore[no-any-return, union-attr]


class TestFStrIPE(EncodingCase):
    name = "fstripe"
    pooled = True
    exact_shift = False

    def make(self) -> Any:
        return rp.encodings.FStrIPE(self.heads, self.dim, "index", 3, pooled=self.pooled)

    def build(self) -> Any:
        encoding = super().build()
        with torch.no_grad():  # faster than at the start, and unlike for queries and keys
            encoding.frequencies *= 6
            encoding.gains += 0.3 * torch.randn_like(encoding.gains)
            encoding.query_phases += 0.2 * torch.randn_like(encoding.gains)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return scores(encoding, q, k, q_pos[:, None].double(), k_pos[:, None].double()) / self.dim**0.5


class TestUnpooled(TestFStrIPE):
    pooled = False
    exact_shift = True


class TestNoise(TestUnpooled):
    """Where the draw is exact, it is the unpooled form. One draw for all calls: equal to the last bit they are not."""

    def make(self) -> Any:
        return rp.encodings.FStrIPE(self.heads, self.dim, "index", 2, noise="orthogonal", realizations=33)

    def build(self) -> Any:
        encoding = super().build()
        encoding.pooled = False  # what `scores` is to take for the truth
        return encoding

    def run(self, encoding: Any, q: Tensor, k: Tensor, v: Tensor, content: Tensor, **options: Any) -> Tensor:
        at = Index.arange(1)
        options.setdefault("codes", encoding.make_codes(at, at, torch.Generator().manual_seed(9)))
        return super().run(encoding, q, k, v, content, **options)


def make(level: Any = "index", pooled: bool = False, **options: Any) -> Any:
    return rp.encodings.FStrIPE(2, 4, level, 3, pooled, torch.Generator().manual_seed(0), **options).double()


def both(encoding: Any, q: Tensor, k: Tensor, q_pos: Any, k_pos: Any = None, generator: Any = None) -> Tensor:
    k_pos = q_pos if k_pos is None else k_pos
    codes = encoding.make_codes(q_pos, k_pos, generator)
    return encoding.encode_q(q, q_pos, codes=codes) @ encoding.encode_k(k, k_pos, codes=codes).mT


@pytest.fixture
def qk() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(1, 2, 6, 4, generator=g).double(), torch.randn(1, 2, 6, 4, generator=g).double()


def test_unpooled_follows_the_template(qk: tuple[Tensor, Tensor]) -> None:
    encoding = make()
    with torch.no_grad():
        encoding.query_phases += 0.4
    at = Index.arange(6)
    template = encoding.template(at.lag(at))
    want = torch.einsum("bhid,bhjd,hdij->bhij", *qk, template)
    torch.testing.assert_close(both(encoding, *qk, at), want, rtol=0, atol=1e-13)
    assert encoding.encode_q(qk[0], at).shape[-1] == encoding.width_after(4) == 24
    assert make(pooled=True).encode_q(qk[0], at).shape[-1] == make(pooled=True).width_after(4) == 6
    d, lag = 1, -3  # one entry by hand: a key three tokens before the query
    f, gain = encoding.frequencies[1, d, :, 0], encoding.gains[1, d]
    by_hand = (gain**2 * torch.cos(2 * math.pi * f * 3 + 0.4)).mean()
    torch.testing.assert_close(encoding.template(torch.tensor(lag))[1, d], by_hand, rtol=1e-12, atol=0)


def test_no_frequency_is_plain_attention(qk: tuple[Tensor, Tensor]) -> None:
    encoding = make()
    at = Index.arange(6)
    assert (both(encoding, *qk, at) - qk[0] @ qk[1].mT).abs().max() > 1e-3
    with torch.no_grad():
        encoding.frequencies.zero_()
    torch.testing.assert_close(both(encoding, *qk, at), qk[0] @ qk[1].mT, rtol=0, atol=1e-13)


def test_pooling_depends_on_where_and_its_mean_over_phases_does_not(qk: tuple[Tensor, Tensor]) -> None:
    encoding = make(pooled=True)
    with torch.no_grad():
        encoding.frequencies *= 5
    near, far = (both(encoding, *qk, Index.arange(6, start)) for start in (0, 40))
    assert (near - far).abs().max() > 0.05
    exact = make()
    exact.load_state_dict(encoding.state_dict())
    draws = []
    g = torch.Generator().manual_seed(1)
    for _ in range(3000):
        phases = 2 * math.pi * torch.rand(encoding.gains.shape, generator=g).double()
        with torch.no_grad():
            encoding.query_phases.copy_(phases), encoding.key_phases.copy_(phases)
            draws.append(both(encoding, *qk, Index.arange(6, 40)))
    drawn = torch.stack(draws)
    with torch.no_grad():
        error = (drawn.mean(0) - both(exact, *qk, Index.arange(6))).abs() / (drawn.std(0) / 3000**0.5)
    assert error.max() < 5


def noisy(noise: Any, realizations: int, exact: Any) -> Any:
    encoding = make(pooled=True, noise=noise, realizations=realizations)
    encoding.load_state_dict(exact.state_dict())
    return encoding


@pytest.mark.parametrize("noise", ["gaussian", "orthogonal"])
def test_noise_is_relative_in_the_mean_and_falls_with_its_root(qk: tuple[Tensor, Tensor], noise: str) -> None:
    """Labels, whose differences alone count in the mean; a quarter of the error for 16 times the realizations."""
    exact = make()
    with torch.no_grad():
        exact.frequencies *= 5
        exact.query_phases += 0.3
    at, found = Labels(torch.tensor([5, 0, 2, 2, 390, 7])), []
    g = torch.Generator().manual_seed(1)
    for realizations in (2, 20) if noise == "orthogonal" else (8, 128):
        encoding = noisy(noise, realizations, exact)
        with torch.no_grad():
            want = both(exact, *qk, at)
            draws = torch.stack([both(encoding, *qk, at, generator=g) for _ in range(600)])
        z = (draws.mean(0) - want) / (draws.std(0) / 600**0.5)
        assert z.abs().max() < 5
        found.append((draws - want).square().mean().sqrt())
    ratio = found[0] / found[1]
    assert 3.6 < ratio < 4.4 if noise == "gaussian" else ratio > 10**0.5 + 1  # exact at 24: it falls faster


def test_orthogonal_noise_is_exact_with_enough_realizations(qk: tuple[Tensor, Tensor]) -> None:
    at, exact = Labels(torch.tensor([5, 0, 2, 2, 390, 7])), make()
    for realizations in (24, 31):
        got = both(noisy("orthogonal", realizations, exact), *qk, at)
        torch.testing.assert_close(got, both(exact, *qk, at), rtol=0, atol=1e-12)
    assert (both(noisy("orthogonal", 23, exact), *qk, at) - both(exact, *qk, at)).abs().max() > 1e-3
    with torch.no_grad():
        exact.frequencies.zero_()
    got = both(noisy("orthogonal", 24, exact), *qk, at)
    torch.testing.assert_close(got, qk[0] @ qk[1].mT, rtol=0, atol=1e-12)  # no frequency: plain attention


def test_at_times_it_is_stochastic_encoding(qk: tuple[Tensor, Tensor]) -> None:
    """The codes themselves, for the same noise: those of SineSPE times sqrt(2); P has 1/F here and 1/(2F) there."""
    torch.manual_seed(4)
    spe = rp.encodings.SineSPE(2, 4, sines=3, realizations=10, gated=False).double()
    encoding = make(noise="gaussian", pooled=True, realizations=10)
    with torch.no_grad():
        encoding.frequencies.copy_((spe.frequencies.sigmoid() / 2).unsqueeze(-1))
        encoding.gains.copy_(torch.nn.functional.softplus(spe.gains))
        encoding.query_phases.copy_(spe.offsets)
        encoding.key_phases.zero_()
    at = Index.arange(6, 30)
    codes = encoding.make_codes(at, at)
    order = torch.stack([torch.arange(3), torch.arange(3, 6)], -1).flatten()  # cos_0, sin_0, cos_1, ..
    theirs = spe.codes_from(codes.noise[:, :, order])
    for x, side in zip(qk, ("encode_q", "encode_k"), strict=True):
        got, want = getattr(encoding, side)(x, at, codes=codes), getattr(spe, side)(x, at, codes=theirs)
        torch.testing.assert_close(got, 2**0.5 * want, rtol=0, atol=1e-12)
        assert got.shape[-1] == encoding.width_after(4) == 10
    lags = torch.arange(-5, 6)
    torch.testing.assert_close(encoding.template(lags), 2 * spe.template(lags), rtol=0, atol=1e-12)


def test_the_noise_is_one_draw_for_queries_keys_and_streams(qk: tuple[Tensor, Tensor]) -> None:
    encoding, at = make(pooled=True, noise="gaussian", realizations=9), torch.tensor([5, 0, 2, 2, 390, 7])
    position = Labels(at)
    q, k = qk
    runs = [
        rp.attention(
            q, k, k, encoding, q_pos=position, k_pos=position, causal=True, generator=torch.Generator().manual_seed(s)
        )
        for s in (3, 3, 4)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.allclose(runs[0], runs[2])
    stream = rp.Stream(encoding, codes=encoding.make_codes(position, position, torch.Generator().manual_seed(3)))
    steps = [stream.step(*(x[:, :, i : i + 1] for x in (q, k, k)), position=Labels(at[i : i + 1])) for i in range(6)]
    torch.testing.assert_close(torch.cat(steps, 2), runs[0], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="the same for queries and keys; got none"):
        encoding.encode_q(q, position)
    other = make(pooled=True, noise="gaussian", realizations=8).make_codes(position, position)
    with pytest.raises(ValueError, match=r"noise is \(2, 4, 6, 9\)"):
        encoding.encode_k(k, position, codes=other)
    for options, message in (({"noise": "exact"}, "gaussian or orthogonal"), ({"noise": "gaussian"}, "pooled=False")):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="realizations"):
        make(pooled=True, noise="gaussian", realizations=0)


def test_levels_of_named_positions(qk: tuple[Tensor, Tensor]) -> None:
    chord, section = torch.tensor([3, 3, 8, 8, 1, 3]), torch.tensor([0, 0, 0, 1, 1, 1])
    named = {"chord": Labels(chord), "section": Labels(section), "index": Index.arange(6)}
    for pooled in (False, True):
        encoding = make(("chord", "section"), pooled)
        points = torch.stack([chord, section], -1).double()
        want = scores(encoding, *qk, points, points)
        torch.testing.assert_close(both(encoding, *qk, named), want, rtol=0, atol=1e-13)
        torch.testing.assert_close(both(encoding, *qk, Grid(points.long())), want, rtol=0, atol=1e-13)
    given = {"chord": chord, "section": section, "index": torch.arange(6)}
    out = rp.attention(*qk, qk[1], encoding, q_pos=given, k_pos=given, causal=True)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(out, (want / 2).masked_fill(~seen, -torch.inf).softmax(-1) @ qk[1], rtol=0, atol=1e-12)


def test_a_level_moved_as_a_whole_changes_nothing_unpooled(qk: tuple[Tensor, Tensor]) -> None:
    labels = torch.tensor([5, 0, 2, 2, 390, 7])
    exact, pooled = make("chord"), make("chord", pooled=True)
    for encoding, same in ((exact, True), (pooled, False)):
        change = both(encoding, *qk, Labels(labels)) - both(encoding, *qk, Labels(labels + 60))
        assert bool(change.abs().max() < 1e-11) is same
    renamed = both(exact, *qk, Labels(torch.tensor([5, 1, 2, 2, 390, 7])))
    assert (renamed - both(exact, *qk, Labels(labels))).abs().max() > 1e-4


def test_rows_of_a_batch_vectors_and_times(qk: tuple[Tensor, Tensor]) -> None:
    q, k = (x.repeat(2, 1, 1, 1) for x in qk)
    chroma = torch.rand(2, 6, 3, dtype=torch.float64)
    seconds = torch.rand(6, dtype=torch.float64).cumsum(0)
    encoding = make({"chroma": 3, "time": 1})
    got = both(encoding, q, k, {"chroma": Profiles(chroma), "time": Times(1.7e9 + seconds)})
    for row in range(2):
        points = torch.cat([chroma[row], seconds[:, None]], -1)
        want = scores(encoding, q[row], k[row], points, points)
        torch.testing.assert_close(got[row], want, rtol=0, atol=1e-6)  # seconds since 1970 have 2e-7 of one left


def test_gradients_at_times_since_1970_keep_their_digits(qk: tuple[Tensor, Tensor]) -> None:
    """Without the origin taken off, two gradients of size 1e9 would have to cancel in float32."""
    seconds = torch.rand(6, dtype=torch.float64).cumsum(0) * 30
    grads = []
    for dtype, start in ((torch.float64, 0.0), (torch.float32, 1.7e9)):
        encoding = rp.encodings.FStrIPE(2, 4, "time", 3, False, torch.Generator().manual_seed(0)).to(dtype)
        both(encoding, *(x.to(dtype) for x in qk), Times(seconds + start)).square().sum().backward()
        grads.append(encoding.frequencies.grad.double())
    assert (grads[1] - grads[0]).abs().max() < 1e-4 * grads[0].abs().max()


def test_from_reference(qk: tuple[Tensor, Tensor]) -> None:
    g = torch.Generator().manual_seed(9)
    f, lam, theta = (torch.rand(4, 3, *more, generator=g, dtype=torch.float64) for more in ((2,), (), ()))
    arrays = {"f": f.numpy(), "lambda": lam.numpy(), "theta_q": theta.numpy()}
    encoding = rp.encodings.FStrIPE.from_reference(arrays, ("melody", "chord"), pooled=False)
    assert (encoding.heads, encoding.dim, encoding.features, encoding.axes) == (1, 4, 3, 2)
    points = torch.randint(0, 9, (6, 2), generator=g)
    named = {"melody": Labels(points[:, 0]), "chord": Labels(points[:, 1])}
    q, k = (x[:, :1] for x in qk)
    difference = (points[:, None] - points[None]).double()
    kernel = (lam**2 * torch.cos(2 * math.pi * torch.einsum("ija,dfa->ijdf", difference, f) + theta)).mean(-1)
    want = torch.einsum("bhid,bhjd,ijd->bhij", q, k, kernel)
    torch.testing.assert_close(both(encoding, q, k, named), want, rtol=0, atol=1e-12)
    own = rp.encodings.FStrIPE.from_reference(make().state_dict(), pooled=False)
    torch.testing.assert_close(own.template(torch.arange(5)), make().template(torch.arange(5)))
    assert rp.encodings.FStrIPE.from_reference({"f": f[..., 0]}).axes == 1
    with pytest.raises(ValueError, match="2 axes"):
        rp.encodings.FStrIPE.from_reference(arrays, "chord")
    with pytest.raises(ValueError, match="frequencies are"):
        rp.encodings.FStrIPE.from_reference(arrays | {"lambda": lam[:2]})


def test_bad_arguments_and_positions(qk: tuple[Tensor, Tensor]) -> None:
    for level in ((), ("a", "a"), {"a": 0}, 3, ("a", 3)):
        with pytest.raises((ValueError, TypeError)):
            make(level)
    two, named = make(("chord", "section")), {"chord": Labels(torch.arange(6))}
    cases: list[tuple[Any, str]] = [
        (Index.arange(6), "levels chord, section have 2; give named"),
        (named, "named section; there are chord"),
        (named | {"section": Grid.of(2, 3)}, "'section' has 2 axes"),
    ]
    for positions, message in cases:
        with pytest.raises(ValueError, match=message):
            both(two, *qk, positions)
    place = Places(torch.zeros(6, 2))
    for positions in (place, named | {"section": place}):
        with pytest.raises(TypeError, match="Places"):
            both(two, *qk, positions)
    with pytest.raises(ValueError, match="2 heads of width 4"):
        make().encode_q(torch.randn(1, 2, 6, 5), Index.arange(6))
    with pytest.raises(ValueError, match="heads"):
        make().encode_k(torch.randn(1, 3, 6, 4), Index.arange(6))
