"""Tokens that hold NaN or infinity change no row of softmax attention that does not see them, nor its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.kernels import choose, hankel, mask, tiles
from relpos.kernels.call import Refusal
from relpos.mixers import request
from tests.core.naive import ToyBias, ToyContent, ToyRow, ToyTurn, gradients, inputs, visible

NAN, INF = float("nan"), float("inf")
N, HEADS, DIM, WIDTH = 13, 2, 4, 6
KERNELS = ["dense", "hankel", "generic", "fused"]


def content() -> Tensor:
    return torch.randn(2, N, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


FORMS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "bias": lambda: ToyBias(HEADS),
    "frozen bias": lambda: rp.encodings.ALiBi(HEADS, symmetric=True),
    "row": lambda: ToyRow(HEADS),
    "values": lambda: rp.encodings.Shaw(DIM, 3),
    "input": lambda: rp.encodings.LowRankLogits(HEADS, WIDTH, rank=3, extent=5),
    "turn": lambda: ToyTurn(DIM),
    "codes": lambda: rp.encodings.SineSPE(HEADS, DIM, sines=2, realizations=8),
}


def made(form: str) -> Any:
    torch.manual_seed(3)
    encoding = FORMS[form]()
    return None if encoding is None else encoding.double()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hankel, tiles):
        monkeypatch.setattr(module, "QUERIES", 4)
        monkeypatch.setattr(module, "KEYS", 3)
    monkeypatch.setattr(hankel, "BLOCK", 4)
    monkeypatch.setattr(mask, "MARKED", 3 * N)


def attend(x: Sequence[Tensor], encoding: Any, kernel: str, **options: Any) -> Tensor | None:
    """q, k, v and the layer's input to the output, None where the kernel refuses."""
    given = {"generator": torch.Generator().manual_seed(9)} | options
    try:
        return rp.attention(*x[:3], encoding, content=x[3], kernel=kernel, **given)
    except Refusal:
        assert kernel in ("fused", "hankel")
        return None


PACKED = torch.tensor([0] * 4 + [1] * 5 + [2] * 4)
MIXED = torch.tensor([[0, 1, 0, 1, 1, 2, 0, 2, 1, 1, 2, 0, 0], [3] * 8 + [1] * 5])
AFTER, AMID = torch.arange(N) >= 8, (torch.arange(N) >= 4) & (torch.arange(N) < 9)
CASES: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "causal": (AFTER, {"causal": True}),
    "causal, amid": (AMID, {"causal": True}),
    "window": (AMID, {"window": 2}),
    "causal window": (AMID, {"causal": True, "window": (2, 0)}),
    "forward window": (AMID, {"window": (0, 3)}),
    "documents": (AMID, {"segments": PACKED}),
    "causal documents": (AMID, {"segments": PACKED, "causal": True}),
    "mixed documents": (torch.arange(N) == 3, {"segments": MIXED}),
    "padding": (AFTER, {"causal": True, "key_mask": (torch.arange(N) > torch.tensor([[2], [-1]]))}),
    "padding that is poisoned": (AFTER, {"key_mask": ~AFTER.expand(2, -1)}),
    "order": (AFTER, {"causal": True, "q_order": torch.arange(N).flip(0), "k_order": torch.arange(N).flip(0)}),
    "positions": (AFTER, {"causal": True, "q_pos": 2 * torch.arange(N), "k_pos": 2 * torch.arange(N)}),
    "dropout": (AFTER, {"causal": True, "dropout": 0.3}),
    "everything": (AFTER, {}),
}


def lost(bad_q: Tensor, bad_k: Tensor, **options: Any) -> Tensor:
    """(batch, 1, n_q), pair by pair from the words of the documentation: rows that see a bad key or are bad."""
    n_q, n_k = len(bad_q), len(bad_k)
    options.pop("dropout", None)
    default = (torch.arange(n_k - n_q, n_k), torch.arange(n_k))
    pos = (options.pop("q_pos", default[0]), options.pop("k_pos", default[1]))
    seen = torch.tensor(visible(2, n_q, n_k, *pos, **options))
    return ((seen & bad_k).any(-1) | (bad_q.unsqueeze(-1) & seen).any(-1)).unsqueeze(1)


