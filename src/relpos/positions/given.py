"""What callers give as positions: read as one of the kinds, and the times at which queries stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from relpos.positions.kinds import (
    Grid,
    Index,
    Labels,
    Places,
    Position,
    Profiles,
    Times,
    _require,
    _tensor,
)

Positions = Position | Mapping[str, Position]
NAMED: dict[str, type[Position]] = {
    "index": Index,
    "time": Times,
    "place": Places,
    "profile": Profiles,
    "mark": Labels,
}


def as_positions(
    given: object,
    n: int,
    start: int,
    name: str,
    device: torch.device,
    batch: int | None = None,
    grid: bool = False,
) -> Positions:
    """Turns what a caller may pass as q_pos or k_pos into positions.

    None means the consecutive integers start..start+n-1; an integer tensor is `Index`, a floating one `Times`, an
    integer tensor (n, axes) or (batch, n, axes) a `Grid`; a dict gives named positions, where a name other than
    index, time, place, profile and mark is a level of `Labels`. Integers (n, n) are n rows of `Index`, unless `grid`
    says that only cells make sense here.
    """
    if given is None:
        return Index.arange(n, start, device=device)
    if isinstance(given, Mapping):
        return {
            str(key): _sized(_guess(value, n, str(key), grid), n, f"{name}[{key!r}]", device, batch)
            for key, value in given.items()
        }
    return _sized(_guess(given, n, None, grid), n, name, device, batch)


def _guess(given: object, n: int, named: str | None, grid: bool) -> Position:
    if isinstance(given, Position):
        return given
    values = _tensor(given)
    if named is not None:
        return NAMED.get(named, Labels)(values)
    if values.is_floating_point():
        return Times(values)
    if values.dim() == 3 or (values.dim() == 2 and values.shape[0] == n and (grid or values.shape[-1] != n)):
        return Grid(values)
    return Index(values)


def _sized(position: Position, n: int, name: str, device: torch.device, batch: int | None) -> Position:
    if position.values.shape[position.axis] != n:  # `len` would tie an exported program to one length
        raise ValueError(
            f"{name} holds {len(position)} positions, shape {tuple(position.values.shape)}, for {n} tokens; "
            "give one a token, as (n,) or (batch, n), or (n, axes) for a grid"
        )
    if batch is not None and position.batched and position.values.shape[0] != batch:
        raise ValueError(
            f"{name} holds positions for {position.values.shape[0]} sequences, shape {tuple(position.values.shape)}, "
            f"for a batch of {batch}; give one row a sequence, or one for all"
        )
    return position if position.values.device == device else position.to(device)


def narrowed(positions: Positions, start: int, stop: int) -> Positions:
    """Positions of tokens start..stop-1, of every channel where they are named."""
    if isinstance(positions, Position):
        return positions.narrow(start, stop)
    return {name: channel.narrow(start, stop) for name, channel in positions.items()}


def joined(parts: Sequence[Positions]) -> Positions:
    """Positions of sequences one after another, all of one kind and with the same channels."""
    first = parts[0]
    if isinstance(first, Position):
        values = [part.values for part in parts if isinstance(part, Position)]
        return type(first)(torch.cat(values, first.axis))
    named = [part for part in parts if isinstance(part, Mapping)]
    return {name: joined([part[name] for part in named]) for name in first}  # type: ignore[misc]


def query_times(
    times: Tensor | Times,
    query_time: str = "event",
    *,
    last: Tensor | float | None = None,
    lengths: Tensor | None = None,
    grid: Tensor | Times | None = None,
) -> Times:
    """The times at which queries stand, for q_pos beside k_pos = {"time": times}, (n,) or (batch, n).

    "event"    each query at its own event: nothing is known of what comes
    "request"  each query at the time of the next event, which is when the answer is asked for. It tells the model when
               something happens next, so metrics found with it are to be named so. last (a number or one a row): the
               time of the final request; None: the last event's own time, as in the released HSTU. lengths (batch,):
               events of each row, where padding follows them
    "grid"     any times instead, one query each; causal order then is q_order = torch.searchsorted(times, grid,
               right=True) - 1 and k_order = arange(n): a query sees what has happened until then
    """
    times = times if isinstance(times, Times) else Times(times)
    if query_time not in ("event", "request", "grid"):
        raise ValueError(f'query_time is "event", "request" or "grid", got {query_time!r}')
    if (grid is not None) != (query_time == "grid"):
        raise ValueError('grid holds the times of the queries for query_time="grid", and only for that')
    if query_time != "request" and (last is not None or lengths is not None):
        raise ValueError('last and lengths go with query_time="request"')
    if query_time == "event":
        return times
    if grid is not None:
        return grid if isinstance(grid, Times) else Times(grid)
    values = times.values
    n = values.shape[-1]
    if not n:
        return times
    rows = values.unsqueeze(0) if values.dim() == 1 else values
    ends = torch.full((len(rows),), n) if lengths is None else torch.as_tensor(lengths).to(torch.int64).cpu()
    if ends.shape != (len(rows),) or bool((ends < 1).any()) or bool((ends > n).any()):
        raise ValueError(f"lengths are {len(rows)} numbers of events in 1..{n}, got {ends.tolist()}")
    at = (ends - 1).to(values.device).unsqueeze(1)
    own = rows.gather(1, at)
    final = own if last is None else torch.as_tensor(last, dtype=torch.float64, device=values.device).view(-1, 1)
    _require(bool((final >= own).all()), "the final request is at or after the last event; `last` is earlier")
    following = torch.cat([rows[:, 1:], rows[:, -1:]], 1).scatter(1, at, final.expand(len(rows), 1))
    return Times(following.view(values.shape).cummax(-1).values)
