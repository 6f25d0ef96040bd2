"""Differences between two things that were measured with the same seeds, with a 95% interval over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5% quantiles of Student's t with 1, 2, .. degrees of freedom; from 30 on the normal one is near enough.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """mean: of first minus second, seed by seed; half: of the 95% interval around it, None of a single seed."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Difference:
        """Of values of the same seeds in the same order. ValueError where they cannot be paired."""
        if len(first) != len(second) or not first:
            raise ValueError(f"differences pair the same seeds, at least one; got {len(first)} and {len(second)}")
        each = [a - b for a, b in zip(first, second, strict=True)]
        if len(each) == 1:
            return cls(each[0], None)
        t = _T[len(each) - 2] if len(each) - 2 < len(_T) else 1.96
        return cls(statistics.fmean(each), t * statistics.stdev(each) / math.sqrt(len(each)))

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval leaves 0 out, 0 where it does not, None where there is no interval."""
        if self.half is None:
            return None
        return 0 if abs(self.mean) <= self.half else int(math.copysign(1, self.mean))

    def text(self, scale: float = 100.0, form: str = "+.2f") -> str:
        """In points by default, with the interval in brackets."""
        mean = format(scale * self.mean, form)
        if self.half is None:
            return mean
        return f"{mean} [{scale * (self.mean - self.half):{form}}, {scale * (self.mean + self.half):{form}}]"
