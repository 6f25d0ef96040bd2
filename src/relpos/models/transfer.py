"""From a network trained where there is much data to one for a place where there is little: what moves, what does not.

    from relpos.models import transfer

    moved = transfer(old, new, keep=("*.channels.*", "flow.*"), reset=("mark.*",), freeze=("*.channels.*",))
    print(moved)                                 # names and counts of what was kept, reset and frozen
    train(p for p in new.parameters() if p.requires_grad)

Relative tables say what a lag, a gap or a distance does, and mean the same in another place; tables of items do not.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Transferred:
    """What a transfer did, by names of parameters and buffers; sizes: numbers in each."""

    kept: tuple[str, ...]
    reset: tuple[str, ...]
    frozen: tuple[str, ...]
    sizes: dict[str, int]

    def count(self, names: Iterable[str]) -> int:
        """Numbers in the tensors of these names."""
        return sum(self.sizes[name] for name in names)

    def __str__(self) -> str:
        lines = []
        for what in ("kept", "reset", "frozen"):
            names: tuple[str, ...] = getattr(self, what)
            lines.append(f"{what}: {self.count(names):,} numbers in {len(names)} tensors")
            lines += [f"    {name}" for name in names]
        return "\n".join(lines)


def matching(names: Iterable[str], patterns: Sequence[str], what: str = "patterns") -> list[str]:
    """The names that fit one of the patterns, in their order; * stands for any characters, dots among them.

    ValueError for a pattern that no name fits: it would silently do nothing.
    """
    if isinstance(patterns, str):
        raise TypeError(f"{what} is a list of patterns, got the text {patterns!r}; write ({patterns!r},)")
    known = list(names)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise ValueError(
                f"no parameter fits {pattern!r} of {what}; there are {', '.join(known[:12])}"
                + (f" and {len(known) - 12} more" if len(known) > 12 else "")
            )
    return [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


@torch.no_grad()
def transfer(
    source: nn.Module,
    target: nn.Module,
    *,
    keep: Sequence[str] = ("*",),
    reset: Sequence[str] = (),
    freeze: Sequence[str] = (),
) -> Transferred:
    """Copies weights of ``source`` into ``target``, in place, by patterns over names, and says what it did.

    keep    what is copied; must have the same shape in both
    reset   what stays as ``target`` was made, although ``keep`` fits it; may have another shape, or be new
    freeze  what does not learn from here on (requires_grad False); all other parameters do

    Buffers move like parameters. ValueError for a pattern that fits nothing, for what is to be kept and has another
    shape or is missing in one of them, and for a parameter of the target that is neither kept nor reset. Nothing is
    changed then.
    """
    old, new = source.state_dict(), target.state_dict()
    resets = set(matching(dict.fromkeys([*new, *old]), reset, "reset"))
    kept = [name for name in matching(dict.fromkeys([*new, *old]), keep, "keep") if name not in resets]
    left = [name for name in new if name not in resets and name not in set(kept)]
    if left:
        raise ValueError(f"{', '.join(left)}: neither kept nor reset; name each under keep or under reset")
    for name in kept:
        _same(name, old.get(name), new.get(name))
    parameters = dict(target.named_parameters())
    frozen = matching(parameters, freeze, "freeze")
    for name in kept:
        new[name].copy_(old[name])
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in set(frozen))
    fresh = tuple(name for name in new if name in resets)
    return Transferred(tuple(kept), fresh, tuple(frozen), {name: x.numel() for name, x in new.items()})


def _same(name: str, old: Tensor | None, new: Tensor | None) -> None:
    if old is None or new is None:
        raise ValueError(f"{name} is in the {'target' if old is None else 'source'} only: name it under reset")
    if old.shape != new.shape:
        raise ValueError(
            f"{name} has the shape {tuple(old.shape)} in the source and {tuple(new.shape)} in the target: "
            "name it under reset"
        )
