"""A finished run in a few sentences."""

from __future__ import annotations

from relpos.lab.results import Results, Value
from relpos.tasks import Metric
from relpos.tasks.base import Measure


def headline(results: Results) -> str:
    """The result in a few sentences, from the numbers alone; contestants within each other's spread share a place."""
    metric, there, short = results.metrics[0], results.opening, results.train_length
    if not results.ranked(metric, there):
        return f"No contestant could be evaluated at {there} {results.measure.unit}." + _diverged(results)
    place = ""
    if len(results.lengths) > 1:
        times = f"{there / short:g} times the" if there != short else "the"
        place = f"At {times} {results.measure.trained} ({there} {results.measure.unit}), "
    text = f"{place}{_leaders(results, metric, there)} best: {metric.title} {_first(results, metric, there)}"
    text += f" {metric.unit}".rstrip()
    best, baseline = results.ranked(metric, there)[0], results.best_baseline(metric, there)
    mean = best.values[metric.name][there].mean
    limit = results.bound(metric, there)
    known = [(baseline, "the best trivial predictor"), (limit, "what can be reached")]
    apart = [_apart(metric, mean, *pair, what) for pair, what in known if pair is not None and mean is not None]
    text += "".join([", " + " and ".join(apart)] if apart else []) + "."
    if there != short and results.ranked(metric, short):
        text += _at_training(results, metric)
    for length in (results.lengths[0], results.lengths[-1]):
        if length != short:
            text += _loser(results, metric, length)
    return text + _diverged(results)


def _apart(metric: Metric, mean: float, name: str, value: float, what: str) -> str:
    way = "above" if mean > value else "below"
    return f"{metric.text(abs(mean - value))} {way} {what} ({name})"


def _at_training(results: Results, metric: Metric) -> str:
    """Who is best at the training length."""
    short, longest, measure = results.train_length, results.lengths[-1], results.measure
    near, far = results.tied(metric, short), results.tied(metric, longest)
    if near[0] is far[0] and len(near) == len(far) == 1:
        return f" So it is at the {measure.trained} ({short} {measure.unit}: {_first(results, metric, short)})."
    text = f" At the {measure.trained} ({short} {measure.unit}) {_leaders(results, metric, short)} best"
    return text + f" ({_first(results, metric, short)})."


def _loser(results: Results, metric: Metric, length: int) -> str:
    """Who loses most on the way from the training length to this one, where it is more than a twentieth."""
    short = results.train_length
    pairs = [(row, row.values[metric.name][short].mean, row.values[metric.name][length].mean) for row in results.rows]
    known = [(row, a, b) for row, a, b in pairs if a is not None and b is not None]
    if not known:
        return ""
    row, a, b = min(known, key=lambda each: metric.gain(each[2], each[1]))
    if metric.gain(b, a) >= -0.05 * abs(a):
        return ""
    change = metric.text(b - a, sign=True)
    how = " with length" if results.measure == Measure() else ""
    return f" {row.encoding} loses most{how}: {change} from {short} to {length} {results.measure.unit}."


def _first(results: Results, metric: Metric, length: int) -> str:
    return cell_text(metric, results.ranked(metric, length)[0].values[metric.name][length])


def _leaders(results: Results, metric: Metric, length: int) -> str:
    """The best contestant with its verb, or all that share the first place."""
    names = [row.encoding for row in results.tied(metric, length)]
    return f"{names[0]} is" if len(names) == 1 else f"{_list(names)} (equal within their spread) are"


def _list(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _diverged(results: Results) -> str:
    names = [row.encoding for row in results.rows if row.diverged]
    return f" {_list(names)} diverged in training." if names else ""


def cell_text(metric: Metric, value: Value) -> str:
    """`1.234 ± 0.005`, or a dash where there is no number."""
    if value.mean is None:
        return "-"
    return metric.text(value.mean) + (f" ± {metric.text(value.spread)}" if value.spread is not None else "")
