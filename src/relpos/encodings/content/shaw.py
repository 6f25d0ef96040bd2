"""Shaw et al. 2018: a learned vector for every lag, added to the keys and to the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import check_heads, positive
from relpos.encodings.bias.learned import Beyond, check_beyond
from relpos.encodings.content._lags import Extent, LagVectors, new_table


class Shaw(LagVectors):
    """Adds a learned vector for the clipped lag to every key, and another to every value.

        score_ij = q_i . (k_j + keys[r]) / sqrt(dim),   out_i = sum_j p_ij (v_j + values[r]),   r = clip(lag) + max_lag

    keys, values  (2 max_lag + 1, dim), one table for all heads as in the released code; (heads, 2 max_lag + 1, dim)
                  where heads is given. Glorot uniform
    values        False leaves the value vectors out (`has_values`); with them dim_v must be dim
    beyond        what a lag past +-max_lag gets: "clip" the last vector (the paper), "zero" none, "error" a ValueError
    scale         factor of q . keys; default 1/sqrt(dim). The paper's term stands inside the usual scale and the kernel
                  adds it after its own, so it is applied here, whatever `scale` the attention is called with
    Cost: O(n dim) memory; work beyond plain attention only where |lag| <= max_lag. Integer positions.
    Source: Shaw, Uszkoreit and Vaswani 2018, equations 3 and 4.
    """

    extrapolates = True
    reference = """@inproceedings{shaw2018self,
  title={Self-Attention with Relative Position Representations},
  author={Shaw, Peter and Uszkoreit, Jakob and Vaswani, Ashish},
  booktitle={NAACL-HLT}, year={2018}}"""

    def __init__(
        self,
        dim: int,
        max_lag: int,
        values: bool = True,
        heads: int | None = None,
        beyond: Beyond = "clip",
        *,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        check_beyond(beyond)
        if not isinstance(max_lag, int) or isinstance(max_lag, bool) or max_lag < 0:
            raise ValueError(f"max_lag is an integer of at least 0, got {max_lag!r}")
        self.dim, self.max_lag, self.beyond = positive("dim", dim), max_lag, beyond
        self.heads = None if heads is None else check_heads(heads)
        self.scale = dim**-0.5 if scale is None else float(scale)
        self.extent = Extent(-max_lag, max_lag, beyond == "clip", beyond == "clip")
        self.keys = new_table(self.heads, self.extent.rows, dim)
        self.values = new_table(self.heads, self.extent.rows, dim) if values else None
        self.has_values = values
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot uniform, for a matrix of all lags by dim."""
        bound = (6 / (self.extent.rows + self.dim)) ** 0.5
        for table in self.parameters():
            torch.nn.init.uniform_(table, -bound, bound)

    def tables(self) -> tuple[Tensor, Tensor | None]:
        return self.keys, self.values

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], **options: Any) -> Shaw:
        """From tensor2tensor's variables, "relative_positions_keys" and "relative_positions_values" (rows lag -k..k).

        A name may have anything before and after these words. Options go to the constructor.
        """
        found = {
            ours: torch.as_tensor(array)
            for ours in ("keys", "values")
            for theirs, array in arrays.items()
            if f"relative_positions_{ours}" in theirs
        }
        if "keys" not in found:
            raise ValueError(f"no name holds 'relative_positions_keys'; got {', '.join(arrays) or 'nothing'}")
        rows, dim = found["keys"].shape[-2:]
        encoding = cls(dim, rows // 2, values="values" in found, **options)
        encoding.load_state_dict(found)
        return encoding

    def extra_repr(self) -> str:
        shared = "" if self.heads is None else f", heads={self.heads}"
        return f"dim={self.dim}, max_lag={self.max_lag}, values={self.has_values}{shared}, beyond={self.beyond!r}"
