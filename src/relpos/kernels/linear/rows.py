"""A feature map as kernels see it: rows in, rows out, and back again."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rows:
    """phi, applied to any slice of rows; None stands for rows that are features already."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module
        self.parameters = () if module is None else tuple(p for p in module.parameters() if p.requires_grad)

    def __call__(self, x: Tensor) -> Tensor:
        if self.module is None:
            return x
        features: Tensor = self.module(x)
        return features

    def back(self, x: Tensor, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Gradients of x and of the parameters from that of phi(x)."""
        if self.module is None:
            return grad, ()
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            found = torch.autograd.grad(self.module(leaf), (leaf, *self.parameters), grad)
        return found[0], tuple(found[1:])
