"""The networks that the vision tasks compare: one transformer and two MLPs, each built for one size of picture.

    vit      a small Vision Transformer with any encoding that takes cells or a running number
    gmlp     gMLP: "lrpe", "gqpe" or another Bias makes the weights of its gate; with "nope", no encoding, its gate is
             the free matrix, the baseline
    posmlp   PosMLP: stages of windows, gates as in gmlp; with size="t", "s" or "b" a published one

Options go to the network and override the sizes below. groups, of a gate, is a number for gmlp and one a stage for
posmlp; options of the encoding are written encoding.symmetric=false for every network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

SIZES: Mapping[str, Mapping[str, Any]] = {
    "vit": {"patch": 4, "dim": 64, "depth": 4, "heads": 4, "expansion": 2},
    "gmlp": {"patch": 4, "dim": 64, "depth": 6, "ratio": 4, "groups": 8},
    "posmlp": {"dims": [32, 64], "depths": [2, 3], "ratios": [4, 2], "groups": [8, 16], "stride": 2},
}
LARGE: Mapping[str, Mapping[str, Any]] = {
    "vit": {"patch": 16, "dim": 384, "depth": 12, "heads": 6},
    "gmlp": {"patch": 16},
    "posmlp": {"size": "t"},
}


def build(
    network: str, encoding: str, side: int, channels: int, classes: int, large: bool = False, **options: Any
) -> nn.Module:
    """A fresh network for pictures (batch, channels, side, side); large: of the sizes for photographs.

    ValueError and TypeError as the network has them.
    """
    if network not in SIZES:
        raise ValueError(f"network is one of {', '.join(SIZES)}, got {network!r}")
    usual = LARGE[network] if large and "dims" not in options else SIZES[network]
    given = {**usual, **options, "in_channels": channels, "classes": classes}
    if network == "vit":
        from relpos.models.vit import ViT

        return ViT(side, encoding=encoding, **given)
    gate = "sgu" if encoding == "nope" else encoding
    if network == "gmlp":
        from relpos.models.gmlp import GMLP

        return GMLP(side, gate=gate, gate_options=given.pop("encoding_options", None), **given)
    from relpos.models.posmlp import PosMLP, posmlp

    if "size" in given:
        return posmlp(encoding=gate, image=side, **given)
    return PosMLP(encoding=gate, image=side, **given)
