"""FLT: a bias of the lag by its learned spectrum, as extra channels before the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from relpos.encodings.base import Transform, check_heads, positive
from relpos.encodings.buffers import WideBuffers
from relpos.encodings.transform.shared import as_heads, axes_of, beside, coordinates, lag_axes, wide
from relpos.positions import Grid, Index, Position, Positions, Times


class FLT(WideBuffers, Transform):
    """Adds to the logit a function of the lag whose spectrum g is learned, by 2 `features` channels: linear at any n.

        f(lag) = 1/r sum_w g(w)/p(w) cos(2 pi w . lag/unit),   w ~ p = N(0, 1) on each axis, r = features of them
        g(w) = sum_b weight_b exp(-|w - mean_b|^2 / (2 width_b^2))

    features   r, frequencies drawn once and kept: `frequencies` (r, axes), cycles a unit, shared by the heads
    axes       of the positions: 1 for Index and Times, 1 to 3 for Grid
    unit       tokens, seconds or cells that make a lag of 1; detail much finer than a tenth of it is out of reach
    blobs      of the spectrum, a head: weight (heads, blobs), mean (heads, blobs, axes), log_width (heads, blobs)
    as_released   the mask 1/r sum_w (g/p)^2 cos(..) of the released code; see below
    generator  of the draw of frequencies and of the parameters' start

    The sum is exact for the channels; over the draw its mean is the Fourier transform of the even part of g, with an
    error of 1/sqrt(r). The ratio g/p stands on the queries' side, so its sign is kept and the keys' channels are alike
    in every head. The channels are divided by the square root of the kernel's scale: f is added to the logit itself.
    In kernelised attention the features are those of the widened q and k: build them for `width_after(dim)`. Few of
    them stand for exp(q.k + f) with an error that depends on where the two tokens are, and grows with the lengths of
    the channels; so one number c = (mean ratio^2)^(1/4) moves between the sides to make these alike, and near 0 where
    the spectrum is.
    Angles are float64 until their cosine.

    Source: Choromanski et al. 2024. In the released code the ratio is applied to queries and to keys, so the mask is
    that of g^2/p^2, which cannot be negative at lag 0; and p is normalised as if there were one axis, which scales the
    mask by (2 pi)^(1 - axes); frequencies always come from seed 0. as_released=True has the first two.
    """

    side = "before"
    takes = (Index, Times, Grid)
    extrapolates = True
    frequencies: Tensor
    reference = """@inproceedings{choromanski2024learning,
  title={Learning a {F}ourier Transform for Linear Relative Positional Encodings in Transformers},
  author={Choromanski, Krzysztof and Li, Shanda and Likhosherstov, Valerii and Avinava Dubey, Kumar and Luo, Shengjie
    and He, Di and Yang, Yiming and Sarlos, Tamas and Weingarten, Thomas and Weller, Adrian},
  booktitle={AISTATS}, year={2024}}"""

    def __init__(
        self,
        heads: int,
        features: int = 32,
        axes: int = 1,
        unit: float = 32.0,
        blobs: int = 8,
        as_released: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if positive("axes", axes) > 3:
            raise ValueError(f"positions have 1 to 3 axes, got axes={axes}")
        if isinstance(unit, bool) or not isinstance(unit, int | float) or not 0 < unit < math.inf:
            raise ValueError(f"unit is a positive number of tokens, seconds or cells, got {unit!r}")
        self.heads, self.features, self.axes = check_heads(heads), positive("features", features), axes
        self.unit, self.as_released = float(unit), bool(as_released)
        positive("blobs", blobs)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=None if generator is None else generator.device)

        self.register_buffer("frequencies", normal(features, axes))
        self.weight = nn.Parameter(0.1 * normal(heads, blobs))
        self.mean = nn.Parameter(normal(heads, blobs, axes))
        self.log_width = nn.Parameter(torch.full_like(self.weight, math.log(0.5)))

    def width_after(self, dim: int) -> int:
        return dim + 2 * self.features

    def ratio(self) -> Tensor:
        """g(w)/p(w) of every frequency, (heads, features), in float32 or wider; the exponents are added first, so that
        no density underflows."""
        weight, mean, log_width = (wide(x) for x in (self.weight, self.mean, self.log_width))
        w = self.frequencies.to(weight.dtype)
        square = (w - mean.unsqueeze(-2)).square().sum(-1)  # (heads, blobs, features)
        axes = 1 if self.as_released else self.axes
        log_density = -w.square().sum(-1) / 2 - axes * math.log(2 * math.pi) / 2
        exponent = -square / (2 * (2 * log_width).exp().unsqueeze(-1)) - log_density
        return torch.einsum("hb,hbr->hr", weight, exponent.exp())

    def template(self, lags: Tensor) -> Tensor:
        """f of lags (..), or (.., axes) with more than one axis, as (heads, ..): what is added to the logit."""
        angle = self._angles(lag_axes(lags, self.axes))
        ratio = self.ratio()
        ratio = ratio.square() if self.as_released else ratio
        return torch.einsum("hr,...r->h...", ratio, angle.cos().to(ratio.dtype)) / self.features

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: None = None) -> Tensor:
        ratio = self.ratio()
        return self._widened(q, q_pos, scale, ratio if self.as_released else ratio / self._balance(ratio))

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: None = None) -> Tensor:
        if not self.as_released:
            return self._widened(k, k_pos, scale, self._balance(self.ratio()).view(1, 1))
        return self._widened(as_heads(k, self.heads, "FLT"), k_pos, scale, self.ratio())

    def check_positions(self, *positions: Positions) -> None:
        super().check_positions(*positions)
        for position in positions:
            if isinstance(position, Position) and axes_of(position) != self.axes:
                raise ValueError(
                    f"FLT was built for axes={self.axes}, the {type(position).__name__} positions have "
                    f"{axes_of(position)}"
                )

    def _angles(self, points: Tensor) -> Tensor:
        return 2 * math.pi / self.unit * (points @ self.frequencies.to(points).T)

    def _balance(self, ratio: Tensor) -> Tensor:
        """c; its floor of 0.1 keeps the gradient of a spectrum of 0."""
        return (ratio.square().mean() + 1e-4) ** 0.25

    def _widened(self, x: Tensor, positions: Positions, scale: float, factor: Tensor) -> Tensor:
        """x with [cos, sin] appended, times the factor (heads or 1, features or 1)."""
        self.check_positions(positions)
        assert isinstance(positions, Position)
        if not scale > 0:
            raise ValueError(
                f"FLT divides what it adds by the square root of the scale, a positive number; got {scale}"
            )
        if len(factor) > 1 and x.shape[1] != len(factor):
            raise ValueError(f"FLT was built for {self.heads} heads, got {x.shape[1]}")
        angle = self._angles(coordinates(positions))
        waves = torch.stack((angle.cos(), angle.sin()), -2).unsqueeze(-4) * (self.features * scale) ** -0.5
        waves = waves.to(wide(x).dtype) * factor[:, None, None, :]  # ([batch], heads or 1, n, 2, r)
        return torch.cat((x, beside(waves.flatten(-2), x).to(x.dtype)), -1)

    def extra_repr(self) -> str:
        released = ", as_released=True" if self.as_released else ""
        return f"heads={self.heads}, features={self.features}, axes={self.axes}, unit={self.unit:g}{released}"
