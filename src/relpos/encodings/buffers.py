"""Constants of an encoding that must not be rounded with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class WideBuffers(nn.Module):
    """Keeps its buffers in float32 or wider: a model cast to bfloat16 would round a slope by 0.4 percent, and a
    frequency by that times the lag."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.is_floating_point() and new.dtype.itemsize < 4:
                self._buffers[name] = old.to(new.device)
        return self
