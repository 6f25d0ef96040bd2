"""Reading weights of the released structure-informed encodings, by the names of stored arrays or of its modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.reference import find

SLOTS = {"melody": 0, "tempo": 1, "chord": 2, "section": 3}  # rpe.weights.j


class Released:
    """Weights found in `arrays`; a name may stand behind a path. Gradients beside them (".../grad/..") are left out."""

    def __init__(self, arrays: Mapping[str, Any], layer: int, who: str) -> None:
        self.layer, self.who = layer, who
        self.arrays = {name.replace("__", "."): array for name, array in arrays.items() if "/grad/" not in name}

    def heads(self) -> int:
        q = self.arrays.get("q")
        return 4 if q is None else int(q.shape[-2])

    def order(self, names: Sequence[str]) -> list[str]:
        order = self.arrays.get("order")
        return list(names) if order is None else [str(name) for name in order]

    def bases(self, usual: Mapping[str, float]) -> dict[str, float]:
        """The bases of these levels, which come first in "bases"."""
        bases = self.arrays.get("bases")
        return dict(usual) if bases is None else {name: float(base) for name, base in zip(usual, bases)}

    def tables(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tables by level; empty where there are none. ValueError where some are missing."""
        found = {name: self._table(name) for name in names}
        there = {name: table for name, table in found.items() if table is not None}
        if there and len(there) < len(names):
            raise ValueError(f"{self.who}: there are tables of {', '.join(there)} but not of all of {', '.join(names)}")
        return there

    def _table(self, name: str) -> Tensor | None:
        table = find(self.arrays, f"table_{name}")
        if table is None and name in SLOTS:
            table = self._matching(rf"rpe\.(?!weights\b)\w+\.{SLOTS[name]}(\.weight)?")
        return table

    def levels(self, names: Sequence[str], slots: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Weights (levels, d, d) and biases (levels, d) of the linear maps, of these levels in this order."""
        weights, biases = find(self.arrays, "lin_w"), find(self.arrays, "lin_b")
        if weights is not None and biases is not None:
            if len(weights) < len(names) or len(weights) != len(biases):
                raise ValueError(
                    f"{self.who}: lin_w and lin_b hold {len(weights)} and {len(biases)} maps for {', '.join(names)}"
                )
            return weights[: len(names)], biases[: len(names)]
        slots = [SLOTS[name] for name in names if name in SLOTS] if slots is None else slots
        pairs = [self._linear(rf"rpe\.weights\.{slot}") for slot in slots]
        if len(pairs) != len(names):
            raise ValueError(f"{self.who}: which rpe.weights.j is which of {', '.join(names)} is not known")
        return torch.stack([weight for weight, _ in pairs]), torch.stack([bias for _, bias in pairs])

    def slots(self) -> list[int]:
        """The j of all rpe.weights.j."""
        found = (re.search(r"(?:^|[./])rpe\.weights\.(\d+)", name) for name in self.arrays)
        return sorted({int(match[1]) for match in found if match})

    def map(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer's map."""
        weight, bias = find(self.arrays, "layer_lin_w"), find(self.arrays, "layer_lin_b")
        if weight is not None and bias is not None:
            return weight, bias
        return self._linear(rf"rw\.{self.layer}")

    def _linear(self, name: str) -> tuple[Tensor, Tensor]:
        weight, bias = (self._matching(rf"{name}\.{part}") for part in ("weight", "bias"))
        if weight is None or bias is None:
            plain = name.replace("\\", "")
            raise ValueError(f"{self.who}: there is no {plain}.weight with its bias in {', '.join(self.arrays)}")
        return weight, bias

    def _matching(self, pattern: str) -> Tensor | None:
        """The one array whose name ends so."""
        found = [name for name in self.arrays if re.search(rf"(?:^|[./]){pattern}$", name)]
        if len(found) > 1:
            raise ValueError(f"{self.who}: {pattern!r} could be any of {', '.join(found)}; pass one model's arrays")
        return torch.as_tensor(self.arrays[found[0]]) if found else None
