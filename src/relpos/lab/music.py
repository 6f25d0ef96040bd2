"""The commands `relpos music ..`: for whoever has a MIDI file and wants to hear how it could go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from relpos.lab.progress import Reporter

music = typer.Typer(
    no_args_is_help=True,
    help="Go on with a MIDI file, set parts under a melody, look at a file.\n\n"
    "Example: [bold]relpos music continue song.mid --bars 8 -o longer.mid[/bold]",
)

Midi = Annotated[Path, typer.Argument(metavar="FILE", help="A MIDI file of your own, format 0 or 1.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="MIDI file to write; its folder is made.")]
Seed = Annotated[int, typer.Option(min=0, help="One seed gives the same music, another seed other music.")]
Takes = Annotated[int, typer.Option(min=1, help="Write so many, with one seed after the other.")]
Temperature = Annotated[float, typer.Option(min=0, help="Below 1 safer, above 1 bolder; 0 takes what is likeliest.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1, help="Choose among the likeliest, of this total probability.")]
Form = Annotated[
    str | None,
    typer.Option(
        help="Sections of all whole bars, as AABA (equally long) or i4A8B8A8 (lengths in bars): a letter's music comes "
        "back where the letter does."
    ),
]
Model = Annotated[
    Path | None, typer.Option(help="Folder of a network that `relpos music train` made; the default one if left out.")
]
Png = Annotated[bool, typer.Option("--png", help="Also draw the result, beside the MIDI file.")]
Wav = Annotated[bool, typer.Option("--wav", help="Also play the result into a WAV file; needs relpos\\[audio].")]


def register(app: typer.Typer, command: Callable[..., Any]) -> None:
    """Hangs the commands below ``app``; command is the decorator that turns expected failures into one line."""
    bodies = (("continue", go_on), ("accompany", accompany), ("view", view), ("train", train), ("check", check))
    for name, body in bodies:
        command(music, name=name)(body)
    app.add_typer(music, name="music")


def go_on(
    file: Midi,
    output: Output,
    bars: Annotated[int, typer.Option(min=1, max=256, help="Bars to write.")] = 8,
    seed: Seed = 0,
    takes: Takes = 1,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.9,
    chords: Annotated[
        str | None,
        typer.Option(help='Chords of the new bars: "C | Am F | G", or a text file; begins again where it is shorter.'),
    ] = None,
    form: Form = None,
    meter: Annotated[str | None, typer.Option(help="As 3/4: where the file names none, or a wrong one.")] = None,
    model: Model = None,
    png: Png = False,
    wav: Wav = False,
) -> None:
    """Write further bars after the last one, in the file's tracks, tempo and meter. Your notes stay as they are.

    The first time, a small network is trained on Bach's chorales (about three minutes); after that a run takes seconds.

    Example: [bold]relpos music continue song.mid --bars 8 --seed 1 -o longer.mid --png[/bold]
    """
    from relpos.lab.musician import Request, continue_file

    request = Request(seed, takes, temperature, top_p, chords, form, meter, model, png, wav)
    continue_file(file, output, bars, request, Reporter())


def accompany(
    file: Midi,
    output: Output,
    melody: Annotated[
        str | None, typer.Option(help="Name or number (from 1) of the melody's track; found by itself if left out.")
    ] = None,
    seed: Seed = 0,
    takes: Takes = 1,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.9,
    chords: Annotated[
        str | None, typer.Option(help='Chords of the bars: "C | Am F | G", or a text file with such a chart.')
    ] = None,
    form: Form = None,
    meter: Annotated[str | None, typer.Option(help="As 3/4: where the file names none, or a wrong one.")] = None,
    model: Model = None,
    png: Png = False,
    wav: Wav = False,
) -> None:
    """Set alto, tenor and bass under a melody, as three new tracks. Your notes stay as they are.

    Example: [bold]relpos music accompany melody.mid --chords "C | Am F | G | C" --form AABA -o choir.mid[/bold]
    """
    from relpos.lab.musician import Request, accompany_file

    request = Request(seed, takes, temperature, top_p, chords, form, meter, model, png, wav)
    accompany_file(file, output, melody, request, Reporter())


def view(
    file: Midi,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="PNG to write; beside the file by default.")
    ] = None,
    form: Form = None,
) -> None:
    """Draw all tracks as a piano-roll with bars, and what in the piece is like what, with its sections marked.

    Example: [bold]relpos music view song.mid -o song.png[/bold]
    """
    from relpos.lab.musician import view_file

    view_file(file, output or file.with_suffix(".png"), form, Reporter())


def train(
    data: Annotated[
        str, typer.Argument(metavar="[DATA]", help="chorales, another set of songs, or a folder of MIDI files.")
    ] = "chorales",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the network.")] = Path("composer"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Time to train for, on this machine.")] = 25.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so many steps, whatever time they take.")] = None,
    small: Annotated[bool, typer.Option("--small", help="The size of the default network.")] = False,
) -> None:
    """Train a better network, on Bach's chorales or on MIDI files of your own. Ctrl-C and rerun goes on.

    Example: [bold]relpos music train --minutes 25 -o better[/bold], then
    [bold]relpos music continue song.mid --model better -o longer.mid[/bold]
    """
    from relpos.lab import composing

    reporter = Reporter()
    size = composing.SMALL if small else composing.LARGE
    composing.train(output, data, size, steps, reporter, minutes=minutes)
    reporter.say(f"{composing.load(output).about}\nrelpos music continue FILE --model {output} -o OUT.mid")


def check(
    model: Model = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts, each the first bars of a piece kept from training.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Continuations of each.")] = 3,
    bars: Annotated[int, typer.Option(min=1, help="Bars to write.")] = 8,
    accompaniment: Annotated[
        bool, typer.Option("--accompany", help="Set the pieces' melodies instead of going on with their beginnings.")
    ] = False,
) -> None:
    """Measure what a network writes against the real continuations, on pieces that it has never seen.

    Example: [bold]relpos music check --count 20 --seeds 3[/bold]
    """
    from relpos.lab.musician import check_model

    check_model(model, count, seeds, bars, accompaniment, Reporter())
