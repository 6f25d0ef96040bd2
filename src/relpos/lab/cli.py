"""The command `relpos`. Only what parsing needs is imported here; a command imports its own work when it runs."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from relpos.lab import claim, commands, data, events, music
from relpos.lab.arguments import contestant, known_encoding
from relpos.lab.errors import LabError
from relpos.lab.labels import assignments, slug
from relpos.lab.progress import Reporter

app = typer.Typer(
    name="relpos",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Relative positional encodings: list them, look at them, train with them, compare them, time them.\n\n"
    "Start here: [bold]relpos compare chorales[/bold]",
)
bench = typer.Typer(
    no_args_is_help=True, help="Measure time and memory.\n\nExample: [bold]relpos bench attention[/bold]"
)
app.add_typer(bench, name="bench")

Encoding = Annotated[
    str,
    typer.Argument(metavar="ENCODING", help="Name of an encoding; `relpos list` shows them. With --run: its label."),
]


def command(app: typer.Typer, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose expected failures end in one clear line and an exit status."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                body(*args, **kwargs)
            except LabError as error:
                typer.secho(f"relpos: {error}", fg="red", err=True)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                typer.echo("stopped; the same command goes on from what it has saved", err=True)
                raise typer.Exit(130) from None

        app.command(**options)(guarded)
        return body

    return register


@app.callback()
def prepare(
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE", help="Import a module that registers encodings or tasks of your own."
        ),
    ] = None,
) -> None:
    """Options of every command."""
    for module in modules or []:
        sys.path.insert(0, "")
        try:
            importlib.import_module(module)
            commands.IMPORTED.append(module)
        except ModuleNotFoundError as error:
            typer.secho(f"relpos: --import {module}: {error}", fg="red", err=True)
            raise typer.Exit(2) from None
        finally:
            sys.path.remove("")


@command(app, name="list")
def list_encodings() -> None:
    """List all encodings: form, and where each can be used.

    Example: [bold]relpos list[/bold]
    """
    from rich.table import Table

    import relpos as rp

    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for column in ("name", "form"):
        table.add_column(column, no_wrap=True)
    flags = {
        "learned": "learned",
        "extrapolates": "longer",
        "fused": "fused",
        "linear": "linear",
        "decoding": "decode",
        "two_d": "2-D",
    }
    for title in flags.values():
        table.add_column(title, justify="center", no_wrap=True)
    table.add_column("what it is", overflow="ellipsis", no_wrap=True, ratio=1)
    for name, about in rp.names().items():
        table.add_row(name, about.form, *("yes" if getattr(about, flag) else "-" for flag in flags), about.summary)
    console = Reporter().console
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    console.print(
        "\nlonger: meant for contexts longer than trained on; fused: stock fused attention, no n x n tensor;\n"
        "linear: works in kernelised attention; decode: token by token with a cache; 2-D: takes grid positions",
        style="dim",
    )


@command(app)
def show(
    encoding: Encoding,
    run: Annotated[
        Path | None, typer.Option(help="Draw it as learned in this run directory, not as initialised.")
    ] = None,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    dim: Annotated[int, typer.Option(min=2, help="Width of a head.")] = 64,
    reach: Annotated[int, typer.Option(min=1, help="Largest lag drawn.")] = 128,
    causal: Annotated[bool, typer.Option("--causal", help="Only keys at or before the query.")] = False,
    seed: Annotated[int, typer.Option(help="Of the initial values and of the random content.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the encoding as key=value; may be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="PNG to write; default ENCODING.png.")] = None,
) -> None:
    """Draw what an encoding does to lags, by head, as a PNG.

    A bias is drawn as it is. For other forms: the mean change of the logit, over random unit content that is the same
    at every position.

    Example: [bold]relpos show t5 --reach 256[/bold]
    """
    from relpos.lab.checkpoint import write_atomic
    from relpos.lab.show import initial_picture, learned_picture

    if run is not None:
        data = learned_picture(run, contestant(encoding).label)
    else:
        known_encoding(encoding)
        data = initial_picture(encoding, heads, dim, reach, causal, seed, assignments(option or []))
    target = output or Path(f"{slug(encoding)}.png")
    write_atomic(target, data)
    Reporter().say(f"wrote {target}")


for body in (commands.train, commands.compare):
    command(app, cls=commands.WithTasks)(body)
command(app)(commands.report)


@command(app)
def explain(
    encoding: Encoding,
    n: Annotated[int, typer.Option("--n", min=1, help="Keys (and queries).")] = 4096,
    queries: Annotated[int | None, typer.Option(min=1, help="Queries, where fewer than keys.")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Keys at or before the query only.")] = False,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    dim: Annotated[int, typer.Option(min=1, help="Width of a head.")] = 64,
    kernel: Annotated[str, typer.Option(help="Ask about this kernel and not about the automatic choice.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the encoding as key=value; may be repeated.")
    ] = None,
) -> None:
    """Say in words which kernel would compute attention with an encoding, why, and in how much memory.

    Example: [bold]relpos explain shaw --n 4096 --causal[/bold]
    """
    from relpos.lab.show import explanation

    known_encoding(encoding)
    text = explanation(encoding, n, queries or n, causal, heads, dim, kernel, assignments(option or []))
    Reporter().say(text)


@command(
    bench,
    name="attention",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench_attention(context: typer.Context) -> None:
    """Time and peak memory of attention with encodings, against unbiased and materialised attention.

    Example: [bold]relpos bench attention[/bold]
    """
    if "--help" in context.args:
        typer.echo("Example: relpos bench attention --lengths 2048,4096 --causal --no-decode\n")
    importlib.import_module("relpos.lab.bench").main_attention(context.args)


@command(
    bench,
    name="linear",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench_linear(context: typer.Context) -> None:
    """Time and peak memory of attention at linear cost, and of its decoding, against softmax.

    Example: [bold]relpos bench linear[/bold]
    """
    if "--help" in context.args:
        typer.echo("Example: relpos bench linear --lengths 4096,16384 --no-memory --no-decode\n")
    importlib.import_module("relpos.lab.bench").main_linear(context.args)


data.register(app, command)
claim.register(app, command)
music.register(app, command)
events.register(app, command)


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        app()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
