"""The page of the claim about vision: its tables and pictures, from numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from relpos.lab.claims.differences import Difference
from relpos.lab.claims.frame import PICTURES, markdown_table
from relpos.lab.claims.models import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from relpos.lab.claims.vision import Found, Outcome

    Asked = Mapping[str, Mapping[str, Difference | None]]
    Kept = Mapping[str, Mapping[str, Sequence[int]]]

NETWORKS = {"gmlp": "gMLP", "vit": "ViT"}
BASELINES = {"majority": "the commonest class", "linear on pixels": "linear on the pixels"}
DRAWN = ("SGU", "LRPE in groups", "GQPE in groups")
"""Whose maps are on the page."""


def body(found: Sequence[Found], asked: Asked, kept: Kept, s: Mapping[str, Any], method: str) -> str:
    """The page below the verdict."""
    gates = [each for each in found if each.part.network == "gmlp"]
    parts = [_difference_section(asked), *(_gate_section(each) for each in gates)] if gates else []
    parts.append(_size_section(found, kept))
    parts += [_map_section(gates)] if any(each.maps for each in gates) else []
    if gates:
        parts.append(
            "## The paper's numbers\n\n"
            + markdown_table("gMLP-S/16 on ImageNet-1k", ["accuracy", "parameters"], _PAPER)
            + "\n\nAnother data set, a network of thirty layers and a long training: the direction can be compared, "
            "the size cannot."
        )
    parts.append(f"## How it was done\n\n{method}\n\n{_setting(found, s)}")
    return "\n\n".join(parts)


_PAPER = {"SGU": ["72.14 %", "19.4M"], "PoSGU": ["74.02 %", "18.2M"]}


def named(found: Found) -> str:
    """The part in a title."""
    return f"{NETWORKS[found.part.network]} on {found.part.dataset}"


def _difference_section(asked: Asked) -> str:
    questions = next(iter(asked.values()))
    rows = {
        question: ["no number" if (d := own[question]) is None else d.text() + _MARKS[d.sign] for own in asked.values()]
        for question in questions
    }
    return (
        f"![Accuracy by gate and seed]({PICTURES}/gates.png)\n\n## Differences\n\n"
        + markdown_table("accuracy at the training size, points", list(asked), rows)
        + "\n\nMean over the seeds of first minus second, with the 95% interval. In bold: the interval leaves out 0."
    )


_MARKS = {1: " **higher**", -1: " **lower**", 0: "", None: ""}


def _gate_section(found: Found) -> str:
    rows = {
        key: [_percent(row.accuracy[found.side]), f"{row.parameters:,}", f"{row.mixing:,}", f"{row.macs / 1e6:.2f}",
              f"{row.rate:g}"]
        for key, row in found.rows.items()
    }  # fmt: skip
    rows |= {f"*{title}*": [_percent((value,)), "", "", "", ""] for title, value in _baselines(found, found.side)}
    return f"## {named(found)}, {found.side} x {found.side}\n\n" + markdown_table("gate", _HEADS, rows)


_HEADS = ["accuracy, %", "parameters", "of them for the matrices", "MACs, millions", "rate"]


def _size_section(found: Sequence[Found], kept: Kept) -> str:
    parts = [f"## Other sizes\n\n![Change of accuracy with the size of the picture]({PICTURES}/sizes.png)"]
    for each in found:
        sizes = sorted(next(iter(each.rows.values())).accuracy)
        heads = [f"{n} x {n}" + " (trained)" * (n == each.side) for n in sizes]
        rows = {
            key: [_at(row, n, each.side) for n in sizes] + [_survival(kept[each.part.key][key], sizes, each.side)]
            for key, row in each.rows.items()
        }
        for name, title in BASELINES.items():
            if name in each.baselines:
                home = each.baselines[name][each.side]
                values = [(n, each.baselines[name][n]) for n in sizes]
                cells = [_percent((v,)) + ("" if n == each.side else f" ({100 * (v - home):+.1f})") for n, v in values]
                rows[f"*{title}*"] = [*cells, ""]
        parts.append(f"### {named(each)}\n\n" + markdown_table("encoding", [*heads, "survives"], rows))
    parts.append(
        "In the picture, dashed: 2 points lost. Accuracy in %, mean over the seeds, ± standard deviation at the "
        "training size; in brackets the change against it in points. Survives: at most 2 points lost."
    )
    parts += [_weak(each) for each in found if _weak(each)]
    refused = [f"{named(each)}, {key}: {row.why}" for each in found for key, row in each.rows.items() if row.why]
    return "\n\n".join(parts + ([f"Refused: {'; '.join(refused)}."] if refused else []))


def _weak(found: Found) -> str:
    """What a reader must not overlook: networks that a linear classifier beats at the training size."""
    line = found.baselines.get("linear on pixels", {}).get(found.side)
    means = {key: statistics.fmean(own) for key, row in found.rows.items() if (own := row.accuracy[found.side])}
    below = [key for key, mean in means.items() if line is not None and mean < line]
    if not below:
        return ""
    which = "every network" if len(below) == len(means) else ", ".join(below)
    return (
        f"**Note.** {named(found)}: the linear classifier on the pixels is better than {which}: trained too short to "
        "say what the encodings do in a network that has learned its task."
    )


def _at(row: Outcome, size: int, side: int) -> str:
    values, home = row.accuracy[size], row.accuracy[side]
    if not values:
        return "no number"
    if size == side or not home:
        return _percent(values)
    mean = statistics.fmean(values)
    return f"{100 * mean:.1f} ({100 * (mean - statistics.fmean(home)):+.1f})"


def _survival(kept: Sequence[int], sizes: Sequence[int], side: int) -> str:
    others = [size for size in sizes if size != side]
    return "all" if set(kept) == set(others) else ", ".join(map(str, kept)) or "none"


def _map_section(gates: Sequence[Found]) -> str:
    lines = ["## What the gates have learned"]
    for each in gates:
        for key in DRAWN:
            if key in each.maps:
                lines.append(f"{key}, {each.part.dataset}:\n\n![{key}]({PICTURES}/{_map_name(each, key)}.png)")
    lines.append(
        "Weights of every cell for the query in the middle (a cross), first seed: a row a layer, a column a group; red "
        "is positive, blue negative, each layer in its own scale."
    )
    return "\n\n".join(lines)


def _map_name(found: Found, key: str) -> str:
    return f"maps-{found.part.dataset}-{key.split()[0].lower()}"


def _setting(found: Sequence[Found], s: Mapping[str, Any]) -> str:
    trained, edge = [], False
    for each in found:
        before = "attention_" if each.part.network == "vit" else ""
        depth, steps, judged = s[f"{before}depth"], s[f"{before}steps"], s[f"{before}judged"][1]
        rates = s[f"{before}rates"]
        edge = edge or (len(rates) > 1 and any(row.rate == max(rates) for row in each.rows.values()))
        chosen = ", ".join(f"{key} {row.rate:g}" for key, row in each.rows.items())
        trained.append(
            f"* {named(each)} ({each.source}): {depth} layers, {steps} steps, judged on {judged:,} test pictures or "
            f"all there are; rates {chosen}"
        )
    peak = f"{_rates(s, s['rates'])} for gMLP and {_rates(s, s['attention_rates'])} for the ViT"
    if edge:
        peak += " (where the largest is chosen, a larger one may be better still)"
    moved = f"shifted by up to {s['shift']} pixels and " if s["shift"] else ""
    return (
        f"Here, small and short: width {s['dim']}, patches of {s['patch']} x {s['patch']}, batches of {s['batch']}, "
        f"{s['groups']} groups in the gates and {s['heads']} heads in attention, AdamW with warm-up and cosine, peak "
        f"rate {peak}, training pictures {moved}mirrored by chance where that keeps their class, seeds "
        f"{', '.join(map(str, s['seeds']))}.\n\n" + "\n".join(trained) + f"\n\n{TIMES}"
    )


def _rates(s: Mapping[str, Any], rates: Sequence[float]) -> str:
    if len(rates) == 1:
        return format(rates[0], "g")
    return f"the best of {', '.join(format(rate, 'g') for rate in rates)} after {s['sweep_steps']} steps each"


TIMES = (
    "The presets: `quick` takes a minute and `demo` some minutes; `results` is made for about half an hour on two "
    "cores that have nothing else to do; `full`, the same networks trained longer, with openclipart, for one and a "
    "half to 4 hours. All go on where they were stopped."
)


def _percent(values: Sequence[float]) -> str:
    return Spread.of([100 * value for value in values]).text(".1f") if values else "no number"


def _baselines(found: Found, size: int) -> Iterable[tuple[str, float]]:
    return [(title, found.baselines[name][size]) for name, title in BASELINES.items() if name in found.baselines]


def pictures(found: Sequence[Found]) -> dict[str, bytes]:
    """Name -> PNG: the gates, the sizes, and the maps of `DRAWN`."""
    gates = [each for each in found if each.part.network == "gmlp"]
    drawn = {"gates": _gates_figure(gates)} if gates else {}
    maps = {_map_name(each, key): each.maps[key] for each in gates for key in DRAWN if key in each.maps}
    return drawn | {"sizes": _sizes_figure(found)} | maps


def _gates_figure(gates: Sequence[Found]) -> bytes:
    """A panel a data set, a line a gate: a dot a seed, a bar at the mean; dotted: linear on the pixels."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from relpos.lab.plots import GREY, STYLE, look, png

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 4.6 * len(gates), 3.2), layout="constrained")
        for axes, each in zip(figure.subplots(1, len(gates), squeeze=False)[0], gates, strict=True):
            for index, row in enumerate(each.rows.values()):
                values, style = [100 * value for value in row.accuracy[each.side]], look(index)
                if values:
                    mean = statistics.fmean(values)
                    axes.plot(values, [index] * len(values), linestyle="none", marker=style["marker"], alpha=0.6,
                              color=style["color"])  # fmt: skip
                    axes.plot([mean, mean], [index - 0.3, index + 0.3], color=style["color"], linewidth=2.5)
            for _, value in list(_baselines(each, each.side))[1:]:
                axes.axvline(100 * value, color=GREY, linestyle=(0, (1, 2)), linewidth=1)
            titles = [f"{key}\n{row.parameters:,} parameters" for key, row in each.rows.items()]
            axes.set_yticks(range(len(titles)), titles, fontsize=8)
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set_title(each.part.dataset, fontsize=10)
            axes.set_xlabel("test accuracy (%)")
        return png(figure)


