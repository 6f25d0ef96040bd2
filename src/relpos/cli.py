"""The command `relpos` starts here: with its extras missing it says how to install them."""

import sys

# What the extras lab, music and translate install. Any other missing module is an error of its own and keeps its
# traceback.
EXTRAS = frozenset(
    {
        "PIL",
        "filelock",
        "jinja2",
        "lightning",
        "matplotlib",
        "music21",
        "rich",
        "sacrebleu",
        "safetensors",
        "sentencepiece",
        "symusic",
        "typer",
    },
)


def main() -> int:
    """Run the command line; the exit status is 2 when a package of the extras is not installed.

    The extras are imported where they are first needed, some of them only while a command runs, so the whole run is
    guarded and not just the first import.
    """
    try:
        from relpos.lab.cli import main as run

        return run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        print(f"relpos: this command needs {missing}, which is not installed.", file=sys.stderr)
        print("Install the command's packages with: pip install 'relpos[lab,music,translate]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
