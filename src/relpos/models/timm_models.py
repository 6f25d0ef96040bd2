"""PosMLP under the names and conventions of timm, for its training script and for whoever calls `timm.create_model`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from relpos.models.gated import linear_head
from relpos.models.posmlp import PRESETS, PosMLP

NAMES = {f"relpos_posmlp_{size}": size for size in PRESETS}
_ARGUMENTS = {
    "img_size": "image", "num_classes": "classes", "in_chans": "in_channels", "drop_rate": "dropout",
    "drop_path_rate": "drop_path",
}  # fmt: skip


def register_with_timm() -> list[str]:
    """Makes PosMLP known to timm as relpos_posmlp_t, _s and _b, and returns these names.

        relpos.models.register_with_timm()
        model = timm.create_model("relpos_posmlp_t", num_classes=10, img_size=32, encoding="lrpe")

    timm's arguments img_size, num_classes (0: no head), in_chans, drop_rate (dropout of the blocks), drop_path_rate,
    features_only and out_indices are understood; all others go to `PosMLP`. ImportError where timm is not installed.
    There are no pretrained weights: pretrained=True raises ValueError. Calling it again changes nothing.
    """
    try:
        registry = importlib.import_module("timm.models")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm is not installed: pip install 'relpos[vision]'", name="timm") from error
    for name, size in NAMES.items():
        if not registry.is_model(name):
            registry.register_model(_entry(name, size))
    return list(NAMES)


def _entry(name: str, size: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained or options.pop("pretrained_cfg", None):
            raise ValueError(f"no pretrained weights of {name} are published; pretrained=False, and load your own")
        for foreign in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(foreign, None)
        own = {_ARGUMENTS.get(key, key): value for key, value in options.items()}
        return TimmPosMLP(size, name, **own)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"PosMLP-{size.upper()}; see relpos.models.posmlp."
    return build


class TimmPosMLP(PosMLP):
    """A PosMLP with the attributes and methods that timm's scripts use."""

    def __init__(
        self,
        size: str,
        name: str,
        *,
        classes: int = 1000,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        options = {"depths": (2, 2, 18, 2)} | options
        super().__init__(PRESETS[size], classes=classes or 1, features_only=features_only, **options)
        stages = len(self.channels)
        self.num_classes, self.num_features, self.head_hidden_size = classes, self.channels[-1], self.channels[-1]
        chosen = range(stages) if out_indices is None else out_indices
        if any(not -stages <= index < stages for index in chosen):
            raise ValueError(f"out_indices are stages 0..{stages - 1}, got {tuple(chosen)}")
        self.out_indices = tuple(index % stages for index in chosen)
        self.default_cfg = self.pretrained_cfg = {
            "url": "", "num_classes": classes, "input_size": (self.in_channels, *self.image), "pool_size": None,
            "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
            "first_conv": "stem.0", "classifier": "head", "architecture": name, "fixed_input_size": True,
        }  # fmt: skip
        if features_only:
            info = [
                {"num_chs": width, "reduction": stride, "module": f"stages.{index}"}
                for index, (width, stride) in enumerate(zip(self.channels, self.strides))
            ]
            features = importlib.import_module("timm.models").FeatureInfo
            self.feature_info = features(info, self.out_indices)
        elif not classes:
            self.reset_classifier(0)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        if self.features_only:
            return [x for index, x in enumerate(self.features(images)) if index in self.out_indices]
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The normalised last map, (batch, height, width, channels)."""
        assert self.norm is not None
        x: Tensor = self.norm(self._maps(images)[-1])
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((1, 2))
        if pre_logits or self.head is None:
            return pooled
        logits: Tensor = self.head(pooled)
        return logits

    def get_classifier(self) -> nn.Module:
        return nn.Identity() if self.head is None else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for so many classes, none for 0. Maps are pooled by their mean alone: global_pool is "avg"."""
        if global_pool not in (None, "avg"):
            raise ValueError(f'PosMLP pools by the mean: global_pool is "avg", got {global_pool!r}')
        self.num_classes = num_classes
        self.head = None
        if num_classes:
            assert self.norm is not None
            self.head = linear_head(self.num_features, num_classes).to(self.norm.weight)