def _sizes_figure(found: Sequence[Found]) -> bytes:
    """A panel a part: the change of accuracy in points against the size of the picture; dashed: 2 points lost."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from relpos.lab.plots import STYLE, png

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.4 * len(found), 5.2), layout="constrained")
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, each in zip(panels, found, strict=True):
            _size_panel(axes, each)
        panels[0].set_ylabel("change of test accuracy (points)")
        return png(figure)


def _size_panel(axes: Axes, found: Found) -> None:
    from relpos.lab.plots import GREY, look

    for index, (key, row) in enumerate(found.rows.items()):
        home = row.accuracy[found.side]
        known = sorted((size, values) for size, values in row.accuracy.items() if values)
        if home and known:
            changes = [100 * Difference.of(values, home).mean for _, values in known]
            axes.plot([size for size, _ in known], changes, label=key, linewidth=1.6, markersize=5, **look(index))
    line = found.baselines.get("linear on pixels")
    if line is not None:
        points = sorted(line.items())
        axes.plot([n for n, _ in points], [100 * (v - line[found.side]) for _, v in points], color=GREY, linewidth=1.2,
                  linestyle=(0, (1, 2)), label="linear on the pixels, resampled back")  # fmt: skip
    axes.axhline(-2, color=GREY, linewidth=1, linestyle=(0, (6, 3)))
    axes.axvline(found.side, color=GREY, linewidth=0.8)
    axes.set_xticks(sorted(next(iter(found.rows.values())).accuracy))
    axes.set_xlabel("side of the picture (pixels)")
    axes.set_title(named(found), fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8, handlelength=3.2)
