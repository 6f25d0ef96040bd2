"""gMLP for images: patches mixed by a free matrix, or by one that is made from relative positions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from relpos.encodings.base import positive
from relpos.encodings.reference import need
from relpos.models.gated import EPSILON, GatedBlock, hidden_width, linear_head
from relpos.models.gates import GateMaker, gate_of, resized
from relpos.models.images import Patches, Sides, Sized, check_images, rising, sides


class GMLP(Sized):
    """Images (batch, in_channels, height, width) to logits (batch, classes). The defaults are gMLP-S/16.

    image, patch   (height, width) in pixels, or one integer; patch divides image
    ratio          the gate's input has ratio * dim channels, an even number
    gate           "sgu": a free matrix over all pairs of patches, with LayerNorm (`SGU`); "lrpe", "gqpe" or the name of
                   another Bias: `PoSGU`, the matrix made from relative positions; or a function (hidden, grid) ->
                   module for a gate of your own
    groups         of PoSGU: generators a layer, a divisor of ratio * dim / 2
    gate_options   of PoSGU: further arguments of the encoding, e.g. {"symmetric": False}
    drop_path      stochastic depth, rising from 0 in the first block to this in the last
    dropout        after the last projection of each block

    gMLP-S/16 at 224 has 19,422,656 parameters with "sgu", 1,158,360 of them in matrices, and 18,225,536 with "gqpe".
    There is no position embedding: the matrices know the places. They belong to one size; `resize` makes a network for
    another.

    Weights are truncated normal 0.02, biases 0; the SGU starts with a matrix near 0 and a bias of 1, so that the gate
    begins as the other half alone, as the paper has it (section 2.1). The released codes differ: the copy of gMLP's
    gate beside PosMLP never calls that initialisation, so it starts with torch's default for a linear layer; timm draws
    linear layers by Xavier's rule and the patches by LeCun's, and starts the head at 0.
    Source: Liu et al. 2021, "Pay Attention to MLPs".
    """

    def __init__(
        self,
        image: int | Sequence[int] = 224,
        patch: int | Sequence[int] = 16,
        dim: int = 256,
        depth: int = 30,
        ratio: float = 6,
        classes: int = 1000,
        *,
        in_channels: int = 3,
        gate: str | GateMaker = "sgu",
        groups: int = 8,
        gate_options: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.image = sides("image", image)
        self.patches = Patches(in_channels, positive("dim", dim), sides("patch", patch))
        grid, hidden = self.patches.grid(self.image), hidden_width(dim, ratio)
        self.blocks = nn.ModuleList(
            GatedBlock(dim, hidden, gate_of(gate, hidden, grid, groups, gate_options), dropout=dropout, drop_path=rate)
            for rate in rising(drop_path, positive("depth", depth))
        )
        self.norm, self.head = nn.LayerNorm(dim, eps=EPSILON), linear_head(dim, classes)

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], image: int | Sequence[int] = 224) -> GMLP:
        """From the weights of timm's gmlp networks (stem.proj.weight, blocks.0.mlp_channels.fc1.weight, ..), for the
        image size that they were trained at. There the second half of the channels is mixed, here the first."""
        patches, fc1 = need(arrays, "stem.proj.weight"), need(arrays, "blocks.0.mlp_channels.fc1.weight")
        (dim, channels, *patch), (hidden, _) = patches.shape, fc1.shape
        depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
        classes = len(need(arrays, "head.bias"))
        own = cls(image, patch, dim, depth, hidden / dim, classes, in_channels=channels).to(patches.dtype)
        state = {name: need(arrays, _in_timm(name)) for name in own.state_dict()}
        for name in state:
            if ".expand." in name:
                state[name] = state[name].roll(hidden // 2, 0)
        own.load_state_dict(state)
        return own

    @property
    def grid(self) -> Sides:
        """Rows and columns of patches."""
        return self.patches.grid(self.image)

    def forward(self, images: Tensor) -> Tensor:
        """images (batch, in_channels, height, width), float, to logits (batch, classes)."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """One vector an image, (batch, dim): the mean of the normalised outputs of its patches."""
        size = check_images(images, self.patches.channels)
        self.patches.grid(size)  # what patches do not fit is no size to resize to
        if size != self.image:
            raise ValueError(
                f"this network mixes the patches of images of {self.image[0]} x {self.image[1]}, got {size[0]} x "
                f"{size[1]}; resize the images, or take network.resize({size})"
            )
        x = self.patches(images)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.norm(x).mean(1)
        return y

    def resize(self, image: int | Sequence[int]) -> GMLP:
        """A new network for images of another size, with copies of the weights; and each gate's own `resize`."""
        size = sides("image", image)
        new = self.patches.grid(size)
        other = copy.deepcopy(self)
        other.image = size
        for block in other.blocks:
            assert isinstance(block, GatedBlock)
            block.gate = resized(block.gate, new)
        return other


_TIMM = {
    "patches.project": "stem.proj", "expand": "mlp_channels.fc1", "gate.norm": "mlp_channels.gate.norm",
    "gate": "mlp_channels.gate.proj", "project": "mlp_channels.fc2",
}  # fmt: skip


def _in_timm(name: str) -> str:
    """blocks.3.gate.norm.weight: the block, the module and the part, of which timm names the module otherwise."""
    module, part = name.rsplit(".", 1)
    block = ""
    if module.startswith("blocks."):
        _, index, module = module.split(".", 2)
        block = f"blocks.{index}."
    return f"{block}{_TIMM.get(module, module)}.{part}"
