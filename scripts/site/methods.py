"""The part of a method's page that the registry and the docstring know: facts, formula, picture, source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

import torch
from scripts.site.docstrings import escaped, markdown

from relpos import encodings, explain
from relpos.encodings.base import Encoding
from relpos.encodings.registry import Description, names, signature_of
from relpos.lab.errors import LabError
from relpos.lab.show import build, explanation

FORMS = {
    "Bias": "adds a number a head and lag to the score",
    "RowBias": "as a bias, but may know where the query stands",
    "ContentBias": "depends on the query, the key or the layer's input as well as on the lag",
    "Transform": "changes q and k so that their product depends on the lag",
    "Absolute": "is added to the input of the network: the baselines",
}
MIXERS = {
    "softmax": "softmax attention",
    "kernelized": "linear attention",
    "pointwise": "pointwise attention",
    "gate": "gates without queries and keys",
    "input": "the input of the network",
}
POSITIONS = {"Mapping": "named positions", "Position": "any"}
TOKENS = 512  # long enough that no matrix of scores is the quickest


def page(name: str, written: str, caption: str) -> str:
    """Title and lead as written, then what is known, then the written sections, then the source."""
    about = names()[name]
    cls = getattr(encodings, about.cls)
    head, sections = _split(written)
    body, source = _body(inspect.getdoc(cls) or "")
    parts = [
        head,
        _facts(about, cls),
        f"## What it does\n\n{body}",
        f"![what {name} does](images/{name}.svg)\n\n*{caption}*",
        sections,
        f"## Which kernel\n\n{_kernel(name)}",
        f"## Source\n\n{source}\n\n```bibtex\n{cls.reference.strip()}\n```",
    ]
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def index() -> str:
    """All methods by form, each with the first sentence of its docstring."""
    parts = []
    for form, meaning in FORMS.items():
        rows = [f"| [`{n}`]({n}.md) | {_cell(d.summary)} | {'yes' if d.linear else '-'} | {'yes' if d.two_d else '-'} |"
                for n, d in names().items() if d.form == form]  # fmt: skip
        table = "| name | what it does | linear | grids |\n| --- | --- | :-: | :-: |\n" + "\n".join(rows)
        parts.append(f"## {form}\n\nA `{form}` {meaning}.\n\n{table}")
    return "\n\n".join(parts)


def grouped() -> dict[str, list[str]]:
    """Names by form, in the order of the forms."""
    known = names()
    return {form: sorted(name for name, about in known.items() if about.form == form) for form in FORMS}


def _cell(text: str) -> str:
    return escaped(text.replace("`", ""))


def _split(written: str) -> tuple[str, str]:
    found = re.search(r"^## ", written, re.MULTILINE)
    return (written[: found.start()].strip(), written[found.start() :].strip()) if found else (written.strip(), "")


def _body(docstring: str) -> tuple[str, str]:
    """The docstring as Markdown, and what follows its "Source:" as well."""
    body, _, source = docstring.partition("\nSource: ")
    return markdown(body), markdown(source) if source else "The BibTeX entry says where it is from."


def _facts(about: Description, cls: type[Encoding]) -> str:
    takes = ", ".join(dict.fromkeys(POSITIONS.get(kind.__name__, f"`{kind.__name__}`") for kind in cls.takes))
    rows: Mapping[str, str] = {
        "form": f"[`{about.form}`](../reference/encodings.md): {FORMS[about.form]}",
        "class": f"`relpos.encodings.{about.cls}`",
        "arguments": _arguments(cls),
        "positions": takes,
        "works in": ", ".join(MIXERS[mixer] for mixer in cls.mixers),
        "parameters": "learned" if about.learned else "none",
        "beyond the training length": "meant for it" if about.extrapolates else "not by itself",
        "stock fused attention": "yes" if about.fused else "not needed: see the kernel below",
    }
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _arguments(cls: type[Encoding]) -> str:
    """Names and defaults as one would write them; what they mean is in the docstring below."""
    given = signature_of(cls).parameters.values()
    written = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given)
    return f"`{written}`" if written else "none"


def _kernel(name: str) -> str:
    """What `relpos explain` says of it; where positions are named, what `rp.explain` says."""
    asked = f"`relpos explain {name} --n {TOKENS} --causal`"
    try:
        said = explanation(name, TOKENS, TOKENS, True, 8, 64, "auto", {})
    except LabError:
        asked, said = f"With {TOKENS} tokens that carry times and labels, causal, `rp.explain`", _named(name)
    return f"{asked} says:\n\n```text\n{said}\n```"


def _named(name: str) -> str:
    steps = torch.arange(TOKENS)
    where = {level: steps // 8 for level in ("tempo", "section", "chord", "melody")}
    q, positions = torch.zeros(1, 8, TOKENS, 64), {**where, "index": steps, "time": steps.double()}
    encoding = build(name, 8, 64, True, TOKENS, {})
    return str(explain(q, q, q, encoding, q_pos=positions, k_pos=positions, causal=True))
