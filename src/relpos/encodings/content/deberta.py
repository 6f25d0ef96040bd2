"""DeBERTa's disentangled attention: content against the lag, and the lag against content."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, check_heads, consecutive, positive
from relpos.encodings.content.skewed import (
    from_keys,
    from_keys_backward,
    from_queries,
    from_queries_backward,
    pick,
)
from relpos.encodings.network import wide
from relpos.encodings.reference import find, need
from relpos.positions import Index, Positions

Rule = Literal["hf", "microsoft"]


class DeBERTa(ContentBias):
    """Makes the score of head h s (q_i . k_j + q_i . keys_h[delta] + k_j . queries_h[delta]).

        delta = clamp(bucket(i - j) + span, 0, 2 span - 1)      one index for both terms, counted query minus key
        s = 1 / sqrt(dim (1 + number of terms))

    keys, queries   (heads, 2 span, dim), N(0, 0.02): the projected table of positions (see `from_reference`)
    terms    "c2p" has keys, "p2c" has queries; the parameter of a term left out is None
    max_lag  None: bucket(D) = D. Else logarithmic: bucket(D) = D for |D| <= mid = span // 2, beyond it
             sign(D) (ceil(ln(|D| / mid) / ln((max_lag - 1) / mid) (mid - 1)) + mid)
    rule     what D = i - j <= -max_lag gets, for an even span: "hf" (transformers) row 0, "microsoft" (the authors'
             code, which first clamps D to +-(max_lag - 1)) row 1. They agree on every other lag
    `score_scale` is s, and the terms carry the same factor themselves, so a `scale` of your own changes q.k only.
    Positions are Index. ValueError for a head width other than dim.
    Source: He et al. 2021, "DeBERTa", eq. 2 and 4, with the logarithmic buckets of its second version. The paper's
    position-to-content term reads delta(j, i); both released codes gather with i - j, and so does this.
    """

    takes = (Index,)
    extrapolates = True
    reference = """@inproceedings{he2021deberta,
  title={DeBERTa: Decoding-Enhanced BERT with Disentangled Attention},
  author={He, Pengcheng and Liu, Xiaodong and Gao, Jianfeng and Chen, Weizhu},
  booktitle={ICLR}, year={2021}}"""

    def __init__(
        self,
        heads: int,
        dim: int,
        span: int,
        max_lag: int | None = None,
        terms: Sequence[str] = ("c2p", "p2c"),
        rule: Rule = "hf",
    ) -> None:
        super().__init__()
        self.heads, self.dim, self.span = check_heads(heads), positive("dim", dim), positive("span", span)
        self.terms, self.max_lag, self.rule = tuple(terms), max_lag, rule
        if not self.terms or len(set(self.terms)) < len(self.terms) or set(self.terms) - {"c2p", "p2c"}:
            raise ValueError(f'terms is ("c2p", "p2c") or one of them, got {terms!r}')
        if rule not in ("hf", "microsoft"):
            raise ValueError(f'rule is "hf" or "microsoft", got {rule!r}')
        if max_lag is not None and (span < 2 or positive("max_lag", max_lag) - 1 <= span // 2):
            raise ValueError(
                f"logarithmic buckets need span >= 2 and max_lag > span // 2 + 1, got span={span}, max_lag={max_lag}; "
                "max_lag=None gives every lag up to span a bucket of its own"
            )
        self.keys, self.queries = (
            nn.Parameter(torch.randn(heads, 2 * span, dim) * 0.02) if term in self.terms else None
            for term in ("c2p", "p2c")
        )

    @classmethod
    def from_reference(
        cls,
        arrays: Mapping[str, Any],
        heads: int,
        max_lag: int | None = None,
        terms: Sequence[str] = ("c2p", "p2c"),
        rule: Rule = "hf",
    ) -> DeBERTa:
        """From one released layer: the table E (2 span, model_dim), or rel_embeddings.weight, and its projections.

        pos_key_proj and pos_query_proj (weight, bias) where the layer has its own, else key_proj and query_proj, shared
        with the content. A released model normalises E before it gets here; pass what its layers receive.
        """
        table = need(arrays, "E", "rel_embeddings.weight")
        projected = {}
        for name, term, source in (("keys", "c2p", "key_proj"), ("queries", "p2c", "query_proj")):
            if term in terms:
                own = source if find(arrays, f"pos_{source}.weight") is None else f"pos_{source}"
                bias, rows = find(arrays, f"{own}.bias"), table @ need(arrays, f"{own}.weight").T
                rows = rows if bias is None else rows + bias
                projected[name] = rows.view(len(rows), heads, -1).transpose(0, 1)
        dim = next(iter(projected.values())).shape[-1] if projected else 1
        made = cls(heads, dim, len(table) // 2, max_lag, terms, rule).to(table.dtype)
        made.load_state_dict(projected)
        return made

    def score_scale(self, dim: int) -> float:
        return 1 / math.sqrt(dim * (1 + len(self.terms)))

    def bucket(self, difference: Tensor) -> Tensor:
        """The bucket of integers i - j (query minus key), before the span is added."""
        if self.max_lag is None:
            return difference
        mid, top = self.span // 2, self.max_lag - 1
        clamped = difference.clamp(-top, top) if self.rule == "microsoft" else difference
        size = clamped.abs()
        exact = torch.log(size.clamp(min=mid).to(torch.float64) / mid) / math.log(top / mid) * (mid - 1)
        beyond = torch.ceil(exact - 1e-9).to(torch.int64) + mid  # an edge that is an integer stays one under rounding
        return torch.where(size <= mid, clamped, beyond * clamped.sign())

    def delta(self, difference: Tensor) -> Tensor:
        """The row of the tables for integers i - j (query minus key)."""
        return (self.bucket(difference) + self.span).clamp(0, 2 * self.span - 1)

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        self.check_positions(q_pos, k_pos)
        assert isinstance(q_pos, Index) and isinstance(k_pos, Index)
        n_q, n_k, dim = q.shape[-2], k.shape[-2], q.shape[-1]
        if dim != self.dim:
            raise ValueError(f"DeBERTa was built for heads of width dim={self.dim}, q has {dim}")
        named = {"keys": self.keys, "queries": self.queries}
        scale = self.score_scale(dim)
        tables = {name: t.to(wide(q, t)) * scale for name, t in named.items() if t is not None}
        offset = consecutive(q_pos, k_pos)
        if offset is not None and n_q and n_k:
            rows = self.delta(torch.arange(n_q - 1 + offset, offset - n_k, -1, device=q.device))
            return {name: State(table[:, rows], "lag", -2) for name, table in tables.items()}
        states = {"q_pos": State(q_pos.values, "query"), "k_pos": State(k_pos.values, "key")}
        return states | {name: State(table, "whole") for name, table in tables.items()}

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        keys, queries = states.get("keys"), states.get("queries")
        parts = []
        if "q_pos" in states:
            rows = self.delta(-Index.between(states["q_pos"], states["k_pos"]))
            if keys is not None:
                parts.append(pick(q.to(keys.dtype) @ keys.mT, rows))
            if queries is not None:
                parts.append(pick(k.to(queries.dtype) @ queries.mT, rows.mT).mT)
        else:
            if keys is not None:
                parts.append(from_queries(q.to(keys.dtype), keys))
            if queries is not None:
                parts.append(from_keys(k.to(queries.dtype), queries))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        if "q_pos" in states:
            return None
        found = {}
        if "keys" in states:
            keys = states["keys"]
            found["q"], found["keys"] = from_queries_backward(grad.to(keys.dtype), q.to(keys.dtype), keys)
        if "queries" in states:
            queries = states["queries"]
            found["k"], found["queries"] = from_keys_backward(grad.to(queries.dtype), k.to(queries.dtype), queries)
        return found

    def extra_repr(self) -> str:
        options = f"max_lag={self.max_lag}, terms={self.terms}, rule={self.rule!r}"
        return f"heads={self.heads}, dim={self.dim}, span={self.span}, {options}"
