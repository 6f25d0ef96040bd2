"""Structure-informed absolute encoding (S-APE): what a token belongs to, added to the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute, positive
from relpos.encodings.levels import (
    BASES,
    SIZES,
    Kind,
    Levels,
    bases_of,
    check_kind,
    counts_of,
    labels_of,
    waves,
)
from relpos.encodings.reference import find
from relpos.positions import Labels, Positions, as_positions

FOUR = ("tempo", "section", "chord", "melody")


class StructureAPE(Absolute):
    """Adds a code of the token's label at every level of structure (tempo, section, chord, melody) to the input.

        x_t + sum of levels code_r(label_t^r);   "sine": code(i)[c] = sin(i w_c) for even c, cos(i w_c) for odd c,
        w_c = base_r^(-2 floor((c + 1)/2)/model_dim);   "learned": code(i) = tables[r][i], N(0, 0.02)

    levels     names, or {name: base} for sines and {name: labels} for tables; None takes the usual number: bases tempo
               9919, section 11339, chord 10001, melody 7920, so that equal labels of two levels differ; 4, 52, 395 and
               129 labels. A level of another name needs its number
    same_base  True: 10001 for all of these levels
    Positions are named, {level: labels (n,) or (batch, n)}, integers; a label without a row in a table raises. Nothing
    here knows the time. Computed in float64, added in float32 or wider, returned in the dtype of x.
    Source: Agarwal, Wang and Richard 2024, S-APE, as the released code computes it: channels (1, 2), (3, 4), .. share a
    frequency, one off the usual pairs.
    """

    takes = (Labels, Mapping)
    learned = False  # as built by name
    extrapolates = True
    reference = """@inproceedings{agarwal2024structure,
  title={Structure-informed Positional Encoding for Music Generation},
  author={Agarwal, Manvi and Wang, Changhong and Richard, Ga{\\"e}l},
  booktitle={ICASSP}, pages={951--955}, year={2024}}"""

    def __init__(self, model_dim: int, levels: Levels = FOUR, kind: Kind = "sine", same_base: bool = False) -> None:
        super().__init__()
        check_kind(kind)
        self.model_dim, self.kind = positive("model_dim", model_dim), kind
        self.levels: dict[str, float] = {}
        if kind == "sine":
            self.levels = bases_of(levels, same_base)
        else:
            self.levels |= counts_of(levels, SIZES, "number of labels")
            sizes = (int(size) for size in self.levels.values())
            self.tables = nn.ParameterList(torch.randn(size, model_dim) * 0.02 for size in sizes)

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], levels: Levels | None = None) -> StructureAPE:
        """From arrays "table_<level>" (labels, model_dim), or, for sines, "base_<level>" beside any array of the width.

        levels: which to take; default: all that are there, in the order tempo, section, chord, melody, then others.
        """
        tables = _numbered(arrays, "table_", levels)
        if tables:
            sizes = {name: len(table) for name, table in tables.items()}
            first = next(iter(tables.values()))
            encoding = cls(first.shape[-1], sizes, "learned").to(first.dtype)
            with torch.no_grad():
                for own, table in zip(encoding.tables, tables.values()):
                    own.copy_(table)
            return encoding
        bases = {name: float(base) for name, base in _numbered(arrays, "base_", levels).items()}
        if not bases:
            raise ValueError(f"no array is called table_<level> or base_<level>; there are {', '.join(arrays)}")
        wide = find(arrays, "x", "out", *(name for name in arrays if name.startswith(("pe_", "angles_"))))
        if wide is None:
            raise ValueError("no array has the width of the model: give x, out, pe_<level> or angles_<base>")
        return cls(wide.shape[-1], bases, "sine")

    def code(self, labels: Mapping[str, Tensor]) -> Tensor:
        """The sum of the codes, (1 or batch, n, model_dim), for integer labels (1 or batch, n) by level."""
        total: Tensor | None = None
        for index, (name, number) in enumerate(self.levels.items()):
            if self.kind == "sine":
                part = waves(labels[name], self.model_dim, number)
            else:
                _check_vocabulary(labels[name], name, int(number))
                part = self.tables[index][labels[name]]
            total = part if total is None else total + part
        assert total is not None
        return total

    def add(self, x: Tensor, pos: Positions | None = None) -> Tensor:
        """x (batch, n, model_dim) plus the codes; pos {level: (n,) or (batch, n)}."""
        if x.shape[-1] != self.model_dim:
            raise ValueError(f"StructureAPE was built for model_dim={self.model_dim}, x has {x.shape[-1]} channels")
        if pos is None:
            raise ValueError(f"StructureAPE needs labels, positions by level: {', '.join(map(repr, self.levels))}")
        batch = x.shape[0] if x.dim() == 3 else None
        given = as_positions(pos, x.shape[-2], 0, "pos", x.device, batch)
        self.check_positions(given)
        code = self.code(labels_of("StructureAPE", given, self.levels))
        code = code if x.dim() == 3 else code.squeeze(0)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return (x.to(dtype) + code.to(dtype)).to(x.dtype)

    def check_positions(self, *positions: Positions) -> None:
        for position in positions:
            labels_of("StructureAPE", position, self.levels)

    def extra_repr(self) -> str:
        return f"model_dim={self.model_dim}, levels={self.levels}, kind={self.kind!r}"


def _check_vocabulary(labels: Tensor, level: str, size: int) -> None:
    outside = labels[(labels < 0) | (labels >= size)]
    if len(outside):
        raise ValueError(
            f"level {level!r} has {size} labels, 0..{size - 1}, got {int(outside[0])}; build StructureAPE with "
            f"levels={{{level!r}: size}} for more, or take kind='sine', which has no table"
        )


def _numbered(arrays: Mapping[str, Any], prefix: str, levels: Levels | None) -> dict[str, Tensor]:
    there = {name.split(prefix, 1)[1]: name for name in arrays if name.rsplit("/", 1)[-1].startswith(prefix)}
    usual = [name for name in (*FOUR, *BASES) if name in there]
    wanted = dict.fromkeys([*usual, *there] if levels is None else levels)
    return {name: torch.as_tensor(arrays[there[name]]) for name in wanted if name in there}
