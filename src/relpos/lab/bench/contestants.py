"""Who takes part. A new contestant is one function from a problem to what it runs, plus one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from relpos.lab.bench import literal, ours, rivals, spe, transforms
from relpos.lab.bench.ours import Make
from relpos.lab.bench.problem import Prepared, Problem, Refused
from relpos.lab.errors import unknown


@dataclass(frozen=True)
class Contestant:
    """One way to compute attention.

    heavy   n x n tensors that it holds at once, forward and backward: decides whether it fits, and marks the slow ones,
            which may be measured in fewer rounds
    holds   bytes that it holds besides
    longest tokens beyond which it is left out, because it would take most of the run
    apart   runs in a process of its own, paired with a floor measured there
    deep    its memory is also measured at the longest lengths
    device  the only one that it is for: it takes part elsewhere if it is asked for by name
    """

    name: str
    title: str
    make: Make
    heavy: int = 0
    holds: Callable[[Problem], float] | None = None
    longest: int | None = None
    slow: bool = False
    apart: bool = False
    deep: bool = False
    device: str | None = None

    def prepare(self, problem: Problem) -> Prepared:
        """Ready to run; Refused says why not, whatever it was that went wrong."""
        if self.longest is not None and problem.n > self.longest:
            raise Refused(f"would take most of the run beyond n = {self.longest}")
        try:
            return self.make(problem)
        except Refused:
            raise
        except Exception as error:
            raise Refused(reason(error)) from error

    def needs(self, problem: Problem) -> float:
        """Bytes that it holds at once, about."""
        return self.heavy * problem.scores + (0 if self.holds is None else self.holds(problem))


FLOOR = "sdpa"

ATTENTION = {
    each.name: each
    for each in (
        Contestant(FLOOR, "fused SDPA, no bias (the floor)", rivals.unbiased, deep=True),
        Contestant("nope", "relpos, no encoding", ours.nope),
        Contestant("learned", "relpos, learned Toeplitz table", ours.learned, deep=True),
        Contestant("alibi", "relpos, frozen bias (ALiBi)", ours.alibi),
        Contestant("t5", "relpos, T5 buckets", ours.t5),
        Contestant("rope", "relpos, rotary", ours.rope),
        Contestant("hype-channels", "relpos, HyPE as channels", ours.in_channels("hype")),
        Contestant("alibi-channels", "relpos, ALiBi as channels", ours.in_channels("alibi")),
        Contestant("shaw", "relpos, Shaw keys, clip 128", ours.shaw),
        Contestant("triton", "relpos, learned Toeplitz table in Triton", ours.in_triton, device="cuda", deep=True),
        Contestant("generic", "relpos, learned table by generic tiles", ours.generic, slow=True),
        Contestant("ready", "SDPA + ready n x n bias, no gradient to it", rivals.ready, heavy=2, slow=True),
        Contestant("materialised", "SDPA + gathered n x n bias", rivals.materialised, heavy=5, slow=True),
        Contestant("plain", "plain attention + gathered bias", rivals.plain, heavy=6, slow=True),
        Contestant("flex", "compiled flex_attention + table", rivals.flex, apart=True),
    )
}

# The first one keeps the pace: it runs between the others at every length, where softmax attention cannot.
LINEAR = {
    each.name: each
    for each in (
        Contestant("linear", "relpos linear, no encoding", ours.linear(ours.plain)),
        Contestant("linear-clipped", "relpos linear, table clipped at 128", ours.linear(ours.clipped), deep=True),
        Contestant("linear-t5", "relpos linear, T5 buckets", ours.linear(ours.t5_bias)),
        Contestant("linear-alibi", "relpos linear, ALiBi", ours.linear(ours.alibi_bias)),
        Contestant("linear-free", "relpos linear, free table of 2n-1 lags", ours.linear(ours.free), deep=True),
        Contestant("transforms", "the Fourier transforms of that free table alone", transforms.make),
        Contestant("literal", "all features in one FFT, free table", literal.make, holds=literal.holds, longest=8192),
        Contestant("softmax", "fused SDPA, no bias", rivals.unbiased, longest=16384),
        Contestant("softmax-bias", "SDPA + gathered n x n bias", rivals.materialised, heavy=5, slow=True, longest=4096),
    )
}

STOCHASTIC = {
    each.name: each
    for each in (
        Contestant("spe", "relpos, SineSPE", spe.ours),
        Contestant("spe-features", "codes materialised for every feature", spe.by_feature),
    )
}

CONTESTANTS = {**ATTENTION, **LINEAR, **STOCHASTIC}


def chosen(
    names: tuple[str, ...] | None, field: Mapping[str, Contestant] = ATTENTION, device: str = "cpu"
) -> list[Contestant]:
    """The named contestants in the order of the tables, for None all that are for the device; the first of the field
    always takes part."""
    for name in names or ():
        if name not in field:
            raise unknown("contestant", name, field)
    first = next(iter(field))
    if names is None:
        return [each for each in field.values() if each.device is None or device.startswith(each.device)]
    return [each for each in field.values() if each.name in (first, *names)]


def reason(error: BaseException) -> str:
    """An exception in one line of a table."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else lines[0][:157] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
