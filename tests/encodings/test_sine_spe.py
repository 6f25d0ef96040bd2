"""SineSPE against the released package's arrays, its closed forms, and the laws of its noise."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.encodings.transform import sine_spe
from relpos.positions import Index
from tests.core.test_memory import Largest
from tests.encodings.case import EncodingCase

GOLDEN = Path(__file__).parent.parent / "golden" / "spe_sine.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays.files}


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def inputs(batch: int, heads: int, n: int, dim: int, start: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, heads, n, dim, generator=seed(start), dtype=torch.float64).to(dtype)


def make(heads: int = 2, dim: int = 3, sines: int = 2, **options: Any) -> Any:
    torch.manual_seed(3)
    return rp.encodings.SineSPE(heads, dim, sines, **options).double()


def logits(encoding: Any, q: Tensor, k: Tensor, codes: Any, q_pos: Any = None, k_pos: Any = None) -> Tensor:
    q_pos = Index.arange(q.shape[2]) if q_pos is None else Index(q_pos)
    k_pos = Index.arange(k.shape[2]) if k_pos is None else Index(k_pos)
    return encoding.encode_q(q, q_pos, 1.0, codes) @ encoding.encode_k(k, k_pos, 1.0, codes).mT


def expected(encoding: Any, q: Tensor, k: Tensor, q_pos: Any = None, k_pos: Any = None) -> Tensor:
    """sum_d q_d P_d(key - query) k_d from the parameters, by loops over the definition's indices."""
    q_pos = torch.arange(q.shape[2]) if q_pos is None else q_pos
    k_pos = torch.arange(k.shape[2]) if k_pos is None else k_pos
    f = encoding.frequencies.sigmoid() / 2
    gain = torch.log1p(encoding.gains.exp())
    query_minus_key = (q_pos[:, None] - k_pos[None]).double()
    total = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for d in range(encoding.dim):
        p = torch.zeros(encoding.heads, *query_minus_key.shape, dtype=torch.float64)
        for s in range(encoding.sines):
            turn = 2 * math.pi * f[:, d, s, None, None] * query_minus_key + encoding.offsets[:, d, s, None, None]
            p = p + gain[:, d, s, None, None] ** 2 * turn.cos() / (2 * encoding.sines)
        if encoding.gate is not None:
            share = encoding.gate[:, d].sigmoid()[:, None, None]
            p = share + (1 - share) * p
        total = total + p * q[..., d, None] * k[..., None, :, d]
    return total


# ---- the released package's numbers


def test_codes_equal_the_released_package(golden: dict[str, Tensor]) -> None:
    names = {"freqs": "freqs_raw", "offsets": "offsets", "gains": "gains_raw"}
    encoding = rp.encodings.SineSPE.from_reference(
        {ours: golden[theirs] for ours, theirs in names.items()}, realizations=8
    )
    assert not encoding.gated and encoding.frequencies.dtype == torch.float64
    qbar, kbar = encoding.codes_from(golden["z"]).at(torch.arange(37))
    ours_to_theirs = (8 / 3) ** 0.25
    for got, want in ((qbar, golden["qbar"]), (kbar, golden["kbar"])):
        torch.testing.assert_close(got.transpose(0, 1) * ours_to_theirs, want, rtol=0, atol=1e-12)


def test_gated_queries_and_keys_equal_the_released_formula(golden: dict[str, Tensor]) -> None:
    """qhat = sum_d q_d (sqrt(1 - gate_d) qbar_d + sqrt(gate_d) noise_d), from the package's qbar, in its scale."""
    arrays = {name: golden[name] for name in ("freqs_raw", "offsets", "gains_raw")}
    arrays["gate"] = torch.randn(2, 3, generator=seed(1), dtype=torch.float64)
    encoding = rp.encodings.SineSPE.from_reference(arrays, realizations=8)
    gating = torch.randn(2, 3, 8, generator=seed(2), dtype=torch.float64)
    codes, share = encoding.codes_from(golden["z"], gating), arrays["gate"].sigmoid()
    for encode, name in ((encoding.encode_q, "qbar"), (encoding.encode_k, "kbar")):
        x = inputs(2, 2, 37, 3)
        plain = golden[name] * (1 - share).sqrt()[..., None] + share.sqrt()[..., None] * gating / 24**0.25
        want = torch.einsum("bhnd,nhdr->bhnr", x, plain)
        got = encode(x, Index.arange(37), 3**-0.5, codes) * (8 / 3) ** 0.25
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_template_equals_the_released_numbers_turned_round(golden: dict[str, Tensor]) -> None:
    """The package counts query - key: P(lag) here is its entry of -lag, and the offsets make that another number."""
    encoding = rp.encodings.SineSPE.from_reference(golden, realizations=8)
    torch.testing.assert_close(encoding.template(-golden["lags"]), golden["P_lag"], rtol=0, atol=1e-12)
    assert (encoding.template(golden["lags"]) - golden["P_lag"]).abs().max() > 0.1
    lag = torch.arange(37) - torch.arange(37)[:, None]
    whole = encoding.template(lag) * 2 * 4  # their get_posattn_matrix lacks the 1/(2K)
    torch.testing.assert_close(whole, golden["posattn_orig_unnormalised"].double(), rtol=0, atol=1e-5)


