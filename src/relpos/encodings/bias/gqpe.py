"""GQPE of PosMLP: a learned quadratic form of the lag, a bump of any place, width and tilt for each group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, check_heads
from relpos.encodings.reference import need
from relpos.encodings.window import Sides, kind_of, said, sides_of, vectors
from relpos.positions import Grid, Index

Kind = Literal["full", "diagonal", "isotropic"]


class GQPE(Bias):
    """score(r, g) = r^T Q_g c_g - r^T Q_g r / 2 of the lag r = key - query, in rows and columns: up to a constant,
    -(r - c)^T Q (r - c) / 2. In a gate (`rp.PoSGU`) the weights are its softmax over the window; in attention it is
    added to the score, a group a head.

    centers   (groups, axes), cells; N(0, 0.01): where each group looks
    spreads   kind "full": A (groups, axes, axes), "diagonal": (groups, axes), "isotropic": (groups,); 1, or the unit
              matrix, plus N(0, 0.01): the noise is all that tells groups apart at first
    symmetric True: Q = A A^T (or squares), never negative: a bump. False: Q = A itself, which may turn it into a bowl;
              of a full A that is not symmetric the linear term is A c and the quadratic one r^T A r, as in the released
              code, which is no square of (r - c)
    softmax   False: a gate takes the scores themselves as weights
    as_released   with kind "isotropic": the quadratic term is |r|^2 / 2 whatever the spread, as in the released code,
              where the width is one token for ever; here by default the spread multiplies it too
    window    (h, w) in cells, an integer for a square, or (w,) for a line of tokens. The score is a function of the
              lag alone: the window fixes the number of axes, `resize` changes nothing else

    A diagonal or isotropic form is a sum over the axes, so that a gate costs O(h + w) a token. The released code counts
    columns as key - query and rows as query - key, and names columns first: `from_reference` turns both round.
    Source: Wang et al. 2022 (PosMLP), formulas of its released code.
    """

    takes = (Grid, Index)
    extrapolates = True
    reference = """@inproceedings{wang2022posmlp,
  title={Parameterization of Cross-Token Relations with Relative Positional Encoding for Vision {MLP}},
  author={Wang, Zhicai and Hao, Yanbin and Gao, Xingyu and Zhang, Hao and Wang, Shuo and Mu, Tingting and He, Xiangnan},
  booktitle={ACM Multimedia}, year={2022}}"""

    def __init__(
        self,
        groups: int,
        window: Sides,
        symmetric: bool = True,
        kind: Kind = "full",
        softmax: bool = True,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("full", "diagonal", "isotropic"):
            raise ValueError(f"kind is full, diagonal or isotropic, got {kind!r}")
        if as_released and kind != "isotropic":
            raise ValueError(f'as_released has a meaning for kind "isotropic" alone, got kind={kind!r}')
        self.heads = self.groups = check_heads(groups)
        self.window = sides_of("window", window)
        self.takes = kind_of(self.window)  # type: ignore[misc, assignment]
        self.symmetric, self.kind, self.normalized, self.as_released = symmetric, kind, softmax, as_released
        axes = len(self.window)
        shapes = {"full": (groups, axes, axes), "diagonal": (groups, axes), "isotropic": (groups,)}
        self.centers = nn.Parameter(0.01 * torch.randn(groups, axes))
        unit = torch.eye(axes).expand(groups, axes, axes) if kind == "full" else torch.ones(shapes[kind])
        self.spreads = nn.Parameter(unit + 0.01 * torch.randn(shapes[kind]))

    @classmethod
    def from_reference(
        cls, arrays: Mapping[str, Any], window: Sides | None = None, symmetric: bool = True, generalized: bool = True
    ) -> GQPE:
        """From released weights: attention_centers (or centers) and attention_spreads (or spreads), columns first and
        rows upside down.

        window: default the square that has as many cells as there are token biases (token_proj_n_bias, or tokbias).
        The released one-dimensional version never squares its spread, and without `generalized` it has no centre; the
        two-dimensional one without it is isotropic."""
        centers = need(arrays, "attention_centers", "centers")
        spreads = need(arrays, "attention_spreads", "spreads")
        if window is None:
            cells = need(arrays, "token_proj_n_bias", "tokbias").numel()
            window = math.isqrt(cells)
            if window**2 != cells:
                raise ValueError(f"{cells} token biases belong to no square window; give window")
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=centers.dtype)  # (column, -row) to (row, column)
        if len(sides_of("window", window)) == 1:
            own = cls(len(centers), window, symmetric=False)
            state = {"centers": centers if generalized else torch.zeros_like(centers), "spreads": spreads[..., None]}
        elif spreads.dim() == 1:
            own = cls(len(centers), window, kind="isotropic", as_released=True)
            state = {"centers": centers @ turn.T, "spreads": spreads}
        else:
            own = cls(len(centers), window, symmetric)
            state = {"centers": centers @ turn.T, "spreads": turn @ spreads if symmetric else turn @ spreads @ turn.T}
        own = own.to(centers.dtype)
        own.load_state_dict(state)
        return own

    def forms(self) -> tuple[Tensor, Tensor]:
        """linear (groups, axes) and quadratic (groups, axes, axes): the score is r . linear - r^T quadratic r / 2."""
        axes = len(self.window)
        if self.kind == "full":
            square = self.spreads @ self.spreads.mT if self.symmetric else self.spreads
            return (square @ self.centers.unsqueeze(-1)).squeeze(-1), square
        squares = self.spreads.square() if self.symmetric else self.spreads
        squares = squares.unsqueeze(-1).expand(-1, axes) if self.kind == "isotropic" else squares
        own = torch.ones_like(squares) if self.as_released else squares
        return squares * self.centers, torch.diag_embed(own)

    def at(self, lag: Tensor) -> Tensor:
        r = vectors(lag, len(self.window), "GQPE")
        linear, square = self.forms()
        dtype = torch.promote_types(linear.dtype, torch.float32)
        r, linear, square = r.to(dtype), linear.to(dtype), square.to(dtype)
        flat = r.reshape(-1, r.shape[-1])
        scores = linear @ flat.T - ((flat @ square) * flat).sum(-1) / 2
        return scores.reshape(self.groups, *r.shape[:-1])

    def per_axis(self, sides: tuple[int, ...]) -> tuple[Tensor, ...] | None:
        if self.kind == "full" and len(self.window) > 1:
            return None
        linear, square = self.forms()
        lags = [torch.arange(1 - side, side, device=linear.device).to(linear.dtype) for side in sides]
        return tuple(linear[:, a, None] * lag - square[:, a, a, None] * lag.square() / 2 for a, lag in enumerate(lags))

    def resize(self, window: Sides) -> GQPE:
        """A new GQPE for another window: the same function of the lag, nothing is interpolated."""
        sides = sides_of("window", window, axes=len(self.window))
        other = GQPE(self.groups, sides, self.symmetric, self.kind, self.normalized, self.as_released)
        other = other.to(self.centers)
        other.load_state_dict(self.state_dict())
        return other

    def extra_repr(self) -> str:
        return f"groups={self.groups}, window={said(self.window)}, kind={self.kind}, symmetric={self.symmetric}"
