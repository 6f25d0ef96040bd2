"""Linear attention written a second time, with its n x n weights, in float64: what every kernel is held against."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import relpos as rp
from relpos import features
from relpos.encodings.base import Transform
from relpos.kernels import spectrum
from relpos.kernels.linear import band, choose, split, tiles
from relpos.positions import as_positions

HEADS, DIM, COUNT = 2, 4, 6
KERNELS = ("dense", "tiled", "band", "split")


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, cells and buffers so small that a few dozen tokens cross the borders of all of them."""
    for module, name, value in [
        (band, "LEAST", 4), (split, "NEAR", 3), (split, "CELL", 8), (split, "GROUP", 4), (split, "MADE", 64),
        (split, "TOGETHER", 1),
        (split, "GRAIN", 4), (tiles, "QUERIES", 5), (tiles, "KEYS", 7), (tiles, "SCORES", 2**7),
        (split, "ELEMENTS", 2**7), (spectrum, "ELEMENTS", 2**7),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, value)
    for function in (split.split, split.noise, choose.free, choose._noise_of):
        monkeypatch.setattr(function, "__defaults__", (3,))  # near


def phi_of(f: features.Features, x: Tensor) -> Tensor:
    """The five maps by their formulas."""
    if isinstance(f, features.Random):
        projected, half = torch.einsum("md,...d->...m", f.weight.double(), x), x.pow(2).sum(-1, keepdim=True) / 2
        if isinstance(f, features.TRF):
            return torch.exp(half) * torch.cat([projected.sin(), projected.cos()], -1) / math.sqrt(f.count)
        return torch.exp(projected - half) / math.sqrt(f.count)
    if isinstance(f, features.ELU1):
        return torch.where(x > 0, x + 1, x.exp())
    return torch.where(x > 0, x, 0) + 1e-3


def made(name: str, dim: int = DIM, count: int = COUNT) -> features.Features:
    g = torch.Generator().manual_seed(11)
    random = {"generator": g}
    built: dict[str, Any] = {
        "prf": lambda: features.PRF(dim, count, **random),
        "prf_scaled": lambda: features.PRF(dim, count, normalize=False, **random),
        "orf": lambda: features.PRF(dim, count, orthogonal=True, **random),
        "sphere": lambda: features.SpherePRF(dim, count, **random),
        "trf": lambda: features.TRF(dim, count, **random),
        "elu1": lambda: features.ELU1(dim),
        "relu": lambda: features.ReLU(dim),
        "relu_normal": lambda: features.ReLU(dim, normalize=True),
    }
    found: features.Features = built[name]().double()
    return found


def seen_pairs(
    batch: int, q_order: Tensor, k_order: Tensor, causal: bool, key_mask: Tensor | None, segments: Any
) -> Tensor:
    """bool (batch, 1, n_q, n_k)"""
    n_q, n_k = q_order.shape[-1], k_order.shape[-1]
    seen = torch.ones(batch, n_q, n_k, dtype=torch.bool)
    if causal:
        seen = seen & (k_order.expand(batch, n_k)[:, None, :] <= q_order.expand(batch, n_q)[:, :, None])
    if key_mask is not None:
        seen = seen & key_mask[:, None, :]
    if segments is not None:
        of_q, of_k = segments if isinstance(segments, tuple) else (segments[..., n_k - n_q :], segments)
        seen = seen & (of_q.expand(batch, n_q)[:, :, None] == of_k.expand(batch, n_k)[:, None, :])
    return seen[:, None]


