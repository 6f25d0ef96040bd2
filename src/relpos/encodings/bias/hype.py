"""HyPE: a hyperbolic-sine penalty, linear near and exponential far, of rank two."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from relpos.encodings.base import Tail, check_heads, positive
from relpos.encodings.bias.alibi import FixedBias, alibi_slopes
from relpos.positions import is_traced

STEEPEST = 60.0  # sinh(60) = 6e25: closed attention for any amplitude, and still finite in float32
GENTLE = 2.0  # mu n up to which cosh and sinh are the smaller factors
Numbers = float | Tensor


class HyPE(FixedBias):
    """Adds B(D) = -tau_h sinh(mu_h D), D = query - key position >= 0, to the score: causal attention only.

    slope      mu > 0, a number or (heads,), per token; default 0.25 / train_length
    amplitude  tau > 0, a number or (heads,), nats; default m_h / mu with ALiBi's slopes m_h
    learned    True: two parameters a head, log_decay = ln(tau mu), the log of the penalty a token near the query, and
               log_slope = ln mu, the log of the curvature. In (tau, mu) themselves the gradient of mu grows like
               D e^(mu D) and the two compensate each other.
    Small mu D: -m D (1 + (mu D)^2/6 + ..), m = tau mu, within (x^2/6) cosh x relative of ALiBi, x = mu D. Beyond
    D = asinh(20/tau)/mu attention is closed: a soft window. Sinh is odd, so keys after the query would be rewarded:
    two-sided attention is refused. (The paper writes -tau sinh(mu (j - i)); with j the key and mu > 0 that would reward
    distance, so the sign is fixed here by B decreasing in D.)
    Computed from the integer lag: no cancellation; mu D saturates at 60, so no lag gives an infinity. As channels
    (`factors`) large terms cancel, with an error of about tau times the dtype's roundoff: `relpos.channels` measures it
    and refuses where it matters.
    Source: Angelotti 2023, arXiv 2310.19676 (formula; the defaults and the learned form are ours).
    """

    extrapolates = True
    causal_only = True
    has_factors = True
    reference = """@article{angelotti2023hype,
  title={HyPE: Attention with Hyperbolic Biases for Relative Positional Encoding},
  author={Angelotti, Giorgio}, journal={arXiv:2310.19676}, year={2023}}"""

    def __init__(
        self,
        heads: int,
        slope: Numbers | None = None,
        amplitude: Numbers | None = None,
        learned: bool = False,
        train_length: int = 512,
    ) -> None:
        super().__init__()
        self.heads = check_heads(heads)
        mu = self._per_head("slope", 0.25 / positive("train_length", train_length) if slope is None else slope)
        tau = alibi_slopes(heads) / mu if amplitude is None else self._per_head("amplitude", amplitude)
        self.learned = bool(learned)  # type: ignore[misc]  # a property of the class elsewhere, of the object here
        if learned:
            self.log_decay = nn.Parameter((tau * mu).log().to(torch.get_default_dtype()))
            self.log_slope = nn.Parameter(mu.log().to(torch.get_default_dtype()))
        else:
            self.register_buffer("_slope", mu)
            self.register_buffer("_amplitude", tau)

    def _per_head(self, name: str, value: Numbers) -> Tensor:
        wide = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
        if wide.numel() not in (1, self.heads) or not bool((torch.isfinite(wide) & (wide > 0)).all()):
            raise ValueError(f"{name} is a positive number, or one for each of {self.heads} heads, got {value!r}")
        return wide.expand(self.heads).clone()

    @property
    def slope(self) -> Tensor:
        """mu, (heads,), float32 or wider."""
        if not self.learned:
            return self.get_buffer("_slope")
        return (self.log_slope if self.log_slope.dtype.itemsize >= 4 else self.log_slope.float()).exp()

    @property
    def amplitude(self) -> Tensor:
        """tau, (heads,), float32 or wider."""
        if not self.learned:
            return self.get_buffer("_amplitude")
        decay = self.log_decay if self.log_decay.dtype.itemsize >= 4 else self.log_decay.float()
        return (decay - self.log_slope).exp()

    def at(self, lag: Tensor) -> Tensor:
        shape = (-1, *[1] * lag.dim())
        angle = (self.slope.view(shape) * lag).clamp(-STEEPEST, STEEPEST)
        return self.amplitude.view(shape) * torch.sinh(angle)

    def tail(self) -> Tail | None:
        """Constant from the saturation on, mu D >= 60: of use where that is nearer than the sequence is long."""
        if is_traced():  # where it lies is a matter of values
            return None
        slope = self.slope.detach()
        reach = math.ceil(STEEPEST / float(slope.min()))
        saturated = bool((slope * reach >= STEEPEST).all())  # as `at` rounds it
        return Tail(reach if saturated else reach + 1)

    def factors(self, n: int) -> tuple[Tensor, Tensor]:
        """Rank 2, centred at c = (n-1)/2, with tau on the query side, so that heads with one mu share their keys.

        For mu n > 2: [e^a, e^-a] tau/2 and [-e^-b, e^b], a = mu (i-c), b = mu (j-c). Near the query this is a
        difference of two terms of size tau/2. For smaller mu n the same in cosh and sinh, less the constant of the row
        tau sinh a: [-tau sinh a, tau cosh a] and [cosh b - 1, sinh b], whose terms are only tau mu n / 2 large.
        """
        mu, tau = self.slope.double().view(-1, 1, 1), self.amplitude.double().view(-1, 1, 1)
        a = mu * (torch.arange(n, dtype=torch.float64, device=mu.device) - (n - 1) / 2)[:, None]
        if float(mu.detach().max()) * n <= GENTLE:
            return torch.cat([-a.sinh(), a.cosh()], -1) * tau, torch.cat([2 * (a / 2).sinh().square(), a.sinh()], -1)
        return torch.cat([a.exp(), (-a).exp()], -1) * tau / 2, torch.cat([-(-a).exp(), a.exp()], -1)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, learned={self.learned}"
