"""Positions say where a token is; a lag is the difference of two positions.

The sign is fixed once for the whole library: **lag = key position - query position**.

| class      | values                          | unit                   | lag (query, key)                        |
|------------|---------------------------------|------------------------|-----------------------------------------|
| `Index`    | int64 (n,) or (batch, n)        | tokens                 | int64 (.., n_q, n_k)                    |
| `Grid`     | int64 (batch or 1, n, axes 1-3) | cells, row-major       | int64 (.., n_q, n_k, axes)              |
| `Times`    | float64 (n,) or (batch, n)      | seconds                | float64 (.., n_q, n_k)                  |
| `Places`   | float64 (batch or 1, n, 2)      | degrees (lat, lon)     | float64 (.., n_q, n_k), kilometres >= 0 |
| `Labels`   | int64 (n,) or (batch, n)        | names of parts         | bool (.., n_q, n_k): same label         |
| `Profiles` | float64 (batch or 1, n, width)  | any                    | float64 (.., n_q, n_k), 1 - cosine      |

Position arithmetic is int64 or float64 to the last step: a position in bfloat16 has 8 significant bits, so neighbours
beyond 256 collapse. `Times` keeps its own origin out of every cast, because seconds since 1970 do not fit float32.
"""

from relpos.positions.given import NAMED, Positions, as_positions, joined, narrowed, query_times
from relpos.positions.kinds import (
    EARTH_RADIUS_KM,
    Grid,
    Index,
    Labels,
    Places,
    Position,
    Profiles,
    Times,
    is_exporting,
    is_traced,
)

__all__ = [
    "EARTH_RADIUS_KM",
    "NAMED",
    "Grid",
    "Index",
    "Labels",
    "Places",
    "Position",
    "Positions",
    "Profiles",
    "Times",
    "as_positions",
    "is_exporting",
    "is_traced",
    "joined",
    "narrowed",
    "query_times",
]
