"""Stochastic encoding by sines: a learned sum of cosines of the lag for every feature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from relpos.encodings.base import positive
from relpos.encodings.reference import need
from relpos.encodings.transform.rotation import per_token
from relpos.encodings.transform.spe import SPE, Codes, Noise, check_noise, frame, recomputed, reference_gate
from relpos.positions import Index, Position, Times

CHUNK = 2**20  # numbers of one chunk of features: enough for full-speed products, little beside the inputs


class SineSPE(SPE):
    """Multiplies q_d k_d by a learned sum of cosines of the lag, in expectation, at a cost linear in the length.

        P_d(lag) = 1/(2K) sum_k gain_dk^2 cos(2 pi f_dk lag - offset_dk),     lag = key position - query position
        E[q'_i.k'_j] = sum_d q_id k_jd (gate_d + (1 - gate_d) P_d(j - i))

    heads, dim, sines   number of heads, width of one, and K
    realizations   R, the width of what comes out: the error of a logit falls as 1/R (see below)
    gated          a share gate_d = sigmoid(gate) of every product ignores positions
    noise          "gaussian": the method. "orthogonal": the noise vectors of a head are mutually orthogonal; the same
                   expectation at the same cost, exact from R = 2 K dim on (with a gate: (2 K + 1) dim; its own part
                   alone from R = dim). "exact": no noise, the features side by side, width 2 K dim, with a gate
                   (2 K + 1) dim; codes are then not needed
    [frequencies, offsets, gains (heads, dim, sines); gate (heads, dim). f = sigmoid(frequencies) / 2 in turns a token,
    gain = softplus(gains), offsets in radians]

    Positions are Index, or Times read as real-valued tokens. Acts before a feature map. Codes: see `sample`; without
    them every call of attention draws its own. Gaussian noise in a logit, white q and k: noise over signal power is
    dim S^2 / (R mean P^2), S = P(0) were the offset 0. At the initial values with K = 10 and dim = R = 64 that is 5
    without a gate and 1.6 with one, and the exponential is biased upwards: take more realizations or other noise.
    A logit is one matrix product over the 2 K dim features of a token, made by chunks and again in the backward pass,
    so memory is that of the output; phases are float64 turns, reduced before any cast.

    Source: Liutkus et al. 2021, eq. 16-25. The released code counts query - key, scales its codes by
    (R dim)^(-1/4), which is (R / dim)^(1/4) times ours, and draws the gate's noise outside the codes; its
    get_posattn_matrix lacks the 1/(2K).
    """

    takes = (Index, Times)

    def __init__(
        self,
        heads: int,
        dim: int,
        sines: int = 5,
        realizations: int = 64,
        gated: bool = True,
        noise: Noise = "gaussian",
    ) -> None:
        super().__init__(heads, dim, realizations, gated, noise)
        self.sines = positive("sines", sines)
        shape = (heads, dim, sines)
        self.frequencies = nn.Parameter(torch.randn(shape) - 4)  # periods of 23 to 600 tokens, mostly
        self.offsets = nn.Parameter(torch.randn(shape))
        gains = torch.randn(shape)
        self.gains = nn.Parameter(2 * gains / gains.norm(dim=-1, keepdim=True).sqrt())

    @classmethod
    def from_reference(
        cls,
        arrays: Mapping[str, Any],
        convention: Literal["pytorch", "jax"] = "pytorch",
        realizations: int = 64,
        noise: Noise = "gaussian",
    ) -> SineSPE:
        """From the released package's arrays freqs, gains, offsets (heads, dim, sines) and, where gated, gate.

        Encoder and filter of the package are two modules: give {**encoder.state_dict(), **filter.state_dict()}.
        convention: the PyTorch package's gate weighs the part without positions, the JAX package's the other one.
        """
        freqs = need(arrays, "freqs", "freqs_raw")
        if freqs.dim() != 3:
            raise ValueError(f"freqs has shape (heads, dim, sines), got {tuple(freqs.shape)}")
        gate = reference_gate(arrays, convention)
        heads, dim, sines = freqs.shape
        made = cls(heads, dim, sines, realizations, gate is not None, noise)
        state = {"frequencies": freqs, "offsets": need(arrays, "offsets")}
        state |= {"gains": need(arrays, "gains", "gains_raw")} | ({} if gate is None else {"gate": gate})
        made.to(freqs.dtype).load_state_dict(state)
        return made

    def codes_from(self, z: Tensor, gating: Tensor | None = None, offset: int = 0) -> Codes:
        """Codes of given standard normal noise: z (heads, dim, 2 sines, realizations), order cos_0, sin_0, cos_1, ..,
        and gating (heads, dim, realizations) where there is a gate."""
        want = (self.heads, self.dim, 2 * self.sines, self.realizations)
        check_noise("z", z, want)
        if self.gated:
            check_noise("gating", gating, (self.heads, self.dim, self.realizations))
        return Codes(self, z, gating, 0, 0, offset)

    def width_after(self, dim: int) -> int:
        return dim * (2 * self.sines + self.gated) if self.noise == "exact" else self.realizations

    def positional(self, lags: Tensor) -> Tensor:
        angle = _angle(-lags.to(torch.float64).flatten(), *self._phase(0))  # (heads, lags, dim, sines)
        waves = softplus(self.gains.to(torch.float64)).square().unsqueeze(1) * angle.cos()
        return waves.sum(-1).mT.reshape(self.heads, self.dim, *lags.shape) / (2 * self.sines)

    def draw(self, generator: torch.Generator | None) -> Tensor:
        shape = (self.heads, self.dim, 2 * self.sines, self.realizations)
        if self.noise == "gaussian":
            return self._normal(shape, generator)
        drawn = frame(self.heads, shape[1] * shape[2], shape[3], lambda size: self._normal(size, generator))
        return drawn.view(shape)

    def _drawn(self, generator: torch.Generator | None) -> tuple[Any, Tensor | None]:
        own = 2 * self.sines * self.dim
        if self.noise == "gaussian" or not self.gated:
            return super()._drawn(generator)
        # One frame where it can be exact for both parts; else one each, because each part alone may still be exact.
        if self.realizations >= own + self.dim:
            both = frame(self.heads, own + self.dim, self.realizations, lambda size: self._normal(size, generator))
            return both[:, :own].reshape(self.heads, self.dim, -1, self.realizations), both[:, own:]
        noise = self.draw(generator)
        return noise, frame(self.heads, self.dim, self.realizations, lambda size: self._normal(size, generator))

    def mapped(self, x: Tensor, positions: Position, codes: Codes, side: int, dtype: torch.dtype) -> Tensor:
        width = 2 * self.sines * self.dim
        size = max(1, CHUNK // max(1, x.shape[0] * self.heads * width))
        values = per_token(positions.values)
        given = (*self._phase(side), *self._weights(codes, dtype))
        features = _exact if codes.noise is None else _projected
        if x.shape[-2] <= size:
            return features(x, values, *given)
        chunks = zip(torch.split(x, size, -2), torch.split(values, size, -1), strict=True)
        return torch.cat([recomputed(features, *chunk, *given) for chunk in chunks], -2)

    def layout(self) -> dict[str, Any]:
        return super().layout() | {"sines": self.sines}

    def _phase(self, side: int) -> tuple[Tensor, Tensor]:
        """Turns a token and turns at the origin, float64 (heads, 1, dim, sines); only queries have an offset."""
        offsets = self.offsets.to(torch.float64) / (2 * math.pi) * (1 - side)
        return (self.frequencies.to(torch.float64).sigmoid() / 2).unsqueeze(1), offsets.unsqueeze(1)

    def _weights(self, codes: Codes, dtype: torch.dtype) -> list[Tensor]:
        """What cosines, sines and plain channels are multiplied by: matrices of noise, or rows of factors."""
        plain, through = self._shares(torch.float64)
        gain = softplus(self.gains.to(torch.float64)) * (2 * self.sines) ** -0.5
        gain = gain * plain.unsqueeze(-1) if isinstance(plain, Tensor) else gain
        if codes.noise is None:
            rows = [gain.flatten(1)] * 2 + ([] if through is None else [through])
            return [row.unsqueeze(1).to(dtype) for row in rows]
        noise = codes.noise.to(torch.float64) * self.realizations**-0.5
        noise = noise.view(self.heads, self.dim, self.sines, 2, -1)
        found = [(gain.unsqueeze(-1) * noise[..., part, :]).flatten(1, 2) for part in (0, 1)]
        gate = self._gate_code(codes, dtype)
        return [matrix.to(dtype) for matrix in found] + ([] if gate is None else [gate])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sines={self.sines}"


def _angle(values: Tensor, rate: Tensor, start: Tensor) -> Tensor:
    """Radians within half a turn, float64 (.., heads, n, dim, sines), from positions (n,) or (batch, n)."""
    at = values.view(*values.shape[:-1], *(1,) * (values.dim() - 1), values.shape[-1], 1, 1)
    turns = at * rate + start
    return 2 * math.pi * (turns - turns.detach().round())


def _waves(x: Tensor, values: Tensor, rate: Tensor, start: Tensor) -> list[Tensor]:
    """x times the cosines and x times the sines, (batch, heads, n, dim * sines) each."""
    angle = _angle(values, rate, start).to(x.dtype)
    return [(x.unsqueeze(-1) * wave).flatten(-2) for wave in (angle.cos(), angle.sin())]


def _projected(x: Tensor, values: Tensor, rate: Tensor, start: Tensor, *weights: Tensor) -> Tensor:
    cosines, sines = _waves(x, values, rate, start)
    out = cosines @ weights[0] + sines @ weights[1]
    return out if len(weights) == 2 else out + x @ weights[2]


def _exact(x: Tensor, values: Tensor, rate: Tensor, start: Tensor, *weights: Tensor) -> Tensor:
    parts = [*_waves(x, values, rate, start), x]
    return torch.cat([part * row for part, row in zip(parts, weights)], -1)
