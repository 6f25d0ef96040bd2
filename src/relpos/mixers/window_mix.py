"""Mixing the tokens of a window by their lag alone, without queries and keys, as a function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relpos.encodings.base import Bias
from relpos.encodings.window import Sides, said, sides_of
from relpos.kernels import window as kernel
from relpos.kernels.call import computing, exactly
from relpos.kernels.node import JOBS, Given, Job, compute, wanted
from relpos.mixers.functional import check_device
from relpos.positions import Grid, Index


def window_mix(
    x: Tensor,
    encoding: Bias,
    window: Sides,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    method: str = "auto",
) -> Tensor:
    """y_m,c = sum_n weight_g(m, n) x_n,c + b_m over the tokens n of m's window; channel c is of group c mod groups.

    x (.., n, channels), n the cells of one window in row-major order; returns the same shape and dtype. Sums run in at
    least float32.
    encoding  any Bias: its value at a lag is the weight, or where it is `normalized` (GQPE) its softmax over the window
    window    (height, width), an integer for a square, or (length,)
    bias      b (n,), the same for all channels
    mask      (n, n) or (windows, n, n), row = query, for x (.., windows, n, channels). Boolean: True may be mixed; a
              row without any gives 0. A floating one is added to the scores of a normalised encoding
    method    "dense": a matrix a group; "axes": O(n (h + w)) for windows of two axes; "split": `toeplitz_matmul`, for
              long lines; memory of these two is linear in n. "auto": the quicker, never dense beyond 1,024 tokens, but
              where a normalised encoding looks so far outside the window that no factor suits all rows
    Autocast has no say here. The gradient is defined once.
    Raises ValueError or TypeError for what does not fit. Source: Wang et al. 2022 (PosMLP), formulas of its released
    code.
    """
    sides = _checked(x, encoding, window)
    if not x.numel():
        return x.clone()
    with exactly(x):
        return _mixed(x, encoding, sides, bias, mask, method)


def _mixed(
    x: Tensor, encoding: Bias, sides: tuple[int, ...], bias: Tensor | None, mask: Tensor | None, method: str
) -> Tensor:
    kernel.pick(sides, method)
    if bias is not None and bias.shape != (math.prod(sides),):
        raise ValueError(f"bias is ({math.prod(sides)},), a number a token, got {tuple(bias.shape)}")
    scores = encoding.lags(sides) if len(sides) > 1 else encoding.lags(sides[0])
    scores = scores.to(torch.promote_types(computing(scores.dtype), computing(x.dtype)))
    split = encoding.normalized and mask is None and len(sides) > 1 and method != "dense"
    axes = encoding.per_axis(sides) if split else None
    if not wanted():
        return _sums(x, scores, sides, axes, bias, mask, method, encoding.normalized)
    given = Given({"x": x, "scores": scores}, words={"method": method, "sides": " ".join(map(str, sides))})
    given.words["normalized"] = str(encoding.normalized)
    given.tensors.update({name: t for name, t in (("bias", bias), ("mask", mask)) if t is not None})
    given.tensors.update({f"axis.{a}": axis for a, axis in enumerate(axes or ())})
    return compute(KIND, given)[0]


KIND = "window_mix"


def _run(given: Given) -> tuple[Tensor]:
    tensors, words = given.tensors, given.words
    sides = tuple(int(side) for side in words["sides"].split())
    axes = tuple(t for name, t in tensors.items() if name.startswith("axis.")) or None
    bias, mask = tensors.get("bias"), tensors.get("mask")
    normalized = words["normalized"] == "True"
    return (_sums(tensors["x"], tensors["scores"], sides, axes, bias, mask, words["method"], normalized),)


JOBS[KIND] = Job(_run, lambda given: (torch.empty_like(given.tensors["x"], memory_format=torch.contiguous_format),))


def _sums(
    x: Tensor,
    scores: Tensor,
    sides: tuple[int, ...],
    axes: tuple[Tensor, ...] | None,
    bias: Tensor | None,
    mask: Tensor | None,
    method: str,
    normalized: bool,
) -> Tensor:
    if mask is not None:
        return by_matrix(_masked(scores, x, sides, normalized, mask, method), x, bias)
    if not normalized:
        return kernel.mixed(scores, x, sides, method, bias)
    if axes is not None:
        return _plus(_along_axes(axes, x, sides), bias)
    return _averaged(scores, x, sides, bias, method)


def _averaged(scores: Tensor, x: Tensor, sides: tuple[int, ...], bias: Tensor | None, method: str) -> Tensor:
    """Weights that are the softmax of the scores: exponentials of every lag once, where a softmax of the matrix has
    every pair, and their sums to divide by. Where no common factor keeps all rows in range, each has its softmax."""
    top = scores.amax(tuple(range(1, scores.dim())), keepdim=True).detach()
    exponentials = (scores - top).exp()
    if kernel.pick(sides, method) != "dense":
        ones = exponentials.new_ones(1, math.prod(sides), len(exponentials))
        total = kernel.mixed(exponentials, ones, sides, method)[0]
        if _in_range(total):
            return _plus((kernel.mixed(exponentials, x, sides, method) / _of_channels(total, x)).to(x.dtype), bias)
    weights = kernel.Matrices.apply(exponentials, sides)  # type: ignore[no-untyped-call]
    total = weights.sum(-1)
    if not _in_range(total):
        return by_matrix(kernel.Matrices.apply(scores, sides).softmax(-1), x, bias)  # type: ignore[no-untyped-call]
    if weights.numel() <= x.numel():
        return by_matrix(weights / total.unsqueeze(-1), x, bias)
    found = kernel.applied(weights, x.to(weights.dtype)) / _of_channels(total.T, x)
    return _plus(found.to(x.dtype), bias)


def by_matrix(weights: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    return kernel.applied(weights, x.to(weights.dtype), bias if bias is None else bias.to(weights.dtype)).to(x.dtype)


def _plus(found: Tensor, bias: Tensor | None) -> Tensor:
    return found if bias is None else found + bias.to(found.dtype)[:, None]


def _in_range(total: Tensor) -> bool:
    """Whether one factor for all rows, which the exponentials share, leaves each of them enough digits."""
    return bool((total > torch.finfo(total.dtype).tiny ** 0.5).all())


def _of_channels(of_groups: Tensor, x: Tensor) -> Tensor:
    """(n, groups) to (n, channels of x): groups are interleaved."""
    return of_groups.repeat(1, x.shape[-1] // of_groups.shape[-1])


def _along_axes(axes: tuple[Tensor, ...], x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """A softmax over a window whose score is a sum over the axes is one along each axis."""
    wide = x.to(torch.promote_types(computing(axes[0].dtype), computing(x.dtype)))
    for axis, generator in enumerate(axes):
        before, after = math.prod(sides[:axis]), math.prod(sides[axis + 1 :])
        # The cells of later axes and the channels are columns alike; groups stay the fastest.
        cells = wide.reshape(-1, before, sides[axis], after * x.shape[-1])
        wide = _averaged(generator.to(wide.dtype), cells, (sides[axis],), None, "auto").reshape(x.shape)
    return wide.to(x.dtype)


def _masked(scores: Tensor, x: Tensor, sides: tuple[int, ...], normalized: bool, mask: Tensor, method: str) -> Tensor:
    """(groups, n, n), or (windows, groups, n, n) where the windows have masks of their own."""
    n = math.prod(sides)
    if method not in ("auto", "dense"):
        raise ValueError(f'a mask wants the matrix of weights; method is "dense" or "auto", got {method!r}')
    if mask.dim() not in (2, 3) or mask.shape[-2:] != (n, n):
        raise ValueError(f"mask is ({n}, {n}) or (windows, {n}, {n}), got {tuple(mask.shape)}")
    if mask.dim() == 3 and (x.dim() < 3 or x.shape[-3] != len(mask)):
        raise ValueError(f"a mask of {len(mask)} windows wants x (.., {len(mask)}, n, channels), got {tuple(x.shape)}")
    if mask.dtype != torch.bool and not normalized:
        raise TypeError("weights that are not normalised have no scores to add to; mask is boolean, True: mixed")
    weights: Tensor = kernel.Matrices.apply(scores, sides)  # type: ignore[no-untyped-call]
    mask = mask.unsqueeze(-3)  # beside the groups
    if not normalized:
        return weights.masked_fill(~mask, 0)
    if mask.dtype == torch.bool:
        weights = weights.masked_fill(~mask, -torch.inf).softmax(-1)
        return weights.masked_fill(~mask, 0)  # a row without any is NaN before
    return (weights + mask).softmax(-1)


def _checked(x: object, encoding: object, window: Sides) -> tuple[int, ...]:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is a floating-point tensor (.., tokens, channels), got {got}")
    if not isinstance(encoding, Bias):
        name = type(encoding).__name__
        raise TypeError(f"a gate takes a Bias, such as LRPE or GQPE, whose value depends on the lag alone; got {name}")
    sides = sides_of("window", window)
    wanted = Index if len(sides) == 1 else Grid
    if wanted not in encoding.takes:
        raise TypeError(f"{type(encoding).__name__} has no meaning in the window {said(sides)}, of {len(sides)} axes")
    if x.shape[-2] != math.prod(sides):
        raise ValueError(f"the window {said(sides)} has {math.prod(sides)} tokens; x holds {x.shape[-2]}")
    if x.shape[-1] % encoding.heads:
        raise ValueError(f"groups divide the channels that are mixed, got {encoding.heads} and {x.shape[-1]}")
    check_device(encoding, x, "x")
    return sides
