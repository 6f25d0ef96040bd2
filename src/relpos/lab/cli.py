"""The command `relpos`. Only what parsing needs is imported here; a command imports its own work when it runs."""

from __future__ import annotations

import functools
import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from relpos.lab.claims.cli import attach as attach_claims
from relpos.lab.errors import LabError
from relpos.lab.errors import unknown as unknown_name
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

IMPORTED: list[str] = []  # modules of --import, which worker processes import too

Encoding = Annotated[str, typer.Argument(metavar="ENCODING", help="Name of an encoding; `relpos list` shows them.")]
Task = Annotated[str, typer.Argument(metavar="TASK", help="Name of a task, such as chorales.")]
Out = Annotated[Path, typer.Option(help="Folder that holds the run directories.")]
Name = Annotated[str | None, typer.Option(help="Name of the run directory; made from the task by default.")]
Preset = Annotated[str, typer.Option(help="demo: ten minutes. results: twenty minutes, three seeds, twice the steps.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps of every model, in place of the preset's.")]
Budget = Annotated[
    float | None, typer.Option(help="Minutes for everything: lowers the steps, alike for all encodings, until it fits.")
]
Batch = Annotated[int | None, typer.Option(min=1, help="Windows in a training batch.")]
Rates = Annotated[
    str | None,
    typer.Option(help="Peak learning rates, comma-separated; with several, each encoding takes the same sweep."),
]
Model = Annotated[
    list[str] | None, typer.Option("--model", help="Option of the task's network as key=value; may be repeated.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what the run directory holds and begin anew.")]
SaveEvery = Annotated[float, typer.Option(min=0, help="Seconds between checkpoints; 0 for one a step.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Models trained side by side; one a core by default.")]
Markdown = Annotated[Path | None, typer.Option(help="Also write the report as markdown to this file.")]


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
                typer.echo("stopped; run the same command again to go on where it was", err=True)
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
            IMPORTED.append(module)
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

    known_encoding(encoding)
    if run is not None:
        data = learned_picture(run, encoding)
    else:
        data = initial_picture(encoding, heads, dim, reach, causal, seed, assignments(option))
    target = output or Path(f"{encoding}.png")
    write_atomic(target, data)
    Reporter().say(f"wrote {target}")


@command(app)
def train(
    task: Task,
    encoding: Annotated[str, typer.Option(help="Name of an encoding; `relpos list` shows them.")],
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the data.")] = 0,
    preset: Preset = "demo",
    steps: Steps = None,
    budget: Budget = None,
    batch: Batch = None,
    rates: Rates = None,
    model: Model = None,
    name: Name = None,
    out: Out = Path("runs"),
    fresh: Fresh = False,
    save_every: SaveEvery = 20.0,
    workers: Workers = None,
) -> None:
    """Train one model with one encoding, evaluate it, write its report. Rerun the same command to resume.

    Example: [bold]relpos train chorales --encoding t5 --steps 500[/bold]
    """
    changes = {"steps": steps, "budget": budget, "batch": batch, "rates": rates, "model": model}
    compare_and_report(
        task, [encoding], (seed,), preset, name or f"{task}-{encoding}", out, fresh, None, changes, save_every, workers
    )


@command(app)
def compare(
    task: Task,
    encodings: Annotated[str | None, typer.Option(help="Names, comma-separated; six of all kinds by default.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Integers, comma-separated, such as 0,1.")] = None,
    preset: Preset = "demo",
    steps: Steps = None,
    budget: Budget = None,
    batch: Batch = None,
    rates: Rates = None,
    model: Model = None,
    name: Name = None,
    out: Out = Path("runs"),
    fresh: Fresh = False,
    markdown: Markdown = None,
    save_every: SaveEvery = 20.0,
    workers: Workers = None,
) -> None:
    """Train one model per encoding and seed, evaluate all at 1, 2 and 4 times the length, write runs/NAME/report.html.

    Same data order, same steps, same way to a learning rate for each. Ctrl-C and rerun resumes.

    Example: [bold]relpos compare chorales --encodings rope,t5,shaw --seeds 0,1 --budget 10[/bold]
    """
    chosen = None if encodings is None else [word.strip() for word in encodings.split(",") if word.strip()]
    changes = {"steps": steps, "budget": budget, "batch": batch, "rates": rates, "model": model}
    whole = None if seeds is None else tuple(numbers(seeds, int, "seeds"))
    compare_and_report(
        task, chosen, whole, preset, name or f"{task}-{preset}", out, fresh, markdown, changes, save_every, workers
    )


