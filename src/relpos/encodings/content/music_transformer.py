"""Huang et al. 2018, the Music Transformer: a learned vector a lag and head, by skewing; global or in local blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Slices, State, States, Tile, check_heads, positive
from relpos.encodings.bias.learned import Beyond, check_beyond
from relpos.encodings.content._lags import Extent, LagVectors, new_table
from relpos.positions import Index, Positions


class MusicTransformer(LagVectors):
    """Adds the product of the query with a learned vector of the lag, a table a head, nothing beyond the table.

        score_ij = q_i . (k_j + table[h, lag + max_lag - 1]) / sqrt(dim)

    table        (heads, max_lag, dim), lags -(max_lag-1)..0; with causal=False (heads, 2 max_lag - 1, dim), lags
                 -(max_lag-1)..max_lag-1. N(0, 1/dim), that is a standard deviation of dim^-1/2
    beyond       what a lag past the table gets: "zero" nothing (the released code), "clip" the end's vector, "error"
    causal       True: refuses attention that is not causal, and no row exists for a lag above 0
    block        local attention: with blocks of this many tokens counted from position 0, a query sees its own block
                 and the one before it (minus infinity elsewhere). The released code keeps max_lag = 4 block rows, of
                 which 2 block are ever used
    values       adds value_table[h, ..] to the values likewise: in the released code, dropped in the paper
    shared       one table (.., dim) for all heads
    as_released  the released local code leaves the value vectors out in the first block, which for sequences shorter
                 than two blocks is everything; True repeats that
    scale        factor of q . table; default 1/sqrt(dim), whatever `scale` the attention is called with

    Cost: O(n dim) memory; local blocks add only a mask: give the attention window=2 * block - 1 too, to skip tiles.
    Source: Huang et al. 2018, section 3.4 (the skew) and 3.5 (local blocks).
    """

    reference = """@inproceedings{huang2019music,
  title={Music Transformer: Generating Music with Long-Term Structure},
  author={Huang, Cheng-Zhi Anna and Vaswani, Ashish and Uszkoreit, Jakob and Shazeer, Noam and Simon, Ian and Hawthorne, Curtis and Dai, Andrew M. and Hoffman, Matthew D. and Dinculescu, Monica and Eck, Douglas},
  booktitle={ICLR}, year={2019}}"""  # noqa: E501

    def __init__(
        self,
        heads: int,
        dim: int,
        max_lag: int,
        beyond: Beyond = "zero",
        causal: bool = True,
        block: int | None = None,
        *,
        values: bool = False,
        shared: bool = False,
        as_released: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        check_beyond(beyond)
        self.heads, self.dim, self.max_lag = check_heads(heads), positive("dim", dim), positive("max_lag", max_lag)
        self.beyond, self.block, self.as_released = beyond, block, as_released
        if block is not None and (positive("block", block) * 2 > max_lag or not causal):
            raise ValueError(
                f"local blocks of {block} are causal and need max_lag of at least {2 * block} (released: {4 * block}); "
                f"got max_lag={max_lag}, causal={causal}"
            )
        if as_released and (block is None or not values):
            raise ValueError("as_released repeats a slip of local value vectors: it needs block and values=True")
        self.causal_only = causal
        self.has_values = values
        self.in_parts = not as_released  # the slip depends on the last position of all
        self.scale = dim**-0.5 if scale is None else float(scale)
        clip = beyond == "clip"
        self.extent = Extent(1 - max_lag, 0 if causal else max_lag - 1, clip, clip and not causal)
        own = None if shared else heads
        self.table = new_table(own, self.extent.rows, dim)
        self.value_table = new_table(own, self.extent.rows, dim) if values else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self.parameters():
            nn.init.normal_(table, std=self.dim**-0.5)

    def tables(self) -> tuple[Tensor, Tensor | None]:
        return self.table, self.value_table

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        states = super().prepare(q, k, q_pos, k_pos, content)
        if self.block is None:
            return states
        assert isinstance(q_pos, Index) and isinstance(k_pos, Index)
        q_block, k_block = (p.values.div(self.block, rounding_mode="floor") for p in (q_pos, k_pos))
        states |= {"q_block": State(q_block, "query"), "k_block": State(k_block, "key")}
        if self.as_released:
            long = len(k_pos) > 0 and int(k_pos.values.amax()) + 1 >= 2 * self.block
            states["q_weighs"] = State((q_block > 0) & long, "query")
        return states

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        term = super().tile(q, k, states, tile)
        return term if self.block is None else term.masked_fill(_elsewhere(states), -torch.inf)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        grad = grad if self.block is None else grad.masked_fill(_elsewhere(states), 0)
        return super().tile_backward(grad, q, k, states, tile)

    def value_term(self, p: Tensor, states: Slices, tile: Tile) -> Tensor | None:
        return super().value_term(_weighing(p, states), states, tile)

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        return super().values_backward(_weighing(grad, states), p, states, tile)

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], heads: int | None = None, **options: Any) -> MusicTransformer:
        """From tensor2tensor's variables: "key_relative_embeddings" or (local) "relative_embeddings", and
        "value_relative_embeddings". A name may have anything before and after these words.

        heads is needed for tables shared by all heads; say causal=False or block=b where the source had them.
        """
        found: dict[str, Tensor] = {}
        for name, array in arrays.items():
            if "relative_embeddings" in name:
                ours = "value_table" if "value_relative_embeddings" in name else "table"
                if ours in found:
                    raise ValueError(f"two arrays would be {ours}; got {', '.join(arrays)}")
                found[ours] = torch.as_tensor(array)
        if "table" not in found:
            raise ValueError(f"no name holds 'relative_embeddings'; got {', '.join(arrays) or 'nothing'}")
        *own, rows, dim = found["table"].shape
        if heads is None and not own:
            raise ValueError("a table shared by all heads does not tell their number: pass heads")
        max_lag = rows if options.get("causal", True) else (rows + 1) // 2
        made = {"values": "value_table" in found, "shared": not own, **options}
        encoding = cls(own[0] if heads is None else heads, dim, max_lag, **made)
        encoding.load_state_dict(found)
        return encoding

    def extra_repr(self) -> str:
        local = "" if self.block is None else f", block={self.block}"
        return (
            f"heads={self.heads}, dim={self.dim}, max_lag={self.max_lag}, beyond={self.beyond!r}, "
            f"causal={self.causal_only}{local}, values={self.has_values}"
        )


def _elsewhere(states: Slices) -> Tensor:
    """True where the key is in neither the query's block nor the one before: (t_q, t_k) or (batch, 1, t_q, t_k)."""
    back = states["q_block"].unsqueeze(-1) - states["k_block"].unsqueeze(-2)
    other = (back != 0) & (back != 1)
    return other if other.dim() == 2 else other.unsqueeze(1)


def _weighing(x: Tensor, states: Slices) -> Tensor:
    """x (batch, heads, t_q, width) with the rows of queries without value vectors set to 0."""
    if "q_weighs" not in states:
        return x
    weighs = states["q_weighs"].unsqueeze(-1)
    return x * (weighs if weighs.dim() == 2 else weighs.unsqueeze(1))
