"""Stochastic encoding of queries and keys: the library's, and the way that forms the code of every feature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import relpos as rp
from relpos.lab.bench.problem import Prepared, Problem
from relpos.positions import as_positions

SINES = 5


def _encoding(problem: Problem) -> rp.encodings.SineSPE:
    """As many realizations as columns, so that q' and k' have the shape of v."""
    made = rp.encodings.SineSPE(problem.heads, problem.dim, SINES, problem.dim)
    return made.to(problem.device, problem.kind)


def ours(problem: Problem) -> Prepared:
    """q' + k' + v: the sum stands for an attention that reads all three and sends each a gradient."""
    encoding = _encoding(problem)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = as_positions(None, problem.n, 0, "positions", q.device)
        codes = encoding.make_codes(places, places)
        return encoding.encode_q(q, places, 1.0, codes) + encoding.encode_k(k, places, 1.0, codes) + v

    return Prepared(attend, tuple(encoding.parameters()) if problem.backward else ())


def by_feature(problem: Problem) -> Prepared:
    """The same sum from materialised codes, with noise drawn in every call as well."""
    encoding = _encoding(problem)
    shape = (problem.heads, problem.dim)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        noise = torch.randn(*shape, 2 * SINES, encoding.realizations, device=q.device, dtype=q.dtype)
        gating = torch.randn(*shape, encoding.realizations, device=q.device, dtype=q.dtype)
        encoded_q, encoded_k = materialised(encoding, q, k, noise, gating)
        return encoded_q + encoded_k + v

    return Prepared(attend, tuple(encoding.parameters()) if problem.backward else ())


def materialised(
    encoding: rp.encodings.SineSPE, q: Tensor, k: Tensor, noise: Tensor, gating: Tensor
) -> tuple[Tensor, Tensor]:
    """q' and k' of (batch, heads, n, dim), from codes (1, n, heads, dim, realizations) and a broadcast product.

    noise (heads, dim, 2 sines, realizations), in the order cos_0, sin_0, cos_1, ..; gating (heads, dim, realizations).
    Source: Liutkus et al. 2021, eq. 16-25, computed in the order of their released package: codes of all features,
    the gate mixed into them, a product with q broadcast to all realizations, a sum over the features.
    """
    assert encoding.gate is not None
    n, share = q.shape[2], encoding.gate.sigmoid()
    turns = encoding.frequencies.sigmoid() / 2
    gains = torch.nn.functional.softplus(encoding.gains) * (2 * encoding.sines) ** -0.5
    at = torch.arange(n, device=q.device, dtype=q.dtype).view(n, 1)
    found = []
    for x, start in ((q, encoding.offsets), (k, torch.zeros_like(encoding.offsets))):
        angle = 2 * math.pi * turns.unsqueeze(2) * at + start.unsqueeze(2)  # (heads, dim, n, sines)
        waves = torch.stack([angle.cos(), angle.sin()], -1) * gains[:, :, None, :, None]
        codes = (waves.flatten(-2) @ noise).permute(2, 0, 1, 3).unsqueeze(0)
        mixed = (1 - share).sqrt().unsqueeze(-1) * codes + share.sqrt().unsqueeze(-1) * gating
        encoded = (mixed * x.transpose(1, 2).unsqueeze(-1)).sum(-2) * encoding.realizations**-0.5
        found.append(encoded.transpose(1, 2))
    return found[0], found[1]
