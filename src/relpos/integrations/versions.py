"""Which versions of a package an integration was tested with, and a refusal of all others."""

from __future__ import annotations

import importlib.metadata

Minor = tuple[int, int]


def check_version(package: str, extra: str, tested: tuple[Minor, Minor], untested: bool = False) -> None:
    """ImportError without the package; RuntimeError outside of the minor versions `tested`, first and last.

    untested: any version will do.
    """
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{package} is not installed: pip install 'relpos[{extra}]'") from None
    minor = tuple(int(part) for part in version.split(".")[:2])
    if not untested and not tested[0] <= minor <= tested[1]:
        low, high = (".".join(map(str, each)) for each in tested)
        raise RuntimeError(
            f"relpos was tested with {package} {low} to {high}, not with {version}; install one of those, or try it "
            "with untested=True and compare outputs"
        )
