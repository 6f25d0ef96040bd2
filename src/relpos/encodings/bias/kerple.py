"""KERPLE: learned shift-invariant kernels, logarithmic or power."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, check_heads

Kind = Literal["log", "power"]
LOWEST = 0.01


def straight_through(parameter: Tensor, low: float, high: float | None = None) -> Tensor:
    """The clamped value, bit for bit, with the gradient of an unclamped one: a head outside can come back."""
    wide = parameter if parameter.dtype.itemsize >= 4 else parameter.float()
    return wide.detach().clamp(low, high) + (wide - wide.detach())


class KERPLE(Bias):
    """Adds -p ln(1 + a D) ("log") or -a D^p ("power") to the score, D = query - key position >= 0; p, a learned a head.

    p, a       (heads,), p ~ U(0, 2), a ~ U(0, 1); used as max(p, 0.01), max(a, 0.01) in the log kernel and as p clamped
               to 0.01..2, a >= 0.01 in the power kernel
    symmetric  True: D = |lag|, as the paper's kernels are defined. False, as released: keys after the query get 0,
               which is for causal attention.
    causal     what a layer knows of itself; False asks for the symmetric form
    Added after the scale. The released code overwrites the parameters with their clamped values at every forward; here
    they stay, the value in use is clamped, and the gradient is the same one: that of the clamped value, passed on.
    The authors share one object among all layers. Of their variants, "a" is the power kernel with p fixed at 1 and "p"
    the one with a fixed at 1; those that multiply the scores by exp(-a' D^p') (names ending in _ap) are not a bias and
    are not offered.
    Source: Chi et al. 2022, Corollary 1 (equations 3 and 4), and the released layers.py.
    """

    extrapolates = True
    shared = True
    reference = """@inproceedings{chi2022kerple,
  title={KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation},
  author={Chi, Ta-Chung and Fan, Ting-Han and Ramadge, Peter J. and Rudnicky, Alexander I.},
  booktitle={NeurIPS}, year={2022}}"""

    def __init__(self, heads: int, kind: Kind = "log", symmetric: bool = False, causal: bool | None = None) -> None:
        super().__init__()
        if kind not in ("log", "power"):
            raise ValueError(f'kind is "log" or "power", got {kind!r}')
        self.heads, self.kind = check_heads(heads), kind
        self.symmetric = bool(symmetric) or causal is False
        self.p = nn.Parameter(2 * torch.rand(heads))
        self.a = nn.Parameter(torch.rand(heads))

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], kind: Kind = "log") -> KERPLE:
        """From the released module's bias_p and bias_a, (heads, 1, 1) each; one that its variant lacks is 1."""
        given = {name: torch.as_tensor(arrays[f"bias_{name}"]).flatten() for name in "pa" if f"bias_{name}" in arrays}
        if not given:
            raise ValueError(f"arrays hold bias_p or bias_a or both, got {', '.join(arrays) or 'nothing'}")
        some = next(iter(given.values()))
        kerple = cls(len(some), kind).to(some.dtype)
        with torch.no_grad():
            kerple.p.copy_(given.get("p", torch.ones_like(some)))
            kerple.a.copy_(given.get("a", torch.ones_like(some)))
        return kerple

    def at(self, lag: Tensor) -> Tensor:
        shape = (-1, *[1] * lag.dim())
        p = straight_through(self.p, LOWEST, 2.0 if self.kind == "power" else None).view(shape)
        a = straight_through(self.a, LOWEST).view(shape)
        distance = (lag.abs() if self.symmetric else (-lag).clamp(min=0)).to(p.dtype)
        return -p * torch.log1p(a * distance) if self.kind == "log" else -a * distance**p

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kind={self.kind!r}, symmetric={self.symmetric}"
