"""Sequences of events in continuous time, and the classical models of them."""

from relpos.tasks.events.sequences import UNITS, Sequences

__all__ = ["UNITS", "Sequences"]
