"""Linear attention in layers and networks, what it allocates, and what `explain` says of it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos import features
from relpos.kernels.linear import choose, split
from tests.core.naive import inputs
from tests.core.naive_linear import HEADS, KERNELS, drawn, made, naive_linear, seed
from tests.core.test_memory import Largest

ENCODINGS: dict[str, Any] = {
    "t5": {}, "alibi": {}, "learned_bias": {"max_lag": 9}, "kerple": {}, "rope": {}, "permuteformer": {},
    "cosformer": {"max_length": 200}, "flt": {"features": 3}, "sine_spe": {"realizations": 9, "sines": 2},
}  # fmt: skip


def layer(name: str | None = "learned_bias", causal: bool = True, **options: Any) -> rp.SelfAttention:
    torch.manual_seed(1)
    given = {"encoding_options": ENCODINGS[name]} if name is not None else {}
    return rp.SelfAttention(12, 2, name, mixer="kernelized", causal=causal, **given, **options)


# ---- layers


@pytest.mark.parametrize("kind", ["prf", "orf", "sphere", "trf", "elu1", "relu"])
def test_a_layer_is_the_function_between_its_projections(kind: str) -> None:
    for normalize in (None, True, False):
        for kv_heads in (1, 2):
            made = layer(features=kind, normalize=normalize, temperature=0.6, kv_heads=kv_heads).double()
            x = torch.randn(2, 11, 12, dtype=torch.float64)
            q, k, v = (
                part(x).unflatten(-1, (-1, 6)).transpose(1, 2) for part in (made.q, made.k, made.v)
            )  # fmt: skip
            assert made.features is not None
            assert normalize is None or made.features.normalize == normalize
            want = naive_linear(q, k, v, made.encoding, features=made.features, causal=True, temperature=0.6)
            got = made(x)
            torch.testing.assert_close(got, made.out(want.transpose(1, 2).flatten(2)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [None, *ENCODINGS])
def test_the_future_of_a_layer_may_hold_anything(name: str | None) -> None:
    made = layer(name)
    x = torch.randn(2, 21, 12)
    codes = made.encoding.sample(21, generator=seed(5)) if name == "sine_spe" else None  # type: ignore[union-attr, operator]
    clean = made(x, codes=codes)
    for poison in (float("nan"), float("inf"), 1e10):
        y = x.clone()
        y[:, 13:] = poison
        got = made(y, codes=codes)
        assert torch.equal(got[:, :13], clean[:, :13])
        made.zero_grad()
        got[:, :13].square().sum().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters()) or poison != 1e10
    part = made(x[:, :13], codes=codes)
    torch.testing.assert_close(part, clean[:, :13], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [None, *ENCODINGS])
def test_padding_of_a_layer(name: str | None) -> None:
    made = layer(name, causal=False)
    x = torch.randn(2, 17, 12)
    codes = made.encoding.sample(17, generator=seed(5)) if name == "sine_spe" else None  # type: ignore[union-attr, operator]
    mask = torch.arange(17).expand(2, -1) < torch.tensor([[12], [17]])
    got = made(x, key_mask=mask, codes=codes)
    torch.testing.assert_close(got[0, :12], made(x[:1, :12], codes=codes)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(got[1], made(x[1:], codes=codes)[0], rtol=0, atol=1e-5)


def test_copies_and_files_of_a_layer() -> None:
    """The projection is saved with the layer, so that what was trained against it is loaded with it."""
    made, other = layer(), layer()
    assert made.features is not None and other.features is not None
    other.features.redraw(seed(8))  # type: ignore[operator]
    x = torch.randn(2, 9, 12)
    assert "features.weight" in made.state_dict() and not torch.equal(made(x), other(x))
    other.load_state_dict(made.state_dict())
    for same in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(same(x), made(x))
    assert torch.equal(made(x), made(x)), "nothing is drawn in a forward pass"
    moved = copy.deepcopy(made).double()
    torch.testing.assert_close(moved(x.double()).float(), made(x), rtol=0, atol=1e-5)
    half = copy.deepcopy(made).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16 and (half.float() - made(x)).abs().max() < 0.1


def test_only_q_and_k_meet_the_features_and_all_learn() -> None:
    made = layer(feature_count=5)
    assert made.features is not None and made.features.width == 5
    out = made(torch.randn(2, 9, 12))
    out.square().sum().backward()
    assert made.encoding is not None
    for name, p in made.named_parameters():
        if name != "k.bias" and not name.endswith("k.bias"):
            assert p.grad is not None and p.grad.any(), name


def test_a_network_learns_and_is_deterministic() -> None:
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        net = rp.models.Transformer(
            vocabulary=7, dim=16, depth=2, heads=2, encoding="learned_bias", encoding_options={"max_lag": 8},
            mixer="kernelized", features="relu", causal=True,
        )  # fmt: skip
        x = torch.arange(40).remainder(5).expand(2, -1)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(15):
            loss = torch.nn.functional.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1] < 1.0


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("mixer is one of softmax, kernelized, pointwise, got 'linear'", {"mixer": "linear"}),
        ("dropout has no meaning", {"mixer": "kernelized", "dropout": 0.1}),
        ("window has no meaning", {"mixer": "kernelized", "window": 4}),
        ("scale has no meaning", {"mixer": "kernelized", "scale": 1.0}),
        ("features is one of prf", {"mixer": "kernelized", "features": "softmax"}),
        ("leave the count out", {"mixer": "kernelized", "features": "relu", "feature_count": 3}),
        ("leave normalize out, or agree",
         {"mixer": "kernelized", "features": features.PRF(6, 4), "normalize": False}),
    ],
)  # fmt: skip
def test_bad_options_of_a_layer(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        rp.SelfAttention(12, 2, "alibi", causal=True, **options)


def test_encodings_without_a_meaning_are_refused() -> None:
    for name, options in (("fire", {}), ("shaw", {"max_lag": 4}), ("fox", {})):
        with pytest.raises(TypeError, match="no meaning in kernelized attention; it works in softmax"):
            rp.SelfAttention(12, 2, name, mixer="kernelized", causal=True, encoding_options=options)


# ---- memory


@pytest.fixture
def one_thread() -> Any:
    """Allocations of the threads that share the FFT are not seen by a dispatch mode of this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def largest(n: int, count: int, kernel: str, monkeypatch: pytest.MonkeyPatch, causal: bool, **options: Any) -> Largest:
    for name, value in (("CELL", 64), ("GRAIN", 64), ("MADE", 2**13), ("ELEMENTS", 2**14)):  # small beside n
        monkeypatch.setattr(split, name, value)
    split._scratch.clear()
    encoding = rp.encodings.LearnedBias(1, n if kernel != "band" else 16)
    f = features.PRF(8, count, generator=seed(1))
    q, k, v = (torch.randn(1, 1, n, 8).requires_grad_() for _ in range(3))
    with Largest() as seen:
        rp.linear_attention(q, k, v, encoding, features=f, causal=causal, kernel=kernel, **options).sum().backward()
    return seen


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", ["tiled", "band", "split"])
def test_memory(kernel: str, causal: bool, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither n x n nor n x features x dim_v, and no more for many features than for few."""
    n = 2048 if kernel == "tiled" else 1024
    few, many = (largest(n, count, kernel, monkeypatch, causal) for count in (16, 128))
    assert many.bytes < n * n // 2, many.operation
    assert many.bytes < n * 128 * 8 * 4 // 4, many.operation
    if kernel != "tiled":
        assert few.bytes < n * 16 * 9 * 4, few.operation
    half = largest(n // 2, 128, kernel, monkeypatch, causal)
    assert many.bytes <= 2.1 * half.bytes, (half.operation, many.operation)


@pytest.mark.parametrize("kernel", ["band", "split"])
def test_memory_does_not_depend_on_the_number_of_features(
    kernel: str, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (largest(1024, count, kernel, monkeypatch, True) for count in (16, 256))
    block = 256 * 256 * 4  # features of one block of rows, or one running sum
    assert many.bytes <= max(1.1 * few.bytes, block), (few.operation, many.operation)


def test_the_detector_works(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert largest(512, 16, "dense", monkeypatch, False).bytes >= 512 * 512 * 4


# ---- threads


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "CELL", 64)
    q, k, v = inputs(2, 2, 300, grad=True)
    encoding = drawn(rp.encodings.LearnedBias(2, 300)).double()
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = []
            for causal in (False, True):
                out = rp.linear_attention(q, k, v, encoding, features=made("prf"), causal=causal, kernel="split")
                found += [out, *torch.autograd.grad(out.square().sum(), [q, k, v, encoding.table])]
            runs.append(found)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# ---- what is said of a call


def sizes(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = inputs(1, HEADS, 1, dtype=dtype)
    return tuple(x.expand(1, HEADS, n, 4) for x in (q, k, v))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("n", "encoding", "causal", "kernel", "reason"),
    [
        (100, lambda: rp.encodings.LearnedBias(HEADS, 3), True, "dense", "100 x 100 scores"),
        (3000, lambda: rp.encodings.LearnedBias(HEADS, 3), True, "band", "beyond 3 tokens the weights are constant"),
        (3000, lambda: None, True, "band", "no FFT"),
        (3000, lambda: rp.encodings.RoPE(6), True, "band", "no FFT"),
        (9000, lambda: rp.encodings.LearnedBias(HEADS, 9000), False, "split", "free at every lag"),
        (700, lambda: rp.encodings.LearnedBias(HEADS, 700), False, "tiled", "direct tiles are quicker"),
    ],
)  # fmt: skip
def test_explain(n: int, encoding: Any, causal: bool, kernel: str, reason: str) -> None:
    q, k, v = sizes(n)
    f = made("prf").float()
    found = rp.explain(q, k, v, encoding(), features=f, causal=causal)
    assert found.kernel == kernel and reason in found.reason
    assert found.memory.startswith("O(n_q n_k)" if kernel == "dense" else "O(n)")
    assert ("as wide as the reach, 3 tokens" in found.memory) == ("beyond 3 tokens" in reason)
    assert "kernel: " + kernel in str(found)
    if kernel != "dense":
        assert any("differentiating the gradient again raises" in note for note in found.notes)


def test_explain_says_what_linear_attention_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that is named is the one that runs, asked for or picked; it raises what the call would raise."""
    ran: list[str] = []
    for name in KERNELS:
        kernel = choose.KERNELS[name]
        monkeypatch.setitem(
            choose.KERNELS, name, lambda call, name=name, kernel=kernel: ran.append(name) or kernel(call)
        )
    f, encoding = made("prf"), rp.encodings.LearnedBias(HEADS, 3).double()
    for n in (20, 300):
        q, k, v = inputs(1, HEADS, n)
        for asked in ("auto", *KERNELS):
            found = rp.explain(q, k, v, encoding, features=f, kernel=asked)
            assert not ran
            rp.linear_attention(q, k, v, encoding, features=f, kernel=asked)
            assert ran == [found.kernel] and (asked in ("auto", found.kernel))
            ran.clear()
    q, k, v = inputs(1, HEADS, 5)
    for options, message in (
        ({"kernel": "fft"}, "kernel is auto, dense, tiled"),
        ({"temperature": 0}, "temperature is a finite number"),
        ({"encoding": rp.encodings.LearnedBias(HEADS, 9, beyond="error"), "kernel": "band"}, "declares no tail"),
    ):
        with pytest.raises(ValueError, match=message):
            rp.explain(q, k, v, **({"features": f} | options))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no meaning in kernelized attention"):
        rp.explain(q, k, v, rp.encodings.Shaw(4, 3), features=f)
    with pytest.raises(TypeError, match=r"features is one of relpos\.features"):
        rp.explain(q, k, v, features=None)


def test_explain_notes() -> None:
    q, k, v = (x.bfloat16() for x in inputs(1, HEADS, 400, kv_heads=1))
    f = made("prf").float()
    steep = rp.encodings.LearnedBias(HEADS, 3)
    torch.nn.init.constant_(steep.table, 40.0)
    steep.table.data[:, 0] = -40.0
    notes = " / ".join(rp.explain(q, k, v, steep, features=f).notes)
    assert "bfloat16 inputs are computed in float32" in notes and "1 key heads are expanded to 2" in notes
    assert "80 nats" in notes and "float64" in notes
    found = rp.explain(q, k, v, steep, features=f, prefix=2)
    assert any("2 leading tokens" in note for note in found.notes)
    rope = rp.explain(q, k, v, rp.encodings.RoPE(6), features=f)
    assert any("denominator" in note for note in rope.notes)
    trf = rp.explain(q, k, v, features=features.TRF(4, 3))
    assert any("negative" in note for note in trf.notes)


def test_explain_draws_nothing() -> None:
    q, k, v = inputs(1, HEADS, 5)
    encoding = rp.encodings.SineSPE(HEADS, 4, sines=2, realizations=6).double()
    before, g = torch.get_rng_state(), seed(3)
    rp.explain(q, k, v, encoding, features=made("prf", 6))
    state = g.get_state()
    rp.explain(q, k, v, encoding, features=made("prf", 6), generator=g)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(state, g.get_state())
