"""The commands `relpos train`, `compare` and `report`. What they need beyond parsing is imported when they run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from relpos.lab.arguments import contestant, known_presets, known_task, numbers
from relpos.lab.errors import LabError
from relpos.lab.labels import Contestant, assignments, merged, slug, split
from relpos.lab.progress import Reporter
from relpos.lab.settings import usual_preset

IMPORTED: list[str] = []  # modules of --import, which worker processes import too

Task = Annotated[str, typer.Argument(metavar="TASK", help="Name of a task, such as chorales.")]
Out = Annotated[Path, typer.Option(help="Folder that holds the run directories.")]
Name = Annotated[str | None, typer.Option(help="Name of the run directory; made from the task by default.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="demo: ten minutes, the default of most tasks. results: twenty minutes, three seeds, twice the steps."
    ),
]
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
    list[str] | None,
    typer.Option("--model", metavar="KEY=VALUE", help="Option of the task's network; may be repeated."),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="KEY=VALUE", help="Option of the task, such as path=FOLDER; may be repeated."),
]
Data = Annotated[
    Path | None, typer.Option(help="Your own data, a file or a folder; short for --task path=...", metavar="PATH")
]
Mixer = Annotated[
    str | None, typer.Option(help="softmax or kernelized, for all contestants; short for --model mixer=...")
]
Recipe = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="KEY=VALUE",
        help="Field of the recipe of a long training, such as devices=2, parts=8 or epochs=100; may be repeated.",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="Processes that train one model together, or auto for all GPUs; short for --recipe devices=... Under "
        "torchrun leave it out."
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(help="ddp: each device holds the network; fsdp: they share it out. Short for --recipe strategy=..."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what the run directory holds and begin anew.")]
SaveEvery = Annotated[float, typer.Option(min=0, help="Seconds between checkpoints; 0 for one a step.")]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray[:ADDRESS]",
        help="Spread the models over a Ray cluster: ray (this machine, or RAY_ADDRESS), ray:auto, ray:HOST:PORT.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Models trained side by side; one a core by default.")]
Markdown = Annotated[Path | None, typer.Option(help="Also write the report as markdown to this file.")]


class WithTasks(TyperCommand):
    """A command whose help ends in the known tasks. They are imported only when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from relpos.tasks import titles

        listed = [f"[bold]{escape(name)}[/bold]  {escape(title)}" for name, title in titles().items()]
        self.epilog = "\n\n".join(["Tasks:", *listed])
        super().format_help(ctx, formatter)


@dataclass(frozen=True)
class Plan:
    """What was asked for, before presets fill in the rest; contestants None means the usual ones."""

    task: str
    task_options: list[str] | None
    contestants: tuple[Contestant, ...] | None
    preset: str
    changes: dict[str, Any]


def train(
    task: Task,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="An encoding of `relpos list`, with options as in `relpos compare`; needed unless the task has one."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights and of the order of the data, 0 by default.")] = None,
    preset: Preset = None,
    steps: Steps = None,
    budget: Budget = None,
    batch: Batch = None,
    rates: Rates = None,
    model: Model = None,
    mixer: Mixer = None,
    task_option: TaskOption = None,
    data: Data = None,
    recipe: Recipe = None,
    devices: Devices = None,
    strategy: Strategy = None,
    name: Name = None,
    out: Out = Path("runs"),
    fresh: Fresh = False,
    save_every: SaveEvery = 20.0,
    workers: Workers = None,
) -> None:
    """Train one model with one encoding, evaluate it, write its report. Rerun the same command to resume.

    Example: [bold]relpos train chorales --encoding t5 --steps 500[/bold]
    """
    own, preset = known_presets(task), preset or usual_preset(known_presets(task))
    chosen = (contestant(encoding or only_encoding(task, own.get(preset, {}))),)
    seeds = tuple(own.get(preset, {}).get("seeds", (0,)))[:1] if seed is None else (seed,)
    changes = {
        **sizes(steps, budget, batch, rates, model, mixer),
        "seeds": seeds,
        **recipe_of(recipe, devices, strategy),
    }
    plan = Plan(task, with_data(task_option, data), chosen, preset, changes)
    compare_and_report(plan, out / (name or f"{task}-{slug(chosen[0].label)}"), fresh, None, save_every, workers)


