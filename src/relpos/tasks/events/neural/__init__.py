"""Networks over sequences of events: what is read, what reads it, and the densities of what comes next."""

from relpos.tasks.events.neural.heads import Head, MixtureHead
from relpos.tasks.events.neural.history import CHANNELS, History, Scales
from relpos.tasks.events.neural.imtpp import IMTPP
from relpos.tasks.events.neural.tape import Following, Seen, Tape

__all__ = ["CHANNELS", "IMTPP", "Following", "Head", "History", "MixtureHead", "Scales", "Seen", "Tape"]
