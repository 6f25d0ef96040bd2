"""Rules that stretch RoPE's frequencies over contexts longer than the one of training.

Names and keys are those of the configuration files of published models (`rope_type`, `factor`,
`original_max_position_embeddings`, ..), so that a user can paste what a checkpoint holds. With theta_t = base^(-2t/w),
t = 0..w/2-1, w the rotated width, s = factor and L0 = original_max_position_embeddings:

default       theta_t
linear        theta_t / s                                                              (Chen et al. 2023)
ntk           base -> base s^(w/(w-2))                                                 (bloc97 2023)
dynamic       base -> base (s n/L0 - (s-1))^(w/(w-2)) where the length n exceeds L0    (emozilla 2023)
yarn          theta_t/s and theta_t blended by a ramp over t; factor 0.1 ln s + 1      (Peng et al. 2023, section 3)
longrope      theta_t / lambda_t, a short and a long list; factor sqrt(1 + ln s/ln L0) (Ding et al. 2024)
llama3        by wavelength: long ones / s, short ones kept, linear between            (Llama 3.1)
proportional  theta_t with w the whole head for the first pairs, 0 for the rest; / s   (p-RoPE, Barbero et al. 2024)
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ORIGINAL = "original_max_position_embeddings"
_LONGEST = "max_position_embeddings"
_TYPES: dict[str, tuple[set[str], set[str]]] = {  # required and optional keys
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "ntk": ({"factor"}, set()),
    "dynamic": ({"factor", _ORIGINAL}, set()),
    "yarn": (
        {"factor", _ORIGINAL},
        {_LONGEST, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"},
    ),
    "longrope": (
        {"short_factor", "long_factor", "factor", _ORIGINAL},
        {_LONGEST, "attention_factor"},
    ),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL}, set()),
    "proportional": (set(), {"factor"}),
}
_OLD_NAMES = {"su": "longrope", "mrope": "default"}  # of configuration files written before 2025
COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Scaling:
    """One checked rule. `frequencies` gives what it makes of a width, a base and a length."""

    kind: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Scaling:
        """Checks a dictionary as it stands in a model's configuration; None is no scaling."""
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise TypeError(f'scaling is a dictionary such as {{"rope_type": "linear", "factor": 4.0}}, got {given!r}')
        if "rope_type" in given and given.get("type", given["rope_type"]) != given["rope_type"]:
            raise ValueError(f"scaling names two types, rope_type={given['rope_type']!r} and type={given['type']!r}")
        if given and not given.keys() & {"rope_type", "type", "mrope_section"}:
            raise ValueError(f"scaling has no rope_type; it is one of {', '.join(_TYPES)}")
        kind = str(given.get("rope_type", given.get("type", "default")))
        kind = _OLD_NAMES.get(kind, kind)
        if kind not in _TYPES:
            raise ValueError(f"no rope_type is called {kind!r}{_nearest(kind, list(_TYPES))} ({', '.join(_TYPES)})")
        options = {key: value for key, value in given.items() if key not in COMMON and value is not None}
        if kind == "dynamic" and _LONGEST in options:  # the key that dynamic scaling reads in published files
            longest = options.pop(_LONGEST)
            if options.setdefault(_ORIGINAL, longest) != longest:
                raise ValueError(f"dynamic scaling counts from one length; {_ORIGINAL} and {_LONGEST} differ")
        if kind in ("yarn", "longrope") and "factor" not in options and {_LONGEST, _ORIGINAL} <= options.keys():
            options["factor"] = options[_LONGEST] / options[_ORIGINAL]
        if kind == "longrope" and "attention_factor" in options:
            options.setdefault("factor", 1.0)  # read for the attention factor only
        required, optional = _TYPES[kind]
        for key in options.keys() - required - optional:
            allowed = sorted(required | optional | COMMON)
            raise ValueError(f"scaling {kind!r} has no key {key!r}{_nearest(key, allowed)} ({', '.join(allowed)})")
        if missing := required - options.keys():
            raise ValueError(f"scaling {kind!r} also needs {', '.join(sorted(missing))}")
        _check_values(kind, options)
        return cls(kind, options)

    @property
    def by_length(self) -> bool:
        """True where the frequencies depend on how long the sequence is."""
        return self.kind in ("dynamic", "longrope")

    def frequencies(self, width: int, base: float, length: int = 0, kept: int | None = None) -> tuple[Tensor, float]:
        """theta (width/2,) float64 and the factor of cos and sin, for a sequence of `length` tokens.

        kept: how many pairs proportional scaling turns at all.
        """
        o = self.options
        if self.kind in ("ntk", "dynamic"):
            if width < 4:
                raise ValueError(f"scaling {self.kind!r} needs a rotated width of at least 4, got {width}")
            stretch = float(o["factor"])
            if self.kind == "dynamic":
                stretch = stretch * max(length, o[_ORIGINAL]) / o[_ORIGINAL] - (stretch - 1)
            base = base * stretch ** (width / (width - 2))
        pair = torch.arange(width // 2, dtype=torch.float64, device="cpu")
        theta = base ** (-2 * pair / width)
        if self.kind == "linear":
            return theta / o["factor"], 1.0
        if self.kind == "proportional":
            return theta * (pair < (width // 2 if kept is None else kept)) / o.get("factor", 1.0), 1.0
        if self.kind == "yarn":
            return _yarn(theta, base, o), _yarn_factor(o)
        if self.kind == "longrope":
            return _longrope(theta, o, length)
        if self.kind == "llama3":
            return _llama3(theta, o), 1.0
        return theta, 1.0


def _check_values(kind: str, options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key == "truncate":
            if not isinstance(value, bool):
                raise ValueError(f"truncate is True or False, got {value!r}")
            continue
        for number in value if key in ("short_factor", "long_factor") else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
                raise ValueError(f"scaling {kind!r}: {key} is made of positive finite numbers, got {number!r}")
            if number == 0 and not key.startswith("mscale"):
                raise ValueError(f"scaling {kind!r}: {key} is above 0")
    if options.get("factor", 1) < 1:
        raise ValueError(
            f"factor says how many times longer the context becomes, at least 1; got {options['factor']} "
            f"(did you mean {1 / options['factor']:g}?)"
        )
    if kind == "llama3" and options["low_freq_factor"] >= options["high_freq_factor"]:
        raise ValueError("llama3 scaling needs low_freq_factor < high_freq_factor")


def _yarn(theta: Tensor, base: float, o: Mapping[str, Any]) -> Tensor:
    """theta/s where a pair turns less than beta_slow times in L0 tokens, theta where more than beta_fast times."""
    width = 2 * len(theta)

    def pair_that_turns(times: float) -> float:
        return width * math.log(o[_ORIGINAL] / (2 * math.pi * times)) / (2 * math.log(base))

    low, high = pair_that_turns(o.get("beta_fast", 32.0)), pair_that_turns(o.get("beta_slow", 1.0))
    if o.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0  # a step instead of 0/0
    ramp = ((torch.arange(len(theta), dtype=torch.float64, device="cpu") - low) / (high - low)).clamp(0, 1)
    return theta / float(o["factor"]) * ramp + theta * (1 - ramp)


def _yarn_factor(o: Mapping[str, Any]) -> float:
    if "attention_factor" in o:
        return float(o["attention_factor"])

    def temper(m: float) -> float:
        return 0.1 * m * math.log(max(o["factor"], 1)) + 1

    if o.get("mscale") and o.get("mscale_all_dim"):  # DeepSeek
        return temper(o["mscale"]) / temper(o["mscale_all_dim"])
    return temper(1.0)


def _longrope(theta: Tensor, o: Mapping[str, Any], length: int) -> tuple[Tensor, float]:
    which = "long_factor" if length > o[_ORIGINAL] else "short_factor"
    for name in ("short_factor", "long_factor"):
        if len(o[name]) != len(theta):
            raise ValueError(f"{name} has one number a rotated pair, {len(theta)}, got {len(o[name])}")
    factor = o.get("attention_factor", math.sqrt(1 + math.log(o["factor"]) / math.log(o[_ORIGINAL])))
    return theta / torch.tensor(o[which], dtype=torch.float64, device="cpu"), float(factor)


def _llama3(theta: Tensor, o: Mapping[str, Any]) -> Tensor:
    turns = float(o[_ORIGINAL]) * theta / (2 * math.pi)  # within the original context
    low, high = float(o["low_freq_factor"]), float(o["high_freq_factor"])
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return theta / float(o["factor"]) * (1 - blend) + theta * blend
