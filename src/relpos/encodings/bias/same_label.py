"""Equality of labels: a learned bonus for keys of the query's own section, chord or speaker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, Slices, State, States, Tile, check_heads
from relpos.encodings.levels import labels_of
from relpos.positions import Labels, Positions


class SameLabel(Bias):
    """Adds a learned number per head and level to the score where query and key carry the same label at that level.

        bias_h(t, s) = sum over levels r of weight[h, r] [label_t^r = label_s^r]

    weight  (heads, levels), 0 at the start: attention without an encoding
    levels  names of the levels of named positions, {level: labels}; for one level, `Labels` need no name
    The lag of two labels is whether they agree, so renaming the labels changes nothing, where differences of their
    numbers (StructureRPE) do change. In kernelised attention exp(bias) multiplies the weights of pairs, in direct
    tiles: O(n) memory, O(n^2) time. Nothing here depends on the order or distance of tokens.
    Source: the mask of equal labels in Agarwal, Wang and Richard 2024 (NS-RPE), alone; the learned number is ours.
    """

    takes = (Labels, Mapping)
    extrapolates = True
    reference = """@inproceedings{agarwal2024structure,
  title={Structure-informed Positional Encoding for Music Generation},
  author={Agarwal, Manvi and Wang, Changhong and Richard, Ga{\\"e}l},
  booktitle={ICASSP}, pages={951--955}, year={2024}}"""

    def __init__(self, heads: int, levels: Iterable[str] = ("chord", "section")) -> None:
        super().__init__()
        names = (levels,) if isinstance(levels, str) else tuple(levels)
        if not names or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"levels are one or more different names, got {levels!r}")
        self.heads, self.levels = check_heads(heads), names
        self.weight = nn.Parameter(torch.zeros(heads, len(names)))

    @classmethod
    def from_reference(cls, arrays: Mapping[str, object], levels: Iterable[str] = ("chord", "section")) -> SameLabel:
        """From "weight" (heads, levels)."""
        weight = torch.as_tensor(arrays["weight"])
        encoding = cls(weight.shape[0], levels).to(weight.dtype)
        encoding.load_state_dict({"weight": weight})
        return encoding

    def check_positions(self, *positions: Positions) -> None:
        for position in positions:
            labels_of("SameLabel", position, self.levels)

    def at(self, lag: Tensor) -> Tensor:
        """(heads, ..) of the agreement at each level, bool (.., levels)."""
        if lag.shape[-1:] != (len(self.levels),):
            raise ValueError(f"the lag of labels is bool (.., {len(self.levels)} levels), got {tuple(lag.shape)}")
        return (lag.to(self.weight.dtype) @ self.weight.T).movedim(-1, 0)

    def lags(self, n_q: int | tuple[int, ...], n_k: int | tuple[int, ...] | None = None, offset: int = 0) -> Tensor:
        raise ValueError("SameLabel depends on labels, not on the lag in tokens: it has no generator")

    def bias(self, q_pos: Positions, k_pos: Positions) -> Tensor:
        bias = _summed(self.weight, *(self._stacked(pos) for pos in (q_pos, k_pos)))
        return bias.squeeze(0) if bias.shape[0] == 1 else bias

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        return {
            "weight": State(self.weight, "whole"),
            "q_labels": State(self._stacked(q_pos), "query"),
            "k_labels": State(self._stacked(k_pos), "key"),
        }

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        return _summed(states["weight"], states["q_labels"], states["k_labels"])

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        same = Labels.between(states["q_labels"], states["k_labels"]).to(grad.dtype)  # (levels, rows, t_q, t_k)
        grad = grad.sum(0, keepdim=True) if same.shape[1] == 1 else grad
        return {"weight": torch.einsum("bhij,lbij->hl", grad, same)}

    def _stacked(self, positions: Positions) -> Tensor:
        """(levels, rows, n)"""
        labels = list(labels_of("SameLabel", positions, self.levels).values())
        rows = max(len(x) for x in labels)
        return torch.stack([x.expand(rows, -1) for x in labels])

    def extra_repr(self) -> str:
        return f"heads={self.heads}, levels={self.levels}"


def _summed(weight: Tensor, q_labels: Tensor, k_labels: Tensor) -> Tensor:
    """(rows, heads, n_q, n_k) of labels (levels, rows, n)."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    same = Labels.between(q_labels, k_labels).to(dtype)
    return torch.einsum("hl,lbij->bhij", weight.to(dtype), same)
