"""A learned scalar for every lag and head: the plainest relative bias."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, Tail, check_heads, positive

Beyond = Literal["clip", "zero", "error"]


def table_index(lag: Tensor, max_lag: int, beyond: Beyond, name: str) -> tuple[Tensor, Tensor | None]:
    """Index lag + max_lag into a table of 2 max_lag + 1 rows, and the mask of lags inside it (None: all count).

    The three rules past the table's end that are in use: "clip" (Shaw et al. 2018) reuses the last row, "zero" (the
    released Music Transformer) has no term there, "error" refuses.
    """
    if beyond == "clip":
        return lag.clamp(-max_lag, max_lag) + max_lag, None
    inside = lag.abs() <= max_lag
    if beyond == "error" and not bool(inside.all()):
        raise ValueError(
            f"a lag of {int(lag.abs().max())} lies beyond {name}'s table (max_lag={max_lag}); "
            'build it with a larger max_lag, or with beyond="clip" or "zero"'
        )
    return lag.clamp(-max_lag, max_lag) + max_lag, (inside if beyond == "zero" else None)


def check_beyond(beyond: str) -> None:
    if beyond not in ("clip", "zero", "error"):
        raise ValueError(f'beyond is "clip", "zero" or "error", got {beyond!r}')


class LearnedBias(Bias):
    """Adds table[h, lag + max_lag] to the score of head h: one learned scalar a lag and head.

    table  (heads, 2 max_lag + 1), N(0, 0.02)
    beyond what a lag past the table gets: "clip" the last entry, "zero" nothing, "error" a ValueError
    Added after the scale. Cost O(n) memory; the generator is a gather of the table.
    Source: the position bias of Luo et al. 2021 (NPRF) and of most released relative-bias code.
    """

    extrapolates = False
    reference = """@inproceedings{luo2021stable,
  title={Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding},
  author={Luo, Shengjie and Li, Shanda and Cai, Tianle and He, Di and Peng, Dinglan and Zheng, Shuxin
    and Ke, Guolin and Wang, Liwei and Liu, Tie-Yan},
  booktitle={NeurIPS}, year={2021}}"""

    def __init__(self, heads: int, max_lag: int, beyond: Beyond = "clip") -> None:
        super().__init__()
        check_beyond(beyond)
        self.heads, self.max_lag, self.beyond = check_heads(heads), positive("max_lag", max_lag), beyond
        self.table = nn.Parameter(torch.randn(heads, 2 * max_lag + 1) * 0.02)

    def at(self, lag: Tensor) -> Tensor:
        index, inside = table_index(lag, self.max_lag, self.beyond, "LearnedBias")
        bias = self.table[:, index]
        return bias if inside is None else bias * inside

    def tail(self) -> Tail | None:
        """Constant past the table, where it does not refuse."""
        return None if self.beyond == "error" else Tail(self.max_lag + (self.beyond == "zero"))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, max_lag={self.max_lag}, beyond={self.beyond!r}"
