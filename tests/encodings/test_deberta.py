from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos.positions import Index
from tests.encodings.case import EncodingCase
from tests.encodings.tiles import SHAPES, check_tiles


def bucket(d: int, span: int, max_lag: int | None, rule: str) -> int:
    """One lag (query minus key), by the formula."""
    if max_lag is None:
        return d
    if rule == "microsoft":
        d = min(max(d, 1 - max_lag), max_lag - 1)
    mid = span // 2
    if abs(d) <= mid:
        return d
    share = math.log(abs(d) / mid) / math.log((max_lag - 1) / mid) * (mid - 1)
    return int(math.copysign(math.ceil(round(share, 9)) + mid, d))


def delta(d: int, encoding: Any) -> int:
    row = bucket(d, encoding.span, encoding.max_lag, encoding.rule) + encoding.span
    return min(max(row, 0), 2 * encoding.span - 1)


class DeBERTaCase(EncodingCase):
    name = "deberta"
    options_of: dict[str, Any] = {}

    def make(self) -> Any:
        encoding = rp.encodings.DeBERTa(self.heads, self.dim, **{"span": 4, **self.options_of})
        for p in encoding.parameters():
            torch.nn.init.normal_(p, std=0.5)
        return encoding

    def truth(self, encoding: Any, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, content: Tensor) -> Tensor:
        out = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
        for i, a in enumerate(q_pos.tolist()):
            for j, b in enumerate(k_pos.tolist()):
                row = delta(a - b, encoding)
                if "c2p" in encoding.terms:
                    out[:, :, i, j] += (q[:, :, i] * encoding.keys[:, row]).sum(-1)
                if "p2c" in encoding.terms:
                    out[:, :, i, j] += (k[:, :, j] * encoding.queries[:, row]).sum(-1)
        return out / math.sqrt(self.dim * (1 + len(encoding.terms)))

    @pytest.mark.parametrize(("n_q", "n_k"), SHAPES)
    @pytest.mark.parametrize("offset", [0, 3, -5])
    def test_tiles(self, n_q: int, n_k: int, offset: int) -> None:
        encoding = self.build()
        q, k, _, content = self.inputs(n_q, n_k)
        q_pos, k_pos = torch.arange(n_q) + offset, torch.arange(n_k)
        states = encoding.prepare(q, k, Index(q_pos), Index(k_pos))
        check_tiles(encoding, q, k, states, self.truth(encoding, q, k, q_pos, k_pos, content))

    def test_tiles_of_scattered_positions(self) -> None:
        encoding = self.build()
        q, k, _, content = self.inputs(5, 7)
        q_pos, k_pos = torch.tensor([3, 9, 9, 40, 90000]), torch.tensor([-2, 0, 1, 41, 7, 90001, 12345])
        states = encoding.prepare(q, k, Index(q_pos), Index(k_pos))
        check_tiles(encoding, q, k, states, self.truth(encoding, q, k, q_pos, k_pos, content), fast=False)

    def test_scale_counts_the_terms(self) -> None:
        encoding = self.build()
        assert encoding.score_scale(64) == pytest.approx(1 / math.sqrt(64 * (1 + len(encoding.terms))))


class TestBothTerms(DeBERTaCase):
    def test_p2c_reads_the_index_of_c2p(self) -> None:
        """The paper's position-to-content term would read the mirrored row; both released codes read this one."""
        encoding = rp.encodings.DeBERTa(1, 2, 4)
        with torch.no_grad():
            encoding.keys.zero_()
            encoding.queries.zero_()
            encoding.queries[0, 4 + 2] = 1.0  # the query two places after the key
        q = torch.ones(1, 1, 5, 2)
        states = encoding.prepare(q, q, Index.arange(5), Index.arange(5))
        term = encoding.tile(q, q, {n: s.tensor for n, s in states.items()}, None)[0, 0]
        assert term.nonzero().tolist() == [[2, 0], [3, 1], [4, 2]]


class TestContentToPosition(DeBERTaCase):
    options_of = {"terms": ("c2p",), "max_lag": 9}

    def test_left_out_term_has_no_parameter(self) -> None:
        assert self.make().queries is None
        assert set(self.make().state_dict()) == {"keys"}


class TestPositionToContent(DeBERTaCase):
    options_of = {"terms": ("p2c",), "max_lag": 20, "span": 8, "rule": "microsoft"}


@pytest.mark.parametrize("rule", ["hf", "microsoft"])
@pytest.mark.parametrize(("span", "max_lag"), [(256, 512), (8, 32), (32, 128), (2, 9), (7, 20), (5, None)])
def test_buckets(rule: Any, span: int, max_lag: int | None) -> None:
    encoding = rp.encodings.DeBERTa(1, 2, span, max_lag, rule=rule)
    lags = torch.arange(-1100, 1101)
    assert encoding.delta(lags).tolist() == [delta(d, encoding) for d in lags.tolist()]


def test_rules_differ_on_the_far_left_alone() -> None:
    lags = torch.arange(-1100, 1101)
    hf, microsoft = (rp.encodings.DeBERTa(1, 2, 256, 512, rule=rule).delta(lags) for rule in ("hf", "microsoft"))
    assert lags[hf != microsoft].tolist() == list(range(-1100, -511))
    assert set(hf[:500].tolist()) == {0} and set(microsoft[:500].tolist()) == {1}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("terms", [("c2p",), ("p2c",), ("c2p", "p2c")])
def test_from_reference_projects_the_shared_table(share: bool, terms: tuple[str, ...]) -> None:
    """Heads are contiguous rows of a projection; each term has its own projection unless it shares the content's."""
    heads, dim, span, model = 2, 3, 4, 5
    rng = np.random.default_rng(0)
    names = ["query_proj", "key_proj"] + ([] if share else [f"pos_{t}" for t in ("query_proj", "key_proj")])
    arrays = {"E": rng.normal(size=(2 * span, model))}
    for name in names:
        arrays[f"sd_{name}.weight"] = rng.normal(size=(heads * dim, model))
        arrays[f"sd_{name}.bias"] = rng.normal(size=heads * dim)
    encoding = rp.encodings.DeBERTa.from_reference(arrays, heads, max_lag=20, terms=terms)
    for parameter, term, name in ((encoding.keys, "c2p", "key_proj"), (encoding.queries, "p2c", "query_proj")):
        assert (parameter is not None) is (term in terms)
        if parameter is not None:
            source = name if share else f"pos_{name}"
            for h in range(heads):
                rows = slice(h * dim, (h + 1) * dim)
                want = arrays["E"] @ arrays[f"sd_{source}.weight"][rows].T + arrays[f"sd_{source}.bias"][rows]
                np.testing.assert_allclose(parameter[h].detach().numpy(), want, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": ()}, "terms is"),
        ({"terms": ("c2p", "c2p")}, "terms is"),
        ({"terms": ("p2p",)}, "p2p"),
        ({"rule": "paper"}, "rule is .* got 'paper'"),
        ({"max_lag": 3}, "logarithmic buckets need"),
        ({"span": 0}, "span is a positive integer"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rp.encodings.DeBERTa(2, 4, **{"span": 4, **options})
