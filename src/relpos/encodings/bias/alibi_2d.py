"""ALiBi on a grid: a penalty linear in the distance of two cells, with a fixed slope a head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relpos.encodings.base import check_heads
from relpos.encodings.bias.alibi import FixedBias, Rule, alibi_slopes
from relpos.encodings.window import vectors
from relpos.positions import Grid

Metric = Literal["euclidean", "manhattan"]


class ALiBi2D(FixedBias):
    """Adds -m_h D to the score of head h, where D is the distance of the query's and the key's cell of a grid.

        euclidean:  D = sqrt((y_j - y_i)^2 + (x_j - x_i)^2)          manhattan:  D = |y_j - y_i| + |x_j - x_i|

    slopes  (heads,) buffer, float64, those of ALiBi: m_h = 2^(-8h/heads) for a power of two; see `alibi_slopes`
    metric  "euclidean", as in the source; "manhattan" is ALiBi along each axis, added up
    Added after the scale; not learned. Symmetric: no direction is favoured. Positions are `Grid`s of two axes, of any
    size; a larger image has larger distances, nothing is resized. ValueError for lags that have not two axes.
    Source: Fuller et al. 2023, "CROMA", section 3 (2D-ALiBi), with cells one patch apart and the slopes of Press et
    al. 2022, as in their released code, which builds square grids only.
    """

    takes = (Grid,)
    extrapolates = True
    reference = """@inproceedings{fuller2023croma,
  title={CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked Autoencoders},
  author={Fuller, Anthony and Millard, Koreen and Green, James R.},
  booktitle={NeurIPS}, year={2023}}"""

    slopes: Tensor

    def __init__(self, heads: int, metric: Metric = "euclidean", slopes: Rule = "author") -> None:
        super().__init__()
        if metric not in ("euclidean", "manhattan"):
            raise ValueError(f'metric is "euclidean" or "manhattan", got {metric!r}')
        self.heads, self.metric = check_heads(heads), metric
        self.register_buffer("slopes", alibi_slopes(heads, slopes))

    def at(self, lag: Tensor) -> Tensor:
        exact = vectors(lag, 2, "ALiBi2D").to(torch.float64)
        distance = exact.abs().sum(-1) if self.metric == "manhattan" else exact.square().sum(-1).sqrt()
        return -self.slopes.view(-1, *[1] * distance.dim()) * distance

    def extra_repr(self) -> str:
        return f"heads={self.heads}, metric={self.metric!r}"
