"""relpos in models of timm: 2-D encodings in a VisionTransformer, and a SwinTransformer without matrices of cells.

from relpos.integrations.timm import accelerate, replace_encoding, restore

print(replace_encoding(vit, "axial_rope"))   # what changed, what did not, and why
print(accelerate(swin))
...                                          # train as before
restore(vit)

PosMLP under timm's names is `relpos.models.register_with_timm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Encoding, Pairwise
from relpos.encodings.registry import entry, signature_of
from relpos.integrations.common import KEPT, Given, check_unchanged, check_version, encoding_of
from relpos.integrations.transformers.apply import Change, Report, restore
from relpos.integrations.transformers.patch import Undo
from relpos.integrations.transformers.replace import PART
from relpos.integrations.transformers.swin import Borrowed
from relpos.mixers.functional import attention, explain
from relpos.mixers.prefix import beside, with_prefix
from relpos.positions import Grid

__all__ = ["TESTED", "Change", "Report", "accelerate", "replace_encoding", "restore"]

TESTED = ((1, 0), (1, 0))
"""The first and the last minor version of timm that the tests were run with."""


def replace_encoding(
    model: nn.Module,
    encoding: Given,
    *,
    keep_pos_embed: bool = False,
    share: bool = True,
    untested: bool = False,
    **options: Any,
) -> Report:
    """Puts a 2-D encoding into every attention of timm's VisionTransformer; all other weights stay.

    encoding  a name ("axial_rope", "mixed_rope", "swin", "lrpe", "gqpe", "log_cpb", "alibi_2d", "decomposed_2d", ..),
              one object for all blocks, or a callable without arguments that makes one a block
    keep_pos_embed  False: the embedding that the model adds to its patches is left out. It stays in the state, unused
    share     of a name: one encoding for all blocks; False: one a block
    options   of a name; heads, dim, model_dim, and the window (the model's grid of patches) are filled in
    Class and register tokens stand outside the encoding. A learned encoding becomes part of the model, as
    ``relpos_encoding`` of each attention: trained and saved. `restore` undoes it. With dynamic_img_size pictures of any
    shape may come, as far as the encoding has a window for them.

    ValueError or TypeError for what does not fit, and nothing is changed then.
    """
    undo = _begun(model, untested)
    from timm.layers import Attention
    from timm.models import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise TypeError(f"replace_encoding takes a VisionTransformer of timm, got {type(model).__name__}")
    parts: dict[str, Any] = {f"blocks.{i}.attn": getattr(block, "attn", None) for i, block in enumerate(model.blocks)}
    for name, part in parts.items():
        if type(part) is not Attention:
            raise ValueError(f"{name} is {type(part).__name__}; only timm.layers.Attention has a place for an encoding")
    if not isinstance(model.patch_drop, nn.Identity):
        raise ValueError("patch_drop_rate drops patches, and no grid remains; build the model without")
    grid = tuple(model.patch_embed.grid_size or ())
    made: dict[str, Encoding] = {}
    for name, part in parts.items():
        again = made and share and isinstance(encoding, str)
        made[name] = next(iter(made.values())) if again else _made(part, encoding, grid, options)
    place = Place(model.num_prefix_tokens)
    for name, part in parts.items():
        undo.set(part, "_relpos_place", place)
        undo.method(part, "forward", _attend)
        undo.submodule(part, PART, made[name].to(part.qkv.weight.device))
    undo.set(model, "_relpos_place", place)
    undo.method(model, "_pos_embed", _embedded)
    changes = [Change(name, True, f"{type(one).__name__} between patches") for name, one in made.items()]
    if model.pos_embed is not None:
        changes.append(Change("pos_embed", not keep_pos_embed, "kept" if keep_pos_embed else "left out"))
        if not keep_pos_embed:
            undo.set(model, "pos_embed", None)  # hides the parameter, which stays where it is
    model.__dict__[KEPT] = undo
    return Report("timm's VisionTransformer", tuple(changes))


def accelerate(model: nn.Module, *, untested: bool = False) -> Report:
    """Lets timm's SwinTransformer compute its windows by relpos: no bias, mask or scores of cells x cells.

    Weights and their names stay; outputs and gradients are equal up to rounding. The buffers that the model made when
    it was built (an index, and masks unless it was built with dynamic_mask) stay, unread.
    Returns what changed. ValueError where nothing could be changed or relpos is in the model already; RuntimeError for
    an untested version; ImportError without timm.
    """
    undo = _begun(model, untested)
    from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention

    changes = []
    for name, part in model.named_modules():
        if isinstance(part, SwinTransformerBlock) and type(part.attn) is WindowAttention:
            undo.set(part, "dynamic_mask", True)  # asks for the mask instead of reading a buffer
            undo.method(part, "get_attn_mask", _regions)
            undo.set(part.attn, "_relpos_rule", (Borrowed(part.attn, part.attn.window_size),))
            undo.method(part.attn, "forward", _window)
            changes.append(
                Change(name, True, "table of a window's lags in the exact kernel, no masks of cells x cells")
            )
    if not changes:
        raise ValueError(f"nothing in this {type(model).__name__} can be changed: it has no blocks of SwinTransformer")
    model.__dict__[KEPT] = undo
    return Report("timm's SwinTransformer", tuple(changes))


class Place:
    """Where the patches of the pictures at hand stand, told by the model to its blocks."""

    def __init__(self, prefix: int) -> None:
        self.prefix, self.grid = prefix, (0, 0)


def _begun(model: nn.Module, untested: bool) -> Undo:
    check_version("timm", "vision", TESTED, untested)
    check_unchanged(model, "timm")
    return Undo()


def _made(part: Any, given: Given, grid: tuple[int, ...], options: dict[str, Any]) -> Encoding:
    """The encoding for one attention, asked once whether it fits the model's grid."""
    heads, dim, width = part.num_heads, part.head_dim, part.qkv.in_features
    if isinstance(given, str) and grid and "window" in signature_of(entry(given).load()).parameters:
        options = {"window": grid} | options
    known = {"heads": heads, "dim": dim, "model_dim": width, "causal": False}
    made = encoding_of(given, known, options)
    cells = Grid.of(*(grid or (1, 1)))
    q = torch.zeros(1, heads, len(cells), dim)
    content = torch.zeros(1, len(cells), width) if _reads(made) else None
    explain(q, q, q, made.cpu(), q_pos=cells, k_pos=cells, content=content)
    return made


def _reads(encoding: Encoding) -> bool:
    return isinstance(encoding, Pairwise) and encoding.needs_content


def _embedded(self: Any, x: Tensor) -> Tensor:
    self._relpos_place.grid = tuple(x.shape[1:3]) if x.dim() == 4 else tuple(self.patch_embed.grid_size)
    found: Tensor = type(self)._pos_embed(self, x)
    return found


def _attend(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """As timm.layers.Attention, with an encoding."""
    if attn_mask is not None or is_causal:
        raise NotImplementedError("relpos takes no masks here; restore(model) gives the model its own attention back")
    prefix, grid = self._relpos_place.prefix, self._relpos_place.grid
    encoding = getattr(self, PART)
    places = with_prefix(Grid.of(*grid, device=x.device), prefix)
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
    out = attention(
        self.q_norm(q),
        self.k_norm(k),
        v,
        beside(encoding, prefix),
        q_pos=places,
        k_pos=places,
        content=x if _reads(encoding) else None,
        scale=self.scale,
        dropout=self.attn_drop.p if self.training else 0.0,
    )
    out = out.transpose(1, 2).flatten(2)
    out = self.norm(out) if hasattr(self, "norm") else out  # these two came with later releases of timm
    out = out * self.gate(x).sigmoid() if getattr(self, "gate", None) is not None else out
    result: Tensor = self.proj_drop(self.proj(out))
    return result


def _regions(self: Any, x: Tensor | None = None, **_: Any) -> Tensor | None:
    """(windows, cells) integers: after the cyclic shift, cells of a window that were apart have different ones.

    The model adds -100 to scores between regions; here they are not seen, which is the same in float32 unless scores
    differ by some eighty.
    """
    if x is None or not any(self.shift_size):
        return None
    rows, columns = (
        (place >= side - window).long() + (place >= side - shift).long()
        for side, window, shift in zip(x.shape[1:3], self.window_size, self.shift_size)
        for place in (torch.arange(side, device=x.device),)
    )
    regions = rows[:, None] * 3 + columns
    height, width = self.window_size
    windows: Tensor = regions.unfold(0, height, height).unfold(1, width, width)
    return windows.reshape(-1, height * width)


def _window(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    (encoding,) = self._relpos_rule
    encoding.window = tuple(self.window_size)  # `set_input_size` may have changed it
    cells = Grid.of(*self.window_size, device=x.device)
    segments = None if mask is None else mask.repeat(len(x) // len(mask), 1)
    dropout = self.attn_drop.p if self.training else 0.0
    out = attention(
        q, k, v, encoding, q_pos=cells, k_pos=cells, segments=segments, scale=self.scale, dropout=dropout
    )  # fmt: skip
    result: Tensor = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
    return result
