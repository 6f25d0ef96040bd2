"""`pointwise_attention`: weights silu(score) / n instead of a softmax, with any relative encoding (HSTU)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Encoding
from relpos.kernels import pointwise
from relpos.kernels.call import Call, exactly
from relpos.mixers.functional import Window, request_of
from relpos.mixers.request import Content


def pointwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding | str | None = None,
    *,
    length: int | None = None,
    q_pos: object = None,
    k_pos: object = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    window: Window | None = None,
    scale: float | None = None,
    content: Content = None,
    codes: Any = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    q_order: Tensor | None = None,
    k_order: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Attention in which each weight depends on its own pair alone, in memory linear in the lengths.

        out_i = 1/length sum_j silu(scale q_i . k_j + term(i, j)) (v_j + value term),   silu(x) = x sigmoid(x)

    Weights do not compete, so their sum says how much there was to attend to, and a constant added to a bias counts.

    length   what weights are divided by; default: the number of keys of this call, padding included, as in the source.
             Fix it (the longest sequence) where padding, or the keys so far in decoding, must not change the result
    scale    factor of q.k, default 1, or what the encoding was defined with. Terms of keys have their own factor
             (RelativeChannels(scale=1) leaves it out)
    kernel   "auto", "dense" (the O(n^2) definition) or "tiled"
    All else, and what is raised, is as in `attention`: masks, positions, NaN in tokens that a row does not see.
    Source: Zhai et al. 2024 (HSTU), "Actions Speak Louder than Words", eq. 2.
    """
    with exactly(q):
        request = request_of(
            q, k, v, encoding, q_pos=q_pos, k_pos=k_pos, causal=causal, key_mask=key_mask, segments=segments,
            window=window, scale=scale, content=content, codes=codes, dropout=dropout, generator=generator,
            q_order=q_order, k_order=k_order, mixer="pointwise",
        )  # fmt: skip
        kernels: Callable[[Call, str], Tensor] = partial(pointwise.run, length=check_length(length))
        return replace(request, kernels=kernels).run(kernel)


def check_length(length: int | None) -> int | None:
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise ValueError(f"length is a positive integer or None (the number of keys), got {length!r}")
    return length
