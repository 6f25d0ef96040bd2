"""Names of the encodings: one line each. A new one is one class in one file plus one line here (or `register`)."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from relpos.encodings.base import Absolute, Encoding, Pairwise, Transform
from relpos.positions import Grid


@dataclass(frozen=True)
class Entry:
    """Where a class lives, and the options that a user who names nothing gets."""

    path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    cls: type[Encoding] | None = None

    def load(self) -> type[Encoding]:
        if self.cls is not None:
            return self.cls
        module, name = self.path.split(":")
        loaded: type[Encoding] = getattr(importlib.import_module(f"relpos.encodings.{module}"), name)
        return loaded


_ENTRIES: dict[str, Entry] = {
    "nope": Entry("transform.none:NoPE"),
    "rope": Entry("transform.rope:RoPE"),
    "xpos": Entry("transform.xpos:XPos"),
    "axial_rope": Entry("transform.axial:AxialRoPE"),
    "mixed_rope": Entry("transform.mixed:MixedRoPE"),
    "time_rope": Entry("transform.time:TimeRoPE"),
    "sine_spe": Entry("transform.sine_spe:SineSPE"),
    "conv_spe": Entry("transform.conv_spe:ConvSPE", {"kernel_size": 32}),
    "cosformer": Entry("transform.cosformer:CosFormer", {"max_length": 1024}),
    "permuteformer": Entry("transform.permuteformer:PermuteFormer"),
    "flt": Entry("transform.flt:FLT"),
    "fstripe": Entry("transform.fstripe:FStrIPE"),
    "rope_pool": Entry("transform.rope_pool:RoPEPool"),
    "sinusoidal": Entry("absolute.sinusoidal:Sinusoidal"),
    "learned": Entry("absolute.learned:Learned", {"max_length": 1024}),
    "structure_ape": Entry("absolute.structure:StructureAPE"),
    "learned_bias": Entry("bias.learned:LearnedBias", {"max_lag": 128}),
    "shaw": Entry("content.shaw:Shaw", {"max_lag": 128, "heads": None}),
    "music_transformer": Entry("content.music_transformer:MusicTransformer", {"max_lag": 256}),
    "fox": Entry("content.fox:FoX"),
    "structure_rpe": Entry("content.structure:StructureRPE"),
    "non_stationary_rpe": Entry("content.non_stationary:NonStationaryRPE"),
    "same_label": Entry("bias.same_label:SameLabel"),
    "swin": Entry("bias.swin:SwinBias", {"window": (7, 7)}),
    "lrpe": Entry("bias.lrpe:LRPE", {"window": (14, 14)}),
    "gqpe": Entry("bias.gqpe:GQPE", {"window": (14, 14)}),
    "log_cpb": Entry("bias.log_cpb:LogCPB", {"window": (8, 8)}),
    "alibi_2d": Entry("bias.alibi_2d:ALiBi2D"),
    "irpe": Entry("content.irpe:IRPE", {"heads": None}),
    "decomposed_2d": Entry("content.decomposed_2d:Decomposed2D", {"window": (14, 14)}),
    "relative_channels": Entry(
        "content.relative_channels:RelativeChannels",
        {"channels": ({"feature": "index", "encoder": "buckets", "clip": 128},)},
    ),
    "hstu": Entry("content.hstu:HSTUBias", {"max_lag": 128}),
    "fire": Entry("row.fire:FIRE"),
    "transformer_xl": Entry("content.transformer_xl:TransformerXL"),
    "deberta": Entry("content.deberta:DeBERTa", {"span": 128, "max_lag": 512}),
    "low_rank_logits": Entry("content.low_rank:LowRankLogits"),
    "t5": Entry("bias.t5:T5Bias"),
    "alibi": Entry("bias.alibi:ALiBi"),
    "kerple": Entry("bias.kerple:KERPLE"),
    "sandwich": Entry("bias.sandwich:Sandwich", {"dim": 128}),
    "hype": Entry("bias.hype:HyPE"),
}


@dataclass(frozen=True)
class Description:
    """What `rp.names()` says of one encoding."""

    name: str
    cls: str
    form: str
    parameters: str
    summary: str
    learned: bool
    extrapolates: bool
    fused: bool
    linear: bool
    decoding: bool
    two_d: bool


def key_of(name: str) -> str:
    """`T5`, `t5 `, `log-cpb` and `Log CPB` are `t5` and `log_cpb`."""
    if not isinstance(name, str):
        raise TypeError(f"an encoding's name is a string, got {type(name).__name__}")
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def entry(name: str) -> Entry:
    """The entry of a name; ValueError names the nearest known ones."""
    key = key_of(name)
    if key not in _ENTRIES:
        near = difflib.get_close_matches(key, _ENTRIES, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"no encoding is called {name!r}{hint} (relpos.names() lists all)")
    return _ENTRIES[key]


def register(name: str, cls: type[Encoding], **defaults: Any) -> None:
    """Makes a class of your own known by a name, to every mixer, kernel and command.

    defaults are the options that it gets where a user names only the encoding. ValueError where the name is taken by
    another class.
    """
    key = key_of(name)
    if not (inspect.isclass(cls) and issubclass(cls, Encoding)):
        raise TypeError(f"register takes a subclass of relpos.encodings.base.Encoding, got {cls!r}")
    if key in _ENTRIES and _ENTRIES[key].cls is not cls:
        raise ValueError(f"the name {key!r} is taken by {_ENTRIES[key].load().__name__}")
    _ENTRIES[key] = Entry("", defaults, cls)


def encoding(name: str, **options: Any) -> Encoding:
    """Builds an encoding by name: `encoding("t5", heads=8)`.

    Options are the arguments of its class; `names()` lists them. Options that this class does not take raise a
    TypeError that says which it takes.
    """
    return _construct(name, entry(name), {**entry(name).defaults, **options})


def fitted(name: str, context: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Encoding:
    """As `encoding`, where a layer offers what it knows (heads, dim, model_dim, causal); the class takes its part."""
    found = entry(name)
    wanted = signature_of(found.load()).parameters
    context = {"groups": context.get("heads"), **context}  # a gate's word for the same
    known = {key: value for key, value in context.items() if key in wanted and value is not None}
    return _construct(name, found, {**known, **found.defaults, **(options or {})})


def signature_of(cls: type[Encoding]) -> inspect.Signature:
    """The arguments of a class; none where it has no constructor of its own (nn.Module's takes anything)."""
    return inspect.Signature() if cls.__init__ is Encoding.__init__ else inspect.signature(cls)


def _construct(name: str, found: Entry, options: dict[str, Any]) -> Encoding:
    cls = found.load()
    signature = signature_of(cls)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise TypeError(f"encoding {name!r}: {error}; {cls.__name__}{signature}") from None
    return cls(**options)


def describe(name: str) -> Description:
    found = entry(name)
    cls = found.load()
    signature = signature_of(cls)
    return Description(
        name=key_of(name),
        cls=cls.__name__,
        form=cls.form,
        parameters=", ".join(str(p).replace("'", "") for p in signature.parameters.values()),
        summary=(inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
        learned=cls.learned,
        extrapolates=cls.extrapolates,
        fused=issubclass(cls, Transform | Absolute) or cls.has_factors,
        linear="kernelized" in cls.mixers,
        decoding=issubclass(cls, Pairwise | Transform | Absolute),
        two_d=any(issubclass(kind, Grid) for kind in cls.takes),
    )


def names() -> dict[str, Description]:
    """All encodings by name: form, parameters, and whether it is learned, extrapolates, runs in fused attention without
    an n x n tensor, works in linear attention, decodes step by step, and has a two-dimensional form."""
    return {name: describe(name) for name in _ENTRIES}


def each() -> Iterator[tuple[str, Entry]]:
    yield from _ENTRIES.items()
