"""`accelerate` and `restore`: which models relpos knows, and what it does to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from relpos.integrations.common import KEPT, check_version
from relpos.integrations.transformers import alibi, conformer, deberta, interface, swin, t5
from relpos.integrations.transformers.patch import Undo

TESTED = ((5, 23), (5, 24))
"""The first and the last minor version of transformers that the tests were run with."""


@dataclass(frozen=True)
class Family:
    """Models alike: their ``model_type``s, and the module of this package that changes theirs (None: masks alone)."""

    name: str
    types: tuple[str, ...]
    patches: ModuleType | None = None


FAMILIES = (
    Family("T5", ("t5", "mt5", "umt5"), t5),
    Family("ALiBi", ("bloom", "mpt"), alibi),
    Family("DeBERTa", ("deberta-v2",), deberta),
    Family("Swin", ("swin",), swin),
    Family("Transformer-XL conformers", ("wav2vec2-conformer",), conformer),
    Family(
        "rotary decoders",
        (
            "cohere", "gemma", "gemma3_text", "gpt_neox", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2",
            "qwen3", "smollm3", "stablelm", "starcoder2",
        ),
    ),
)  # fmt: skip

REASONS = {
    "swinv2": "its scores are cosines times a learned factor a head, which relpos does not compute",
    "gemma2": "its scores are capped by a tanh, which relpos does not compute",
    "gpt_oss": "its softmax has sinks, which relpos does not compute",
}
"""Why some that one would expect are not there."""


@dataclass(frozen=True)
class Change:
    """One part of a model: its name, whether it was changed, and what was done or why nothing was."""

    name: str
    changed: bool
    what: str


@dataclass(frozen=True)
class Report:
    """What `accelerate` did to a model."""

    family: str
    changes: tuple[Change, ...]

    @property
    def changed(self) -> tuple[Change, ...]:
        return tuple(each for each in self.changes if each.changed)

    @property
    def unchanged(self) -> tuple[Change, ...]:
        return tuple(each for each in self.changes if not each.changed)

    def __str__(self) -> str:
        lines = [f"{self.family}: {len(self.changed)} parts changed, {len(self.unchanged)} not"]
        return "\n".join(lines + [f"{'+' if c.changed else '-'} {c.name or 'model'}: {c.what}" for c in self.changes])


def supported() -> dict[str, tuple[str, ...]]:
    """The ``model_type``s that `accelerate` knows, by family."""
    return {family.name: family.types for family in FAMILIES}


def accelerate(model: nn.Module, *, untested: bool = False) -> Report:
    """Lets a model of transformers compute its attention by relpos: no tensor of queries x keys, forward or backward.

    Weights, their names and `save_pretrained` stay as they are; outputs and gradients are equal up to rounding; cache,
    padding on either side, cross-attention, dropout, gradient checkpointing and `generate` work as before. Rows of pads
    attend to nothing or to other pads, which differs from the model's own and is read by nobody. What is lost:
    output_attentions, since there is no matrix of weights to return.

    untested: also with a version of transformers outside of `TESTED`.
    Returns what changed, what did not, and why. ValueError for a model that is not supported, one that was accelerated
    before, and where nothing could be changed; RuntimeError for an untested version; ImportError without transformers.
    """
    check_version("transformers", "hf", TESTED, untested)
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"accelerate takes a model of transformers, got {type(model).__name__}")
    if KEPT in vars(model) or any(KEPT in vars(part) for part in model.modules()):
        raise ValueError("relpos is in this model already; restore(model) takes it out")
    family = _family_of(model)
    undo = Undo()
    try:
        changes = _apply(model, family, undo)
        if not any(each.changed for each in changes):
            raise ValueError(
                f"nothing in this {model.config.model_type} can be changed: "
                + "; ".join(f"{each.name}: {each.what}" for each in changes)
            )
    except BaseException:
        undo.restore()
        raise
    model.__dict__[KEPT] = undo
    return Report(family.name, tuple(changes))


def restore(model: nn.Module) -> None:
    """Undoes `accelerate` and `replace_encoding`. ValueError where there is nothing to undo."""
    undo = vars(model).pop(KEPT, None)
    if undo is None:
        raise ValueError("relpos is not in this model: there is nothing to restore")
    undo.restore()


def _family_of(model: Any) -> Family:
    kind = model.config.model_type
    for family in FAMILIES:
        if kind in family.types:
            return family
    known = "; ".join(f"{name}: {', '.join(types)}" for name, types in supported().items())
    why = f": {REASONS[kind]}" if kind in REASONS else ""
    raise ValueError(f"relpos has no form for the model type {kind!r}{why}. Supported are {known}")


def _apply(model: nn.Module, family: Family, undo: Undo) -> list[Change]:
    interface.register()
    changes = [] if family.patches is None else list(_patched(model, family.patches, undo))
    if family.patches is not None and not any(each.changed for each in changes):
        return changes
    for name, part in model.named_modules():
        config = getattr(part, "config", None)
        if config is not None and getattr(config, "_attn_implementation", None) not in (None, interface.NAME):
            undo.set(config, "_attn_implementation_internal", interface.NAME)
            changes.append(Change(name, True, "masks as rows, attention by relpos"))
    return changes


def _patched(model: nn.Module, patches: Any, undo: Undo) -> Iterator[Change]:
    """The attention modules that fit, and where there are any, the modules around them that would build matrices."""
    unfit = getattr(patches, "unfit", lambda _: None)
    own = [(name, part) for name, part in model.named_modules() if type(part).__name__ in patches.CLASSES]
    reasons = [unfit(part) for _, part in own]
    if None in reasons:
        around = getattr(patches, "ENCODERS", ())
        more = [(name, part) for name, part in model.named_modules() if type(part).__name__ in around]
        own, reasons = more + own, [None] * len(more) + reasons
    for (name, part), why in zip(own, reasons):
        yield Change(name, why is None, patches.patch(part, undo) if why is None else why)
