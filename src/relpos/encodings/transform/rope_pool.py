"""RoPEPool: a rotation whose two components are added. It is not a relative encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import check_heads
from relpos.encodings.reference import need
from relpos.encodings.transform.points import AtPoints, Levels
from relpos.encodings.transform.rotation import Layout, check_base, check_layout, check_width
from relpos.encodings.transform.shared import as_heads, wide
from relpos.positions import Positions


class RoPEPool(AtPoints):
    """Not a relative encoding: turns channel pairs by the position as RoPE does, then adds the two channels of a pair.

        q'_t = q_2t (cos a + sin a) + q_2t+1 (cos a - sin a),   a_t = freq_t . p,   width dim/2
        q'_t k'_t = (q1 k1 + q2 k2) cos D + (q1 k2 - q2 k1) sin D + (q1 k1 - q2 k2) sin S + (q1 k2 + q2 k1) cos S
        with D = freq . (p_i - p_j) and S = freq . (p_i + p_j)

    The terms in S depend on where the pair stands, so moving all positions changes the logits, and the kernel of
    positions alone is not positive definite. RoPE and F-StrIPE (features=1, unpooled, without phases) are the relative
    ones of this family.

    level        one or several levels of named positions, or {name: axes}, as in FStrIPE: p has one axis each;
                 positions that are not named are taken as they are. Times keep their origin here, since it counts
    learned      True: frequencies (heads, dim/2, axes), radians a unit of position, are a parameter. At the start, and
                 always otherwise, base^(-2t/dim) for pair t on axis t mod axes and 0 on the others, alike in all heads
    layout       "interleaved": pairs (2t, 2t + 1); "half": (t, t + dim/2)
    scale        the factor of the score stays that of the full width, 1/sqrt(dim)
    In kernelised attention it acts on q and k before the features. Angles are float64.
    Source: "Of All StrIPEs", arXiv 2504.05364; no code was published.
    """

    learned = False  # as built by name
    reference = """@article{agarwal2026stripes,
  title={Of All StrIPEs: Investigating Structure-informed Positional Encoding for Efficient Music Generation},
  author={Agarwal, Manvi and Wang, Changhong and Richard, Ga{\\"e}l},
  journal={IEEE Transactions on Audio, Speech and Language Processing}, volume={34}, pages={1388--1400}, year={2026}}"""

    def __init__(
        self,
        heads: int,
        dim: int,
        level: Levels = "index",
        base: float = 10000.0,
        learned: bool = False,
        layout: Layout = "interleaved",
    ) -> None:
        super().__init__()
        check_layout(layout)
        self.heads, self.dim, self.base = check_heads(heads), check_width("RoPEPool", dim), check_base(base)
        self._read(level)
        self.layout = layout
        self.frequencies = nn.Parameter(self._usual().float().repeat(heads, 1, 1)) if learned else None

    @classmethod
    def from_reference(
        cls, arrays: Mapping[str, Any], level: Levels | None = None, layout: Layout = "interleaved"
    ) -> RoPEPool:
        """From frequencies "f", radians a unit of position: (pairs,), (pairs, axes) or (heads, pairs, axes); learned.

        level: default "index" for one axis, else "level0", "level1", ..
        """
        given = need(arrays, "frequencies", "f", "freqs")
        given = given.unsqueeze(-1) if given.dim() == 1 else given
        given = given.unsqueeze(0) if given.dim() == 2 else given
        if given.dim() != 3:
            raise ValueError(
                f"frequencies are (pairs,), (pairs, axes) or (heads, pairs, axes), got {tuple(given.shape)}"
            )
        heads, pairs, axes = given.shape
        level = level if level is not None else "index" if axes == 1 else [f"level{a}" for a in range(axes)]
        encoding = cls(heads, 2 * pairs, level, learned=True, layout=layout).to(given.dtype)
        if encoding.axes != axes:
            raise ValueError(f"the frequencies have {axes} axes, level={level!r} has {encoding.axes}")
        encoding.load_state_dict({"frequencies": given})
        return encoding

    def _usual(self, device: torch.device | None = None) -> Tensor:
        """float64 (1, pairs, axes)"""
        pair = torch.arange(self.dim // 2, device=device)
        start = torch.zeros(1, self.dim // 2, self.axes, dtype=torch.float64, device=device)
        start[0, pair, pair % self.axes] = self.base ** (-2 * pair.double() / self.dim)
        return start

    def width_after(self, dim: int) -> int:
        return dim // 2

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._pooled(q, q_pos)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._pooled(k if self.frequencies is None else as_heads(k, self.heads, "RoPEPool"), k_pos)

    def _pooled(self, x: Tensor, positions: Positions) -> Tensor:
        self.check_positions(positions)
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"RoPEPool was built for heads of width {self.dim}, got {x.shape[-1]}; dim is the width of one head"
            )
        frequencies = self._usual(x.device) if self.frequencies is None else self.frequencies.double()
        angle = torch.einsum("bna,hpa->bhnp", self._points(positions), frequencies)
        values = wide(x)
        cos, sin = angle.cos().to(values.dtype), angle.sin().to(values.dtype)
        if self.layout == "interleaved":
            first, second = values[..., 0::2], values[..., 1::2]
        else:
            first, second = values.chunk(2, -1)
        return (first * (cos + sin) + second * (cos - sin)).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, dim={self.dim}, levels={self.levels}, base={self.base:g}, "
            f"learned={self.frequencies is not None}, layout={self.layout!r}"
        )
