"""Who takes part. A new contestant is one function from a problem to what it runs, plus one line here."""

from __future__ import annotations

from dataclasses import dataclass

from relpos.lab.bench import ours, rivals
from relpos.lab.bench.ours import Make
from relpos.lab.bench.problem import Prepared, Problem, Refused
from relpos.lab.errors import unknown


@dataclass(frozen=True)
class Contestant:
    """One way to compute attention.

    heavy   n x n tensors that it holds at once, forward and backward: decides whether it fits, and marks the slow ones,
            which may be measured in fewer rounds
    apart   runs in a process of its own, paired with a floor measured there
    deep    its memory is also measured at the longest lengths
    """

    name: str
    title: str
    make: Make
    heavy: int = 0
    slow: bool = False
    apart: bool = False
    deep: bool = False

    def prepare(self, problem: Problem) -> Prepared:
        """Ready to run; Refused says why not, whatever it was that went wrong."""
        try:
            return self.make(problem)
        except Refused:
            raise
        except Exception as error:
            raise Refused(reason(error)) from error


FLOOR = "sdpa"

CONTESTANTS = {
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
        Contestant("generic", "relpos, learned table by generic tiles", ours.generic, slow=True),
        Contestant("ready", "SDPA + ready n x n bias, no gradient to it", rivals.ready, heavy=2, slow=True),
        Contestant("materialised", "SDPA + gathered n x n bias", rivals.materialised, heavy=5, slow=True),
        Contestant("plain", "plain attention + gathered bias", rivals.plain, heavy=6, slow=True),
        Contestant("flex", "compiled flex_attention + table", rivals.flex, apart=True),
    )
}


def chosen(names: tuple[str, ...] | None) -> list[Contestant]:
    """The named contestants in the order of the tables, all for None; the floor always takes part."""
    for name in names or ():
        if name not in CONTESTANTS:
            raise unknown("contestant", name, CONTESTANTS)
    return [each for each in CONTESTANTS.values() if names is None or each.name in (FLOOR, *names)]


def reason(error: BaseException) -> str:
    """An exception in one line of a table."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else lines[0][:157] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
