"""The claim that a gate made from relative positions is better than a free matrix, and what of it survives a resize.

**Gates.** gMLP of one size reads pictures; only its gate differs: the free matrix over all pairs of patches (SGU), and
PoSGU, whose matrix is made from relative positions by a learned table of lags (LRPE) or by a softmax of a learned
quadratic form (GQPE), with one generator a layer or with several groups. Same data order, same number of steps, and the
best of the same short sweep of learning rates for each.

**Attention.** A small ViT under two-dimensional encodings, trained likewise, at the best rate of a sweep or, where only
one is given, at one rate for all.

**Sizes.** Every network is trained at one size and evaluated, without further training, at smaller and larger ones: the
same test pictures are resampled and the encoding is resized. Patches keep their pixels, so a patch of a smaller picture
shows more of it: what changes is the scale of what is seen as well as the grid. An encoding survives a size if its mean
accuracy there is at most 2 points below that at the training size. The row of the linear classifier, which brings every
picture back to the training size, shows how much of what is lost is lost with the pixels.

**Judging.** Differences are taken seed by seed; the 95% interval over the seeds is Student's. The claim holds if, on
every data set, PoSGU with groups has fewer parameters and an accuracy above SGU's, and groups one above a single group,
by intervals that leave out 0, for both kinds; it does not hold if one such interval lies below 0; otherwise the run
cannot tell. All judge the same test pictures, so the intervals speak of other seeds and not of other pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from relpos.lab.claims import vision_page
from relpos.lab.claims.differences import Difference
from relpos.lab.claims.frame import Finding, Order
from relpos.lab.compare import compare, without_the_unable
from relpos.lab.jobs import Crew
from relpos.lab.results import Results, Row, collect
from relpos.lab.settings import Settings
from relpos.lab.train import build
from relpos.tasks.vision.images import Images

name = "vision"
title = "Gates of relative positions in place of free matrices, and encodings at other sizes"
statement = (
    "Wang et al. 2022 (PosMLP): relative positions in place of the free spatial matrix of gMLP raise accuracy with "
    "fewer parameters (72.14 to 74.02 % on ImageNet-1k, 19.4M to 18.2M, gMLP-S/16), and several groups of them a layer "
    "are better than one. Asked beside it: the quadratic form against the table of lags, and which encodings keep "
    "their accuracy on pictures of another size."
)
GATES = {
    "SGU": "nope",
    "LRPE single": "lrpe[groups=1]",
    "LRPE in groups": "lrpe[groups={groups}]",
    "GQPE single": "gqpe[groups=1]",
    "GQPE in groups": "gqpe[groups={groups}]",
}
"""Title -> contestant, with settings in braces; all in gMLP."""
ATTENTION = {
    "none": "nope",
    "learned absolute": "learned",
    "axial RoPE": "axial_rope",
    "mixed RoPE": "mixed_rope",
    "Swin table (LRPE)": "swin",
    "quadratic form (GQPE)": "gqpe",
    "log-CPB": "log_cpb[normalize=true,temperature=0.1]",
    "ALiBi-2D": "alibi_2d",
    "decomposed 2-D": "decomposed_2d",
}
"""All in the ViT; log-CPB with the cosine attention that it was made for. As a bias of attention, the table of LRPE is
Swin's with the sign of the lag turned round, so that one row stands for both; the form of GQPE is added as it is."""
QUESTIONS = (
    ("LRPE in groups", "SGU", True),
    ("GQPE in groups", "SGU", True),
    ("LRPE in groups", "LRPE single", True),
    ("GQPE in groups", "GQPE single", True),
    ("GQPE in groups", "LRPE in groups", False),
    ("GQPE single", "LRPE single", False),
)
"""Who is asked about, against whom, and whether the claim says that the first is better."""
KEPT = 0.02

