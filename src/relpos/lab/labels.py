"""Who takes part in a comparison: ``alibi``, or ``learned_bias[mixer=kernelized,encoding.max_lag=64]``.

A label is the name of an encoding and, in brackets, options of the network that this contestant alone has. A dot sends
an option one level down: ``encoding.max_lag=64`` is ``encoding_options={"max_lag": 64}``. Values are read as JSON
(numbers, true, false, null, lists), else as text. Nothing here knows an encoding or an option by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from relpos.lab.errors import LabError

EXAMPLE = "learned_bias[mixer=kernelized,features=prf]"
_SHAPE = re.compile(r"([^\[\]=,\s]+)\s*(?:\[(.*)\])?", re.DOTALL)
_LONGEST = 100  # characters of a folder's name taken from the label; file systems allow 255


@dataclass(frozen=True)
class Contestant:
    """One label, read: the encoding, its own options, and the label in its one spelling."""

    encoding: str
    options: dict[str, object]
    label: str


def read(text: str) -> Contestant:
    """A label as its parts; LabError where it is not one."""
    found = _SHAPE.fullmatch(text.strip())
    if found is None:
        raise LabError(f"{text.strip()!r} is not an encoding with options in brackets; write it as {EXAMPLE}")
    encoding, inside = found.groups()
    words = split(inside or "", f"the options of {encoding}")
    try:
        options = assignments(words)
    except LabError as error:
        raise LabError(f"{text.strip()!r}: {error}; write it as {EXAMPLE}") from None
    return Contestant(encoding, options, encoding + (f"[{','.join(_tight(word) for word in words)}]" if words else ""))


def _tight(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key.strip()}={value.strip()}"


def split(text: str, what: str = "the encodings") -> list[str]:
    """The parts between commas that stand outside of all brackets, empty ones left out."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if depth < 0:
            break
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    if depth:
        missing, where = ("]", "[") if depth > 0 else ("[", "]")
        raise LabError(f"{what} {text!r}: a {where!r} without its {missing!r}; write options as {EXAMPLE}")
    return [part.strip() for part in parts if part.strip()]


def assignments(words: Iterable[str]) -> dict[str, object]:
    """`depth=2` as {"depth": 2}, `encoding.max_lag=8` as {"encoding_options": {"max_lag": 8}}.

    LabError for what is no assignment and for a key given twice.
    """
    values: dict[str, object] = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        group, dot, inner = key.partition(".")
        if not equals or not group or (dot and not inner):
            raise LabError(f"{word!r} is not key=value, such as depth=2")
        place = values.setdefault(f"{group}_options", {}) if dot else values
        name = inner if dot else key
        if not isinstance(place, dict) or name in place:
            raise LabError(f"{key!r} is given twice; give it once")
        place[name] = _value(text)
    return values


def _value(text: str) -> object:
    try:
        value: object = json.loads(text, parse_constant=str)
    except json.JSONDecodeError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value  # 1e999 could not be stored


def merged(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Options with others over them; options of options are merged too."""
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[name] = {**under, **value} if both else value  # type: ignore[dict-item]
    return result


def slug(label: str) -> str:
    """A name for a folder: the label itself where it is a plain name, else its letters and a digest of all of it."""
    if re.fullmatch(r"\w[\w.-]*", label, re.ASCII):
        return label
    letters = re.sub(r"[^\w.]+", "-", label, flags=re.ASCII).strip("-.")[:_LONGEST]
    return f"{letters}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
