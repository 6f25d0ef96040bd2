"""How well sequences of events were foretold."""

from relpos.tasks.events.metrics.horizon import Foretold, otd, t_map

__all__ = ["Foretold", "otd", "t_map"]
