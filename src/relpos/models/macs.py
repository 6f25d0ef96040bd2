"""Multiply-accumulates of a network, counted from the shapes that its modules meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from relpos.encodings.bias.gqpe import GQPE
from relpos.mixers.gating import SGU, PoSGU
from relpos.mixers.self_attention import SelfAttention

Counter = Callable[[Any, tuple[int, ...], tuple[int, ...]], int]


def _linear(module: nn.Linear, given: tuple[int, ...], out: tuple[int, ...]) -> int:
    return math.prod(out) * module.in_features


def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, given: tuple[int, ...], out: tuple[int, ...]) -> int:
    return math.prod(out) * math.prod(module.kernel_size) * module.in_channels // module.groups


def _attention(module: SelfAttention, given: tuple[int, ...], out: tuple[int, ...]) -> int:
    """Scores and weighted values; of kernelised attention the features, phi(k) v^T with the sum of phi(k), and phi(q)
    times these, without the Toeplitz product of an encoding."""
    batch, n, _ = given
    features = module.features
    if features is None:
        return 2 * batch * module.heads * n * n * module.head_dim
    drawn = getattr(features, "weight", None)  # of random features (count, dim): applied to queries and to keys
    making = 2 * drawn.numel() if isinstance(drawn, Tensor) else 0
    return batch * module.heads * n * (making + 2 * features.width * (module.head_dim + 1))


def _gate(module: PoSGU | SGU, given: tuple[int, ...], out: tuple[int, ...]) -> int:
    """The tokens of every window, mixed by a matrix. The scores of GQPE are counted as products with the components of
    the lag and with their products, once a call, as in the published figures."""
    n = given[-2]
    mixing = math.prod(given[:-2]) * n * n * module.mixed
    if isinstance(module, SGU):
        return mixing
    making = 0
    if isinstance(module.encoding, GQPE):
        axes = len(module.window)
        squares = {"full": axes * (axes + 1) // 2, "diagonal": axes, "isotropic": 1}[module.encoding.kind]
        making = n * n * module.groups * (axes + squares)
    return making + mixing * (1 if module.free is None else 2)


COUNTERS: dict[type[nn.Module], Counter] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    SelfAttention: _attention,
    PoSGU: _gate,
    SGU: _gate,
}


def macs(network: nn.Module, *shape: int) -> int:
    """Multiply-accumulates of one forward pass of an input of this shape: `macs(model, 1, 3, 224, 224)`.

    Every module is asked for its own share: by its method `macs(given, out)`, of the shapes of its first input and of
    its output, or by the entry of its class (or the nearest base) in `COUNTERS`; what lies in its children is theirs.
    Counted are matrix products, convolutions and the products of attention in their dense form, whatever the kernel
    does in fact; not counted are normalisation, activations, softmax, additions, and the making of a bias, but for what
    a module's method says of it. The network is run once, in evaluation mode and without gradients, on zeros.
    """
    total = 0

    def ask(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        nonlocal total
        count = _counter(module)
        if count is not None and given and isinstance(given[0], Tensor) and isinstance(out, Tensor):
            total += count(tuple(given[0].shape), tuple(out.shape))

    handles = [module.register_forward_hook(ask) for module in network.modules()]
    modes = [(module, module.training) for module in network.modules()]
    some = next(iter(network.parameters()), torch.empty(0))
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(*shape, dtype=some.dtype, device=some.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return total


def _counter(module: nn.Module) -> Callable[[Sequence[int], Sequence[int]], int] | None:
    own = getattr(module, "macs", None)
    if callable(own):
        return cast(Callable[[Sequence[int], Sequence[int]], int], own)
    for kind in type(module).__mro__:
        if kind in COUNTERS:
            counter = COUNTERS[kind]
            return lambda given, out: counter(module, tuple(given), tuple(out))
    return None
