"""A learned monotone map of a query's clock onto the clock of the corpus."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

SLOW = 0.3  # the clock moves slower than the rest of a network learns, which has to read it


class Unwarping(nn.Module):
    """U(t) = span (SLOW offset + integral from 0 to t / span of exp(SLOW g(s)) ds), g a network of one hidden layer.

    The integrand is positive, so U rises, and no two times change their order; at the start g = 0 and offset = 0, and U
    is the identity. The integral is taken by Gauss-Legendre quadrature over (0, t), which a smooth g leaves with an
    error below 1e-6. One map serves all queries. Computed in float64.

    span    length of a window, in the unit of the times
    hidden  width of g; nodes: of the quadrature
    """

    nodes: Tensor
    weights: Tensor

    def __init__(self, span: float = 1.0, hidden: int = 16, nodes: int = 16) -> None:
        super().__init__()
        if not (span > 0 and np.isfinite(span)) or min(hidden, nodes) < 1:
            raise ValueError(f"span, hidden and nodes are above 0, got {span}, {hidden} and {nodes}")
        self.span = float(span)
        self.first = nn.Linear(1, hidden, dtype=torch.float64)
        self.last = nn.Linear(hidden, 1, dtype=torch.float64)
        self.offset = nn.Parameter(torch.zeros((), dtype=torch.float64))
        with torch.no_grad():
            # Bends spread over the window, else all of g's hidden units bend at its start.
            self.first.weight.uniform_(2, 8)
            self.first.bias.copy_(-self.first.weight[:, 0] * torch.linspace(0, 1, hidden, dtype=torch.float64))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.place(nodes)

    def place(self, nodes: int) -> None:
        """Another number of quadrature nodes."""
        x, w = np.polynomial.legendre.leggauss(nodes)
        device = self.offset.device
        self.register_buffer("nodes", torch.from_numpy((x + 1) / 2).to(device), persistent=False)
        self.register_buffer("weights", torch.from_numpy(w / 2).to(device), persistent=False)

    def rate(self, shares: Tensor) -> Tensor:
        """The integrand at shares (..) of the window: how fast the corpus' clock runs against the query's."""
        hidden = torch.tanh(self.first(shares[..., None]))
        out: Tensor = (SLOW * self.last(hidden)[..., 0]).exp()
        return out

    def forward(self, times: Tensor) -> Tensor:
        """Times (..) since the start of the window, float64, to times of the same shape."""
        shares = times.to(torch.float64) / self.span
        area = (self.rate(shares[..., None] * self.nodes) * self.weights).sum(-1) * shares
        return self.span * (SLOW * self.offset + area)

    def departure(self, points: int = 33) -> Tensor:
        """How far U is from the identity: mean over the window of (U(t) - t)^2 / span^2 + (U'(t) - 1)^2."""
        shares = torch.linspace(0, 1, points, dtype=torch.float64, device=self.offset.device)
        moved = self(shares * self.span) / self.span - shares
        return (moved.square() + (self.rate(shares) - 1).square()).mean()
