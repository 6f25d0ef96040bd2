"""A feature map as kernels see it: rows in, rows out, and back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from relpos.features import Features
from relpos.positions import is_traced


class Prepared(nn.Module):
    """phi with what comes before it, row by row: unit length where the map asks for it, and its share of the scale.

    Kernels apply it to slices, so that no normalised copy of q and k is kept.
    """

    def __init__(self, features: Features, scale: float) -> None:
        super().__init__()
        self.features, self.scale = features, scale

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features.prepared(x, self.scale)
        return features


class Rows:
    """phi, applied to any slice of rows; None stands for rows that are features already.

    Features are made again in the backward pass, with the projection and parameters of the forward pass: where the
    module holds others by then (torch.func.functional_call) these are put in, and where they were changed in place the
    gradient is refused, as autograd itself would.

    scale    given, rows are prepared with it (see `Prepared`); None: they are already
    tensors  the projection and parameters, by their names in `features`; None: those that it holds now
    """

    def __init__(
        self, features: Features | None, scale: float | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.features, self.scale = features, scale
        if is_traced():  # whoever follows this call needs no more of it than what it was made of
            return
        self.module = features if scale is None or features is None else Prepared(features, scale)
        inside = "" if self.module is features else "features."
        held = self.held_by(features) if tensors is None else tensors
        self.tensors = {f"{inside}{name}": x for name, x in held.items()}
        self.parameters = tuple(x for x in self.tensors.values() if x.requires_grad)
        self._versions = self._changes()

    @staticmethod
    def held_by(features: nn.Module | None) -> dict[str, Tensor]:
        return {} if features is None else {**dict(features.named_parameters()), **dict(features.named_buffers())}

    def __call__(self, x: Tensor) -> Tensor:
        if self.features is None:
            return x
        if is_traced():
            return self.features(x) if self.scale is None else self.features.prepared(x, self.scale)
        features: Tensor
        assert self.module is not None
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
