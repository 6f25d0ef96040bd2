"""cosFormer: a cosine of the lag as a weight, by doubling the features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relpos.encodings.base import Transform
from relpos.encodings.transform.rotation import per_token
from relpos.encodings.transform.shared import beside, wide
from relpos.positions import Index, Position, Positions, Times, is_traced


@dataclass(frozen=True, eq=False)
class CosFormerCodes:
    """The position from which queries and keys count, int64 or float64 (1,) or (batch, 1); it cancels in every lag."""

    origin: Tensor


class CosFormer(Transform):
    """Multiplies the weight of a pair by cos(pi/2 lag/M), so that near keys weigh more; M is fixed, never the length.

        phi'(q_i) = [phi(q_i) cos a_i, phi(q_i) sin a_i], likewise for k_j,   a_i = pi i / (2 M)

    max_length   M: tokens (or seconds, for Times) at which the weight has fallen to zero. Beyond it the cosine would
                 turn negative, so positions more than M after the first one raise ValueError
    Meant for kernelised attention, on features that are never negative (ReLU in the paper); twice as many features
    come out. In softmax attention it multiplies the logit, which the paper does not do. No parameters.

    The first position of each row travels in `codes`, and is 0 without: a stream makes its codes once, at its start.
    Source: Qin et al. 2022, section 3.2. Their released code sets M to the longer of the two lengths of each call, so a
    trained model changes with the length of its input and in decoding with every token; and it replaces denominators
    below 1e-6 by 1e-6. Neither is done here.
    """

    takes = (Index, Times)
    learned = False
    extrapolates = False
    reference = """@inproceedings{qin2022cosformer,
  title={cosFormer: Rethinking Softmax in Attention},
  author={Qin, Zhen and Sun, Weixuan and Deng, Hui and Li, Dongxu and Wei, Yunshen and Lv, Baohong and Yan, Junjie
    and Kong, Lingpeng and Zhong, Yiran},
  booktitle={ICLR}, year={2022}}"""

    def __init__(self, max_length: float) -> None:
        super().__init__()
        if isinstance(max_length, bool) or not isinstance(max_length, int | float) or not 0 < max_length < math.inf:
            raise ValueError(f"max_length is a positive number of tokens (or seconds), got {max_length!r}")
        self.max_length = float(max_length)

    def width_after(self, dim: int) -> int:
        return 2 * dim

    def make_codes(
        self, q_pos: Positions, k_pos: Positions, generator: torch.Generator | None = None
    ) -> CosFormerCodes | None:
        """The first position of each row, of queries and keys together."""
        self.check_positions(q_pos, k_pos)
        firsts = [
            pos.values.amin(-1, keepdim=True)
            for pos in (q_pos, k_pos)
            if isinstance(pos, Position) and pos.values.numel()
        ]
        return CosFormerCodes(torch.minimum(firsts[0], firsts[-1])) if firsts else None

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: CosFormerCodes | None = None) -> Tensor:
        return self._doubled(q, q_pos, codes)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: CosFormerCodes | None = None) -> Tensor:
        return self._doubled(k, k_pos, codes)

    def _doubled(self, x: Tensor, positions: Positions, codes: CosFormerCodes | None) -> Tensor:
        self.check_positions(positions)
        assert isinstance(positions, Position)
        steps = per_token(positions.values if codes is None else positions.values - codes.origin)
        known = steps.numel() and not is_traced()
        if known and not (float(steps.amin()) >= 0 and float(steps.amax()) <= self.max_length):
            raise ValueError(
                f"CosFormer was built for {self.max_length:g} {positions.unit} from the first position on, got "
                f"{float(steps.amin()):g}..{float(steps.amax()):g}; take a larger max_length, and codes made for the "
                "whole sequence where it does not start at 0"
            )
        angle = (steps * (math.pi / 2 / self.max_length)).unsqueeze(-1)
        angle = angle.unsqueeze(1) if angle.dim() == 3 else angle  # (batch, 1, n, 1)
        values = wide(x)
        waves = beside(torch.cat((angle.cos(), angle.sin()), -1).to(values.dtype), x)
        return torch.cat((values * waves[..., :1], values * waves[..., 1:]), -1).to(x.dtype)

    def extra_repr(self) -> str:
        return f"max_length={self.max_length:g}"
