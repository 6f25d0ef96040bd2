"""Structure-informed relative encoding (S-RPE): what differences of structural labels add to the score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import States, check_heads, positive
from relpos.encodings.content._released import Released
from relpos.encodings.content._structure import LabelTerms, LevelVectors, Scores
from relpos.encodings.levels import REACHES, Kind, Levels, bases_of, check_kind, counts_of, labels_of
from relpos.positions import Labels, Positions

THREE = ("melody", "chord", "section")


class StructureRPE(LabelTerms):
    """Adds the query's product with a vector of the difference of labels, at every level of structure.

        sum over levels r of q_t^h . p^h(i_t^r - i_s^r) / sqrt(dim),   p(x) = map.weight a_r(x) + map.bias
        a_r(x) = parts[r].weight code_r(x) + parts[r].bias,   query's label minus key's, as in the source
        "sine": code(x)[c] = sin(x w_c) for even c, cos(x w_c) for odd c, w_c = base_r^(-2 floor((c + 1)/2)/model_dim)
        "learned": code(x) = parts[r].table[clip(x, -reach_r, reach_r) + reach_r]

    Channel c of p belongs to head c mod heads, entry c div heads; all of model_dim = heads * dim takes part.

    levels     names, or {name: base} for sines and {name: reach} for tables; None takes the usual number: bases melody
               7920, chord 10001, section 11339, tempo 9919; reaches 128, 395, 52, 4. Other names need theirs
    same_base  True: 10001 for all of these levels
    beyond     of tables: "clip" a difference past the reach, as defined, or "error", a ValueError
    shared     another StructureRPE whose `parts` this one uses as its own. In the source all layers share weight, bias
               and table of each level, and only `map` is a layer's: StructureRPE(.., shared=first) for each further
               layer, or layer.share(first) later, which also serves encodings that a network has built by name
    Positions are named, {level: labels (n,) or (batch, n)}, integers. A difference of category numbers means what their
    numbering means: renaming the labels changes the result (SameLabel does not change), adding a number to all labels
    of a level does not. The values stay as they are. The factor 1/sqrt(dim) does not follow `scale`.

    Cost: scores of the U distinct labels of the keys once a query, by the vectors of their differences or by
    2 model_dim channels, then one gather a pair. O(n U) memory; where U > 2 model_dim, O(n model_dim heads).
    Source: Agarwal, Wang and Richard 2024, as the released code computes it, which holds n x n x model_dim tensors.
    """

    takes = (Labels, Mapping)
    extrapolates = True
    reference = """@inproceedings{agarwal2024structure,
  title={Structure-informed Positional Encoding for Music Generation},
  author={Agarwal, Manvi and Wang, Changhong and Richard, Ga{\\"e}l},
  booktitle={ICASSP}, pages={951--955}, year={2024}}"""

    def __init__(
        self,
        heads: int,
        model_dim: int,
        levels: Levels = THREE,
        kind: Kind = "sine",
        *,
        same_base: bool = False,
        beyond: Literal["clip", "error"] = "clip",
        shared: StructureRPE | None = None,
    ) -> None:
        super().__init__()
        check_kind(kind)
        if beyond not in ("clip", "error"):
            raise ValueError(f'beyond is "clip" or "error", got {beyond!r}')
        self.heads, self.model_dim, self.kind, self.beyond = check_heads(heads), model_dim, kind, beyond
        check_split(model_dim, heads)
        self.levels: dict[str, float] = bases_of(levels, same_base) if kind == "sine" else {}
        if kind == "learned":
            self.levels |= counts_of(levels, REACHES, "reach")
        self.parts = nn.ModuleList(
            LevelVectors(model_dim, base=number) if kind == "sine" else LevelVectors(model_dim, reach=int(number))
            for number in self.levels.values()
        )
        self.map = nn.Linear(model_dim, model_dim)
        if shared is not None:
            self.share(shared)

    def share(self, other: StructureRPE) -> StructureRPE:
        """Uses the weight, bias and table of each level of another encoding, alike in all but `map`. Returns self."""
        mine, theirs = ((e.model_dim, e.kind, e.levels) for e in (self, other))
        if mine != theirs:
            raise ValueError(f"shared levels are alike in width, kind and numbers; got {theirs} for {mine}")
        self.parts = other.parts
        return self

    @classmethod
    def from_reference(
        cls,
        arrays: Mapping[str, Any],
        *,
        heads: int | None = None,
        levels: Levels | None = None,
        layer: int = 0,
        shared: StructureRPE | None = None,
    ) -> StructureRPE:
        """From the released arrangement: "lin_w" (levels, d, d), "lin_b", "layer_lin_w", "layer_lin_b", "order" of the
        levels, "bases" for sines or "table_<level>" (2 reach + 1, d); or the names of its modules, rpe.weights.j (j = 0
        melody, 2 chord, 3 section) and rw.l of layer l.

        heads: default what "q" (.., heads, dim) says, else 4, as in the source. levels: default "order", else melody,
        chord, section.
        """
        found = Released(arrays, layer, cls.__name__)
        names = found.order(THREE if levels is None else list(levels))
        tables = found.tables(names)
        if tables:
            numbers: dict[str, float] = {name: len(table) // 2 for name, table in tables.items()}
        else:
            bases = bases_of(levels if isinstance(levels, Mapping) else names)
            numbers = found.bases(bases)
        weights, biases = found.levels(names)
        kind: Kind = "learned" if tables else "sine"
        encoding = cls(heads or found.heads(), weights.shape[-1], numbers, kind).to(weights.dtype)
        with torch.no_grad():
            for part, name, weight, bias in zip(encoding.parts, names, weights, biases):
                assert isinstance(part, LevelVectors)
                part.weight.copy_(weight), part.bias.copy_(bias)
                if tables:
                    part.table.copy_(tables[name])
            for own, given in zip((encoding.map.weight, encoding.map.bias), found.map()):
                own.copy_(given)
        return encoding if shared is None else encoding.share(shared)

    def check_positions(self, *positions: Positions) -> None:
        for position in positions:
            labels_of(type(self).__name__, position, self.levels)

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        if not (q.shape[2] and k.shape[2]):
            return {}
        return self._scores(q, q_pos, k_pos).finish()

    def _scores(self, q: Tensor, q_pos: Positions, k_pos: Positions) -> Scores:
        if q.shape[1] * q.shape[3] != self.model_dim:
            raise ValueError(
                f"{type(self).__name__} was built for model_dim={self.model_dim}, {self.heads} heads of width "
                f"{self.model_dim // self.heads}; got {q.shape[1]} of width {q.shape[3]}"
            )
        who = type(self).__name__
        queries, keys = (labels_of(who, position, self.levels) for position in (q_pos, k_pos))
        dtype = torch.promote_types(torch.promote_types(q.dtype, self.map.weight.dtype), torch.float32)
        scores = Scores(self, q.to(dtype) * q.shape[-1] ** -0.5)
        for name, part in zip(self.levels, self.parts):
            assert isinstance(part, LevelVectors)
            if part.reach is not None and self.beyond == "error":
                _check_reach(queries[name], keys[name], name, part.reach)
            scores.add(part, queries[name], keys[name])
        return scores

    def extra_repr(self) -> str:
        return f"heads={self.heads}, model_dim={self.model_dim}, levels={self.levels}, kind={self.kind!r}"


def check_split(model_dim: int, heads: int) -> None:
    if positive("model_dim", model_dim) % heads:
        raise ValueError(f"heads divides model_dim, got model_dim={model_dim}, heads={heads}")


def _check_reach(queries: Tensor, keys: Tensor, level: str, reach: int) -> None:
    low, high = int(queries.amin() - keys.amax()), int(queries.amax() - keys.amin())
    worst = low if -low > high else high
    if abs(worst) > reach:
        raise ValueError(
            f"labels of level {level!r} differ by {worst}; its table has rows for -{reach}..{reach}. Build it with "
            f"levels={{{level!r}: reach}}, or take beyond='clip'"
        )
