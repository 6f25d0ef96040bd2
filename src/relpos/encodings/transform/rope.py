"""Rotary position embedding, with every scaling in use, partial and in sections (M-RoPE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.transform.rope_scaling import Scaling
from relpos.encodings.transform.rotation import Layout, Rotary, check_base, check_layout, check_width, per_token
from relpos.positions import Grid, Index, Position, Positions, Times


@dataclass(frozen=True, eq=False)
class RoPECodes:
    """What a sequence fixes: frequencies (pairs,) float64, the factor of cos and sin, the length behind them."""

    inv_freq: Tensor
    attention_factor: float
    length: int


class RoPE(Rotary):
    """Turns pair t of the channels by position * theta_t, so that q.k depends on the lag alone.

        theta_t = base^(-2t/w), t = 0..w/2-1,     w = int(dim * partial) the rotated width, the first w channels

    layout     "half": pairs (t, t + w/2) (LLaMA, NeoX); "interleaved": pairs (2t, 2t + 1) (RoFormer, GPT-J). Taking the
               wrong one degrades a trained model without a word: `convert_layout` permutes its projections instead
    scaling    a dictionary as in model configurations: {"rope_type": "yarn", "factor": 4.0, ..}; see rope_scaling.py.
               "proportional" keeps w = dim in the exponent and turns the first dim/2 * partial pairs only
    sections   M-RoPE: how many pairs follow each axis of Grid positions, e.g. (16, 24, 24) for (t, y, x); in bands, or
               dealt out in turn with interleave_sections. Index positions count on every axis: then it is plain RoPE
    inv_freq, attention_factor   the frequencies (float64, never cast with the module) and the factor of cos and sin,
               on q and on k once each, on the rotated channels only; for a sequence no longer than the original

    No parameters. Positions are Index, or Times read as real-valued tokens. "dynamic" and "longrope" depend on the
    length of the whole sequence, which travels in `codes`: keys rotated under one length are wrong under another, so a
    stream makes its codes once, for the longest length it will reach, and keeps them for every step.
    Kernelised attention turns the features of the numerator, with dim their number, and leaves the denominator plain.
    Source: Su et al. 2021 (RoFormer), section 3.2.2, and eq. 19 for kernelised attention; M-RoPE: Wang et al. 2024
    (Qwen2-VL), interleaved as in Qwen3-VL.
    """

    takes = (Index, Times)
    inv_freq: Tensor
    reference = """@article{su2021roformer,
  title={RoFormer: Enhanced Transformer with Rotary Position Embedding},
  author={Su, Jianlin and Lu, Yu and Pan, Shengfeng and Murtadha, Ahmed and Wen, Bo and Liu, Yunfeng},
  journal={arXiv:2104.09864}, year={2021}}"""

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        layout: Layout = "half",
        scaling: Mapping[str, Any] | None = None,
        partial: float = 1.0,
        sections: Sequence[int] | None = None,
        interleave_sections: bool = False,
    ) -> None:
        super().__init__()
        check_layout(layout)
        self.scaling = Scaling.of(scaling)
        given = scaling or {}
        self.base = check_base(_agreed("base", base, 10000.0, given.get("rope_theta")))
        self.partial = float(_agreed("partial", partial, 1.0, given.get("partial_rotary_factor")))
        if not 0 < self.partial <= 1:
            raise ValueError(f"partial is the rotated share of the channels, above 0 and at most 1, got {self.partial}")
        self.dim, self.layout = check_width("RoPE", dim), layout
        self.width, self.kept = _widths(dim, self.partial, self.scaling.kind == "proportional")
        inv_freq, self.attention_factor = self.frequencies()
        self._keep_exact("inv_freq", inv_freq)
        sections = given.get("mrope_section") if sections is None else sections
        self.sections = None if sections is None else tuple(sections)
        self.interleave_sections = bool(given.get("mrope_interleaved", interleave_sections))
        axis = _axis_of_pair(self.sections, self.width // 2, self.interleave_sections)
        self.register_buffer("axis_of_pair", axis, persistent=False)

    def frequencies(self, length: int = 0) -> tuple[Tensor, float]:
        """theta (pairs,) float64 on the CPU, and the factor of cos and sin, for a sequence of `length` tokens."""
        return self.scaling.frequencies(self.width, self.base, length, self.kept)

    def make_codes(
        self, q_pos: Positions, k_pos: Positions, generator: torch.Generator | None = None
    ) -> RoPECodes | None:
        """The frequencies of length largest position + 1; None where no scaling depends on the length."""
        if not self.scaling.by_length:
            return None
        self.check_positions(q_pos, k_pos)
        tops = [int(pos.values.amax()) + 1 for pos in (q_pos, k_pos) if isinstance(pos, Position) and len(pos)]
        length = max([0, *tops])
        inv_freq, factor = self.frequencies(length)
        return RoPECodes(inv_freq.to(self.inv_freq.device), factor, length)

    def check_positions(self, *positions: Positions) -> None:
        for position in positions:
            if not isinstance(position, Grid):
                super().check_positions(position)
            elif self.sections is None:
                raise TypeError("RoPE takes Index or Times positions, got Grid; give sections=, or take AxialRoPE")
            elif position.axes != len(self.sections):
                raise ValueError(f"RoPE has {len(self.sections)} sections, the Grid positions {position.axes} axes")

    def angles(self, positions: Position, codes: RoPECodes | None) -> Tensor:
        if codes is None and self.scaling.by_length:
            raise ValueError(
                f"{self.scaling.kind} scaling depends on the length of the whole sequence: make codes once with "
                "codes = encoding.make_codes(q_pos, k_pos) and pass them to encode_q and encode_k"
            )
        theta = self.inv_freq if codes is None else codes.inv_freq
        theta = theta.to(positions.values.device)
        if isinstance(positions, Grid):
            assert isinstance(self.axis_of_pair, Tensor)
            return per_token(positions.values, 1)[..., self.axis_of_pair.to(theta.device)] * theta
        return per_token(positions.values).unsqueeze(-1) * theta

    def gain(self, positions: Position, codes: RoPECodes | None, side: int, dtype: torch.dtype) -> float:
        return self.attention_factor if codes is None else codes.attention_factor

    @staticmethod
    def convert_layout(rows: Tensor, heads: int, to: Layout, width: int | None = None) -> Tensor:
        """A projection's rows for the other layout: with both q's and k's converted, every score stays as it was.

        rows (heads * dim, ..): weight or bias of the projection to q or k, trained under the layout that is not `to`;
        for keys under GQA, heads is the number of key heads. width: rotated channels of a head, where partial.
        """
        check_layout(to)
        if rows.shape[0] % heads:
            raise ValueError(f"{rows.shape[0]} rows do not divide into {heads} heads")
        dim = rows.shape[0] // heads
        width = dim if width is None else width
        if width > dim or width % 2:
            raise ValueError(f"the rotated width is even and at most {dim}, got {width}")
        pairs = torch.arange(width, device=rows.device)
        order = pairs.view(-1, 2).T.flatten() if to == "half" else pairs.view(2, -1).T.flatten()
        order = torch.cat((order, torch.arange(width, dim, device=rows.device)))
        return rows.reshape(heads, dim, *rows.shape[1:])[:, order].flatten(0, 1)

    def extra_repr(self) -> str:
        more = "" if self.sections is None else f", sections={self.sections}"
        return f"dim={self.dim}, base={self.base:g}, layout={self.layout!r}, scaling={self.scaling.kind!r}{more}"


def _agreed(name: str, argument: float, default: float, pasted: float | None) -> float:
    """The argument, or what a pasted configuration says; ValueError where both speak and differ."""
    if pasted is None:
        return argument
    if argument not in (default, pasted):
        raise ValueError(f"{name}={argument} and scaling says {pasted}; give one of them")
    return pasted


def _widths(dim: int, partial: float, proportional: bool) -> tuple[int, int | None]:
    """Channels that the frequencies spread over, and how many pairs turn where that is not all of them."""
    if proportional:
        return dim, int(partial * dim // 2)
    width = int(dim * partial)
    if width < 2 or width % 2:
        raise ValueError(
            "RoPE turns pairs of channels: int(dim * partial) is even and at least 2, got "
            f"int({dim} * {partial}) = {width}"
        )
    return width, None


def _axis_of_pair(sections: tuple[int, ...] | None, pairs: int, interleaved: bool) -> Tensor | None:
    if sections is None:
        return None
    if not 1 <= len(sections) <= 3 or any(not isinstance(s, int) or s < 0 for s in sections) or sum(sections) != pairs:
        raise ValueError(f"sections are 1 to 3 numbers of pairs that sum to {pairs}, got {sections}")
    if not interleaved:
        return torch.repeat_interleave(torch.arange(len(sections)), torch.tensor(sections))
    axis = torch.zeros(pairs, dtype=torch.int64)
    for a, count in enumerate(sections[1:], start=1):  # axis 0 keeps what the others leave, as Qwen3-VL does
        axis[a : len(sections) * count : len(sections)] = a
    return axis
