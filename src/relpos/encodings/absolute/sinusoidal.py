"""Sines and cosines of the position, added to the input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relpos.encodings.base import Absolute, positive
from relpos.positions import Index, Positions, Times, as_positions

SinusoidLayout = Literal["interleaved", "halves", "tensor2tensor"]


class Sinusoidal(Absolute):
    """Adds sines and cosines of p theta_t to the input, theta_t = base^(-t/(model_dim/2)), t = 0..model_dim/2-1.

    layout   "interleaved"    sin, cos, sin, cos, .. (Vaswani et al. 2017, section 3.5)
             "halves"         all sines, then all cosines (Transformer-XL)
             "tensor2tensor"  as halves with theta_t = base^(-t/(model_dim/2 - 1)): the paper's released code (and
                              fairseq), whose slowest frequency is exactly 1/base
    Positions are Index, or Times read as real-valued tokens. Computed in float64, added in float32 or wider, returned
    in the dtype of x. No parameters. model_dim is even.
    """

    takes = (Index, Times)
    learned = False
    reference = """@inproceedings{vaswani2017attention,
  title={Attention Is All You Need},
  author={Vaswani, Ashish and Shazeer, Noam and Parmar, Niki and Uszkoreit, Jakob and Jones, Llion and
    Gomez, Aidan N. and Kaiser, Lukasz and Polosukhin, Illia},
  booktitle={NeurIPS}, year={2017}}"""

    def __init__(self, model_dim: int, layout: SinusoidLayout = "interleaved", base: float = 10000.0) -> None:
        super().__init__()
        if layout not in ("interleaved", "halves", "tensor2tensor"):
            raise ValueError(f'layout is "interleaved", "halves" or "tensor2tensor", got {layout!r}')
        if positive("model_dim", model_dim) % 2:
            raise ValueError(f"a sine and a cosine each take a channel: model_dim is even, got {model_dim}")
        if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base < float("inf"):
            raise ValueError(f"base is a finite number above 1, got {base!r}")
        self.model_dim, self.layout, self.base = model_dim, layout, float(base)

    def code(self, values: Tensor) -> Tensor:
        """Position values (..) to their codes (.., model_dim), float64."""
        half = self.model_dim // 2
        steps = max(half - 1, 1) if self.layout == "tensor2tensor" else half
        theta = self.base ** (-torch.arange(half, dtype=torch.float64, device=values.device) / steps)
        angle = values.to(torch.float64).unsqueeze(-1) * theta
        if self.layout == "interleaved":
            return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
        return torch.cat((angle.sin(), angle.cos()), -1)

    def add(self, x: Tensor, pos: Positions | None = None) -> Tensor:
        """x (batch, n, model_dim) plus the code of each position, (n,) or (batch, n); None means 0..n-1."""
        if x.shape[-1] != self.model_dim:
            raise ValueError(f"Sinusoidal was built for model_dim={self.model_dim}, got x with {x.shape[-1]} channels")
        values = self._index(x, None if pos is None else as_positions(pos, x.shape[-2], 0, "pos", x.device))
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return (x.to(dtype) + self.code(values).to(dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"model_dim={self.model_dim}, layout={self.layout!r}, base={self.base:g}"
