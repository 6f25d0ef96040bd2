"""No positional encoding at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from relpos.encodings.base import Transform
from relpos.positions import Position, Positions


class NoPE(Transform):
    """Leaves queries and keys as they are; a causal model can still count through its mask.

    Source: Kazemnejad et al. 2023, "The Impact of Positional Encoding on Length Generalization in Transformers".
    """

    takes = (Position, Mapping)
    extrapolates = True
    learned = False
    reference = """@inproceedings{kazemnejad2023impact,
  title={The Impact of Positional Encoding on Length Generalization in Transformers},
  author={Kazemnejad, Amirhossein and Padhi, Inkit and Natesan Ramamurthy, Karthikeyan and Das, Payel and Reddy, Siva},
  booktitle={NeurIPS}, year={2023}}"""

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return q

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return k
