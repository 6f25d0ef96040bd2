"""The claim that labels of structure, told to an encoding, make a model of music better.

The same small causal network reads piano-rolls under each encoding: the next tick of all parts, or the other parts to a
given melody. Plain encodings know the tick alone (none, sinusoids, Shaw's clipped table); structure-informed ones know
labels: S-APE adds codes of labels to the input, S-RPE and NS-RPE put differences of labels into attention, F-StrIPE
turns them into features. Same data order, same number of steps, same learning rate for all (or, with several
rates, the best of the same short sweep for each).

Two kinds of table are kept apart. **Honest labels** are there before the music is: the form (phrases), the beat, the
melody where it is given, chords guessed from that melody. **Oracle labels** were computed from what is to be predicted
(the chord of the accompaniment): then the task is to play a given chart, and the row to beat is a rule that does just
that.

Scores are teacher-forced. The claim holds where in every honest part the best structure-informed encoding has a lower
loss at the training length than the best plain one, by more than the deviations of both over the seeds together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relpos.lab.claims.frame import PICTURES, Finding, Order, markdown_table
from relpos.lab.claims.models import Spread, apart
from relpos.lab.compare import compare
from relpos.lab.jobs import Crew
from relpos.lab.results import Results, Row, collect
from relpos.lab.settings import Settings

name = "music"
title = "Labels of structure in models of music"
statement = (
    "Agarwal et al. 2024 (S-APE, S-RPE, NS-RPE) and 2025 (F-StrIPE): positional encodings that know melody, chords and "
    "sections improve symbolic music generation, next steps and accompaniment, over no encoding and over encodings of "
    "the tick, at the training length and beyond it."
)
PLAIN = {"NoPE": "nope", "APE": "sinusoidal", "RPE (Shaw)": "shaw"}
STRUCTURE = {
    "S-APE": "structure_ape",
    "S-RPE": "structure_rpe",
    "NS-RPE/both": "non_stationary_rpe",
    "F-StrIPE": "fstripe",
}
OTHERS = {
    "S-APE, learned": "structure_ape[encoding.kind=learned]",
    "S-RPE, learned": "structure_rpe[encoding.kind=learned]",
    "NS-RPE/s": "non_stationary_rpe[encoding.level=section]",
    "same label": "same_label",
    "RoPEPool": "rope_pool",
    "RoPE": "rope",
    "SymphonyNet-like": 'structure_ape[encoding.levels=["bar","beat"]]',
    "RIPO-like": 'structure_rpe[encoding.levels=["melody","beat","bar"]]',
}
"""Shown with one seed. SymphonyNet-like: codes of the bar and of the place in it. RIPO-like: differences of pitch, of
the place in the bar and of the bar, in attention."""
SHOWN = ("f1", "onset_f1", "density", "cs", "ssmd", "gs", "ndd")


@dataclass(frozen=True)
class Part:
    """One comparison: a task on one data set with one kind of labels."""

    key: str
    title: str
    task: str
    labels: str
    pop909: bool = False


PARTS = (
    Part("chorales-accompaniment", "Chorales, the lower parts to the soprano", "accompaniment", "honest"),
    Part("chorales-next", "Chorales, the next tick", "next-step", "honest"),
    Part("pop909-accompaniment", "POP909, the accompaniment to the melody", "accompaniment", "honest", True),
    Part("pop909-next", "POP909, the next tick", "next-step", "honest", True),
    Part("chorales-oracle", "Chorales, the lower parts to the soprano and their chords", "accompaniment", "oracle"),
    Part("pop909-oracle", "POP909, the accompaniment to the melody and its chords", "accompaniment", "oracle", True),
)

_COMMON = {"data": "chorales", "pop909": None, "parts": None, "others": True, "ticks": 4, "depth": 2, "heads": 4}
presets: dict[str, dict[str, Any]] = {
    "quick": {
        **_COMMON, "data": "toy", "seeds": [0], "steps": 3, "batch": 2, "rates": [2e-3], "sweep_steps": 0, "dim": 16,
        "quarters": 8, "heads": 2, "others": False,
    },
    "demo": {
        **_COMMON, "seeds": [0], "steps": 400, "batch": 16, "rates": [2e-3], "sweep_steps": 0, "dim": 96,
        "quarters": 16, "others": False, "parts": ["chorales-accompaniment", "chorales-oracle"],
    },
    "results": {
        **_COMMON, "seeds": [0, 1, 2], "steps": 600, "batch": 16, "rates": [2e-3], "sweep_steps": 0, "dim": 96,
        "quarters": 16,
    },
}  # fmt: skip
"""pop909: the folder that holds POP909, whose parts are left out without it; parts: some of those of `PARTS`, by key;
others: whether the encodings of `OTHERS` take part, with the first seed, or in which parts; quarters: of a training
window."""


def run(order: Order) -> Finding:
    """Trains what is not trained, part by part, and says what came out."""
    s = order.settings
    found = {}
    for part in chosen(s):
        order.reporter.say(f"\n{part.title}, {part.labels} labels")
        full = _compare(order, part, {**PLAIN, **STRUCTURE}, s["seeds"], part.key)
        more = part.key in s["others"] if isinstance(s["others"], list) else s["others"]
        rest = _compare(order, part, OTHERS, s["seeds"][:1], f"{part.key}-others") if more else None
        found[part] = full, rest
    return conclude(found, s)


def chosen(s: Mapping[str, Any]) -> list[Part]:
    """The parts that these settings ask for. ValueError for an unknown one, and where nothing is left."""
    known = {part.key: part for part in PARTS}
    wanted = list(known) if s["parts"] is None else list(s["parts"])
    unknown = [key for key in wanted if key not in known]
    if unknown:
        raise ValueError(f"parts are {', '.join(known)}; got {', '.join(unknown)}")
    found = [known[key] for key in wanted if s["pop909"] or not known[key].pop909]
    if not found:
        raise ValueError("all parts asked for need POP909: give its folder as --set pop909=FOLDER")
    return found


def _compare(order: Order, part: Part, contestants: Mapping[str, str], seeds: Sequence[int], key: str) -> Results:
    from relpos import tasks
    from relpos.lab.compare import without_the_unable

    s = order.settings
    options = {"ticks": s["ticks"], "quarters": s["quarters"], "labels": part.labels}
    options |= {"data": "pop909", "path": s["pop909"]} if part.pop909 else {"data": s["data"]}
    task = tasks.get(part.task, **options)
    settings = Settings(
        task=part.task, encodings=tuple(contestants.values()), seeds=tuple(seeds), steps=s["steps"], batch=s["batch"],
        rates=tuple(s["rates"]), sweep_steps=s["sweep_steps"], preset="claim", task_options=options,
        model={name: s[name] for name in ("dim", "depth", "heads")},
    )  # fmt: skip
    settings = without_the_unable(task, settings, order.reporter)
    crew = Crew(order.workers, order.modules)
    return collect(compare(task, settings, order.folder / key, order.reporter, crew=crew))


def conclude(found: Mapping[Part, tuple[Results, Results | None]], s: Mapping[str, Any]) -> Finding:
    """The finding from finished runs."""
    verdicts, sentences, numbers = [], [], {}
    for part, (full, rest) in found.items():
        best = {kind: _best(full, labels) for kind, labels in (("plain", PLAIN), ("structure", STRUCTURE))}
        numbers[part.key] = {
            label: {metric: {str(n): value.mean for n, value in by_length.items()} for metric, by_length in row.items()}
            for results in (full, rest) if results is not None
            for label, row in ((row.encoding, row.values) for row in results.rows)
        }  # fmt: skip
        if None in best.values():
            continue
        (plain, plain_loss), (structure, structure_loss) = best["plain"], best["structure"]  # type: ignore[misc]
        if part.labels == "honest":
            verdicts.append(apart(plain_loss, structure_loss))
        sentences.append(
            f"{part.title} ({part.labels} labels): {structure} {structure_loss.text()} against {plain} "
            f"{plain_loss.text()}"
        )
    holds = all(verdicts) if verdicts else None
    verdict = f"Nats a tick at the training length, best with labels against best without: {'; '.join(sentences)}."
    return Finding(holds, verdict, numbers, _body(found, s), {name: _picture(found)})


def _best(results: Results, labels: Mapping[str, str]) -> tuple[str, Spread] | None:
    titles = {label: key for key, label in labels.items()}
    rows = [
        (titles[row.encoding], loss) for row in results.rows if row.encoding in titles and (loss := _loss(results, row))
    ]
    return min(rows, key=lambda pair: pair[1].mean) if rows else None


def _loss(results: Results, row: Row, length: int | None = None) -> Spread | None:
    value = row.values["loss"][results.train_length if length is None else length]
    return None if value.mean is None else Spread.of(value.seeds)


def _body(found: Mapping[Part, tuple[Results, Results | None]], s: Mapping[str, Any]) -> str:
    method = (__doc__ or "").split("\n\n", 1)[1].strip()
    parts = [f"![Loss against that of no encoding, by part]({PICTURES}/{name}.png)"]
    for part, (full, rest) in found.items():
        parts += [f"## {part.title}: {part.labels} labels", *_section(part, full, rest)]
    sizes = (
        f"Here: {s['depth']} layers of width {s['dim']}, {s['heads']} heads, {s['steps']} steps of {s['batch']} "
        f"windows of {s['quarters']} quarters at {s['ticks']} ticks a quarter, AdamW, dropout 0.1, peak rate "
        f"{' or '.join(format(rate, 'g') for rate in s['rates'])}."
    )
    return "\n\n".join([*parts, f"## How it was done\n\n{method}\n\n{sizes}"])


def _section(part: Part, full: Results, rest: Results | None) -> list[str]:
    lengths = full.lengths
    metrics = {metric.name: metric for metric in full.metrics}
    heads = [f"loss, {n} ticks" for n in lengths] + [metrics[key].title for key in SHOWN]
    titles = {label: key for key, label in {**PLAIN, **STRUCTURE, **OTHERS}.items()}
    table = {}
    for results, mark in ((full, ""), (rest, " †")):
        for row in () if results is None else results.rows:
            table[titles[row.encoding] + mark] = _cells(results, row, lengths)  # type: ignore[arg-type]
    for baseline, values in full.baselines.items():
        losses = [format(values["loss"][n], ".3f") if n in values.get("loss", {}) else "" for n in lengths]
        shown = [
            metrics[key].text(values[key][lengths[0]]) if lengths[0] in values.get(key, {}) else "" for key in SHOWN
        ]
        table[f"*{baseline}*"] = losses + shown
    data = full.run.config["data"]
    labels = "; ".join(f"{level}: {source}" for level, source in data["levels"].items())
    leaks = (
        "" if data["LEAKS"].startswith("no") else f" **{data['LEAKS']}**: this table says how well a chart is played."
    )
    return [
        f"Labels: {labels}.{leaks}",
        markdown_table("encoding", heads, table),
        f"Nats a tick, {_seeds(len(full.run.settings.seeds))}; † one seed; metrics at "
        f"{lengths[0]} ticks, binarised; years in brackets: whose definition. In italics: what needs no network.",
        *_warned(part, full),
    ]


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds, mean ± standard deviation"


def _cells(results: Results, row: Row, lengths: Sequence[int]) -> list[str]:
    losses = [_loss(results, row, n) for n in lengths]
    metrics = {metric.name: metric for metric in results.metrics}
    cells = ["no number" if loss is None else loss.text() for loss in losses]
    for key in SHOWN:
        mean = row.values[key][lengths[0]].mean
        cells.append("" if mean is None else metrics[key].text(mean))
    return cells


def _warned(part: Part, full: Results) -> list[str]:
    """What a reader must not overlook: a rule that is better than the best network."""
    n = full.train_length
    metrics = {metric.name: metric for metric in full.metrics}
    said = []
    for key in ("loss", *(key for key in SHOWN if key != "density")):
        metric, best = metrics[key], _rule(full, key)
        ranked = full.ranked(metric, n)
        mine = ranked[0].values[key][n].mean if ranked else None
        if best is not None and mine is not None and metric.gain(best[1], mine) > 0 and math.isfinite(best[1]):
            said.append(f"{best[0]} has a better {metric.title} than every network: {metric.text(best[1])}")
    return [f"**Note.** {'; '.join(said)}."] if said else []


def _rule(full: Results, key: str) -> tuple[str, float] | None:
    """The best of the rules that see no more than a network does."""
    metric, n = next(metric for metric in full.metrics if metric.name == key), full.train_length
    fair = {name: values[key][n] for name, values in full.baselines.items()
            if "sees the target" not in name and n in values.get(key, {})}  # fmt: skip
    return max(fair.items(), key=lambda pair: metric.gain(pair[1], 0.0)) if fair else None


def _picture(found: Mapping[Part, tuple[Results, Results | None]]) -> bytes:
    """Loss of each encoding less that of none, by part, with the deviation over seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from relpos.lab.plots import GREY, STYLE, look, png

    titles = {label: key for key, label in {**PLAIN, **STRUCTURE}.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(found) + 1, 4.2), layout="constrained")
        axes = figure.subplots(1, len(found), squeeze=False, sharey=False)[0]
        for index, (each, (part, (full, _))) in enumerate(zip(axes, found.items(), strict=True)):
            losses = {titles[row.encoding]: _loss(full, row) for row in full.rows}
            base = losses.get("NoPE")
            known = {key: loss for key, loss in losses.items() if loss is not None and base is not None}
            for place, (key, loss) in enumerate(known.items()):
                assert base is not None
                colour = look(0)["color"] if key in PLAIN else look(1)["color"]
                each.barh(place, loss.mean - base.mean, xerr=loss.deviation or 0.0, color=colour, height=0.7)
            each.set_yticks(range(len(known)), list(known) if index == 0 else [""] * len(known))
            each.invert_yaxis()
            each.axvline(0, color=GREY, linewidth=1)
            each.set_title(part.key.replace("-", ", ", 1), fontsize=9)
            each.set_xlabel("nats a tick, less NoPE")
        return png(figure)
