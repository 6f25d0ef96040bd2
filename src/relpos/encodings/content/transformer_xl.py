"""Transformer-XL: queries against projected sinusoids of the lag, and a learned bias of the content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, check_heads, consecutive, positive
from relpos.encodings.content.skewed import from_queries, from_queries_backward
from relpos.encodings.network import wide
from relpos.encodings.reference import need
from relpos.positions import Index, Positions


class TransformerXL(ContentBias):
    """Adds (u_h . k_j + (q_i + w_h) . W_h R_D) / sqrt(dim) to the score of head h, with D = i - j of either sign.

        R_D = [sin(D f_0), sin(D f_1), .. | cos(D f_0), ..],   f_t = 10000^(-2t / model_dim), t < model_dim / 2

    u, w            (heads, dim), N(0, 0.02): r_w_bias and r_r_bias of the released code, which shares them between
                    layers (tie them to do so)
    project.weight  (heads * dim, model_dim), rows head by head, N(0, 0.02)
    The division by sqrt(dim) is part of the term, so a `scale` of your own leaves it as it is. Positions are Index;
    with a memory D counts from the query's own place, which is what n_q < n_k does by default. Consecutive positions:
    the lags are projected once, then skewed. Few queries, or any other integers: the sinusoid of a difference is a sum
    of products, so a pair costs model_dim products. ValueError for a head width other than dim.
    Source: Dai et al. 2019, "Transformer-XL", section 3.3. Bidirectional use (D < 0): XLNet, Yang et al. 2019.
    """

    takes = (Index,)
    extrapolates = True
    reference = """@inproceedings{dai2019transformer,
  title={Transformer-XL: Attentive Language Models beyond a Fixed-Length Context},
  author={Dai, Zihang and Yang, Zhilin and Yang, Yiming and Carbonell, Jaime and Le, Quoc V. and Salakhutdinov, Ruslan},
  booktitle={ACL}, year={2019}}"""

    def __init__(self, heads: int, dim: int, model_dim: int) -> None:
        super().__init__()
        self.heads, self.dim, self.model_dim = (
            check_heads(heads),
            positive("dim", dim),
            positive("model_dim", model_dim),
        )
        if model_dim % 2:
            raise ValueError(f"model_dim is even, half of it sines and half cosines; got {model_dim}")
        self.u = nn.Parameter(torch.randn(heads, dim) * 0.02)
        self.w = nn.Parameter(torch.randn(heads, dim) * 0.02)
        self.project = nn.Linear(model_dim, heads * dim, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any]) -> TransformerXL:
        """From released weights: r_w_bias and r_r_bias (heads, dim), and one layer's r_net.weight."""
        u = need(arrays, "r_w_bias", "txl_rw", "rw")
        w = need(arrays, "r_r_bias", "txl_rr", "rr")
        weight = need(arrays, "r_net.weight")
        own = cls(u.shape[0], u.shape[1], weight.shape[1]).to(weight.dtype)
        own.load_state_dict({"u": u, "w": w, "project.weight": weight})
        return own

    def angles(self, positions: Tensor) -> Tensor:
        """Positions (..) to float64 (.., model_dim / 2)."""
        t = torch.arange(0, self.model_dim, 2, device=positions.device, dtype=torch.float64)
        return positions.to(torch.float64).unsqueeze(-1) * 10000.0 ** (-t / self.model_dim)

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        self.check_positions(q_pos, k_pos)
        assert isinstance(q_pos, Index) and isinstance(k_pos, Index)
        batch, _, n_q, dim = q.shape
        n_k, dtype = k.shape[-2], wide(q, self.u, self.project.weight)
        if dim != self.dim:
            raise ValueError(f"TransformerXL was built for heads of width dim={self.dim}, q has {dim}")
        scale, weight = self.dim**-0.5, self.project.weight.to(dtype)
        states = {"u": State(self.u.to(dtype) * scale, "whole"), "w": State(self.w.to(dtype), "whole")}
        offset = consecutive(q_pos, k_pos)
        if offset is None or batch * n_q < dim or n_k == 0:  # with few queries the projection would be the larger work
            weight = weight.view(self.heads, self.dim, self.model_dim) * scale
            origin = k_pos.values.amin() if n_k else 0
            return states | {
                "weight": State(weight, "whole"),
                "q_pos": State(q_pos.values - origin, "query"),
                "k_pos": State(k_pos.values - origin, "key"),
            }
        angles = self.angles(torch.arange(n_q - 1 + offset, offset - n_k, -1, device=q.device))
        lags = linear(torch.cat([angles.sin(), angles.cos()], -1).to(dtype), weight) * scale
        by_head = lags.view(lags.shape[0], self.heads, self.dim).transpose(0, 1)
        return states | {"lags": State(by_head, "lag", -2)}

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        dtype = states["u"].dtype
        q, k = q.to(dtype) + states["w"].unsqueeze(-2), k.to(dtype)
        columns = (k @ states["u"].unsqueeze(-1)).mT
        return columns + (from_queries(q, states["lags"]) if "lags" in states else self._separate(q, states))

    def _separate(self, q: Tensor, states: Slices) -> Tensor:
        """q_i . W R_(i - j) with the sinusoids of i on the query's side and those of j on the key's."""
        sines, cosines = (q @ states["weight"]).chunk(2, -1)
        q_angles, k_angles = (self.angles(states[name]) for name in ("q_pos", "k_pos"))
        if q_angles.dim() == 3:
            q_angles, k_angles = q_angles.unsqueeze(1), k_angles.unsqueeze(1)
        sin, cos = q_angles.sin().to(q.dtype), q_angles.cos().to(q.dtype)
        turned = torch.cat([cosines * sin - sines * cos, sines * sin + cosines * cos], -1)
        return turned @ torch.cat([k_angles.sin(), k_angles.cos()], -1).to(q.dtype).mT

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        if "lags" not in states:
            return None
        u, w, lags = states["u"], states["w"], states["lags"]
        grad, q, k = grad.to(u.dtype), q.to(u.dtype), k.to(u.dtype)
        by_query, by_lag = from_queries_backward(grad, q + w.unsqueeze(-2), lags)
        columns = grad.sum(-2).unsqueeze(-1)
        return {
            "q": by_query,
            "k": columns * u.unsqueeze(-2),
            "u": (columns * k).sum((0, 2)),
            "w": by_query.sum((0, 2)),
            "lags": by_lag,
        }

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dim={self.dim}, model_dim={self.model_dim}"
