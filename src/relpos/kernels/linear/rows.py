"""A feature map as kernels see it: rows in, rows out, and back again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Rows:
    """phi, applied to any slice of rows; None stands for rows that are features already.

    Features are made again in the backward pass, with the projection and parameters of the forward pass: where the
    module holds others by then (torch.func.functional_call) these are put in, and where they were changed in place the
    gradient is refused, as autograd itself would.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module
        self.tensors = {} if module is None else {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.parameters = tuple(x for x in self.tensors.values() if x.requires_grad)
        self._versions = self._changes()

    def __call__(self, x: Tensor) -> Tensor:
        if self.module is None:
            return x
        features: Tensor
        if all(now is then for now, then in zip(self._held(), self.tensors.values())):
            features = self.module(x)
        else:
            features = torch.func.functional_call(self.module, self.tensors, (x,))
        return features

    def back(self, x: Tensor, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Gradients of x and of the parameters from that of phi(x)."""
        if self.module is None:
            return grad, ()
        if self._changes() != self._versions:
            raise RuntimeError(
                "the features changed in place (redraw, or an optimizer's step) between the forward "
                "pass and its gradient; call backward first"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            wanted = (leaf, *self.parameters)
            found = torch.autograd.grad(self(leaf), wanted, grad, allow_unused=True, materialize_grads=True)
        return found[0], tuple(found[1:])

    def _held(self) -> Iterator[Tensor]:
        assert self.module is not None
        yield from self.module.parameters()
        yield from self.module.buffers()

    def _changes(self) -> list[int]:
        return [0 if x.is_inference() else x._version for x in self.tensors.values()]
