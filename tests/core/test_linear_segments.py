"""Packed documents in linear attention: each goes through the quick kernels by itself, and all equal the dense form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.kernels.linear import choose
from tests.core.naive import ToyBias
from tests.core.test_memory import Largest

HEADS, DIM = 2, 4


def packed(*lengths: int) -> Tensor:
    return torch.cat([torch.full((length,), 7 * name) for name, length in enumerate(lengths)])


def inputs(n: int, n_q: int | None = None, batch: int = 2) -> list[Tensor]:
    sizes = (n if n_q is None else n_q, n, n)
    return [torch.randn(batch, HEADS, size, DIM, dtype=torch.float64, requires_grad=True) for size in sizes]


def phi() -> rp.features.PRF:
    return rp.features.PRF(DIM, 6).double()


ENCODINGS = {
    "none": lambda: None,
    "band": lambda: rp.encodings.LearnedBias(HEADS, 5),
    "geometric": lambda: rp.encodings.ALiBi(HEADS, symmetric=True),
    "free": lambda: ToyBias(HEADS),
    "rope": lambda: rp.encodings.RoPE(6),
}
PACKS = {
    "even": torch.stack([packed(100, 100, 100), packed(100, 100, 100)]),
    "uneven": torch.stack([packed(1, 150, 2, 147), packed(298, 2)]),
    "many": torch.stack([packed(*[10] * 30), packed(*[3] * 100)]),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("name", ENCODINGS)
def test_equals_dense_with_gradients(name: str, pack: str, causal: bool) -> None:
    encoding = ENCODINGS[name]()
    encoding = encoding if encoding is None else encoding.double()
    tensors, features, segments = inputs(300), phi(), PACKS[pack]
    leaves = [*tensors, *(p for p in (encoding.parameters() if encoding is not None else ()) if p.requires_grad)]
    weight = torch.randn(2, HEADS, 300, DIM, dtype=torch.float64)

    def found(kernel: str) -> list[Tensor]:
        out = rp.linear_attention(
            *tensors, encoding, features=features, causal=causal, segments=segments, kernel=kernel
        )
        return [out, *torch.autograd.grad((out * weight).sum(), leaves)]

    for got, want in zip(found("auto"), found("dense"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kernel", ["band", "split"])
def test_each_document_takes_the_kernel_that_was_asked_for(kernel: str) -> None:
    encoding = (rp.encodings.LearnedBias(HEADS, 5) if kernel == "band" else ToyBias(HEADS)).double()
    tensors, features = inputs(300, batch=1), phi()
    for causal in (False, True):
        for segments in (packed(140, 160), packed(300), packed(1, 299)):
            got, want = (
                rp.linear_attention(*tensors, encoding, features=features, causal=causal, segments=segments, kernel=k)
                for k in (kernel, "dense")
            )
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_padding_and_queries_at_the_end() -> None:
    encoding, features = rp.encodings.LearnedBias(HEADS, 5).double(), phi()
    q, k, v = inputs(300, 250)
    keys = packed(120, 130, 50)
    queries = keys[50:].clone()
    queries[-20:] = 99  # a document without any key
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[0, :60], mask[1, 200:] = False, False
    for causal in (False, True):
        got, want = (
            rp.linear_attention(
                q,
                k,
                v,
                encoding,
                features=features,
                causal=causal,
                segments=(queries, keys),
                key_mask=mask,
                kernel=kernel,
            )
            for kernel in ("auto", "dense")
        )
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
        assert bool((got[:, :, -20:] == 0).all())


def test_nothing_visible() -> None:
    q, k, v = inputs(300)
    hidden = torch.zeros(2, 300, dtype=torch.bool)
    out = rp.linear_attention(q, k, v, features=phi(), segments=packed(100, 200), key_mask=hidden)
    assert bool((out == 0).all())
    out.sum().backward()
    assert all(x.grad is not None and bool((x.grad == 0).all()) for x in (q, k, v))


def test_scattered_documents_are_served_too() -> None:
    tensors, features, encoding = inputs(300), phi(), ToyBias(HEADS).double()
    segments = torch.arange(300) % 3
    got, want = (
        rp.linear_attention(*tensors, encoding, features=features, causal=True, segments=segments, kernel=kernel)
        for kernel in ("auto", "dense")
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_documents_on_grids_keep_their_own_cells() -> None:
    """States by token rather than by lag: two images of 13 x 13, the second one read from its end."""
    encoding, features = rp.encodings.SwinBias(HEADS, (13, 13)).double(), phi()
    cells = rp.positions.Grid.of(13, 13).values[0]
    pos = rp.positions.Grid(torch.cat([cells, cells.flip(0)]))
    tensors = inputs(338)
    got, want = (
        rp.linear_attention(
            *tensors, encoding, features=features, q_pos=pos, k_pos=pos, segments=packed(169, 169), kernel=kernel
        )
        for kernel in ("auto", "dense")
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_other_documents_have_no_influence() -> None:
    q, k, v = (x.detach() for x in inputs(400))
    encoding, features = ToyBias(HEADS).double(), phi()
    segments = packed(150, 100, 150)
    for causal in (False, True):
        want = rp.linear_attention(q, k, v, encoding, features=features, causal=causal, segments=segments)
        other = v.clone()
        other[:, :, 150:250] = torch.nan
        got = rp.linear_attention(q, k, other, encoding, features=features, causal=causal, segments=segments)
        assert torch.equal(got[:, :, :150], want[:, :, :150]) and torch.equal(got[:, :, 250:], want[:, :, 250:])
        assert bool(got[:, :, 249].isnan().all())


def test_direct_tiles_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two long documents go through the band, and nothing as large as one of them squared is made."""

    def refused(call: object) -> object:
        raise AssertionError("direct tiles over packed documents")

    monkeypatch.setitem(choose.KERNELS, "tiled", refused)
    n = 8192
    q, k, v = (torch.randn(1, HEADS, n, DIM, requires_grad=True) for _ in range(3))
    encoding, features = rp.encodings.LearnedBias(HEADS, 16), rp.features.PRF(DIM, 6)
    with Largest() as largest:
        out = rp.linear_attention(q, k, v, encoding, features=features, causal=True, segments=packed(4000, 4192))
        out.sum().backward()
    assert largest.bytes < 4000 * 4000, largest.operation
