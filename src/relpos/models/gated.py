"""The block of gMLP and PosMLP: a gate mixes the tokens inside the channel MLP."""

from __future__ import annotations

from torch import Tensor, nn

from relpos.encodings.base import positive
from relpos.models.images import DropPath

EPSILON = 1e-6  # of every normalisation in the released networks


class GatedBlock(nn.Module):
    """x + DropPath(Dropout(W_s gate(GELU(W_e norm(x))))), for x (.., n, dim): one residual branch, no other MLP.

    hidden   width of the input of the gate, even; W_e is dim -> hidden, and W_s is hidden / 2 -> dim
    gate     (.., n, hidden) to (.., n, hidden / 2)
    Weights are truncated normal 0.02, biases 0. Source: Liu et al. 2021, "Pay Attention to MLPs", section 2.
    """

    def __init__(self, dim: int, hidden: int, gate: nn.Module, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        if positive("the width of the gate's input", hidden) % 2:
            raise ValueError(f"a gate takes two halves of the channels: dim * ratio is even, got {hidden}")
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        self.expand, self.gate, self.project = nn.Linear(dim, hidden), gate, nn.Linear(hidden // 2, dim)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)
        for linear in (self.expand, self.project):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(nn.functional.gelu(self.expand(self.norm(x))))
        out: Tensor = x + self.drop_path(self.dropout(self.project(y)))
        return out


def hidden_width(dim: int, ratio: float) -> int:
    """ratio * dim, a whole number."""
    hidden = round(ratio * positive("dim", dim)) if isinstance(ratio, int | float) else 0
    if hidden < 1 or abs(hidden - ratio * dim) > 1e-6:
        raise ValueError(f"ratio * dim is a whole number of channels, got ratio={ratio!r} and dim={dim}")
    return hidden


def linear_head(dim: int, classes: int) -> nn.Linear:
    """The last layer of a classifier: truncated normal 0.02, bias 0."""
    head = nn.Linear(dim, positive("classes", classes))
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
