"""HSTU: a learned number for every lag, and one for every logarithmic bucket of elapsed time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from relpos.encodings.base import check_heads, positive
from relpos.encodings.content.relative_channels import RelativeChannels
from relpos.encodings.pairs.encoders import HSTU_STEP
from relpos.encodings.reference import find

TERMS = ("position", "time")


class HSTUBias(RelativeChannels):
    """Adds position[lag] + time[bucket of the elapsed time] to the score.

        bucket = min(time_buckets, floor(ln(max(|t_j - t_i|, 1 unit)) / 0.301)),   lag clipped to +-max_lag

    position  (heads or 1, 2 max_lag + 1), index lag + max_lag;   time  (heads or 1, time_buckets + 1)
    shared    True: one number for all heads, as released
    terms     ("position", "time"), or one of them
    unit      of times in seconds; the released code counts seconds
    step      logarithm by which a bucket grows, 0.301 as released
    Both start at N(0, 0.02). Positions are named, {"index": .., "time": ..}. The method lets a query know the time at
    which it is asked, that of the next event: give q_pos the times of `positions.query_times(times, "request")` and
    k_pos those of the events. A bucket grows by e^0.301 = 1.35 (natural logarithm, as released; the paper says 2).

    Meant for mixer="pointwise" (`pointwise_attention`, weights silu(score) / n); in softmax attention it is added too.
    Source: Zhai et al. 2024, "Actions Speak Louder than Words", whose code computes the bias as an n x n tensor.
    """

    takes: ClassVar[tuple[type, ...]] = (Mapping,)
    reference = """@inproceedings{zhai2024actions,
  title={Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations},
  author={Zhai, Jiaqi and Liao, Lucy and Liu, Xing and Wang, Yueming and Li, Rui and others},
  booktitle={ICML}, year={2024}}"""

    def __init__(
        self,
        heads: int,
        max_lag: int,
        time_buckets: int = 128,
        *,
        shared: bool = False,
        terms: Sequence[str] = TERMS,
        unit: float = 1.0,
        step: float = HSTU_STEP,
    ) -> None:
        terms = (terms,) if isinstance(terms, str) else tuple(terms)
        if not terms or set(terms) - set(TERMS) or len(set(terms)) != len(terms):
            raise ValueError(f"terms are one or both of {', '.join(TERMS)}, got {terms}")
        check_heads(heads), positive("max_lag", max_lag), positive("time_buckets", time_buckets)
        both: dict[str, dict[str, Any]] = {
            "position": {"feature": "index", "clip": max_lag},
            "time": {"feature": "time", "encoder": "log", "clip": time_buckets, "unit": unit, "step": step},
        }
        channels = [{**both[t], "name": t, "inject": "bias", "shared": shared} for t in TERMS if t in terms]
        super().__init__(1, channels, heads)
        self.max_lag, self.time_buckets = max_lag, time_buckets
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    @property
    def position(self) -> Tensor | None:
        """Numbers of the lags, (heads or 1, 2 max_lag + 1), index lag + max_lag."""
        return self._numbers("position")

    @property
    def time(self) -> Tensor | None:
        """Numbers of the buckets, (heads or 1, time_buckets + 1)."""
        return self._numbers("time")

    def _numbers(self, name: str) -> Tensor | None:
        return next((c.bias for c in self._each() if c.name == name), None)

    @classmethod
    def from_reference(  # type: ignore[override]
        cls, arrays: Mapping[str, Any], heads: int = 1, **options: Any
    ) -> HSTUBias:
        """From the released names "_pos_w" (2 N - 1,) and "_ts_w" (buckets + 1,), or "pos_w" and "time_w": one number
        for all heads, and max_lag = N - 1."""
        found = {"position": find(arrays, "_pos_w", "pos_w"), "time": find(arrays, "_ts_w", "time_w")}
        terms = [name for name, x in found.items() if x is not None]
        if not terms:
            raise ValueError(f"no array is called pos_w or time_w; there are {', '.join(arrays) or 'none'}")
        for name, x in found.items():
            if x is not None and (x.numel() != max(x.shape, default=0) or (name == "position" and x.numel() % 2 == 0)):
                wanted = "(2 N - 1,)" if name == "position" else "(buckets + 1,)"
                raise ValueError(f"the numbers of the {name} have the shape {wanted}, got {tuple(x.shape)}")
        lags, times = (found[name] for name in TERMS)
        own = cls(
            heads,
            (lags.numel() - 1) // 2 if lags is not None else 1,
            times.numel() - 1 if times is not None else 128,
            shared=True,
            terms=terms,
            **options,
        )
        with torch.no_grad():
            for name in terms:
                table, given = own._numbers(name), found[name]
                assert table is not None and given is not None
                own.to(given.dtype), table.copy_(given.view(1, -1))
        return own
