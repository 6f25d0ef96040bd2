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


def at_once(phi: Rows, x_q: Tensor, x_k: Tensor, width: int) -> tuple[Rows, Tensor, Tensor]:
    """The features of all rows, where they are no wider than the values: quicker, and memory of the same order.

    Wider ones are made tile by tile, so that memory does not depend on their number. Returns the map that is left to
    apply, and its inputs.
    """
    if phi.module is None or phi(x_q[:1, :1, :1]).shape[-1] > width:
        return phi, x_q, x_k
    return Rows(None), phi(x_q), phi(x_k)


def gradients(
    phi: Rows, left: Rows, x: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], parameters: list[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of the inputs of `phi` and of its parameters, from those of what `at_once` returned."""
    if left is phi:
        return *found, parameters
    (g_q, of_q), (g_k, of_k) = (phi.back(a, g) for a, g in zip(x, found))
    return g_q, g_k, [a + b for a, b in zip(of_q, of_k)]