def test_monte_carlo_of_the_package_agrees_with_the_template(golden: dict[str, Tensor]) -> None:
    encoding = rp.encodings.SineSPE.from_reference(golden, realizations=8)
    lag = torch.arange(9) - torch.arange(9)[:, None]
    z = (golden["mc_mean"] - encoding.template(lag)) / golden["mc_std"]
    assert 0.7 < z.square().mean().sqrt() < 1.3 and z.abs().max() < 5


def test_gates_of_both_packages() -> None:
    arrays = {name: torch.randn(2, 3, 4) for name in ("freqs", "offsets", "gains")} | {"gate": torch.randn(2, 3)}
    pytorch = rp.encodings.SineSPE.from_reference({f"layers.0.spe.{k}": v for k, v in arrays.items()})
    jax = rp.encodings.SineSPE.from_reference(arrays, convention="jax", realizations=16)
    assert pytorch.gate is not None and torch.equal(pytorch.gate, arrays["gate"]) and jax.realizations == 16
    assert jax.gate is not None and torch.equal(jax.gate, -arrays["gate"])
    for wrong in ({"convention": "flax"}, {"noise": "pink"}):
        with pytest.raises(ValueError):
            rp.encodings.SineSPE.from_reference(arrays, **wrong)  # type: ignore[arg-type]


# ---- expectation, error and exactness


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("noise", ["gaussian", "orthogonal"])
def test_logits_are_unbiased_with_the_predicted_variance(gated: bool, noise: str) -> None:
    """mean -> L and, for Gaussian noise, R Var = sX^2 sY^2 + L^2; noise vectors of other features average out."""
    encoding = make(2, 2, 2, realizations=8 if noise == "gaussian" else 5, gated=gated, noise=noise)
    q, k = inputs(1, 2, 3, 2), inputs(1, 2, 4, 2, 6)
    generator = seed(1)
    with torch.no_grad():
        draws = torch.stack([logits(encoding, q, k, encoding.sample(3, 4, generator=generator)) for _ in range(2000)])
        want = expected(encoding, q, k)
        z = (draws.mean(0) - want) / (draws.std(0) / 2000**0.5)
        assert z.square().mean().sqrt() < 1.6 and z.abs().max() < 5  # few independent entries
        power = torch.nn.functional.softplus(encoding.gains).square().sum(-1) / (2 * encoding.sines)
        if gated:
            power = encoding.gate.sigmoid() + (1 - encoding.gate.sigmoid()) * power
        s_q, s_k = ((x.square() * power[:, None]).sum(-1) for x in (q, k))
        variance = (s_q[..., None] * s_k[..., None, :] + want.square()) / encoding.realizations
        ratio = draws.var(0) / variance
        assert (ratio.sub(1).abs() < 0.2).all() if noise == "gaussian" else ratio.mean() < 0.9


def test_error_falls_as_one_over_realizations() -> None:
    q, k = inputs(2, 2, 12, 3), inputs(2, 2, 12, 3, 6)
    found = []
    for realizations in (32, 512):
        encoding = make(realizations=realizations)
        with torch.no_grad():
            want = expected(encoding, q, k)
            errors = [logits(encoding, q, k, encoding.sample(12, generator=seed(i))) - want for i in range(60)]
        found.append(torch.stack(errors).square().mean())
    assert 11 < found[0] / found[1] < 23


@pytest.mark.parametrize("gated", [False, True])
def test_monte_carlo_of_codes_agrees_with_the_template(gated: bool) -> None:
    """The acceptance rule of the package's own averages, with the exact variance P^2 + S^2 of one realization."""
    encoding = make(8, 12, 3, realizations=5000, gated=gated)
    q_side, k_side = encoding.sample(3, generator=seed(8)).at()
    want = encoding.template(torch.arange(3) - torch.arange(3)[:, None])
    power = torch.nn.functional.softplus(encoding.gains).square().sum(-1) / 6
    if gated:
        power = encoding.gate.sigmoid() + (1 - encoding.gate.sigmoid()) * power
    z = (torch.einsum("hidr,hjdr->hdij", q_side, k_side) - want) / (
        (want.square() + power[..., None, None].square()) / 5000
    ).sqrt()
    assert 0.7 < z.square().mean().sqrt() < 1.3 and z.abs().max() < 5


