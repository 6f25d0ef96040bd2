"""Small networks of the lag, evaluated in at least float32 whatever the type of their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def wide(*tensors: Tensor) -> torch.dtype:
    """The type in which a term of these tensors is computed: that of the widest, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def evaluate(network: nn.Sequential, x: Tensor) -> Tensor:
    """network(x) for linear layers and activations, in the `wide` type of the weights."""
    dtype = wide(*network.parameters())
    x = x.to(dtype)
    for layer in network:
        if isinstance(layer, nn.Linear):
            x = linear(x, layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))
        else:
            x = layer(x)
    return x
