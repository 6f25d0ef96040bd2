"""From a region of many events to one of few: what to keep of a network, what to reset, in which units to measure."""

from relpos.tasks.events.transfer.task import Transfer

__all__ = ["Transfer"]