@pytest.mark.parametrize(("gated", "realizations"), [(False, 12), (False, 17), (True, 15), (True, 31)])
def test_orthogonal_noise_is_exact_with_enough_realizations(gated: bool, realizations: int) -> None:
    encoding = make(gated=gated, realizations=realizations, noise="orthogonal")
    q, k = inputs(2, 2, 9, 3), inputs(2, 2, 11, 3, 6)
    got = logits(encoding, q, k, encoding.sample(9, 11, generator=seed(1)))
    torch.testing.assert_close(got, expected(encoding, q, k), rtol=0, atol=1e-10)
    fewer = make(gated=gated, realizations=11, noise="orthogonal")
    assert (logits(fewer, q, k, fewer.sample(9, 11, generator=seed(1))) - expected(fewer, q, k)).abs().max() > 1e-2


@pytest.mark.parametrize("raw", [-40.0, 40.0])
def test_each_part_alone_is_exact_before_both_are(raw: float) -> None:
    """A gate of 1 is plain attention, exactly from R = dim on; a gate of 0 is exact from R = 2 K dim on."""
    encoding = make(realizations=12 if raw < 0 else 3, noise="orthogonal")
    with torch.no_grad():
        encoding.gate.fill_(raw)
    q, k = inputs(2, 2, 9, 3), inputs(2, 2, 9, 3, 6)
    got = logits(encoding, q, k, encoding.sample(9, generator=seed(1)))
    torch.testing.assert_close(got, expected(encoding, q, k), rtol=0, atol=1e-7)
    if raw > 0:
        torch.testing.assert_close(got, q @ k.mT, rtol=0, atol=1e-7)


@pytest.mark.parametrize("gated", [False, True])
def test_template_is_what_the_exact_features_multiply_to(gated: bool) -> None:
    encoding = make(gated=gated, noise="exact")
    q_side, k_side = encoding.sample(7, 5, 2).at()
    assert q_side.shape == (2, 7, 3, encoding.width_after(3)) and encoding.width_after(3) == 3 * (4 + gated)
    product = torch.einsum("hidr,hjdr->hdij", q_side, k_side)
    lag = torch.arange(2, 7) - torch.arange(2, 9)[:, None]
    torch.testing.assert_close(product, encoding.template(lag), rtol=0, atol=1e-12)
    assert (product - encoding.template(-lag)).abs().max() > 0.05
    torch.testing.assert_close(encoding.template([1.5, -2.0]), encoding.template(torch.tensor([1.5, -2.0])))


class TestExact(EncodingCase):
    """The whole inherited suite, where nothing is random."""

    name = "sine_spe"
    dim = 4
    gated = True

    def make(self) -> Any:
        return rp.encodings.SineSPE(self.heads, self.dim, 2, gated=self.gated, noise="exact")

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        return expected(encoding, q, k, q_pos, k_pos) / self.dim**0.5


class TestExactUngated(TestExact):
    gated = False


class TestOrthogonal(TestExact):
    """And where the draw is exact, so that every call may make its own; equal to the last bit it is not."""

    def make(self) -> Any:
        return rp.encodings.SineSPE(self.heads, self.dim, 2, 21, noise="orthogonal")

    def run(self, encoding: Any, q: Tensor, k: Tensor, v: Tensor, content: Tensor, **options: Any) -> Tensor:
        options.setdefault("codes", encoding.sample(q.shape[2], k.shape[2], generator=seed(9)))
        return super().run(encoding, q, k, v, content, **options)


# ---- codes


def test_softmax_attention_approaches_the_template() -> None:
    encoding = make(realizations=4096)
    q, k, v = inputs(2, 2, 10, 3), inputs(2, 2, 10, 3, 6), inputs(2, 2, 10, 5, 7)
    want = (expected(encoding, q, k) / 3**0.5).softmax(-1) @ v
    torch.manual_seed(0)
    errors = [(rp.attention(q, k, v, encoding) - want).abs().mean() for _ in range(3)]
    assert max(errors) < 0.05
    codes = encoding.sample(10)
    by_hand = (logits(encoding, q, k, codes) / 3**0.5).softmax(-1) @ v
    for _ in range(2):  # eval or not, given codes fix the result, gate included
        torch.testing.assert_close(rp.attention(q, k, v, encoding.eval(), codes=codes), by_hand, rtol=0, atol=1e-12)