WHERE = [((0,), NAN), ((1,), -INF), ((2,), INF), ((0, 1, 2, 3), NAN)]
SHORT = ("causal", "window", "causal documents", "everything")


PAIRS = [(case, form) for case in CASES for form in FORMS if form in ("bias", "values", "turn") or case in SHORT]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("case", "form"), PAIRS)
@pytest.mark.usefixtures("small_tiles")
def test_only_rows_that_see_it_are_lost(case: str, form: str, kernel: str) -> None:
    """To the last bit, with poison in q, in k, in v, in the layer's input, or in all; and gradients likewise."""
    bad, options = CASES[case]
    none, encoding = torch.zeros_like(bad), made(form)
    clean = [*inputs(2, HEADS, N, grad=True), content().requires_grad_()]
    want = attend(clean, encoding, kernel, **options)
    if want is None:
        return
    parameters = [] if encoding is None else list(encoding.parameters())
    for where, poison in WHERE + ([((3,), NAN)] if form == "input" else []):
        rows = lost(bad if 0 in where else none, none if where == (0,) else bad, **options).expand(2, HEADS, N)
        x = [part.detach().clone() for part in clean]
        for part in where:
            x[part][..., bad, :] = poison
        x = [part.requires_grad_() for part in x]
        got = attend(x, encoding, kernel, **options)
        assert got is not None and got[rows].isnan().all()
        assert torch.equal(got[~rows], want[~rows]), (where, poison)
        found, true = (
            gradients(out.masked_fill(rows.unsqueeze(-1), 0), [*leaves, *parameters])
            for out, leaves in ((got, x), (want, clean))
        )
        for a, b in zip(found, true, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert not any(found[part][..., bad, :].any() for part in where)
        assert all(torch.isfinite(g).all() for g in gradients(got, [*x, *parameters]))  # of the lost rows too: none


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["none", "bias", "content", "turn"])
def test_a_bad_head_is_alone(form: str, kernel: str) -> None:
    """One key head of one batch row: the query heads that share it are lost, no other; and fewer queries than keys."""
    encoding = (
        None if form == "none" else {"bias": ToyBias(4), "content": ToyContent(4, DIM), "turn": ToyTurn(DIM)}[form]
    )
    encoding = None if encoding is None else encoding.double()
    q, k, v = inputs(2, 4, 6, N, kv_heads=2, dim=DIM)
    bad, good = v.clone(), (q, k, v, content())
    bad[1, 1, 10:] = NAN
    for options in ({"causal": True}, {"segments": (torch.arange(6) // 3, torch.arange(N) // 10)}):
        want, got = (attend((q, k, x, good[3]), encoding, kernel, **options) for x in (v, bad))
        if want is None or got is None:
            continue
        rows = torch.zeros(2, 4, 6, dtype=torch.bool)
        rows[1, 2:, 3:] = True  # queries 3..5 are tokens 10..12
        assert torch.equal(got[~rows], want[~rows]) and got[rows].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["t5", "alibi", "shaw", "fire", "rope", "fox", None])
def test_at_the_sizes_of_real_tiles(name: str | None, dtype: torch.dtype) -> None:
    """Packed documents and a causal future, in the kernel that auto takes."""
    n, heads, dim = 700, 2, 16
    torch.manual_seed(0)
    known = {"heads": heads, "dim": dim, "model_dim": WIDTH, "causal": True}
    encoding = None if name is None else rp.encodings._registry.fitted(name, known)
    q, k, v = inputs(1, heads, n, dim=dim, dtype=dtype)
    x = torch.randn(1, n, WIDTH)
    index = torch.arange(n)
    for bad, options in (
        (index >= 450, {}),
        ((index >= 100) & (index < 300), {"segments": index // 100}),
        (index == 200, {"window": 64}),
    ):
        poisoned = [part.masked_fill(bad.unsqueeze(-1), NAN) for part in (q, k, v, x)]
        want, got = (
            rp.attention(*part[:3], encoding, content=part[3], causal=True, **options)
            for part in ((q, k, v, x), poisoned)
        )
        rows = got.isnan().all(-1)
        assert torch.equal(rows, got.isnan().any(-1)) and rows.any() and not rows.all()
        if "segments" in options:
            assert torch.equal(rows, bad.expand_as(rows))
        tolerance = 1e-6 if name == "fox" else 0  # whose sums go on from one document to the next
        torch.testing.assert_close(got[~rows], want[~rows], rtol=0, atol=tolerance)


def test_gates_of_another_document() -> None:
    """FoX sums over all tokens: without the bad one, differences within a document are what they were."""
    encoding = rp.encodings.FoX(HEADS, WIDTH).double()
    q, k, v = inputs(2, HEADS, N)
    x, bad = content(), torch.arange(N) < 4
    for kernel in ("dense", "generic"):
        given = {"causal": True, "segments": PACKED, "kernel": kernel}
        want = rp.attention(q, k, v, encoding, content=x, **given)
        leaf = x.masked_fill(bad.unsqueeze(-1), NAN).requires_grad_()
        got = rp.attention(q, k, v, encoding, content=leaf, **given)
        assert got[:, :, :4].isnan().all()
        torch.testing.assert_close(got[:, :, 4:], want[:, :, 4:], rtol=0, atol=1e-12)
        found = gradients(got[:, :, 4:], [leaf, *encoding.parameters()])
        assert all(torch.isfinite(g).all() for g in found) and not found[0][:, bad].any() and found[1].any()


def test_a_row_without_keys_stays_zero() -> None:
    """Whatever its query holds, alone or beside a key that makes others NaN."""
    q, k, v = inputs(2, HEADS, N)
    bad = (torch.arange(N) == 5).unsqueeze(-1)
    alone = (torch.arange(N) == 5).long()
    for kernel in ("dense", "generic"):
        for values in (v, v.masked_fill(AFTER.unsqueeze(-1), NAN)):
            options = {"segments": (alone, 0 * alone), "causal": True, "kernel": kernel}
            got = rp.attention(q.masked_fill(bad, NAN), k, values, **options)
            assert torch.isfinite(got[:, :, :8]).all() and not got[:, :, 5].any() and got[:, :, 6].any()


def test_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite tokens: one run, also where scores or the sum of the output overflow; nothing random is drawn twice."""
    runs: list[int] = []

    def counted(call: Any, plain: Any = choose.KERNELS["dense"]) -> Tensor:
        runs.append(1)
        return plain(call)

    monkeypatch.setitem(choose.KERNELS, "dense", counted)
    q, k, v = inputs(1, HEADS, N)
    poisoned = v.clone()
    poisoned[:, :, 9:] = NAN
    single = v.clone()
    single[:, :, 0] = NAN
    with torch.no_grad():
        for values, causal, expected in ((v, True, 1), (poisoned, True, 2), (single, False, 1)):
            runs.clear()
            rp.attention(q, k, values, causal=causal, kernel="dense")
            assert len(runs) == expected
        runs.clear()
        with monkeypatch.context() as patch:
            patch.setattr(request, "undefined", None)  # finite in half precision, whose sum is not: no second look
            large = rp.attention(q.half(), k.half(), torch.full_like(v, 6e4).half(), causal=True, kernel="dense")
        assert len(runs) == 1 and torch.isfinite(large).all()
        over = rp.attention(1e200 * q, 1e200 * k, v, causal=True, kernel="dense")
        assert len(runs) == 2 and over.isnan().any()
    states = []
    for values in (v, poisoned):
        generator = torch.Generator().manual_seed(4)
        rp.attention(q, k, values, made("codes"), causal=True, dropout=0.2, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_encoded_rows_count_as_well() -> None:
    """A transform that leaves the range of numbers at a later token says nothing about earlier ones."""

    class Grows(ToyTurn):
        def encode_k(self, k: Tensor, k_pos: Any, scale: float = 1.0, codes: Any = None) -> Tensor:
            return k.masked_fill((k_pos.values > 8).unsqueeze(-1), INF)

    q, k, v = inputs(1, HEADS, N)
    for kernel in ("dense", "hankel", "generic", "fused"):
        got = rp.attention(q, k, v, Grows(DIM).double(), causal=True, kernel=kernel)
        want = rp.attention(q[:, :, :9], k[:, :, :9], v[:, :, :9], Grows(DIM).double(), causal=True, kernel=kernel)
        torch.testing.assert_close(got[:, :, :9], want, rtol=0, atol=1e-12)
        assert got[:, :, 9:].isnan().all()


def test_second_derivatives_of_the_dense_kernel() -> None:
    q, k, v = inputs(1, 1, 5, dim=2)
    v[:, :, 3:] = NAN

    def past(q: Tensor, k: Tensor) -> Tensor:
        return rp.attention(q, k, v, made("none"), causal=True, kernel="dense")[:, :, :3]

    assert torch.autograd.gradgradcheck(past, (q.requires_grad_(), k.requires_grad_()))


def test_under_compile_and_vmap() -> None:
    encoding = made("bias")
    q, k, v = inputs(1, HEADS, N)
    want = rp.attention(q, k, v, encoding, causal=True)
    poisoned = v.masked_fill(AFTER.unsqueeze(-1), NAN)
    traced = torch.compile(lambda v: rp.attention(q, k, v, encoding, causal=True), backend="eager")
    for values in (v, poisoned):
        torch.testing.assert_close(traced(values)[:, :, :8], want[:, :, :8], rtol=0, atol=1e-12)
    several = torch.vmap(lambda v: rp.attention(q, k, v, encoding, causal=True))
    torch.testing.assert_close(several(torch.stack([v, 2 * v]))[1], 2 * want, rtol=0, atol=1e-12)


# ---- decoding, layers and networks


@pytest.mark.parametrize("form", [*FORMS, "gates"])
@pytest.mark.parametrize("window", [None, 3])
def test_decoding(form: str, window: int | None) -> None:
    """A bad step is NaN, and so are later ones as long as they see it; in a chunk the earlier tokens are not."""
    encoding = rp.encodings.FoX(HEADS, WIDTH).double() if form == "gates" else made(form)
    q, k, v = inputs(2, HEADS, N)
    parts = (q, k, v, content())
    codes = None if form != "codes" else encoding.sample(N, generator=torch.Generator().manual_seed(2))
    bad = [part.clone() for part in parts]
    for part in bad:
        part[0, ..., 5, :] = NAN
    for cuts in ([1] * N, [3, 6, 1, 3]):
        outs = []
        for given in (parts, bad):
            stream, steps = rp.Stream(encoding, window=window, codes=codes), []
            with torch.no_grad():
                for chunk in zip(*(part.split(cuts, -2) for part in given), strict=True):
                    steps.append(stream.step(*chunk[:3], content=chunk[3]))
            outs.append(torch.cat(steps, 2))
        rows = torch.zeros(2, HEADS, N, dtype=torch.bool)
        rows[0, :, 5 : None if window is None else 6 + window] = True
        assert outs[1][rows].isnan().all()
        torch.testing.assert_close(outs[1][~rows], outs[0][~rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [None, "t5", "alibi", "fire", "shaw", "fox", "rope", "sinusoidal"])
def test_one_bad_token_in_a_network(name: str | None) -> None:
    """Logits before it are finite and the same to the bit, through a layer and through a Transformer of two."""
    torch.manual_seed(0)
    x = torch.randn(2, N, 16)
    layer = rp.SelfAttention(16, 2, name, causal=True)
    bad = x.clone()
    bad[:, 8] = NAN
    got, want = layer(bad), layer(x)
    assert torch.equal(got[:, :8], want[:, :8]) and got[:, 8:].isnan().all()

    model = rp.models.Transformer(12, 16, 2, 2, name)
    tokens = torch.randint(11, (2, N))
    tokens[:, 8] = 11
    want = model(tokens)
    with torch.no_grad():
        model.embedding.weight[11] = NAN  # tied: its own logit is NaN everywhere
    got = model(tokens)
    assert torch.equal(got[:, :8, :11], want[:, :8, :11]) and torch.isfinite(want).all()
    assert got[:, 8:].isnan().all()
