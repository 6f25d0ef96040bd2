from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.features import ELU1
from relpos.mixers.kernel_stream import KernelStream
from tests.encodings.case import EncodingCase


class TestSameLabel(EncodingCase):
    name = "same_label"
    exact_shift = False

    def make(self) -> Any:
        return rp.encodings.SameLabel(self.heads, ("chord", "section"))

    def build(self) -> Any:
        encoding = super().build()
        with torch.no_grad():
            encoding.weight.normal_()
        return encoding

    def positions(self, index: Tensor) -> Any:
        return {"chord": index if index.is_floating_point() else index // 3 % 3, "section": index // 4}

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        queries, keys = self.positions(q_pos), self.positions(k_pos)
        out = torch.zeros(1, self.heads, len(q_pos), len(k_pos), dtype=torch.float64)
        for i in range(len(q_pos)):
            for j in range(len(k_pos)):
                for level, name in enumerate(encoding.levels):
                    out[0, :, i, j] += encoding.weight[:, level].detach() * (queries[name][i] == keys[name][j])
        return out


def made() -> tuple[Any, dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(2)
    encoding = rp.encodings.SameLabel(2, ("chord", "section")).double()
    with torch.no_grad():
        encoding.weight.normal_()
    g = torch.Generator().manual_seed(0)
    named = {"chord": torch.randint(0, 4, (2, 33), generator=g), "section": torch.arange(33) // 8}
    return encoding, named, [torch.randn(2, 2, 33, 4, generator=g, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", ["auto", "dense", "tiled"])
def test_kernelised_attention_multiplies_by_the_exponential(causal: bool, kernel: str) -> None:
    encoding, named, qkv = made()
    qkv = [x.requires_grad_() for x in qkv]
    q, k, v = qkv
    same = [(named["chord"][:, :, None] == named["chord"][:, None])[:, None]]
    same.append((named["section"][:, None] == named["section"])[None, None].expand_as(same[0]))
    factor = sum(encoding.weight[:, i].view(1, 2, 1, 1) * same[i] for i in range(2)).exp()
    features = ELU1()
    weights = features(q) @ features(k).mT * factor
    weights = weights.tril() if causal else weights
    want = weights / weights.sum(-1, keepdim=True) @ v
    got = rp.linear_attention(
        q, k, v, encoding, features=features, q_pos=named, k_pos=named, causal=causal, kernel=kernel
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    leaves = [*qkv, encoding.weight]
    for a, b in zip(torch.autograd.grad(got.square().sum(), leaves), torch.autograd.grad(want.square().sum(), leaves)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_decoding_of_kernelised_attention() -> None:
    encoding, named, (q, k, v) = made()
    named = {name: x.expand(2, -1) for name, x in named.items()}
    options: dict[str, Any] = {"features": ELU1()}
    whole = rp.linear_attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True, **options)
    stream, start = KernelStream(encoding, **options), 0
    for size in (1, 5, 1, 26):
        part = slice(start, start + size)
        chunk = {name: x[:, part] for name, x in named.items()}
        out = stream.step(q[:, :, part], k[:, :, part], v[:, :, part], position=chunk)
        torch.testing.assert_close(out, whole[:, :, part], rtol=0, atol=1e-12)
        start += size
        if start == 7:
            stream.reorder(torch.tensor([1, 0])), stream.reorder(torch.tensor([1, 0]))
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(TypeError, match="same names"):
        stream.step(q[:, :, :1], k[:, :, :1], v[:, :, :1], position={"chord": one, "section": one, "index": one + 99})


def test_what_it_is_and_is_not() -> None:
    encoding, named, (q, k, v) = made()
    agree = torch.tensor([[True, False], [True, True], [False, False]])
    want = torch.stack([encoding.weight[:, 0], encoding.weight.sum(1), torch.zeros(2).double()], -1)
    torch.testing.assert_close(encoding.at(agree), want)
    plain = rp.encodings.SameLabel(2).double()  # at the start
    torch.testing.assert_close(
        rp.attention(q, k, v, plain, q_pos=named, k_pos=named), rp.attention(q, k, v), rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="no generator"):
        encoding.lags(4, 4)
    with pytest.raises(ValueError, match="2 levels"):
        encoding.at(agree[:, :1])
    for levels in ((), ("a", "a"), (3,)):
        with pytest.raises(ValueError, match="levels are"):
            rp.encodings.SameLabel(2, levels)  # type: ignore[arg-type]
    copied = rp.encodings.SameLabel.from_reference({"weight": encoding.weight.detach().numpy()})
    assert torch.equal(copied.weight, encoding.weight)
