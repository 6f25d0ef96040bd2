"""Networks over sequences of events: what is read, what reads it, and the densities of what comes next."""

from relpos.tasks.events.neural.heads import Head, MixtureHead
from relpos.tasks.events.neural.history import CHANNELS, History, Scales
from relpos.tasks.events.neural.imtpp import IMTPP
from relpos.tasks.events.neural.intensity import Intensities, IntensityHead
from relpos.tasks.events.neural.network import HEADS, NeuralProcess, PointNetwork
from relpos.tasks.events.neural.rmtpp import RMTPP
from relpos.tasks.events.neural.sampling import Draw, continuations, next_event
from relpos.tasks.events.neural.tape import Following, Seen, Tape

__all__ = [
    "CHANNELS",
    "HEADS",
    "IMTPP",
    "RMTPP",
    "Draw",
    "Following",
    "Head",
    "History",
    "Intensities",
    "IntensityHead",
    "MixtureHead",
    "NeuralProcess",
    "PointNetwork",
    "Scales",
    "Seen",
    "Tape",
    "continuations",
    "next_event",
]
