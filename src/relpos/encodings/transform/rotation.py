"""Rotation of channel pairs: what every rotary transform shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from relpos.encodings.base import Transform, positive
from relpos.positions import Position, Positions, as_positions

Layout = Literal["half", "interleaved"]


def check_layout(layout: str) -> None:
    if layout not in ("half", "interleaved"):
        raise ValueError(
            f'layout is "half" (pairs t, t + width/2: LLaMA, NeoX) or "interleaved" (pairs 2t, 2t + 1: RoFormer, '
            f"GPT-J), got {layout!r}"
        )


def check_width(method: str, dim: int, multiple: int = 2) -> int:
    """`dim` where it splits into pairs (of every axis), else ValueError."""
    if positive("dim", dim) % multiple:
        raise ValueError(
            f"{method} turns pairs of channels, so the width of a head is a multiple of {multiple}, got dim={dim}; "
            f"{dim - dim % multiple or multiple} and {dim - dim % multiple + multiple} would do"
        )
    return dim


def check_base(base: float) -> float:
    if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base < float("inf"):
        raise ValueError(f"base is a finite number above 1, got {base!r}")
    return float(base)


def turn(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Rotates the first 2 * pairs channels of x by the angles whose cosine and sine have `pairs` columns.

    The other channels pass unchanged. Products run in float32 or wider and come back in the dtype of x.
    """
    pairs = cos.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = cos.to(dtype), sin.to(dtype)
    rotated, rest = x[..., : 2 * pairs].to(dtype), x[..., 2 * pairs :]
    if layout == "half":
        a, b = rotated[..., :pairs], rotated[..., pairs:]
        rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    rotated = rotated.to(x.dtype)
    return rotated if rest.shape[-1] == 0 else torch.cat((rotated, rest), -1)


def per_token(values: Tensor, trailing: int = 0) -> Tensor:
    """Position values as float64, the batch axis dropped where it has one entry: (n, ..) or (batch, n, ..)."""
    values = values.to(torch.float64)
    return values.squeeze(0) if values.dim() == 2 + trailing and values.shape[0] == 1 else values


class Rotary(Transform):
    """Base of the rotary transforms. A subclass gives `angles`; `gain` where the lengths change too.

    In kernelised attention they turn the features, not q and k, and those of the numerator only (RoFormer, eq. 19): a
    turned product can be negative, so a sum of them is no denominator. The weights then do not add up to one.
    Angles are float64 up to their cosine: the angle of token 1e6 in float32 is off by up to 0.06 radians.
    """

    extrapolates = False
    learned = False
    plain_denominator = True
    dim: int
    layout: Layout

    def angles(self, positions: Position, codes: Any) -> Tensor:
        """float64 (n, pairs), (batch, n, pairs), or (batch or 1, heads, n, pairs)."""
        raise NotImplementedError

    def gain(self, positions: Position, codes: Any, side: int, dtype: torch.dtype) -> Tensor | float:
        """What the rotated channels are multiplied by, shaped as the angles; side is 1 for queries, -1 for keys."""
        return 1.0

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._turned(q, q_pos, codes, 1)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._turned(k, k_pos, codes, -1)

    def rotate(self, x: Tensor, positions: object = None, codes: Any = None) -> Tensor:
        """x (.., n, dim) turned to its positions (None: 0..n-1), in the dtype of x.

        positions (n,) serve any leading axes; (batch, n) ask for x (batch, heads, n, dim). codes: see `make_codes`;
        None takes what these positions alone would give.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
            raise ValueError(f"x is a floating tensor (.., n, dim), got {getattr(x, 'shape', type(x).__name__)}")
        given = as_positions(positions, x.shape[-2], 0, "positions", x.device)
        return self._turned(x, given, self.make_codes(given, given) if codes is None else codes, 1)

    def cos_sin(self, positions: Position, codes: Any = None) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles, float64, without any factor."""
        self.check_positions(positions)
        angle = self.angles(positions, codes)
        return angle.cos(), angle.sin()

    def _turned(self, x: Tensor, positions: Positions, codes: Any, side: int) -> Tensor:
        self.check_positions(positions)
        assert isinstance(positions, Position)
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"{type(self).__name__} was built for heads of width {self.dim}, got {x.shape[-1]}; dim is the width "
                "of one head (model width / heads)"
            )
        cos, sin = self.cos_sin(positions, codes)
        gain = self.gain(positions, codes, side, x.dtype)
        if not (isinstance(gain, float) and gain == 1.0):
            cos, sin = cos * gain, sin * gain
        if cos.dim() == 3:  # (batch, n, pairs): a place for the heads
            if x.dim() != 4:
                raise ValueError(f"positions that differ by row need x (batch, heads, n, dim), got {tuple(x.shape)}")
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return turn(x, cos, sin, self.layout)

    def _keep_exact(self, name: str, values: Tensor) -> None:
        """A float64 buffer that is not saved and that no cast of the module rounds: see `_apply`."""
        self.register_buffer(name, values, persistent=False)
        self._exact = (*getattr(self, "_exact", ()), name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        # .float(), .bfloat16() and .half() would round the frequencies; only the device may change.
        kept = {name: getattr(self, name) for name in getattr(self, "_exact", ())}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in kept.items():
            setattr(self, name, values.to(getattr(self, name).device))
        return self