_COMMON = {
    "datasets": ["fashion-mnist"], "attention": ["fashion-mnist"], "paths": {}, "seeds": [0, 1, 2], "batch": 32,
    "rates": [1e-3, 3e-3, 9e-3], "attention_rates": [1e-3, 3e-3, 9e-3], "shift": 0, "patch": 4, "dim": 48, "ratio": 4,
    "groups": 8, "heads": 4, "depth": 4, "attention_depth": 2, "cells": [-3, -2, -1, 1, 2, 4],
}  # fmt: skip
presets: dict[str, dict[str, Any]] = {
    "quick": {
        **_COMMON, "datasets": ["mnist5k"], "attention": ["mnist5k"], "seeds": [0], "steps": 2, "attention_steps": 2,
        "batch": 4, "rates": [3e-3], "attention_rates": [3e-3], "sweep_steps": 0, "dim": 16, "depth": 1,
        "attention_depth": 1, "judged": [4, 8], "attention_judged": [4, 8], "cells": [-2, 1],
    },
    "demo": {
        **_COMMON, "seeds": [0, 1], "steps": 600, "attention_steps": 300, "rates": [5e-3], "attention_rates": [2e-3],
        "sweep_steps": 0, "judged": [500, 1000], "attention_judged": [500, 500],
    },
    "results": {
        **_COMMON, "steps": 1200, "attention_steps": 600, "attention_rates": [3e-3], "sweep_steps": 150,
        "judged": [500, 4000], "attention_judged": [500, 1000],
    },
    "full": {
        **_COMMON, "datasets": ["fashion-mnist", "openclipart"], "steps": 3000, "attention_steps": 8000,
        "sweep_steps": 250, "shift": 1, "judged": [2000, 10_000], "attention_judged": [1000, 5000],
    },
}  # fmt: skip
"""datasets: of the gates; attention: data sets of the ViT, [] for none; attention_..: of the ViT; paths: folder by data
set, for those that the user has; cells: by how many patches a side the other sizes differ; shift: of training pictures,
in pixels; judged: pictures of validation and of test; the rest as its name says. full takes one and a half to 4 hours
on two cores; it goes on where stopped."""


@dataclass(frozen=True)
class Part:
    """One comparison: a network on one data set, under all of its contestants."""

    network: str
    dataset: str

    @property
    def key(self) -> str:
        return f"{self.network}-{self.dataset}"

    @property
    def contestants(self) -> Mapping[str, str]:
        return ATTENTION if self.network == "vit" else GATES


@dataclass(frozen=True)
class Outcome:
    """accuracy: size -> that of each seed, () where there is none; mixing: parameters that make spatial matrices."""

    accuracy: Mapping[int, tuple[float, ...]]
    parameters: int
    mixing: int
    macs: float
    rate: float
    why: str = ""


@dataclass(frozen=True)
class Found:
    """What came out of a part. baselines: name -> size -> accuracy; maps: title of a contestant -> PNG."""

    part: Part
    side: int
    rows: Mapping[str, Outcome]
    baselines: Mapping[str, Mapping[int, float]]
    source: str = ""
    maps: Mapping[str, bytes] = field(default_factory=dict)


def run(order: Order) -> Finding:
    """Trains what is not trained, part by part, and says what came out."""
    return conclude([_found(order, part) for part in parts(order.settings)], order.settings)


def parts(s: Mapping[str, Any]) -> list[Part]:
    """The parts that these settings ask for, gates first. ValueError where there is none."""
    chosen = [Part("gmlp", each) for each in s["datasets"]] + [Part("vit", each) for each in s["attention"]]
    if not chosen:
        raise ValueError("datasets and attention are both empty: name at least one data set, such as fashion-mnist")
    return chosen


def images(s: Mapping[str, Any], part: Part) -> Images:
    """The task of a part, evaluated at the sizes of the settings."""
    path = s["paths"].get(part.dataset)
    whole = Images(part.dataset, path)
    sizes = [whole.train_length + s["patch"] * cells for cells in s["cells"]]
    judged = s["attention_judged" if part.network == "vit" else "judged"]
    return Images(part.dataset, path, sizes=sizes, judged=(judged[0], judged[1]), shift=s["shift"])


def _found(order: Order, part: Part) -> Found:
    s, task = order.settings, images(order.settings, part)
    labels = {key: label.format(**s) for key, label in part.contestants.items()}
    attention = part.network == "vit"
    own = {"depth": s["attention_depth"], "heads": s["heads"]} if attention else {name: s[name] for name in _OF_GMLP}
    settings = Settings(
        task=task.name, encodings=tuple(labels.values()), seeds=tuple(s["seeds"]), preset="claim", batch=s["batch"],
        steps=s["attention_steps"] if attention else s["steps"],
        rates=tuple(s["attention_rates"] if attention else s["rates"]), sweep_steps=s["sweep_steps"], validations=2,
        model={"network": part.network, "patch": s["patch"], "dim": s["dim"], **own},
    )  # fmt: skip
    order.reporter.say(f"\n{part.network} on {part.dataset}")
    settings = without_the_unable(task, settings, order.reporter)
    folder = order.folder / part.key
    results = collect(compare(task, settings, folder, order.reporter, crew=Crew(order.workers, order.modules)))
    rows = {row.encoding: row for row in results.rows}
    return Found(
        part,
        results.train_length,
        {key: _outcome(rows[label], task, settings) for key, label in labels.items() if label in rows},
        {key: values["accuracy"] for key, values in results.baselines.items()},
        task.source,
        {key: drawn for key, label in labels.items() if label in rows and (drawn := _maps(results, rows[label]))},
    )