def compare(
    task: Task,
    encodings: Annotated[
        str | None, typer.Option(help="Contestants, comma-separated; six encodings by default.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Integers, comma-separated, such as 0,1.")] = None,
    preset: Preset = None,
    steps: Steps = None,
    budget: Budget = None,
    batch: Batch = None,
    rates: Rates = None,
    model: Model = None,
    mixer: Mixer = None,
    task_option: TaskOption = None,
    data: Data = None,
    recipe: Recipe = None,
    devices: Devices = None,
    strategy: Strategy = None,
    name: Name = None,
    out: Out = Path("runs"),
    fresh: Fresh = False,
    markdown: Markdown = None,
    save_every: SaveEvery = 20.0,
    workers: Workers = None,
    on: On = None,
) -> None:
    """Train one model per contestant and seed, evaluate all at the task's lengths, write runs/NAME/report.html.

    A contestant is an encoding, with options of its network in brackets where it has its own. Same data order, same
    steps, same way to a learning rate for each. Ctrl-C and rerun resumes.

    Example: [bold]relpos compare chorales --encodings rope,t5,shaw --seeds 0,1 --budget 10[/bold]

    Example: [bold]relpos compare chorales --on ray:auto[/bold]

    Example: [bold]relpos compare chorales --encodings "rope,t5\\[mixer=kernelized,encoding.max_distance=64]"[/bold]
    """
    chosen = None if encodings is None else tuple(contestant(word) for word in split(encodings))
    whole = None if seeds is None else tuple(numbers(seeds, int, "seeds"))
    changes = {
        **sizes(steps, budget, batch, rates, model, mixer),
        "seeds": whole,
        **recipe_of(recipe, devices, strategy),
    }
    preset = preset or usual_preset(known_presets(task))
    plan = Plan(task, with_data(task_option, data), chosen, preset, changes)
    compare_and_report(plan, out / (name or f"{task}-{preset}"), fresh, markdown, save_every, workers, on)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/chorales-demo.")],
    markdown: Markdown = None,
) -> None:
    """Write the report of a finished run again, from what its directory holds.

    Example: [bold]relpos report runs/chorales-demo --markdown docs/results/chorales.md[/bold]
    """
    from relpos.lab.run import Run

    publish(Run.read(run), markdown, Reporter())


def sizes(
    steps: int | None,
    budget: float | None,
    batch: int | None,
    rates: str | None,
    model: list[str] | None,
    mixer: str | None,
) -> dict[str, Any]:
    """The options that `train` and `compare` share, as changes of a preset."""
    words = [*(model or []), *([f"mixer={mixer}"] if mixer else [])]
    chosen = None if rates is None else tuple(numbers(rates, float, "rates"))
    return {"steps": steps, "budget": budget, "batch": batch, "rates": chosen, "model": assignments(words) or None}


def recipe_of(words: list[str] | None, devices: str | None = None, strategy: str | None = None) -> dict[str, Any]:
    """What is said of the recipe, as changes of a preset; LabError for a field that there is not."""
    short = {"devices": devices, "strategy": strategy}
    words = [*(words or []), *(f"{name}={value}" for name, value in short.items() if value is not None)]
    if not words:
        return {}
    from relpos.lab.recipe import Recipe as Fields

    Fields.of(assignments(words))
    return {"recipe": assignments(words)}


def with_data(options: list[str] | None, data: Path | None) -> list[str] | None:
    """The options of a task with its path among them."""
    return options if data is None else [*(options or []), f"path={data}"]


def only_encoding(task: str, preset: Mapping[str, Any]) -> str:
    """The encoding that a preset names, where it is one alone."""
    named = preset.get("encodings", ())
    if len(named) != 1:
        raise LabError(f"say with which encoding {task} is trained, such as --encoding rope; `relpos list` shows them")
    return str(named[0])


def compare_and_report(
    plan: Plan,
    path: Path,
    fresh: bool,
    markdown: Path | None,
    save_every: float,
    workers: int | None,
    on: str | None = None,
) -> None:
    """What `train` and `compare` share: settle the settings, check every name before any work, run, report."""
    from relpos.lab.settings import DEMO_ENCODINGS, preset

    own = known_presets(plan.task)
    options = merged(own.get(plan.preset, {}).get("task_options", {}), assignments(plan.task_options or []))
    task = known_task(plan.task, options)
    usual = own.get(plan.preset, {}).get("encodings", own.get("demo", {}).get("encodings", DEMO_ENCODINGS))
    chosen = tuple(contestant(label) for label in usual) if plan.contestants is None else plan.contestants
    labels = tuple(each.label for each in chosen)
    settings = preset(plan.preset, plan.task, labels, own, task_options=options, **plan.changes)
    reporter = Reporter(quiet=not first_of_all())
    reporter.say("loading the training libraries")
    from relpos.lab.compare import compare as run_comparison
    from relpos.lab.compare import without_the_unable
    from relpos.lab.recipe import Recipe as Fields
    from relpos.lab.recipe import in_steps
    from relpos.lab.several import team
    from relpos.lab.train import follow

    fields = Fields.of(settings.recipe)
    fields.check(settings.batch)
    if on is not None and fields.count() > 1:
        raise LabError("--on ray trains every model on one device: leave out --devices, and torchrun")
    with team(fields.resolved()) as joined:
        if joined is not None and not joined.leads:
            follow(joined)
            return
        if plan.changes["steps"] is None:
            settings = in_steps(task, settings, reporter)
        if plan.contestants is None:
            settings = without_the_unable(task, settings, reporter)
        with crew_of(settings, save_every, workers, on) as crew:
            run = run_comparison(task, settings, path, reporter, fresh=fresh, command=typed_command(), crew=crew)
        publish(run, markdown, reporter)


def first_of_all() -> bool:
    """Whether this is the one process that speaks: any but the others of torchrun."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def crew_of(settings: Any, save_every: float, workers: int | None, on: str | None) -> Iterator[Any]:
    """Who trains: processes of this machine, the one that torchrun has put first, or a cluster."""
    from relpos.lab.environment import side_by_side
    from relpos.lab.jobs import Crew
    from relpos.lab.several import launched

    if on is None:
        at_once = 1 if launched() > 1 else workers or side_by_side(settings.threads)
        yield Crew(at_once, tuple(IMPORTED), save_every)
        return
    from relpos.lab.cluster import cluster

    with cluster(on, settings) as joined:
        yield Crew(workers or joined.slots, tuple(IMPORTED), save_every, joined)


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
