"""The networks that the task `images` compares: one transformer and two MLPs, each built for one size of picture.

vit      a small Vision Transformer with any encoding that takes cells or a running number
gmlp     gMLP: with "nope" its free matrix (the baseline), with "lrpe" or "gqpe" their weights in its place
posmlp   PosMLP: windows and stages, with "lrpe" or "gqpe"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

SIZES: Mapping[str, Mapping[str, Any]] = {
    "vit": {"patch": 4, "dim": 64, "depth": 4, "heads": 4, "expansion": 2},
    "gmlp": {"patch": 4, "dim": 64, "depth": 6},
    "posmlp": {"dims": [32, 64], "depths": [2, 4]},
}


def build(network: str, encoding: str, side: int, channels: int, classes: int, **options: Any) -> nn.Module:
    """A fresh network for pictures (batch, channels, side, side). ValueError and TypeError as the network has them."""
    if network not in SIZES:
        raise ValueError(f"network is one of {', '.join(SIZES)}, got {network!r}")
    given = {**SIZES[network], **options}
    if network == "vit":
        from relpos.models.vit import ViT

        return ViT(side, given.pop("patch"), classes, encoding=encoding, in_channels=channels, **given)
    raise ValueError(f"the network {network} is not here yet")
