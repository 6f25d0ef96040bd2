"""Log-normal densities of a time that is known to end before a bound: a posterior draws between events from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SMALLEST, _LARGEST = -80.0, -1e-9  # of log(x / bound): draws stay inside of (0, bound) in float64
_WIDEST = 12.0  # |loc| and |log_scale| beyond this say nothing that a float can hold


class TruncatedLogNormal:
    """A mixture of log-normal densities on (0, bound), each of them cut off at the bound and normalised there.

        log(x / bound) = loc + scale z, z standard normal, given that it is below 0

    loc, log_scale, log_weight  (.., components); weights are normalised here, log_scale is kept within -5..5
    bound                       (..) above 0
    All through log cdf, so that a component that lies far beyond the bound costs no precision: it leans on the bound.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, log_weight: Tensor, bound: Tensor) -> None:
        self.loc = loc.to(torch.float64).clamp(-_WIDEST, _WIDEST)
        self.log_scale = log_scale.to(torch.float64).clamp(-5, 5)
        self.log_weight = log_weight.to(torch.float64).log_softmax(-1)
        self.bound = bound.to(torch.float64)
        self.edge = torch.special.log_ndtr(-self.loc * torch.exp(-self.log_scale))  # log P(x < bound), untruncated

    def _z(self, log_share: Tensor) -> Tensor:
        return (log_share[..., None] - self.loc) * torch.exp(-self.log_scale)

    def _log_density(self, log_share: Tensor) -> Tensor:
        """Of log(x / bound)."""
        z = self._z(log_share)
        parts = self.log_weight - 0.5 * z.square() - self.log_scale - _LOG_SQRT_2PI - self.edge
        return torch.logsumexp(parts, -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of x, for x in (0, bound)."""
        log_x = torch.log(x)
        return self._log_density(log_x - torch.log(self.bound)) - log_x

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x); 0 from below, 1 from the bound on."""
        log_share = torch.log((x / self.bound).clamp(0.0, 1.0))
        return self._cdf(log_share)

    def _cdf(self, log_share: Tensor) -> Tensor:
        return torch.exp(torch.logsumexp(self.log_weight + torch.special.log_ndtr(self._z(log_share)) - self.edge, -1))

    def log_share(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw of log(x / bound), below 0; differentiable in the parameters by the implicit function theorem.

        A draw stays where it is while its level F(x) does, so d log x = - dF / f at that level (Figurnov et al. 2018).
        """
        shape = self.log_weight.shape
        with torch.no_grad():
            # by the Gumbel-max rule, as torch.multinomial takes no more than two axes
            noise = torch.rand(shape, generator=generator, dtype=torch.float64).to(self.loc.device)
            component = (self.log_weight - torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))).argmax(-1)
            level = torch.rand(shape[:-1], generator=generator, dtype=torch.float64).to(self.loc.device)
            found = self._quantile(component, torch.log(level.clamp_min(1e-300)))
            density = torch.exp(self._log_density(found)).clamp_min(1e-290)
        if not torch.is_grad_enabled():
            return found
        level = self._cdf(found)
        return found - (level - level.detach()) / density

    def middle(self) -> Tensor:
        """log(x / bound) at the median of the heaviest component: no random number. Differentiable."""
        component = self.log_weight.argmax(-1)
        return self._quantile(component, torch.full_like(self.bound, math.log(0.5)))

    def _quantile(self, component: Tensor, log_level: Tensor) -> Tensor:
        loc, log_scale, edge = (
            each.gather(-1, component[..., None])[..., 0] for each in (self.loc, self.log_scale, self.edge)
        )
        found = loc + torch.exp(log_scale) * log_ndtri(log_level + edge)
        return found.clamp(_SMALLEST, _LARGEST)


def log_ndtri(level: Tensor) -> Tensor:
    """z of which ``level`` < 0 is the log cdf, float64; as exact for levels of -1e6 as for those of -1.

    Newton's method: the log cdf is concave, so from the first step on it comes from the left and does not overshoot.
    Differentiable: dz / dlevel = cdf / density.
    """
    with torch.no_grad():
        far = level < -20.0
        near = torch.special.ndtri(torch.exp(torch.where(far, -1.0, level)).clamp(max=1 - 1e-16))
        deep = torch.where(far, level, -30.0)
        guess = -torch.sqrt(-2 * (deep + _LOG_SQRT_2PI + 0.5 * torch.log(-2 * deep)))
        for _ in range(4):
            value = torch.special.log_ndtr(guess)
            guess = guess - (value - deep) * torch.exp(value + 0.5 * guess.square() + _LOG_SQRT_2PI)
        z = torch.where(far, guess, near)
    if not level.requires_grad:
        return z
    slope = torch.exp(torch.special.log_ndtr(z) + 0.5 * z.square() + _LOG_SQRT_2PI)
    return z + slope.detach().clamp(max=1e12) * (level - level.detach())
