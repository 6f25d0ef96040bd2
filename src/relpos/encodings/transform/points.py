"""Structural positions as vectors: what the transforms that read levels of named positions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from relpos.encodings.base import Transform, positive
from relpos.encodings.transform.shared import axes_of, coordinates
from relpos.positions import Grid, Index, Labels, Position, Positions, Profiles, Times

Levels = str | Sequence[str] | Mapping[str, int]
KINDS = (Index, Times, Labels, Grid, Profiles)


class AtPoints(Transform):
    """Base of the transforms of positions p with one axis a level, or several: `levels` {name: axes}."""

    side = "before"
    takes = (*KINDS, Mapping)
    levels: dict[str, int]
    axes: int

    def _read(self, level: Levels) -> None:
        self.levels = _levels(level)
        self.axes = sum(self.levels.values())

    def check_positions(self, *positions: Positions) -> None:
        super().check_positions(*positions)
        for position in positions:
            self._axes(position)

    def _points(self, positions: Positions) -> Tensor:
        """float64 (1 or batch, n, axes)"""
        points = joined([coordinates(part) for part in self._axes(positions)])
        return points if points.dim() == 3 else points.unsqueeze(0)

    def _axes(self, positions: Positions) -> list[Position]:
        """The positions of each level; ValueError or TypeError where they are not what the levels say."""
        if isinstance(positions, Position):
            if axes_of(positions) != self.axes:
                raise ValueError(
                    f"{type(positions).__name__} positions have {axes_of(positions)} axes, the levels "
                    f"{', '.join(self.levels)} have {self.axes}; give named positions, a dict by level"
                )
            return [positions]
        missing = [name for name in self.levels if name not in positions]
        if missing:
            raise ValueError(f"no positions are named {', '.join(missing)}; there are {', '.join(positions)}")
        found = [positions[name] for name in self.levels]
        for part, (name, axes) in zip(found, self.levels.items()):
            if not isinstance(part, KINDS):
                raise TypeError(f"level {name!r} is {type(part).__name__}, whose difference is no vector")
            if axes_of(part) != axes:
                raise ValueError(f"level {name!r} has {axes_of(part)} axes, the encoding was built for {axes}")
        return found


def _levels(level: Levels) -> dict[str, int]:
    if isinstance(level, str):
        return {level: 1}
    levels = dict(level) if isinstance(level, Mapping) else dict.fromkeys(level, 1)
    if not levels or not all(isinstance(name, str) for name in levels) or len(levels) != len(level):
        raise ValueError(f"level is a name, several different ones, or {{name: axes}}; got {level!r}")
    return {name: positive(f"the axes of {name!r}", axes) for name, axes in levels.items()}


def joined(parts: list[Tensor]) -> Tensor:
    """Axes side by side: parts (n, a) or (batch, n, a)."""
    batch = max((part.shape[0] for part in parts if part.dim() == 3), default=0)
    if batch:
        parts = [part.expand(batch, -1, -1) for part in parts]
    return torch.cat(parts, -1)