@command(app)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/chorales-demo.")],
    markdown: Markdown = None,
) -> None:
    """Write the report of a finished run again, from what its directory holds.

    Example: [bold]relpos report runs/chorales-demo --markdown docs/results/chorales.md[/bold]
    """
    from relpos.lab.run import Run

    publish(Run.read(run), markdown, Reporter())


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
    text = explanation(encoding, n, queries or n, causal, heads, dim, kernel, assignments(option))
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


def compare_and_report(
    task_name: str,
    encodings: list[str] | None,
    seeds: tuple[int, ...] | None,
    preset_name: str,
    name: str,
    out: Path,
    fresh: bool,
    markdown: Path | None,
    changes: dict[str, Any],
    save_every: float,
    workers: int | None,
) -> None:
    """What `train` and `compare` share: settle the settings, check every name before any work, run, report."""
    from relpos.lab.settings import DEMO_ENCODINGS, preset

    chosen = tuple(known_encoding(each) for each in (DEMO_ENCODINGS if encodings is None else encodings))
    if changes["rates"] is not None:
        changes["rates"] = tuple(numbers(changes["rates"], float, "rates"))
    changes["model"] = assignments(changes["model"]) or None
    task = known_task(task_name)
    settings = preset(preset_name, task_name, chosen, getattr(task, "presets", None), seeds=seeds, **changes)
    reporter = Reporter()
    reporter.say("loading the training libraries")
    from relpos.lab.compare import compare as run_comparison
    from relpos.lab.environment import side_by_side
    from relpos.lab.jobs import Crew

    crew = Crew(workers or side_by_side(settings.threads), tuple(IMPORTED), save_every)
    run = run_comparison(task, settings, out / name, reporter, fresh=fresh, command=typed_command(), crew=crew)
    publish(run, markdown, reporter)


def publish(run: Any, markdown: Path | None, reporter: Reporter) -> None:
    """Write the report and say where it is and what it says."""
    from relpos.lab.report import headline, markdown_table, write_markdown, write_report
    from relpos.lab.results import collect

    with reporter.step("writing the report"):
        page = write_report(run)
    results = collect(run)
    reporter.say(f"\n{headline(results)}\n\n{markdown_table(results)}")
    if markdown is not None:
        reporter.say(f"wrote {write_markdown(run, markdown)}")
    reporter.say(f"report: {page}")


def typed_command() -> str:
    """The command line to repeat this run: as typed, but for --fresh, which must not delete it again."""
    return shlex.join(["relpos", *(word for word in sys.argv[1:] if word != "--fresh")])


def known_encoding(name: str) -> str:
    """The registry's spelling of an encoding's name; the nearest ones are suggested for an unknown one."""
    from relpos import names
    from relpos.encodings.registry import key_of

    known = names()
    if key_of(name) not in known:
        raise unknown_name("encoding", name, known)
    return key_of(name)


def known_task(name: str) -> Any:
    """The task of that name; the nearest one is suggested for an unknown name."""
    from relpos import tasks

    if name not in tasks.names():
        raise unknown_name("task", name, tasks.names())
    return tasks.get(name)


def numbers(text: str, kind: Callable[[str], Any], what: str) -> list[Any]:
    """`0,1` as numbers of the given kind."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise LabError(f"--{what} takes numbers with commas between them, such as 0,1; got {text!r}") from None


def assignments(words: list[str] | None) -> dict[str, object]:
    """`depth=2` as {"depth": 2}: numbers, true and false where they read as such, else text."""
    import json

    values: dict[str, object] = {}
    for word in words or []:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise LabError(f"{word!r} is not key=value, such as depth=2")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return values


attach_claims(app, command, typed_command, IMPORTED)


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        app()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
