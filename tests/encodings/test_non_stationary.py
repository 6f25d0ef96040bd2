from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos.encodings.content.non_stationary import segment_clock
from tests.encodings.case import EncodingCase
from tests.encodings.structure import few, inputs, nsrpe, song, tau


class TestNonStationary(EncodingCase):
    name = "non_stationary_rpe"
    heads, dim = 2, 2
    exact_shift = False
    level = "both"

    def make(self) -> Any:
        return rp.encodings.NonStationaryRPE(self.heads, self.heads * self.dim, self.level)  # type: ignore[arg-type]

    def positions(self, index: Tensor) -> Any:
        return few(index)

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        start = min(int(q_pos[0]), int(k_pos[0]))
        whole = few(torch.arange(start, max(int(q_pos[-1]), int(k_pos[-1])) + 1))
        return nsrpe(encoding, q, whole, int(q_pos[0]) - start, int(k_pos[0]) - start, len(q_pos), len(k_pos))


@pytest.mark.parametrize("level", ["chord", "section", "both"])
@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_ns_rpe_by_its_formula(level: Any, as_released: bool, kernel: str) -> None:
    torch.manual_seed(1)
    encoding = rp.encodings.NonStationaryRPE(2, 8, level, as_released).double()
    q, k, v = inputs(13)
    named = {"chord": torch.tensor([1, 1, 4, 4, 4, 1, 2, 2, 2, 1, 1, 1, 9]), "section": torch.arange(13) // 5 % 2}
    got = rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True, kernel=kernel)
    score = q @ k.mT / 2 + nsrpe(encoding, q, named, 0, 0, 13, 13)
    want = score.masked_fill(torch.ones(13, 13).triu(1) > 0, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_constant_labels_make_ns_rpe_a_clock() -> None:
    """One segment: the row of a query depends on the lag alone, up to what is the same for all its keys."""
    torch.manual_seed(0)
    encoding = rp.encodings.NonStationaryRPE(2, 8, "chord").double()
    q, k, _ = inputs(12)
    q, k = q[:, :, :1].expand(-1, -1, 12, -1), k[:, :, :1].expand(-1, -1, 12, -1)
    one_hot = torch.eye(12, dtype=torch.float64).expand(1, 2, 12, 12)
    named = {name: torch.zeros(12, dtype=torch.int64) for name in ("chord", "section")}
    logits = rp.attention(q, k, one_hot, encoding, q_pos=named, k_pos=named).log()
    change = logits - logits.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # against the key at lag 0
    torch.testing.assert_close(change[..., 1:, 1:], change[..., :-1, :-1], rtol=0, atol=1e-10)
    assert change.abs().max() > 0.01


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_segment_clocks(labels: list[int]) -> None:
    """0 where a segment begins, its length less one at its end, also for segments of one tick."""
    for early in (False, True):
        assert segment_clock(torch.tensor([labels]), early)[0].tolist() == tau(labels, early)


def test_segment_clocks_by_hand() -> None:
    labels = torch.tensor([[1, 1, 1, 1, 4, 4, 4, 2, 7, 7, 5]])
    assert segment_clock(labels)[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 0]
    assert segment_clock(labels, True)[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 0, 1]


def test_clock_of_queries_inside_the_keys() -> None:
    """By index positions queries may stand anywhere; without them, labels that are not the last ones tell."""
    torch.manual_seed(5)
    encoding, named = rp.encodings.NonStationaryRPE(2, 8, "both").double(), song(20)
    named["index"] = torch.arange(20)
    q, k, v = inputs(20)
    whole = rp.attention(q, k, v, encoding, q_pos=named, k_pos=named, causal=True)
    part = {level: x[4:9] for level, x in named.items()}
    got = rp.attention(q[:, :, 4:9], k, v, encoding, q_pos=part, k_pos=named, causal=True)
    torch.testing.assert_close(got, whole[:, :, 4:9], rtol=0, atol=1e-12)
    del part["index"]
    with pytest.raises(ValueError, match='give "index" positions'):
        rp.attention(q[:, :, 4:9], k, v, encoding, q_pos=part, k_pos=named)
    far = {level: x[:3] + (50 if level == "index" else 0) for level, x in named.items()}
    with pytest.raises(ValueError, match="are missing"):
        rp.attention(q[:, :, :3], k, v, encoding, q_pos=far, k_pos=named)
