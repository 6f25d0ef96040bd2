"""FIRE: a small network of the lag, divided by how far the query has come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import RowBias, check_heads, positive
from relpos.encodings.network import evaluate, wide
from relpos.encodings.reference import find, need
from relpos.positions import Index

_EPSILON = 1e-6  # of the released code: keeps row 0 from 0/0 where the learned threshold shrinks to nothing


class FIRE(RowBias):
    """Adds f_h(psi(D) / (psi(max(i, L)) + 1e-6)) to the score of head h: the lag as a part of the query's position.

        psi(x) = ln(|c x| + 1),   D = i - j for query position i and key position j,   L = |multiplier * threshold|

    f        a network 1 -> hidden -> heads with ReLU: mlp.0.weight (hidden, 1), mlp.0.bias (hidden,),
             mlp.2.weight (heads, hidden), mlp.2.bias (heads,), PyTorch's default initialisation
    c        (), 0.1 at the start;  multiplier (), 1 at the start
    threshold  position in tokens below which every row is divided alike
    Added after the scale. i is zero-based and counts from the start of the document, so the term is not invariant under
    a shift of all positions and has no generator: kernelised attention cannot use it. Keys after the query count by
    |D|. TypeError for positions other than Index.
    Source: Li et al. 2024, "Functional Interpolation for Relative Positions Improves Long Context Transformers". The
    epsilon and |multiplier * threshold| are those of the released code (DAPE's repository); its start is L = 512.
    """

    takes = (Index,)
    extrapolates = True
    reference = """@inproceedings{li2024functional,
  title={Functional Interpolation for Relative Positions Improves Long Context Transformers},
  author={Li, Shanda and You, Chong and Guruganesh, Guru and Ainslie, Joshua and Ontanon, Santiago and Zaheer, Manzil
    and Sanghai, Sumit and Yang, Yiming and Kumar, Sanjiv and Bhojanapalli, Srinadh},
  booktitle={ICLR}, year={2024}}"""

    def __init__(self, heads: int, hidden: int = 32, threshold: float = 512) -> None:
        super().__init__()
        if not threshold > 0:
            raise ValueError(f"threshold is a position above 0, in tokens, got {threshold!r}")
        self.heads, self.threshold = check_heads(heads), float(threshold)
        self.hidden = positive("hidden", hidden)
        self.mlp = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, heads))
        self.c = nn.Parameter(torch.tensor(0.1))
        self.multiplier = nn.Parameter(torch.tensor(1.0))

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any]) -> FIRE:
        """From released weights: mlp.*, c, L_multiplier and init_L (512 where it is missing)."""
        names = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "c")
        state = {name: need(arrays, name) for name in names}
        state["multiplier"] = need(arrays, "L_multiplier", "multiplier")
        start, (heads, hidden) = find(arrays, "init_L"), state["mlp.2.weight"].shape
        own = cls(heads, hidden, 512 if start is None else float(start)).to(state["mlp.2.weight"].dtype)
        own.load_state_dict(state)
        return own

    def pairs(self, q_values: Tensor, k_values: Tensor) -> Tensor:
        dtype = wide(self.c, self.multiplier)
        c, reach = self.c.to(dtype), (self.multiplier.to(dtype) * self.threshold).abs()
        distance = torch.log1p((c * Index.between(q_values, k_values)).abs())
        whole = torch.log1p((c * torch.maximum(q_values.to(dtype), reach)).abs()) + _EPSILON
        return evaluate(self.mlp, (distance / whole.unsqueeze(-1)).unsqueeze(-1)).movedim(-1, -3)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, hidden={self.hidden}, threshold={self.threshold:g}"
