"""Point processes without networks: Poisson, renewal, Hawkes; and how to tell whether one of them is right."""

from relpos.tasks.events.processes.base import Process
from relpos.tasks.events.processes.densities import Density, Gompertz, LogLogistic, LogNormalMixture, Weibull
from relpos.tasks.events.processes.hawkes import Hawkes
from relpos.tasks.events.processes.poisson import PeriodicPoisson, Poisson
from relpos.tasks.events.processes.renewal import Renewal
from relpos.tasks.events.processes.residuals import (
    KS,
    NextEvent,
    crps,
    crps_samples,
    gap_density,
    kolmogorov,
    ks_exponential,
    ks_uniform,
    pit,
    rescaled,
)
from relpos.tasks.events.processes.simulate import simulate

__all__ = [
    "KS",
    "Density",
    "Gompertz",
    "Hawkes",
    "LogLogistic",
    "LogNormalMixture",
    "NextEvent",
    "PeriodicPoisson",
    "Poisson",
    "Process",
    "Renewal",
    "Weibull",
    "crps",
    "crps_samples",
    "gap_density",
    "kolmogorov",
    "ks_exponential",
    "ks_uniform",
    "pit",
    "rescaled",
    "simulate",
]
