"""The record of a data set: where it comes from, what it is, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from relpos.tasks.data.packages import Package
from relpos.tasks.data.sets import DataSet

PackageReader = Callable[..., DataSet]
"""({package name: file}, card), and a progress as third argument where the source is `slow`."""
PathReader = Callable[..., DataSet]
"""(path, card), and a progress as third argument where the source is `slow`."""


@dataclass(frozen=True)
class Source:
    """One data set. packages and from_packages: where it comes out of packages; from_path: where the user has it.

    layout: what a path of the user's must look like; slow: reading it takes long enough to be told of and cached;
    split: how the sides were made; revision: raise it when the reader changes what it returns, and cached copies are
    made again.
    """

    name: str
    title: str
    about: str
    licence: str
    split: str
    packages: tuple[Package, ...] = ()
    from_packages: PackageReader | None = None
    from_path: PathReader | None = None
    layout: str = ""
    slow: bool = False
    revision: int = 1
    clients: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clients", tuple(dict.fromkeys(package.client for package in self.packages)))

    @property
    def download(self) -> int:
        """Bytes of all its packages."""
        return sum(package.size for package in self.packages)