def test_a_generator_fixes_the_draw() -> None:
    encoding = make()
    q, k, v = (inputs(1, 2, 6, 3, i) for i in range(3))
    once, again, other = (rp.attention(q, k, v, encoding, generator=seed(i)) for i in (4, 4, 5))
    assert torch.equal(once, again) and (once - other).abs().max() > 1e-4
    a, b = (encoding.sample(6, generator=seed(4)) for _ in range(2))
    assert torch.equal(a.noise, b.noise) and torch.equal(a.gating, b.gating)
    short = copy.deepcopy(encoding).bfloat16().sample(6, generator=seed(4))
    assert torch.equal(short.noise, a.noise)  # one seed, one draw, whatever the module was cast to
    assert not torch.equal(a.noise[0, 0, 0], a.noise[1, 0, 0]) and not torch.equal(a.noise[0, 0, 0], a.noise[0, 1, 0])
    assert torch.equal(pickle.loads(pickle.dumps(a)).noise, a.noise)


@pytest.mark.parametrize("noise", ["gaussian", "orthogonal", "exact"])
def test_codes_at_an_offset_are_the_rows_from_there_on(noise: str) -> None:
    encoding = make(noise=noise)
    whole, rest = encoding.sample(30, generator=seed(2)), encoding.sample(20, offset=10, generator=seed(2))
    for long, short in zip(whole.at(), rest.at(), strict=True):
        torch.testing.assert_close(short, long[:, 10:], rtol=0, atol=1e-12)
    for long, some in zip(whole.at(), whole.at(torch.tensor([29, 3])), strict=True):
        torch.testing.assert_close(some, long[:, [29, 3]], rtol=0, atol=1e-12)


def test_decoding_equals_the_whole() -> None:
    """Codes made for the first token serve all others, past any length; also through a layer."""
    encoding = make()
    q, k, v = (inputs(2, 2, 12, 3, i) for i in range(3))
    stream = rp.Stream(encoding)
    torch.manual_seed(11)
    steps = torch.cat([stream.step(*(x[:, :, i : i + 1] for x in (q, k, v))) for i in range(12)], 2)
    torch.manual_seed(11)
    whole = rp.attention(q, k, v, encoding, causal=True)
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-12)
    layer: Any = rp.SelfAttention(8, 2, "sine_spe", causal=True).double()
    x, codes = torch.randn(1, 7, 8, dtype=torch.float64), layer.encoding.sample(7)
    parts = layer.stream(codes)
    got = torch.cat([layer(x[:, i : i + 1], stream=parts) for i in range(7)], 1)
    torch.testing.assert_close(got, layer(x, codes=codes), rtol=0, atol=1e-12)


def test_layers_may_share_a_draw() -> None:
    first, second = make(), make()
    q, k = inputs(1, 2, 4, 3), inputs(1, 2, 4, 3, 6)
    codes = first.sample(4)
    assert torch.equal(logits(first, q, k, codes), logits(second, q, k, codes))
    with torch.no_grad():
        second.gains.add_(1.0)
    assert (logits(second, q, k, codes) - logits(first, q, k, codes)).abs().max() > 1e-2
    ungated = make(gated=False)
    logits(ungated, q, k, codes)
    with pytest.raises(ValueError, match="gating noise"):
        logits(first, q, k, ungated.sample(4))
    with pytest.raises(ValueError, match=r"sines.*5"):
        logits(make(sines=5), q, k, codes)


def test_far_positions_keep_their_phase() -> None:
    """In float32 the lag of two tokens beyond 100,000 still counts to the last digit of its arithmetic."""
    encoding = make(noise="exact").float()
    q, k = (inputs(1, 2, 8, 3, i, torch.float32) for i in (5, 6))
    far = torch.arange(8) + 3_000_000
    near, moved = logits(encoding, q, k, None), logits(encoding, q, k, None, far, far)
    torch.testing.assert_close(moved, near, rtol=0, atol=3e-6)


def test_keys_of_fewer_heads_are_expanded() -> None:
    encoding = make(4)
    q, k, v = inputs(2, 4, 5, 3), inputs(2, 2, 5, 3, 6), inputs(2, 2, 5, 3, 7)
    codes = encoding.sample(5)
    full = rp.attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), encoding, codes=codes)
    torch.testing.assert_close(rp.attention(q, k, v, encoding, codes=codes), full, rtol=0, atol=1e-12)


# ---- gradients, types, memory


