"""The commands `relpos claim list` and `relpos claim run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from relpos.lab import commands
from relpos.lab.labels import assignments
from relpos.lab.progress import Reporter

claims = typer.Typer(
    no_args_is_help=True,
    help="Put a claim of a paper to the test.\n\nExample: [bold]relpos claim run conversion[/bold]",
)


def register(app: typer.Typer, command: Callable[..., Any]) -> None:
    """Adds the commands to `app`; `command` registers one with the house's handling of errors."""
    app.add_typer(claims, name="claim")

    @command(claims, name="list")
    def list_claims() -> None:
        """List the claims that can be tested.

        Example: [bold]relpos claim list[/bold]
        """
        from relpos.lab.claims import get, names

        reporter = Reporter()
        for name in names():
            claim = get(name)
            reporter.say(f"{name}: {claim.title}\n  {claim.statement}\n")

    @command(claims, name="run")
    def run_claim(
        name: Annotated[str, typer.Argument(metavar="NAME", help="`relpos claim list` shows them.")],
        preset: Annotated[
            str, typer.Option(help="quick: seconds, demo: minutes, results: what is published.")
        ] = "demo",
        setting: Annotated[
            list[str] | None, typer.Option("--set", help="A setting of the claim as key=value; may be repeated.")
        ] = None,
        directory: Annotated[
            str | None, typer.Option("--name", help="Name of the run directory; made from the claim by default.")
        ] = None,
        out: Annotated[Path, typer.Option(help="Folder that holds the run directories.")] = Path("runs"),
        markdown: Annotated[Path | None, typer.Option(help="Also write the page to this file.")] = None,
        fresh: Annotated[
            bool, typer.Option("--fresh", help="Delete what the run directory holds and begin anew.")
        ] = False,
        workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
    ) -> None:
        """Test a claim, write its page. Ctrl-C and rerun resumes.

        Example: [bold]relpos claim run conversion --preset results --markdown docs/results/conversion.md[/bold]
        """
        from relpos.lab.claims import get, prove
        from relpos.lab.environment import side_by_side

        prove(
            get(name),
            preset,
            out / (directory or f"claim-{name}-{preset}"),
            Reporter(),
            changes=assignments(setting or []),
            markdown=markdown,
            fresh=fresh,
            workers=workers or side_by_side(1),
            modules=commands.IMPORTED,
            command=commands.typed_command(),
        )
