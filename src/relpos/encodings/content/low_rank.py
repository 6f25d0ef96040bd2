"""Low-rank relative logits: a small vector of each query, read off the layer's input, against a bank of lags."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, check_heads, consecutive, positive
from relpos.encodings.content.skewed import from_queries, from_queries_backward, pick
from relpos.encodings.network import wide
from relpos.positions import Index, Positions


class LowRankLogits(ContentBias):
    """Adds r_ih . bank[:, D] to the score of head h for 0 <= D = i - j < extent, and nothing for any other lag.

        r_i = project(x_i) in (heads, rank), from the layer's input x: pass content=x to `rp.attention`

    project.weight  (heads * rank, model_dim), rows head by head, N(0, 0.02)
    bank            (rank, extent), shared by the heads, N(0, 0.02)
    tau_floor       n0, None for off: the bias of query i is multiplied by tau_i = 1 + 0.1 ln(max((i + 1) / n0, 1)).
                    The released model multiplies its queries too: hand over q * encoding.tau(q_pos)[:, None].
                    With it the term is no longer invariant under a shift of all positions
    Added after the scale, not divided by sqrt(dim). (The released model normalises q and k, scale=1/dim.) A decoder
    caches r, heads * rank numbers a token, instead of x. Positions are Index; queries are the last n_q of the n_k
    tokens of the input, ValueError where there are more of them.
    Source: the relative logits of the Inkling models, Thinking Machines 2026, as released; the key term of Shaw et al.
    2018 with a low-rank query of its own.
    """

    takes = (Index,)
    needs_content = True
    content_of = "queries"
    reads_qk = False
    extrapolates = False
    reference = """@misc{inkling2026,
  title={Inkling}, author={{Thinking Machines}}, year={2026},
  note={Relative logits of low rank, as in the released model code}}"""

    def __init__(
        self, heads: int, model_dim: int, rank: int = 16, extent: int = 1024, tau_floor: int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.model_dim = check_heads(heads), positive("model_dim", model_dim)
        self.rank, self.extent = positive("rank", rank), positive("extent", extent)
        self.tau_floor = None if tau_floor is None else positive("tau_floor", tau_floor)
        self.project = nn.Linear(model_dim, heads * rank, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)
        self.bank = nn.Parameter(torch.randn(rank, extent) * 0.02)

    def tau(self, q_pos: Tensor) -> Tensor:
        """The temperature of queries at integer positions, float64, of the same shape; 1 without tau_floor."""
        if self.tau_floor is None:
            return torch.ones(q_pos.shape, dtype=torch.float64, device=q_pos.device)
        return 1 + 0.1 * torch.log(((q_pos + 1) / torch.tensor(self.tau_floor, dtype=torch.float64)).clamp(min=1))

    def digest(self, content: Tensor) -> Tensor:
        if content.shape[-1] != self.model_dim:
            raise ValueError(f"LowRankLogits reads an input of width {self.model_dim}, content has {content.shape[-1]}")
        dtype = torch.promote_types(content.dtype, self.project.weight.dtype)
        return linear(content.to(dtype), self.project.weight.to(dtype))

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        self.check_positions(q_pos, k_pos)
        assert isinstance(q_pos, Index) and isinstance(k_pos, Index) and content is not None
        n_q, n_k = q.shape[-2], k.shape[-2]
        if n_q > n_k:
            raise ValueError(
                f"LowRankLogits reads the input of the {n_q} queries from the last rows of content, which has {n_k}; "
                "give at least as many keys as queries"
            )
        dtype = wide(q, content, self.bank)
        r = content[:, n_k - n_q :].to(dtype).reshape(-1, n_q, self.heads, self.rank).transpose(1, 2)
        if self.tau_floor is not None:
            tau = self.tau(q_pos.values).to(dtype).unsqueeze(-1)
            r = r * (tau.unsqueeze(1) if tau.dim() == 3 else tau)
        states, bank = {"r": State(r, "query", -2)}, self.bank.to(dtype).T
        offset = consecutive(q_pos, k_pos)
        if offset is not None and n_q and n_k:
            difference = torch.arange(n_q - 1 + offset, offset - n_k, -1, device=q.device)
            return states | {"lags": State(self._rows(bank, difference), "lag", -2)}
        return states | {
            "bank": State(bank, "whole"),
            "q_pos": State(q_pos.values, "query"),
            "k_pos": State(k_pos.values, "key"),
        }

    def _rows(self, bank: Tensor, difference: Tensor) -> Tensor:
        inside = (difference >= 0) & (difference < self.extent)
        return bank[difference.clamp(0, self.extent - 1)] * inside.unsqueeze(-1)

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        if "lags" in states:
            return from_queries(states["r"], states["lags"])
        difference = -Index.between(states["q_pos"], states["k_pos"])
        inside = (difference >= 0) & (difference < self.extent)
        picked = pick(states["r"] @ states["bank"].mT, difference.clamp(0, self.extent - 1))
        return picked * (inside if inside.dim() == 2 else inside.unsqueeze(1))

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        if "lags" not in states:
            return None
        r, lags = states["r"], states["lags"]
        by_query, by_lag = from_queries_backward(grad.to(r.dtype), r, lags)
        return {"r": by_query, "lags": by_lag}

    def extra_repr(self) -> str:
        sizes = f"model_dim={self.model_dim}, rank={self.rank}, extent={self.extent}"
        return f"heads={self.heads}, {sizes}, tau_floor={self.tau_floor}"
