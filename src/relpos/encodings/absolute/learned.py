"""A learned vector for every position, added to the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute, positive
from relpos.positions import Index, Positions, as_positions, is_traced


class Learned(Absolute):
    """Adds table[p] to the input at position p = 0..max_length-1: one learned vector a position.

    table  (max_length, model_dim), N(0, 0.02)
    A position outside the table raises ValueError: there is nothing there to add. Longer sequences need a longer table
    before training, positions that restart (segments), or a relative encoding.
    Source: Gehring et al. 2017 (ConvS2S), section 3.1; initialised as in GPT-2 and BERT.
    """

    takes = (Index,)
    reference = """@inproceedings{gehring2017convolutional,
  title={Convolutional Sequence to Sequence Learning},
  author={Gehring, Jonas and Auli, Michael and Grangier, David and Yarats, Denis and Dauphin, Yann N.},
  booktitle={ICML}, year={2017}}"""

    def __init__(self, model_dim: int, max_length: int) -> None:
        super().__init__()
        self.model_dim, self.max_length = positive("model_dim", model_dim), positive("max_length", max_length)
        self.table = nn.Parameter(torch.randn(max_length, model_dim) * 0.02)

    def add(self, x: Tensor, pos: Positions | None = None) -> Tensor:
        """x (batch, n, model_dim) plus the vector of each position, (n,) or (batch, n); None means 0..n-1."""
        if x.shape[-1] != self.model_dim:
            raise ValueError(f"Learned was built for model_dim={self.model_dim}, got x with {x.shape[-1]} channels")
        values = self._index(x, None if pos is None else as_positions(pos, x.shape[-2], 0, "pos", x.device))
        if not is_traced() and values.numel() and (int(values.amin()) < 0 or int(values.amax()) >= self.max_length):
            raise ValueError(
                f"positions {int(values.amin())}..{int(values.amax())} reach outside the learned table 0.."
                f"{self.max_length - 1}; build it with a larger max_length before training, shorten the sequence, or "
                "take a relative encoding such as rope, alibi or t5"
            )
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.table.dtype), torch.float32)
        return (x.to(dtype) + self.table[values].to(dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"model_dim={self.model_dim}, max_length={self.max_length}"
