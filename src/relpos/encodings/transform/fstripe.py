"""F-StrIPE: sines of structural positions, without the noise of stochastic encodings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import check_heads, positive
from relpos.encodings.reference import find, need
from relpos.encodings.transform.points import AtPoints, Levels, joined
from relpos.encodings.transform.shared import as_heads, axes_of, coordinates, lag_axes, wide
from relpos.encodings.transform.spe import frame, normal
from relpos.positions import Positions, Times

Noise = Literal["gaussian", "orthogonal"]


@dataclass(frozen=True, eq=False)
class FStrIPECodes:
    """What queries and keys share, every chunk of a stream, and every layer that shall have the same noise.

    origin   what is taken off the positions before any sine, float64 (1, axes) or (batch, 1, axes)
    noise    standard normal float64 (heads, dim, 2 features, realizations), cosines first; None without noise
    """

    origin: Tensor
    noise: Tensor | None = None


class FStrIPE(AtPoints):
    """Weighs channel d of q.k by sines of the difference of structural positions p (labels, times, indices, cells).

        unpooled: q'_i . k'_j = sum_d q_id k_jd P_d(i, j)
        P_d(i, j) = 1/F sum_f gain_df^2 cos(2 pi freq_df . (p_i - p_j) + query_phase_df - key_phase_df)
        pooled:   q'_i = 1/sqrt(F) sum_d q_id gain_d [cos a_d, sin a_d],   a_df = 2 pi freq_df . p_i + query_phase_df

    level      name of a level of named positions ("chord"), or several: p then has one axis a name, in this order;
               {name: axes} for levels with more (a Grid, Profiles such as chroma vectors). Positions that are not
               named are taken as they are, where they have as many axes
    features   F, sines of a channel
    pooled     True, the published method: the channels of a head are summed, 2 F come out. Then products of two
               channels do not cancel, and the logit is not a function of the difference alone; the phases, random at
               the start, make it one in the mean. False: concatenated, 2 F dim channels, exact and relative
    phases     False: none, fixed at 0. With features=1 and pooled=False this is F-StrIPE-1 of "Of All StrIPEs",
               q'_i . k'_j = sum_d q_id k_jd cos(2 pi freq_d . (p_i - p_j)), where projections can absorb the gains
    noise      None; or "gaussian", "orthogonal": F-StrIPE:SFF, which is SPE at structural positions. The unpooled
               features go through noise that queries and keys share, and `realizations` come out: relative in the mean
               over draws, the error falls as realizations^-1/2. Orthogonal noise is exact from 2 F dim realizations on
    frequencies (heads, dim, features, axes), cycles a unit of the position; gains, query_phases and key_phases
    (heads, dim, features). At the start P_d(i, i) = 1, and most periods are 20 to 600 units long.

    Works before the features in kernelised attention, on q and k in softmax attention. Labels are compared by the
    difference of their numbers, so renaming them matters. Times lose the first key's, which travels in `codes`, as the
    noise does: drawn at every call unless given, in eval() too.
    Source: "F-StrIPE", arXiv 2502.10491, as the limit of SPE without noise. P there has 1/F where SPE's has 1/(2F). No
    code was published; the start of the parameters is ours, near that of SPE.
    """

    extrapolates = True
    reference = """@inproceedings{agarwal2025fstripe,
  title={F-StrIPE: Fast Structure-Informed Positional Encoding for Symbolic Music Generation},
  author={Agarwal, Manvi and Wang, Changhong and Richard, Ga{\\"e}l},
  booktitle={ICASSP}, year={2025}}"""

    def __init__(
        self,
        heads: int,
        dim: int,
        level: Levels = "index",
        features: int = 8,
        pooled: bool = True,
        generator: torch.Generator | None = None,
        phases: bool = True,
        noise: Noise | None = None,
        realizations: int = 64,
    ) -> None:
        super().__init__()
        if noise not in (None, "gaussian", "orthogonal"):
            raise ValueError(f"noise is None, gaussian or orthogonal, got {noise!r}")
        if noise is not None and not pooled:
            raise ValueError("noise pools the channels of a head; leave pooled=False out, or noise")
        self.noise, self.realizations = noise, positive("realizations", realizations)
        self.heads, self.dim, self.features = check_heads(heads), positive("dim", dim), positive("features", features)
        self._read(level)
        self.pooled = bool(pooled)
        options: dict[str, Any] = {"generator": generator, "device": None if generator is None else generator.device}
        shape = (heads, dim, features)
        slow = torch.sigmoid(torch.randn(*shape, self.axes, **options) - 4) / 2
        sign = torch.rand(*shape, self.axes, **options) < 0.5
        self.frequencies = nn.Parameter(torch.where(sign, slow, -slow))
        self.gains = nn.Parameter(torch.ones(shape, device=options["device"]))
        self.phases = bool(phases)
        start = 2 * math.pi * torch.rand(shape, **options) * self.phases
        self.query_phases, self.key_phases = (nn.Parameter(x, self.phases) for x in (start, start.clone()))

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], level: Levels | None = None, pooled: bool = True) -> FStrIPE:
        """From the symbols of the paper: f (dim, F, axes), or (dim, F) for one axis, in cycles; lambda, theta_q and
        theta_k (dim, F), 1 and 0 where missing; or all of them with heads in front. Our own names do as well.

        level: default "index" for one axis, else "level0", "level1", ..
        """
        frequencies = need(arrays, "frequencies", "f", "freqs")
        gains = find(arrays, "gains", "lambda", "lambdas", "lam")
        phases = [find(arrays, "query_phases", "theta_q"), find(arrays, "key_phases", "theta_k")]
        small = next((x for x in (gains, *phases) if x is not None), None)
        if small is None:  # nothing says whether the last dimension counts axes: it does from three dimensions on
            small = frequencies if frequencies.dim() == 2 else frequencies[..., 0]
        if frequencies.dim() == small.dim():
            frequencies = frequencies.unsqueeze(-1)
        if small.dim() not in (2, 3) or frequencies.shape[:-1] != small.shape:
            raise ValueError(
                f"frequencies are (dim, F, axes) and gains (dim, F), got {tuple(frequencies.shape)} and "
                f"{tuple(small.shape)}"
            )
        heads, dim, count = (1, *small.shape) if small.dim() == 2 else tuple(small.shape)
        axes = frequencies.shape[-1]
        if level is None:
            level = "index" if axes == 1 else [f"level{a}" for a in range(axes)]
        encoding = cls(heads, dim, level, count, pooled).to(frequencies.dtype)
        if encoding.axes != axes:
            raise ValueError(f"the frequencies have {axes} axes, level={level!r} has {encoding.axes}")
        gains = torch.ones_like(small) if gains is None else gains
        queries, keys = (torch.zeros_like(small) if x is None else x for x in phases)
        with torch.no_grad():
            encoding.frequencies.copy_(frequencies.reshape(encoding.frequencies.shape))
            for own, given in ((encoding.gains, gains), (encoding.query_phases, queries), (encoding.key_phases, keys)):
                own.copy_(given.reshape(own.shape))
        return encoding

    def width_after(self, dim: int) -> int:
        return self.realizations if self.noise else 2 * self.features * (1 if self.pooled else dim)

    def template(self, lags: Tensor) -> Tensor:
        """P_d of lags (..), or (.., axes), key - query position, as (heads, dim, ..), float64."""
        lags = lag_axes(lags, self.axes)
        turn = torch.einsum("...a,hdfa->hd...f", -2 * math.pi * lags, self.frequencies.double())
        shape = (self.heads, self.dim, *[1] * (lags.dim() - 1), self.features)
        phase, gain = ((x.double().view(shape)) for x in (self.query_phases - self.key_phases, self.gains))
        return (gain.square() * (turn + phase).cos()).mean(-1)

    def make_codes(self, q_pos: Positions, k_pos: Positions, generator: torch.Generator | None = None) -> FStrIPECodes:
        """The first key's time where an axis is one of Times, 0 on the others; and the noise."""
        self.check_positions(q_pos, k_pos)
        origins = [
            coordinates(part)[..., :1, :] * isinstance(part, Times)
            if len(part)
            else torch.zeros(1, axes_of(part), dtype=torch.float64, device=part.values.device)
            for part in self._axes(k_pos)
        ]
        return FStrIPECodes(joined(origins), self._drawn(generator))

    def _drawn(self, generator: torch.Generator | None) -> Tensor | None:
        rows, device = self.dim * 2 * self.features, self.gains.device
        if self.noise is None:
            return None
        if self.noise == "gaussian":
            drawn = normal((self.heads, rows, self.realizations), generator, device)
        else:
            drawn = frame(self.heads, rows, self.realizations, lambda shape: normal(shape, generator, device))
        return drawn.view(self.heads, self.dim, 2 * self.features, self.realizations)

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: FStrIPECodes | None = None) -> Tensor:
        return self._encoded(q, q_pos, codes, self.query_phases)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: FStrIPECodes | None = None) -> Tensor:
        return self._encoded(as_heads(k, self.heads, "FStrIPE"), k_pos, codes, self.key_phases)

    def _encoded(self, x: Tensor, positions: Positions, codes: FStrIPECodes | None, phases: Tensor) -> Tensor:
        self.check_positions(positions)
        if x.shape[1] != self.heads or x.shape[-1] != self.dim:
            raise ValueError(
                f"FStrIPE was built for {self.heads} heads of width {self.dim}, got {x.shape[1]} of {x.shape[-1]}"
            )
        points = self._points(positions)
        points = points if codes is None else points - codes.origin
        noise = None if self.noise is None else self._noise(codes)
        values = wide(x)
        # Labels repeat: sines are made once for each distinct point.
        distinct, place = torch.unique(points.flatten(0, 1), dim=0, return_inverse=True)
        waves = self._waves(distinct, phases, values.dtype)[place].view(*points.shape[:2], self.heads, self.dim, -1)
        if self.pooled and noise is None:
            waves = waves.expand(x.shape[0], *waves.shape[1:])
            return torch.einsum("bhnd,bnhdf->bhnf", values, waves).to(x.dtype)
        features = (values.unsqueeze(-1) * waves.transpose(1, 2)).flatten(-2)
        return (features if noise is None else features @ noise.to(features.dtype)).to(x.dtype)

    def _noise(self, codes: FStrIPECodes | None) -> Tensor:
        """(heads, dim * 2 F, realizations)"""
        want = (self.heads, self.dim, 2 * self.features, self.realizations)
        if codes is None or codes.noise is None or tuple(codes.noise.shape) != want:
            got = "none" if codes is None or codes.noise is None else f"{tuple(codes.noise.shape)}"
            raise ValueError(
                f"FStrIPE with noise needs codes whose noise is {want}, the same for queries and keys; got {got}. Make "
                "them once: codes = encoding.make_codes(q_pos, k_pos)"
            )
        noise: Tensor = codes.noise.flatten(1, 2) * self.realizations**-0.5
        return noise

    def _waves(self, points: Tensor, phases: Tensor, dtype: torch.dtype) -> Tensor:
        """gain [cos, sin] of float64 points (count, axes): (count, heads, dim, 2 F). Angles are float64, and lose their
        whole turns before the sine of a shorter type is taken."""
        turns = torch.einsum("na,hdfa->nhdf", points, self.frequencies.double()) + phases.double() / (2 * math.pi)
        angle = (2 * math.pi * (turns - turns.detach().round())).to(dtype)
        gains = wide(self.gains).to(dtype) * self.features**-0.5
        found: Tensor = torch.cat((gains * angle.cos(), gains * angle.sin()), -1)
        return found

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, dim={self.dim}, levels={self.levels}, features={self.features}, pooled={self.pooled}"
            + (f", noise={self.noise!r}, realizations={self.realizations}" if self.noise else "")
        )
