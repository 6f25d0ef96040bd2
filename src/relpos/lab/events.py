"""The commands `relpos events ..`: simulate sequences of events, fit the classical models, see whether one is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from relpos.lab.progress import Reporter

events = typer.Typer(
    no_args_is_help=True,
    help="Events in continuous time: simulate them, fit point processes, see whether a model is right.\n\n"
    "Example: [bold]relpos events diagnose mpls-stops --model hawkes -o stops.png[/bold]",
)

Data = Annotated[
    str, typer.Argument(metavar="[DATA]", help="A set of event sequences; `relpos data list` shows them all.")
]
Copy = Annotated[Path | None, typer.Option("--path", help="Your own copy of the data, a file or a folder.")]
Least = Annotated[
    int | None,
    typer.Option(min=1, help="Events that a sequence must have to be taken: 300 for mpls-stops, 5 for cdnow, else 10."),
]
Most = Annotated[
    int | None,
    typer.Option(min=1, help="Sequences to take, in the order of names: 25 for mpls-stops, 1000 for cdnow, else 200."),
]
Period = Annotated[
    float | None,
    typer.Option(min=0, help="Of a rate that repeats, in the data's unit; a week if left out, 0 for no such rate."),
]
Bins = Annotated[
    int | None,
    typer.Option(min=1, help="Equal parts of the period; 168, as a week has hours, or what a coarse clock allows."),
]
Ties = Annotated[
    str | None,
    typer.Option(
        help="Events at one time: spread (within a tick of the clock), first (drop later ones), keep; jitter lays all "
        "events out within their ticks, and is what a clock gets that shows in the gaps."
    ),
]
MODELS = "poisson, periodic, renewal, hawkes (of marks), hawkes-periodic (on the repeating rate)"


def register(app: typer.Typer, command: Callable[..., Any]) -> None:
    """Hangs the commands below ``app``; command is the decorator that turns expected failures into one line."""
    for body in (simulate, fit, diagnose, sample, horizons):
        command(events, name=body.__name__)(body)
    app.add_typer(events, name="events")


def simulate(
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON lines to write, a sequence a line.")],
    mu: Annotated[str, typer.Option(help="Rate of events without a cause, one a mark, comma-separated.")] = "0.5",
    alpha: Annotated[
        str, typer.Option(help="Events that one event causes: rows by semicolons, row i of those of mark i.")
    ] = "0.5",
    beta: Annotated[float, typer.Option(min=1e-9, help="Decay of what an event causes, in 1 / time.")] = 1.0,
    horizon: Annotated[float, typer.Option(min=0, help="Length of the window, from 0.")] = 100.0,
    count: Annotated[int, typer.Option(min=1, help="Sequences.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="One seed gives the same events.")] = 0,
    method: Annotated[str, typer.Option(help="thinning or inversion; both are exact.")] = "thinning",
    png: Annotated[bool, typer.Option("--png", help="Also draw the first sequence, beside the file.")] = False,
) -> None:
    """Draw sequences of an exponential Hawkes process; with --alpha 0 of a Poisson process.

    The file is read again by `relpos events fit easytpp --path FILE`, with its windows.

    Example: [bold]relpos events simulate --mu 0.4,0.2 --alpha "0.3,0.1;0.2,0.4" --count 20 -o made.jsonl[/bold]
    """
    from relpos.lab.happenings import simulate_file

    simulate_file(output, (mu, alpha, beta), horizon, count, seed, method, png, Reporter())


def fit(
    name: Data = "mpls-stops",
    path: Copy = None,
    least: Least = None,
    most: Most = None,
    period: Period = None,
    bins: Bins = None,
    ties: Ties = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write the table as JSON.")] = None,
) -> None:
    """Fit classical processes, one a sequence, to the first four fifths; score them on the last, in nats an event.

    Where sequences are short (under 50 events), one is fitted to all. The rows are what another model has to beat.

    Example: [bold]relpos events fit mpls-stops[/bold]
    """
    from relpos.lab.happenings import Choice, fit_table

    fit_table(Choice(name, path, least, most, ties), period, bins, output, Reporter())


def diagnose(
    name: Data = "mpls-stops",
    path: Copy = None,
    model: Annotated[str, typer.Option(help=f"One of {MODELS}.")] = "hawkes",
    least: Least = None,
    most: Most = None,
    period: Period = None,
    bins: Bins = None,
    ties: Ties = None,
    sequence: Annotated[str | None, typer.Option(help="Name of the sequence to draw; the first if left out.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="PNG to write; default DATA-MODEL.png.")] = None,
) -> None:
    """Fit one process to each sequence and test it by time rescaling; draw its intensity and a QQ-plot of residuals.

    Where the model is right, what is left over is exponential, so that the points lie on the line; the band holds 95%.

    Example: [bold]relpos events diagnose mpls-stops --model hawkes-periodic -o stops.png[/bold]
    """
    from relpos.lab.happenings import Choice, diagnose_file

    target = output or Path(f"{name}-{model}.png")
    diagnose_file(Choice(name, path, least, most, ties), model, (period, bins), sequence, target, Reporter())


def sample(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run of `relpos compare events`, or the folder of one model in it.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON lines to write, a draw of a sequence a line.")],
    encoding: Annotated[str | None, typer.Option(help="Contestant of the run, where it has several.")] = None,
    model_seed: Annotated[int | None, typer.Option(help="Seed of the model; the first of the run if left out.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Independent draws of each sequence.")] = 3,
    horizon: Annotated[
        float | None, typer.Option(min=0, help="How far to go on, in the data's unit; a week, or twenty median gaps.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    png: Annotated[bool, typer.Option("--png", help="Also draw them beside what came, and an intensity.")] = False,
    judge: Annotated[
        bool,
        typer.Option("--judge", help="Also score draws over the whole test, by OTD and T-mAP, beside Poisson."),
    ] = False,
) -> None:
    """Go on with the sequences of the test where training ended, as a trained network would.

    The file is read again by `relpos events fit easytpp --path FILE`, with its windows.

    Example: [bold]relpos events sample runs/events --encoding nope -o week.jsonl --png --judge[/bold]
    """
    from relpos.lab.continuations import Wish, sample_file

    sample_file(run, encoding, model_seed, Wish(draws, horizon, seed, png, judge), output, Reporter())


def horizons(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of `relpos compare events`.")],
    draws: Annotated[int, typer.Option(min=1, help="Independent draws of each sequence and horizon.")] = 3,
    horizon: Annotated[
        float | None, typer.Option(min=0, help="How far to go on, in the data's unit; a week, or twenty median gaps.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    markdown: Annotated[Path | None, typer.Option(help="Page to write; default horizons.md in the run.")] = None,
) -> None:
    """Score what every finished network of a run draws ahead, over the whole test, by OTD and T-mAP.

    Beside it, the same of classical processes, which go on from the same events. What is judged already is kept in the
    run: the same command goes on where it was stopped.

    Example: [bold]relpos events horizons runs/events[/bold]
    """
    from relpos.lab.horizons import judge_run

    judge_run(run, draws, horizon, seed, markdown, Reporter())
