"""Feature maps phi of kernelised attention: weights phi(q).phi(k) in place of exp(q.k).

`forward` maps rows x (.., n, dim) to (.., n, width) one by one. What becomes of q and k before it is said by
`normalize` (each row to unit length) and `scale(dim)`, the factor of q.k in the kernel that is stood for.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from relpos.encodings.handles import Numbered

REFERENCES = {
    "performer": """@inproceedings{choromanski2021rethinking,
  title={Rethinking Attention with Performers},
  author={Choromanski, Krzysztof and Likhosherstov, Valerii and Dohan, David and Song, Xingyou and Gane, Andreea
    and Sarlos, Tamas and Hawkins, Peter and Davis, Jared and Mohiuddin, Afroz and Kaiser, Lukasz and Belanger, David
    and Colwell, Lucy and Weller, Adrian},
  booktitle={ICLR}, year={2021}}""",
    "rfa": """@inproceedings{peng2021random,
  title={Random Feature Attention},
  author={Peng, Hao and Pappas, Nikolaos and Yogatama, Dani and Schwartz, Roy and Smith, Noah A. and Kong, Lingpeng},
  booktitle={ICLR}, year={2021}}""",
    "linear": """@inproceedings{katharopoulos2020transformers,
  title={Transformers are {RNN}s: Fast Autoregressive Transformers with Linear Attention},
  author={Katharopoulos, Angelos and Vyas, Apoorv and Pappas, Nikolaos and Fleuret, Fran{\\c{c}}ois},
  booktitle={ICML}, year={2020}}""",
}


class Features(Numbered):
    """Base of the feature maps.

    width      features a row
    normalize  whether q and k are brought to unit length first
    positive   whether every feature is >= 0, so that no weight is negative
    """

    reference: ClassVar[str] = ""
    positive: ClassVar[bool] = True
    width: int
    normalize: bool = False

    def scale(self, dim: int) -> float:
        """The factor of q.k in the kernel for which the features stand."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Rows (.., n, dim) to features (.., n, width), in float32 or wider."""
        raise NotImplementedError

    def prepared(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """phi of rows with what comes before it: unit length where it `normalize`s, and sqrt(scale), their share of the
        factor of a product."""
        x = unit(x) if self.normalize else x
        features: Tensor = self(x if scale == 1 else x * math.sqrt(scale))
        return features

    def cite(self) -> str:
        return self.reference


_LOG2E = math.log2(math.e)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays, and gets no gradient."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.masked_fill(length == 0, torch.inf)


class Random(Features):
    """Random features of exp(q.k): a projection `weight` (count, dim), shared by queries, keys, heads and batch.

    orthogonal  blocks of dim rows are mutually orthogonal, with the lengths of Gaussian rows (same expectation, less
                variance)
    normalize   True: q and k have unit length and the kernel is exp(q.k / temperature), without 1/sqrt(dim): Luo et
                al. 2021, Algorithm 1. False: the kernel is exp(q.k / sqrt(dim)) of the rows as they are (Performer),
                whose variance grows like exp(|q + k|^2)
    generator   of the draw; `redraw` draws anew. The papers do not say whether the projection stays fixed in training
    """

    weight: Tensor

    def __init__(
        self,
        dim: int,
        count: int,
        orthogonal: bool = False,
        normalize: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("count", count)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is a positive integer, got {value!r}")
        self.dim, self.count, self.orthogonal, self.normalize = dim, count, bool(orthogonal), bool(normalize)
        self.register_buffer("weight", torch.empty(count, dim))
        self.redraw(generator)

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draws the projection anew, in place."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu" if generator is None else generator.device}
        drawn = self._draw(generator, options)
        self.weight.copy_(drawn)

    def _draw(self, generator: torch.Generator | None, options: dict[str, Any]) -> Tensor:
        gauss = torch.randn(self.count, self.dim, generator=generator, **options)
        if not self.orthogonal:
            return gauss
        blocks = []
        for first in range(0, self.count, self.dim):
            square = torch.randn(self.dim, self.dim, generator=generator, **options)
            turned, upper = torch.linalg.qr(square)
            turned = turned * upper.diagonal().sign()  # uniform over the orthogonal group
            blocks.append(turned.T[: self.count - first])
        lengths: Tensor = gauss.norm(dim=1, keepdim=True)
        return torch.cat(blocks) * lengths

    def scale(self, dim: int) -> float:
        return 1.0 if self.normalize else dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        projected, length = self._project(x)
        return self._features(projected, torch.ones_like(length), length.square() / 2)

    def prepared(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """As for all maps; the rows are divided after the projection, when they are short."""
        if not self.normalize:
            return super().prepared(x, scale)
        projected, length = self._project(x)
        empty = length == 0
        half = torch.full_like(length, scale / 2).masked_fill_(empty, 0)
        return self._features(projected, math.sqrt(scale) / length.masked_fill(empty, torch.inf), half)

    def _features(self, projected: Tensor, factor: Tensor, half: Tensor) -> Tensor:
        """phi from w.x (.., n, count), the factor of each row of x, and half its squared length then (.., n, 1)."""
        raise NotImplementedError

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """w.x and |x|."""
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"{type(self).__name__} was built for rows of width {self.dim}, got {x.shape[-1]}; an encoding that "
                "acts before the features may change the width: see its `width_after`"
            )
        x = _wide(x)
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x @ self.weight.to(x.dtype).T, length

    def extra_repr(self) -> str:
        return f"dim={self.dim}, count={self.count}, orthogonal={self.orthogonal}, normalize={self.normalize}"


class PRF(Random):
    """Positive random features: phi(x) = exp(W x - |x|^2 / 2) / sqrt(count), E phi(x).phi(y) = exp(x.y).

    No maximum is subtracted: for keys that would change the attention, and with unit rows nothing can overflow.
    Source: Choromanski et al. 2021; Luo et al. 2021, eq. 4.
    """

    reference = REFERENCES["performer"]

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.count

    def _features(self, projected: Tensor, factor: Tensor, half: Tensor) -> Tensor:
        shift = -_LOG2E * half - math.log2(self.count) / 2
        return torch.addcmul(shift, projected, factor * _LOG2E).exp2()  # several times as fast as exp on a CPU


class SpherePRF(PRF):
    """As PRF, with the rows of W uniform on the sphere of radius sqrt(dim). Source: Luo et al. 2021, section 4.5."""

    def _draw(self, generator: torch.Generator | None, options: dict[str, Any]) -> Tensor:
        return nn.functional.normalize(super()._draw(generator, options), dim=1) * math.sqrt(self.dim)


class TRF(Random):
    """Trigonometric random features: phi(x) = exp(|x|^2 / 2) / sqrt(count) [sin(W x), cos(W x)], 2 count of them.

    The same expectation exp(x.y) as PRF, but weights may be negative, and denominators near zero.
    Source: Peng et al. 2021; Luo et al. 2021, eq. 5.
    """

    reference = REFERENCES["rfa"]
    positive = False

    @property
    def width(self) -> int:  # type: ignore[override]
        return 2 * self.count

    def _features(self, projected: Tensor, factor: Tensor, half: Tensor) -> Tensor:
        projected = projected * factor
        return torch.cat([projected.sin(), projected.cos()], -1) * (half - math.log(self.count) / 2).exp()


class Elementwise(Features):
    """A function of each coordinate; dim, if given, is only checked."""

    def __init__(self, dim: int | None = None, normalize: bool = False) -> None:
        super().__init__()
        self.dim, self.normalize = dim, bool(normalize)

    @property
    def width(self) -> int:  # type: ignore[override]
        if self.dim is None:
            raise ValueError(f"{type(self).__name__} has as many features as its input has columns; give dim to know")
        return self.dim

    def _columns(self, x: Tensor) -> Tensor:
        if self.dim not in (None, x.shape[-1]):
            raise ValueError(f"{type(self).__name__} was built for rows of width {self.dim}, got {x.shape[-1]}")
        return _wide(x)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"


class ELU1(Elementwise):
    """phi(x) = elu(x) + 1, coordinate by coordinate. Source: Katharopoulos et al. 2020, eq. 7."""

    reference = REFERENCES["linear"]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.elu(self._columns(x)) + 1


class ReLU(Elementwise):
    """phi(x) = max(x, 0) + floor; the floor keeps a row of negative numbers from having no weight at all.

    Source: Choromanski et al. 2021 (generalised attention); floor 1e-3 as in their released code.
    """

    reference = REFERENCES["performer"]

    def __init__(self, dim: int | None = None, normalize: bool = False, floor: float = 1e-3) -> None:
        super().__init__(dim, normalize)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return self._columns(x).clamp(min=0) + self.floor


def named(name: str, dim: int, count: int | None = None, normalize: bool | None = None) -> Features:
    """A feature map by name: prf, orf (orthogonal), sphere, trf, elu1 or relu; count defaults to 16 of random ones.

    normalize: None leaves what the map's own method does.
    """
    key = name.strip().lower() if isinstance(name, str) else name
    if key not in _NAMES:
        raise ValueError(f"features is one of {', '.join(_NAMES)}, or an object of relpos.features; got {name!r}")
    cls, options = _NAMES[key]
    chosen: dict[str, Any] = {} if normalize is None else {"normalize": normalize}
    if issubclass(cls, Random):
        return cls(dim, 16 if count is None else count, **options, **chosen)
    if count is not None and count != dim:
        raise ValueError(f"{key} features are as many as the columns of its input, {dim}; leave the count out")
    return cls(dim, **options, **chosen)


_NAMES: dict[str, tuple[type[Random] | type[Elementwise], dict[str, Any]]] = {
    "prf": (PRF, {}),
    "orf": (PRF, {"orthogonal": True}),
    "sphere": (SpherePRF, {}),
    "trf": (TRF, {}),
    "elu1": (ELU1, {}),
    "relu": (ReLU, {}),
}