@pytest.mark.parametrize("noise", ["gaussian", "orthogonal", "exact"])
def test_gradients_reach_every_parameter(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By chunks that are computed again, and in one piece: the same gradients, those of finite differences."""
    encoding = make(2, 2, 2, realizations=4, noise=noise)
    q, k = inputs(1, 2, 5, 2).requires_grad_(), inputs(1, 2, 5, 2, 6).requires_grad_()
    codes = encoding.sample(5, generator=seed(1))
    leaves = [q, k, *encoding.parameters()]
    assert len(leaves) == 6

    def f(*_: Tensor) -> Tensor:
        return logits(encoding, q, k, codes)

    weights = torch.linspace(-1, 1, 50, dtype=torch.float64).view(1, 2, 5, 5)

    def both_orders() -> list[Tensor]:
        first = torch.autograd.grad((f() * weights).sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    whole = both_orders()
    monkeypatch.setattr(sine_spe, "CHUNK", 2 * 2 * 8)  # two tokens a chunk
    assert torch.autograd.gradcheck(f, leaves)
    for a, b in zip(whole, both_orders(), strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(b, a, rtol=0, atol=1e-12)


def test_a_gate_far_out_has_a_finite_gradient() -> None:
    encoding = make()
    with torch.no_grad():
        encoding.gate.copy_(torch.tensor([[-900.0, 900.0, 0.0]] * 2))
    logits(encoding, inputs(1, 2, 4, 3), inputs(1, 2, 4, 3, 6), encoding.sample(4)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoding.parameters())


@pytest.mark.parametrize("noise", ["gaussian", "orthogonal", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_types(noise: str, dtype: torch.dtype) -> None:
    encoding = make(noise=noise)
    q, k = inputs(1, 2, 9, 3), inputs(1, 2, 9, 3, 6)
    codes = encoding.sample(9)
    want = encoding.encode_q(q, Index.arange(9), 1.0, codes)
    got = copy.deepcopy(encoding).float().encode_q(q.to(dtype), Index.arange(9), 1.0, codes)
    assert got.dtype == dtype and (got.double() - want).abs().max() < {torch.float32: 1e-6}.get(dtype, 3e-2)
    short = encoding.to(dtype)
    assert short.encode_k(k.to(dtype), Index.arange(9), 1.0, codes).dtype == dtype
    assert short.template(torch.arange(3)).dtype == dtype


def largest(n: int) -> Largest:
    encoding = rp.encodings.SineSPE(2, 16, 4, 32)
    codes = encoding.sample(n)
    x = torch.randn(1, 2, n, 16, requires_grad=True)
    with Largest() as seen:
        encoding.encode_q(x, Index.arange(n), 1.0, codes).sum().backward()
    return seen


def test_codes_of_every_feature_are_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor, forward and backward, is the output's size, not n x dim x realizations a head."""
    monkeypatch.setattr(sine_spe, "CHUNK", 2**17)
    small, large = largest(2048), largest(4096)
    assert large.bytes <= 2.1 * 4 * 2 * 4096 * 32, large.operation  # twice the output in float32
    assert large.bytes <= 2.1 * small.bytes


# ---- what does not fit


def test_what_does_not_fit_is_refused() -> None:
    encoding = make()
    x = inputs(1, 2, 4, 3)
    pos = Index.arange(4)
    with pytest.raises(ValueError, match="sample"):
        encoding.encode_q(x, pos)
    with pytest.raises(TypeError, match="sample"):
        encoding.encode_q(x, pos, 1.0, torch.zeros(3))
    with pytest.raises(ValueError, match="width 3"):
        encoding.encode_q(inputs(1, 2, 4, 5), pos, 1.0, encoding.sample(4))
    with pytest.raises(TypeError, match="Index"):
        rp.attention(x, x, x, encoding, q_pos=torch.zeros(4, 2, dtype=torch.int64), k_pos=torch.zeros(4, 2).long())
    with pytest.raises(ValueError, match=r"z is noise of shape \(2, 3, 4, 64\)"):
        encoding.codes_from(torch.zeros(2, 3, 4, 8))
    with pytest.raises(ValueError, match="gating"):
        encoding.codes_from(torch.zeros(2, 3, 4, 64))
    with pytest.raises(ValueError, match="n_q"):
        encoding.sample(-1)
    for wrong in ({"sines": 0}, {"realizations": 0}, {"noise": "white"}, {"dim": 0}):
        with pytest.raises(ValueError):
            rp.encodings.SineSPE(**({"heads": 2, "dim": 3} | wrong))


def test_no_tokens() -> None:
    encoding = make()
    assert encoding.encode_q(inputs(1, 2, 0, 3), Index.arange(0), 1.0, encoding.sample(0)).shape == (1, 2, 0, 64)
