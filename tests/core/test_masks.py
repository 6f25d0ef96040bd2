"""Who sees whom: causality, windows, padding, documents, positions and orders, alone and together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos.kernels import hankel, tiles
from relpos.kernels.call import Refusal
from relpos.mixers import functional
from tests.core.naive import ToyBias, ToyContent, ToyRow, agree, gradients, inputs, naive_attention, visible

KERNELS = ["dense", "tiled", "hankel", "generic", "fused"]
INTERVAL = torch.tensor([[False, True, True, True, True, True, True], [True, True, True, True, False, False, False]])
SCATTERED = torch.tensor([[True, False, True, True, False, False, True], [False, True, False, True, False, True, True]])
NOBODY = torch.tensor([[False] * 7, [True] * 7])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hankel, "QUERIES", 4)
    monkeypatch.setattr(hankel, "KEYS", 3)
    monkeypatch.setattr(hankel, "BLOCK", 4)
    monkeypatch.setattr(tiles, "QUERIES", 4)
    monkeypatch.setattr(tiles, "KEYS", 3)


def bias(heads: int = 2) -> Any:
    torch.manual_seed(5)
    return ToyBias(heads).double()


def compare(encoding: Any, n_q: int, n_k: int, required: tuple[str, ...] = (), **options: Any) -> None:
    """Every kernel that serves equals the naive definition; the `required` ones must serve."""
    q, k, v = inputs(2, 2, n_q, n_k, grad=True)
    want = naive_attention(q, k, v, encoding, **options)
    leaves = [q, k, v, *(encoding.parameters() if encoding is not None else ())]
    for kernel in KERNELS:
        try:
            got = rp.attention(q, k, v, encoding, kernel=kernel, **options)
        except Refusal:
            assert kernel in ("fused", "hankel") and kernel not in required
            continue
        agree(got, want, leaves)


@pytest.mark.parametrize("window", [0, 1, 3, 100, (2, 0), (0, 2), (None, 1), (3, None), (None, None)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_k"), [(11, 11), (4, 11), (11, 4), (1, 9)])
def test_window(n_q: int, n_k: int, causal: bool, window: Any) -> None:
    compare(bias(), n_q, n_k, ("hankel",), causal=causal, window=window)
    compare(None, n_q, n_k, ("hankel",), causal=causal, window=window)


@pytest.mark.parametrize("mask", [INTERVAL, SCATTERED, NOBODY, torch.ones(2, 7, dtype=torch.bool)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_q", [1, 4, 7, 9])
def test_key_mask(n_q: int, causal: bool, mask: Tensor) -> None:
    required = () if mask is SCATTERED else ("hankel",)
    for options in ({}, {"window": (1, 2)}):
        compare(bias(), n_q, 7, required, causal=causal, key_mask=mask, **options)
    compare(ToyContent(2, 4).double(), n_q, 7, causal=causal, key_mask=mask)


PACKED = torch.tensor([[0, 0, 0, 5, 5, 5, 2], [1, 1, 1, 1, 1, 1, 1]])
MIXED = torch.tensor([[0, 1, 0, 1, 2, 2, 0], [3, 3, 3, 1, 1, 3, 3]])


@pytest.mark.parametrize("segments", [PACKED, PACKED[0], MIXED])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_q", [1, 5, 7])
def test_segments(n_q: int, causal: bool, segments: Tensor) -> None:
    required = () if segments is MIXED else ("hankel",)
    compare(bias(), n_q, 7, required, causal=causal, segments=segments)
    compare(bias(), n_q, 7, () if segments is MIXED else ("hankel",), segments=segments, key_mask=INTERVAL, window=2)


def test_segments_as_a_pair() -> None:
    q_segments = torch.tensor([[0, 0, 1, 1, 1, 9, 9, 9, 9], [1, 1, 1, 1, 0, 0, 0, 0, 0]])
    compare(bias(), 9, 7, ("hankel",), segments=(q_segments, PACKED))
    compare(bias(), 9, 7, segments=(q_segments, MIXED), causal=True)


POSITIONS = {
    "offset": (torch.arange(3, 10), torch.arange(7)),
    "before": (torch.arange(-20, -13), torch.arange(7)),
    "gaps": (torch.tensor([0, 1, 5, 6, 7, 30, 31]), torch.tensor([0, 2, 3, 4, 9, 29, 32])),
    "repeated": (torch.tensor([2, 2, 2, 3, 3, 4, 4]), torch.tensor([0, 0, 2, 2, 3, 4, 5])),
    "unsorted": (torch.tensor([4, 0, 6, 1, 3, 2, 5]), torch.tensor([1, 6, 0, 2, 5, 3, 4])),
    "wild": (torch.tensor([0, 1, 2, 3, 4, 5, 10**6]), torch.tensor([0, 1, 2, 3, 4, -(10**6), 6])),
    "padded": (torch.tensor([[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]),) * 2,
    "shifted rows": (torch.arange(7) + torch.tensor([[0], [40]]),) * 2,
    "unlike rows": (torch.arange(7) + torch.tensor([[0], [4]]), torch.arange(7)),
}


@pytest.mark.parametrize("name", list(POSITIONS))
@pytest.mark.parametrize("causal", [False, True])
def test_positions(causal: bool, name: str) -> None:
    q_pos, k_pos = POSITIONS[name]
    required = ("hankel",) if name in ("offset", "before", "shifted rows") else ()
    for encoding in (bias(), ToyRow(2).double(), ToyContent(2, 4).double()):
        compare(
            encoding, 7, 7, required if isinstance(encoding, ToyBias) else (), q_pos=q_pos, k_pos=k_pos, causal=causal
        )
    compare(bias(), 7, 7, required, q_pos=q_pos, k_pos=k_pos, causal=causal, window=3)
    compare(None, 7, 7, required, q_pos=q_pos, k_pos=k_pos, causal=causal)


def test_times_use_tensor_order_for_causality() -> None:
    times = torch.tensor([[0.0, 0.5, 0.5, 0.5, 7.25, 8.0, 1e3], [5.0, 5.0, 5.0, 6.0, 6.5, 7.0, 7.0]])
    for options in ({}, {"causal": True}, {"window": (2, 1)}):
        compare(bias(), 7, 7, q_pos=times, k_pos=times, **options)
    compare(bias(), 3, 7, q_pos=times[:, 4:], k_pos=times, causal=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_orders_override(rows: int) -> None:
    """Order keys decide who sees whom, positions what the encoding adds."""
    q_order = torch.tensor([[3, 1, 0, 2, 6, 5, 4], [0, 1, 2, 3, 4, 5, 6]])[:rows].squeeze(0)
    k_order = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]])[:rows].squeeze(0)
    for options in ({"causal": True}, {"window": (1, 2)}, {"causal": True, "window": 2}):
        compare(bias(), 7, 7, q_order=q_order, k_order=k_order, **options)
    compare(bias(), 7, 7, q_order=torch.arange(7) + 2, k_order=torch.arange(7), causal=True)
    grid = rp.positions.Times(torch.linspace(0, 1, 7))
    q, k, v = inputs(2, 2, 7)
    want = naive_attention(
        q, k, v, bias(), q_pos=grid.values, k_pos=grid.values, causal=True, q_order=q_order, k_order=k_order
    )
    got = rp.attention(q, k, v, bias(), q_pos=grid, k_pos=grid, causal=True, q_order=q_order, k_order=k_order)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, int, dict[str, Any]]:
    n_q, n_k = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    options: dict[str, Any] = {"causal": draw(st.booleans())}
    side = st.none() | st.integers(0, 6)
    options["window"] = draw(st.none() | st.integers(0, 6) | st.tuples(side, side))

    def ints(n: int, high: int) -> Tensor:
        rows = draw(st.lists(st.lists(st.integers(0, high), min_size=n, max_size=n), min_size=2, max_size=2))
        return torch.tensor(rows)

    if draw(st.booleans()):
        options["key_mask"] = ints(n_k, 1).bool() if draw(st.booleans()) else (ints(n_k, 4).sort(-1).values > 0)
    if draw(st.booleans()):
        pair = ints(n_q, 2), ints(n_k, 2)
        options["segments"] = pair if draw(st.booleans()) else tuple(x.sort(-1).values for x in pair)
    kind = draw(st.sampled_from(["default", "offset", "free", "sorted"]))
    if kind == "offset":
        options["q_pos"], options["k_pos"] = torch.arange(n_q) + draw(st.integers(-9, 9)), torch.arange(n_k)
    elif kind != "default":
        pair = ints(n_q, 12), ints(n_k, 12)
        options["q_pos"], options["k_pos"] = pair if kind == "free" else tuple(x.sort(-1).values for x in pair)
    if draw(st.integers(0, 4)) == 0:
        options["q_order"], options["k_order"] = ints(n_q, 8), ints(n_k, 8)
    return n_q, n_k, options


@given(calls())
@settings(max_examples=60)
def test_combinations(call: tuple[int, int, dict[str, Any]]) -> None:
    n_q, n_k, options = call
    compare(bias(), n_q, n_k, **options)


@given(calls())
@settings(max_examples=100)
def test_the_mask_itself(call: tuple[int, int, dict[str, Any]]) -> None:
    """`block` of every tile, `keys` and `rectangles` say the same as the definition, pair by pair."""
    n_q, n_k, options = call
    q, k, v = inputs(2, 1, n_q, n_k)
    mask = functional.request_of(q, k, v, None, **options).mask
    default = (torch.arange(n_k - n_q, n_k), torch.arange(n_k))
    pos = (options.pop("q_pos", default[0]), options.pop("k_pos", default[1]))
    want = torch.tensor(visible(2, n_q, n_k, *pos, **options))
    for i0, i1, j0, j1 in [(0, n_q, 0, n_k), (n_q // 2, n_q, n_k // 3, n_k), (0, 1, n_k - 1, n_k)]:
        block = mask.block(i0, i1, j0, j1, q.device)
        got = torch.ones(2, 1, i1 - i0, j1 - j0, dtype=torch.bool) if block is None else block
        assert torch.equal(got.expand(2, 1, i1 - i0, j1 - j0)[:, 0], want[:, i0:i1, j0:j1])
        first, last = mask.keys(i0, i1)
        assert not want[:, i0:i1, :first].any() and not want[:, i0:i1, last:].any()
    rectangles = mask.rectangles(2)
    if rectangles is not None:
        lag = torch.arange(n_k) - torch.arange(n_q)[:, None] - mask.offset
        ordered = (lag <= (n_k + n_q + 99 if mask.right is None else mask.right)) & (
            lag >= (-n_k - n_q - 99 if mask.left is None else -mask.left)
        )
        covered = torch.zeros(2, n_q, n_k, dtype=torch.bool)
        for r in rectangles:
            assert not covered[r.b0 : r.b1, r.i0 : r.i1].any()  # no query twice: its softmax has one row
            part = ordered[r.i0 : r.i1, r.j0 : r.j1]
            assert part.any(-1).all()  # no query without a key: the fused kernel would give NaN
            covered[r.b0 : r.b1, r.i0 : r.i1, r.j0 : r.j1] = part
        assert torch.equal(covered, want)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["none", "bias", "row", "content"])
def test_rows_without_keys_are_zero_with_zero_gradient(form: str, kernel: str) -> None:
    """Fully masked batch rows, queries before every key, a document without keys; masked keys hold NaN."""
    encoding = {"none": None, "bias": bias(), "row": ToyRow(2).double(), "content": ToyContent(2, 4).double()}[form]
    cases: list[tuple[dict[str, Any], Tensor]] = [
        ({"key_mask": NOBODY}, torch.tensor([[True] * 7, [False] * 7])),
        ({"causal": True, "q_pos": torch.arange(7) - 3, "k_pos": torch.arange(7)}, (torch.arange(7) < 3).expand(2, 7)),
        ({"segments": (torch.tensor([0, 0, 4, 4, 0, 0, 0]), torch.zeros(7, dtype=torch.int64))},
         torch.tensor([False, False, True, True, False, False, False]).expand(2, 7)),
        ({"window": (0, 0), "key_mask": SCATTERED}, ~SCATTERED),
    ]  # fmt: skip
    for options, empty in cases:
        q, k, v = inputs(2, 2, 7)
        if "key_mask" in options:
            hidden = ~options["key_mask"][:, None, :, None]
            k, v = k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        try:
            out = rp.attention(q, k, v, encoding, kernel=kernel, **options)
        except Refusal:
            continue
        assert torch.isfinite(out).all()
        assert not out.transpose(1, 2)[empty].any() and out.transpose(1, 2)[~empty].any()
        found = gradients(out, leaves + ([] if encoding is None else list(encoding.parameters())))
        assert all(torch.isfinite(g).all() for g in found)
        assert not found[0].transpose(1, 2)[empty].any()
        if "key_mask" in options:
            assert not found[1].transpose(1, 2)[~options["key_mask"]].any()
            assert not found[2].transpose(1, 2)[~options["key_mask"]].any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["none", "bias", "content"])
def test_causality_to_the_bit(form: str, kernel: str) -> None:
    """What comes later has a gradient of exactly 0 and moves no bit."""
    encoding = {"none": None, "bias": bias(), "content": ToyContent(2, 4).double()}[form]
    q, k, v = inputs(1, 2, 13, grad=True)
    try:
        out = rp.attention(q, k, v, encoding, causal=True, kernel=kernel)
    except Refusal:
        return
    for i in (0, 3, 4, 11):
        dq, dk, dv = torch.autograd.grad(out[:, :, i].sum(), [q, k, v], retain_graph=True)
        assert not dk[:, :, i + 1 :].any() and not dv[:, :, i + 1 :].any() and dv[:, :, : i + 1].all()
        assert not dq[:, :, :i].any() and not dq[:, :, i + 1 :].any()
        with torch.no_grad():
            k2, v2, q2 = k.clone(), v.clone(), q.clone()
            k2[:, :, i + 1 :], v2[:, :, i + 1 :], q2[:, :, i + 1 :] = 1e3, -1e3, 7.0
        other = rp.attention(q2, k2, v2, encoding, causal=True, kernel=kernel)
        assert torch.equal(out[:, :, : i + 1], other[:, :, : i + 1])


def test_left_padding_equals_the_short_sequence() -> None:
    q, k, v = inputs(1, 2, 9)
    want = rp.attention(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], bias(), causal=True)
    mask = torch.arange(9)[None] >= 4
    got = rp.attention(q, k, v, bias(), causal=True, key_mask=mask)
    torch.testing.assert_close(got[:, :, 4:], want, rtol=0, atol=1e-12)
    assert not got[:, :, :4].any()


def test_packing_equals_the_documents_alone() -> None:
    q, k, v = inputs(1, 2, 12)
    segments = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
    got = rp.attention(q, k, v, bias(), causal=True, segments=segments)
    for a, b in ((0, 5), (5, 8), (8, 12)):
        alone = rp.attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], bias(), causal=True)
        torch.testing.assert_close(got[:, :, a:b], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["dense", "generic"])
def test_content_of_masked_tokens_is_never_read(kernel: str) -> None:
    """FoX sums a gate over the tokens: one NaN of a padded token would reach every later one."""
    encoding: Any = rp.encoding("fox", heads=2, model_dim=6).double()
    q, k, v = inputs(2, 2, 7)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    mask = torch.arange(7)[None] >= torch.tensor([[0], [3]])
    options: dict[str, Any] = {"causal": True, "key_mask": mask, "kernel": kernel}
    clean = rp.attention(q, k, v, encoding, content=x, **options)
    poisoned = x.masked_fill(~mask.unsqueeze(-1), torch.nan)
    torch.testing.assert_close(rp.attention(q, k, v, encoding, content=poisoned, **options), clean, rtol=0, atol=1e-12)
    alone = rp.attention(q[1:, :, 3:], k[1:, :, 3:], v[1:, :, 3:], encoding, content=x[1:, 3:], causal=True)
    torch.testing.assert_close(clean[1:, :, 3:], alone, rtol=0, atol=1e-12)
    stream, out = rp.Stream(encoding, kernel=kernel), []
    for a, b in ((0, 4), (4, 5), (5, 7)):
        parts = [t[:, :, a:b] for t in (q, k, v)]
        out.append(stream.step(*parts, content=poisoned[:, a:b], key_mask=mask[:, a:b]))
    torch.testing.assert_close(torch.cat(out, 2), clean, rtol=0, atol=1e-12)
