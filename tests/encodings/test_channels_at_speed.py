"""Channels at speed: some sequences at a time, buckets by comparison, edges by a search that may miss, tracing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import relpos as rp
from relpos.encodings.pairs import steps
from relpos.encodings.pairs.cuts import Cuts, bounds_of
from relpos.encodings.pairs.encoders import Buckets, Edges, LogBuckets
from relpos.encodings.pairs.features import FEATURES
from relpos.kernels import tiles
from tests.core.naive import gradients
from tests.encodings.channels_oracle import events

RelativeChannels: Any = rp.encodings.RelativeChannels


@pytest.mark.parametrize("inject", [("bias",), ("key", "value", "bias")])
@pytest.mark.parametrize("causal", [True, False])
def test_sequences_share_a_position_or_have_their_own(causal: bool, inject: tuple[str, ...]) -> None:
    """One index for all beside times of each, padding, and more pairs than a tile holds, so that the kernel takes some
    sequences at a time: values and gradients are those of the definition, and of dropout the same weights are lost."""
    torch.manual_seed(0)
    listed = [
        {"feature": "index", "clip": 3, "inject": inject},
        {"feature": "time", "encoder": "log", "unit": 0.7, "clip": 5, "inject": inject},
        {"feature": "profile", "unit": 0.25, "clip": 3, "inject": inject},
        {"feature": "key", "clip": 9, "inject": inject},
    ]
    encoding = drawn_numbers(RelativeChannels(8, listed, 2).double())
    batch, n = 5, 37
    leaves = [torch.randn(batch, 2, n, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    rows = [events(torch.arange(n) * step + 1) for step in (1, 3, 2, 5, 4)]
    at = {name: torch.stack([row[name] for row in rows]) for name in ("time", "profile")} | {"index": torch.arange(n)}
    mask = torch.rand(batch, n) < 0.8
    found = []
    for kernel, scores in (("dense", 1), ("generic", 2 * n * n), ("generic", 4 * n * n + 1), ("generic", 2 * n * 9)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "SCORES", scores)
            g = torch.Generator().manual_seed(1)
            out = rp.attention(*leaves, encoding, q_pos=at, k_pos=at, causal=causal, key_mask=mask, kernel=kernel,
                               dropout=0.2, generator=g)  # fmt: skip
            found.append([out, *gradients(out, [*leaves, *encoding.parameters()])])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-10)


def drawn_numbers(encoding: Any) -> Any:
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.normal_(0, 0.5)
    return encoding


# ---- buckets by comparison


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_cuts_say_what_the_formula_says(data: Any) -> None:
    """On and beside every bound, below the first and beyond the last, for places and profiles too."""
    clip = data.draw(st.integers(1, 30))
    unit = data.draw(st.sampled_from([0.1, 1.0, 3.0, 700.0]))
    feature = FEATURES[data.draw(st.sampled_from(["place", "profile", "time"]))]
    edges = [0.013, 0.3, 0.33, 41.0, 900.0]
    encoder = data.draw(st.sampled_from([Buckets(clip, unit), LogBuckets(clip, unit, 0.4), Edges(edges)]))
    size = lambda raw: encoder.size(feature.finish(raw), None)  # noqa: E731
    bounds = bounds_of(size, encoder.reach)
    cuts = Cuts.of(bounds)
    finite = torch.tensor([b for b in bounds if b < math.inf], dtype=torch.float64)
    if cuts is None:
        assert len(finite) == 0 or len(set(finite.tolist())) < len(finite)
        return
    away = torch.full_like(finite, math.inf)
    drawn = torch.tensor([*data.draw(st.lists(st.floats(0, 4), max_size=9)), 0.0, 4.0], dtype=torch.float64)
    x = torch.cat([finite, finite.nextafter(away), drawn])
    got = cuts.size(x, *cuts.tensors(x.device))
    assert torch.equal(got, torch.bucketize(x, finite, right=True))
    assert torch.equal(got[len(finite) * 2 :], size(drawn))
    assert torch.equal(cuts.size(finite.nextafter(-away), *cuts.tensors(x.device)), torch.arange(len(finite)))
    assert cuts.size(-x, *cuts.tensors(x.device))[x > 0].sum() == 0


def test_bounds_too_near_for_bins_are_left_to_the_formula() -> None:
    assert Cuts.of((0.01, 0.3, 0.30001)) is None and Cuts.of((1.0, 1.0)) is None and Cuts.of(()) is None
    alone = Cuts.of((0.3, math.inf, math.inf))
    assert alone is not None and (alone.at, alone.below) == ((0.3,), (0,))


def test_edges_are_right_wherever_the_search_begins() -> None:
    """Bounds that miss by a lot, and by so little that one key in a hundred falls between: the formula is judge."""
    torch.manual_seed(0)
    encoder = LogBuckets(6, 0.5, 0.4, signed=True)
    k = (torch.rand(2, 100, dtype=torch.float64) * 20).sort(-1).values
    k[:, 40:45] = k[:, 40:41]
    bounds = torch.tensor([bounds_of(lambda x: encoder.size(x, None), 6)], dtype=torch.float64)
    want = steps.edges_of(encoder.step, k, k, bounds)
    code = encoder.code(k.unsqueeze(-2) - k.unsqueeze(-1))
    for rank in range(1, 13):
        assert torch.equal(want[..., rank - 1], (code < rank).sum(-1, dtype=torch.int32))
    for wrong in (bounds * 1.01, bounds * 0.5, torch.zeros_like(bounds), bounds.flip(-1)):
        assert torch.equal(steps.edges_of(encoder.step, k, k, wrong), want)


# ---- torch.compile


@pytest.mark.slow(4)
@pytest.mark.parametrize("inject", [("key", "value"), ("bias",)])
def test_channels_under_compile(inject: tuple[str, ...]) -> None:
    """Traced with breaks, for positions are looked at (are they finite and in order): values and gradients as
    without."""
    torch.manual_seed(0)
    listed = [c | {"inject": inject} for c in ({"feature": "time", "clip": 4}, {"feature": "place", "clip": 3})]
    encoding = drawn_numbers(RelativeChannels(8, listed, 2).double())
    at = {name: x for name, x in events(torch.arange(9)).items() if name in encoding.reads()}
    leaves = [torch.randn(2, 2, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(*qkv: Tensor) -> Tensor:
        return rp.attention(*qkv, encoding, q_pos=at, k_pos=at, causal=True, kernel="tiled")

    want, got = attend(*leaves), torch.compile(attend, backend="eager")(*leaves)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    given = [*leaves, *encoding.parameters()]
    for one, two in zip(gradients(got, given), gradients(want, given), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