def naive_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Any = None,
    *,
    features: features.Features,
    q_pos: Tensor | None = None,
    k_pos: Tensor | None = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Any = None,
    temperature: float = 1.0,
    prefix: int = 0,
    codes: Any = None,
) -> Tensor:
    """sum_j w_ij v_j / sum_j w_ij over the visible keys, 0 where there are none."""
    batch, heads, n_q, dim = q.shape
    n_k = k.shape[2]
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    q_at = torch.arange(n_k - n_q, n_k) - prefix if q_pos is None else q_pos
    k_at = torch.arange(n_k) - prefix if k_pos is None else k_pos
    by_position = not q_at.is_floating_point() and q_at.dim() < 3
    order = (q_at, k_at) if by_position else (torch.arange(n_k - n_q, n_k), torch.arange(n_k))
    seen = seen_pairs(batch, *order, causal, key_mask, segments)
    if features.normalize:
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    scale = features.scale(dim) / temperature
    places = [as_positions(at, at.shape[-1], 0, "at", q.device, batch) for at in (q_at, k_at)]
    if isinstance(encoding, Transform) and encoding.side == "before":
        q, k = encoding.encode_q(q, places[0], scale, codes), encoding.encode_k(k, places[1], scale, codes)
    phi_q, phi_k = (phi_of(features, x * math.sqrt(scale)) for x in (q, k))
    below = above = torch.einsum("bhim,bhjm->bhij", phi_q, phi_k)
    lag = (k_at.expand(batch, n_k)[:, None, :] - q_at.expand(batch, n_q)[:, :, None]).expand(batch, n_q, n_k)
    leading = torch.arange(n_k - n_q, n_k)[:, None] < prefix if prefix else torch.zeros(n_q, 1, dtype=torch.bool)
    first = (torch.arange(n_k) < prefix) | leading  # pairs with a token of the prefix
    if isinstance(encoding, Transform) and encoding.side == "after":
        codes = encoding.make_codes(*places) if codes is None else codes
        sides = encoding.encode_q(phi_q, places[0], 1.0, codes), encoding.encode_k(phi_k, places[1], 1.0, codes)
        above = torch.where(first, above, torch.einsum("bhim,bhjm->bhij", *sides))
        rates = encoding.decay()
        if rates is not None:
            fall = torch.exp(-rates.double().view(1, -1, 1, 1) * lag.abs().unsqueeze(1))
            above, below = torch.where(first, above, above * fall), torch.where(first, below, below * fall)
        below = below if encoding.plain_denominator else above
    elif encoding is not None and not isinstance(encoding, Transform):
        legal = lag.masked_fill(first, 0)
        bias = encoding.at(legal).double().movedim(0, 1).masked_fill(first, 0).masked_fill(~seen, -torch.inf)
        top = bias.detach().amax(-1, keepdim=True)
        factor = (bias - top.masked_fill(top == -torch.inf, 0)).exp()
        above = below = above * factor
    above, below = above.masked_fill(~seen, 0), below.masked_fill(~seen, 0)
    total = below.sum(-1, keepdim=True)
    return (above @ v) / total.masked_fill(total == 0, 1)


ENCODINGS: dict[str, tuple[Any, tuple[str, ...]]] = {
    # name: how it is made, and the kernels that serve it besides the direct ones
    "none": (lambda: None, ("band",)),
    "t5": (lambda: drawn(rp.encodings.T5Bias(HEADS, 8, 12)), ("band", "split")),
    "alibi": (lambda: rp.encodings.ALiBi(HEADS, symmetric=True), ("band", "split")),
    "clip": (lambda: drawn(rp.encodings.LearnedBias(HEADS, 3)), ("band", "split")),
    "zero": (lambda: drawn(rp.encodings.LearnedBias(HEADS, 3, beyond="zero")), ("band", "split")),
    "error": (lambda: drawn(rp.encodings.LearnedBias(HEADS, 200, beyond="error")), ("split",)),
    "kerple_log": (lambda: rp.encodings.KERPLE(HEADS), ("split",)),
    "kerple_power": (lambda: rp.encodings.KERPLE(HEADS, kind="power"), ("split",)),
    "sandwich": (lambda: rp.encodings.Sandwich(HEADS, dim=16), ("split",)),
    "rope": (lambda: rp.encodings.RoPE(COUNT), ("band",)),
    "cosformer": (lambda: rp.encodings.CosFormer(300), ("band",)),
    "permuteformer": (lambda: rp.encodings.PermuteFormer(HEADS, COUNT, generator=seed(4)), ("band", "split")),
    "permutation": (lambda: rp.encodings.PermuteFormer(HEADS, COUNT, decay=False, generator=seed(4)), ("band",)),
    "flt": (lambda: rp.encodings.FLT(HEADS, features=3, generator=seed(5)), ("band",)),
    "spe": (lambda: rp.encodings.SineSPE(HEADS, DIM, sines=2, realizations=7), ("band",)),
}
CAUSAL_ONLY: dict[str, tuple[Any, tuple[str, ...]]] = {
    "alibi_causal": (lambda: rp.encodings.ALiBi(HEADS), ("band", "split")),
    "t5_causal": (lambda: drawn(rp.encodings.T5Bias(HEADS, 8, 12, causal=True)), ("band", "split")),
    "hype": (lambda: rp.encodings.HyPE(HEADS, slope=0.1, amplitude=0.5), ("split",)),
}


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def drawn(encoding: Any, size: float = 2.0) -> Any:
    """A table of random numbers."""
    with torch.no_grad():
        table = encoding.table
        table.copy_(size * torch.randn(table.shape, generator=seed(3), dtype=torch.float64))
    return encoding


def build(name: str) -> tuple[Any, tuple[str, ...]]:
    """The encoding in float64, and the kernels that serve it where the order is plain."""
    torch.manual_seed(1)
    make, more = (ENCODINGS | CAUSAL_ONLY)[name]
    encoding = make()
    return None if encoding is None else encoding.double(), ("dense", "tiled", *more)


def width_for(name: str) -> int:
    """Columns of what the features meet."""
    return {"flt": DIM + 6, "spe": 7}.get(name, DIM)