_OF_GMLP = ("depth", "ratio", "groups")


def _outcome(row: Row, task: Images, settings: Settings) -> Outcome:
    cells = row.values["accuracy"]
    why = "; ".join(f"{size}: {cell.refused}" for size, cell in cells.items() if cell.refused)
    mixing = matrices(build(task, settings, row.encoding)) or row.own_parameters
    return Outcome(
        {size: cell.seeds for size, cell in cells.items()}, row.parameters, mixing, row.costs["macs"], row.rate, why
    )


def matrices(network: nn.Module) -> int:
    """Parameters of the free matrices and generators of a network's gates; 0 without gates."""
    from relpos.mixers.gating import SGU, PoSGU

    gates = [part for part in network.modules() if isinstance(part, SGU | PoSGU)]
    made = [[gate.weight] if isinstance(gate, SGU) else list(gate.encoding.parameters()) for gate in gates]
    return sum(parameter.numel() for each in made for parameter in each)


def _maps(results: Results, row: Row) -> bytes | None:
    """The picture of the maps of the first seed's network."""
    folder: Path = results.run.model(row.encoding, row.records[0]["seed"])
    paths = [entry["path"] for entry in row.records[0].get("pictures", ())]
    return (folder / paths[0]).read_bytes() if paths else None


def conclude(found: Sequence[Found], s: Mapping[str, Any]) -> Finding:
    """The finding from the numbers alone."""
    gates = [each for each in found if each.part.network == "gmlp"]
    asked = {each.part.dataset: differences(each) for each in gates}
    kept = {each.part.key: {key: survived(row, each.side) for key, row in each.rows.items()} for each in found}
    numbers = {
        "accuracy": {
            each.part.key: {
                key: {str(size): list(values) for size, values in row.accuracy.items()}
                for key, row in each.rows.items()
            }
            for each in found
        },
        "parameters": {each.part.key: {key: row.parameters for key, row in each.rows.items()} for each in found},
        "differences": {
            dataset: {key: None if d is None else [d.mean, d.half] for key, d in own.items()}
            for dataset, own in asked.items()
        },
        "survived": kept,
        "baselines": {each.part.key: {n: dict(v) for n, v in each.baselines.items()} for each in found},
    }
    method = (__doc__ or "").split("\n\n", 1)[1].strip()
    body = vision_page.body(found, asked, kept, s, method)
    verdict = _verdict(asked, kept, len(s["cells"]))
    return Finding(judged(gates, asked), verdict, numbers, body, vision_page.pictures(found))


def differences(found: Found) -> dict[str, Difference | None]:
    """Question -> difference of the accuracies at the training size; None where one of the two has no number."""
    asked = {}
    for first, second, _ in QUESTIONS:
        pair = [found.rows[key].accuracy[found.side] if key in found.rows else () for key in (first, second)]
        asked[f"{first} against {second}"] = Difference.of(*pair) if all(pair) else None
    return asked


def judged(gates: Sequence[Found], asked: Mapping[str, Mapping[str, Difference | None]]) -> bool | None:
    """Whether the claim holds, by the rule of the module."""
    signs = []
    for each in gates:
        for first, second, claimed in QUESTIONS:
            difference = asked[each.part.dataset][f"{first} against {second}"]
            if not claimed or difference is None or difference.sign is None:
                signs += [0] * claimed
                continue
            fewer = second != "SGU" or each.rows[first].parameters < each.rows[second].parameters
            signs.append(difference.sign if fewer else -1)
    if not signs or (min(signs) == 0):
        return None
    return min(signs) > 0


def survived(row: Outcome, side: int) -> list[int]:
    """The sizes at which the mean accuracy is at most 2 points below that at the training size, which is not listed."""
    home = row.accuracy[side]
    if not home:
        return []
    return [size for size, values in row.accuracy.items() if size != side and values and _lost(home, values) <= KEPT]


def _lost(home: Sequence[float], there: Sequence[float]) -> float:
    return Difference.of(home, there).mean


def _verdict(
    asked: Mapping[str, Mapping[str, Difference | None]], kept: Mapping[str, Mapping[str, Sequence[int]]], others: int
) -> str:
    sentences = []
    for dataset, own in asked.items():
        said = [f"{question} {'no number' if d is None else d.text()}" for question, d in own.items()]
        sentences.append(f"Points of accuracy on {dataset}, with 95% intervals over the seeds: {'; '.join(said)}.")
    for part, rows in kept.items():
        everywhere = [key for key, sizes in rows.items() if len(sizes) == others]
        sentences.append(
            f"At all {others} other sizes {part} keeps its accuracy with: {', '.join(everywhere) or 'none'}."
        )
    return " ".join(sentences)
