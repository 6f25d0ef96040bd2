"""Levels of structure (tempo, section, chord, melody): how labels become numbers, and positions named by level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from relpos.positions import Index, Labels, Position, Positions

Levels = Iterable[str] | Mapping[str, float | None]
Kind = Literal["sine", "learned"]

BASES = {"melody": 7920.0, "tempo": 9919.0, "chord": 10001.0, "section": 11339.0}  # of the sines, one a level
COMMON_BASE = 10001.0  # of all levels, where they are to share one
SIZES = {"tempo": 4, "section": 52, "chord": 395, "melody": 129}  # labels a level has
REACHES = {"tempo": 4, "section": 52, "chord": 395, "melody": 128}  # largest difference of two labels with a row


def check_kind(kind: str) -> None:
    if kind not in ("sine", "learned"):
        raise ValueError(f'kind is "sine" or "learned", got {kind!r}')


def with_numbers(levels: Levels, known: Mapping[str, float], what: str) -> dict[str, float]:
    """{level: its number}: as given in a mapping, else the usual one. ValueError where a level has neither."""
    names = [levels] if isinstance(levels, str) else list(levels)
    given = dict(levels) if isinstance(levels, Mapping) else dict.fromkeys(names)
    if not given or not all(isinstance(name, str) and name for name in given):
        raise ValueError(f"levels are one or more names, or {{name: {what}}}; got {levels!r}")
    if len(given) != len(names):
        raise ValueError(f"every level is named once, got {levels!r}")
    found = {}
    for name, number in given.items():
        number = known.get(name) if number is None else number
        if number is None:
            raise ValueError(
                f"the {what} of level {name!r} is not known (it is for {', '.join(known)}); give it: "
                f"levels={{{name!r}: number}}"
            )
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
            raise ValueError(f"the {what} of level {name!r} is a positive number, got {number!r}")
        found[name] = number
    return found


def bases_of(levels: Levels, same_base: bool = False) -> dict[str, float]:
    known = dict.fromkeys(BASES, COMMON_BASE) if same_base else BASES
    return {name: float(base) for name, base in with_numbers(levels, known, "base").items()}


def counts_of(levels: Levels, known: Mapping[str, int], what: str) -> dict[str, int]:
    found = with_numbers(levels, known, what)
    for name, number in found.items():
        if number != int(number):
            raise ValueError(f"the {what} of level {name!r} is a whole number, got {number!r}")
    return {name: int(number) for name, number in found.items()}


def frequencies(dim: int, base: float, device: torch.device | None = None) -> Tensor:
    """base^(-2 floor((c + 1)/2)/dim) for channel c, float64: channels (1, 2), (3, 4), .. share one; channel 0 has 1."""
    channel = torch.arange(dim, dtype=torch.float64, device=device)
    return base ** (-2 * torch.div(channel + 1, 2, rounding_mode="floor") / dim)


def _alternating(even: Tensor, odd: Tensor) -> Tensor:
    return torch.where(torch.arange(even.shape[-1], device=even.device) % 2 == 0, even, odd)


def waves(values: Tensor, dim: int, base: float) -> Tensor:
    """Integers (..) to float64 (.., dim): sine of value times frequency on even channels, cosine on odd ones."""
    angle = values.to(torch.float64).unsqueeze(-1) * frequencies(dim, base, values.device)
    return _alternating(angle.sin(), angle.cos())


def query_waves(values: Tensor, dim: int, base: float) -> Tensor:
    """float64 (.., 2, dim) such that waves(a - b) = query_waves(a)[0] cos(b f) + query_waves(a)[1] sin(b f)."""
    angle = values.to(torch.float64).unsqueeze(-1) * frequencies(dim, base, values.device)
    sin, cos = angle.sin(), angle.cos()
    return torch.stack((_alternating(sin, cos), _alternating(-cos, sin)), -2)


def key_waves(values: Tensor, dim: int, base: float) -> Tensor:
    """float64 (.., 2, dim): cosine and sine, see `query_waves`."""
    angle = values.to(torch.float64).unsqueeze(-1) * frequencies(dim, base, values.device)
    return torch.stack((angle.cos(), angle.sin()), -2)


def labels_of(who: str, positions: Positions, names: Iterable[str]) -> dict[str, Tensor]:
    """The labels of each level, int64 (1 or batch, n). Where there is one level, `Labels` need no name."""
    names = list(names)
    example = ", ".join(f"{name!r}: .." for name in names)
    if isinstance(positions, Position):
        if not isinstance(positions, Labels) or len(names) > 1:
            raise TypeError(
                f"{who} takes named positions, labels by level, got {type(positions).__name__}; "
                f"pass positions (q_pos and k_pos) as {{{example}}}"
            )
        positions = {names[0]: positions}
    missing = [name for name in names if name not in positions]
    if missing:
        raise ValueError(
            f"{who} needs a label a token for the level {' and '.join(map(repr, missing))}; the positions name "
            f"{', '.join(positions) or 'nothing'}"
        )
    found = {}
    for name in names:
        part = positions[name]
        if not isinstance(part, Labels | Index):
            raise TypeError(f"{who}: level {name!r} holds {type(part).__name__} positions; labels are integers")
        found[name] = part.values if part.values.dim() == 2 else part.values.unsqueeze(0)
    return found


def distinct(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Of integers (rows, n >= 1): a token with each distinct one, (rows, U), and which of these a token has, (rows, n).

    A row with fewer than the largest number of them names token 0 in their place. O(n log n).
    """
    ordered, order = codes.sort(dim=-1, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    slot = new.cumsum(-1) - 1
    rank = torch.empty_like(codes).scatter_(-1, order, slot)
    token = codes.new_zeros(len(codes), int(slot[:, -1].max()) + 1)
    row, at = new.nonzero(as_tuple=True)
    token[row, slot[row, at]] = order[row, at]
    return token, rank
