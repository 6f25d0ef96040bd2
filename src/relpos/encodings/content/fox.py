"""The Forgetting Transformer (Lin et al. 2025): a forget gate a token and head, as a bias of the scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, check_heads, consecutive, positive
from relpos.positions import Index, Positions, Times, is_traced


class FoX(ContentBias):
    """Adds the summed log forget gates of the tokens after the key, up to the query: ALiBi with learned, local slopes.

        term(i, j) = sum_{t=j+1..i} ln f_t,   f_t = sigmoid(gate.weight x_t + gate.bias)     for j <= i only

    gate     Linear(model_dim, heads) on the layer's input x, `content=x` (batch, n_k, model_dim); the bias starts at 0
    spans    None, or (shortest, longest) in tokens: the gates start free of the data, head h forgetting e-fold in a
             span of its own, log-spaced between the two (gate.weight 0, gate.bias -ln(e^(1/span) - 1))
    The term is not scaled. A constant gate f is ALiBi with slope -ln f. Queries are tokens of the content: by
    consecutive integer positions where given, else the last n_q. Gates act in the order of the tokens; padding that
    lies between two tokens counts.

    The sums run in float64, and so does the difference of two of them, since it cancels: after 1e5 steps neighbours
    still differ by their own gate. Cost: O(n heads) memory, and no product in a tile.
    Source: Lin et al. 2025. Their released kernels also skip tiles whose term is far below zero; this does not.
    """

    takes = (Index, Times)
    extrapolates = True
    causal_only = True
    needs_content = True
    in_parts = False  # gates are summed from the first token on
    reads_qk = False
    reference = """@inproceedings{lin2025forgetting,
  title={Forgetting Transformer: Softmax Attention with a Forget Gate},
  author={Lin, Zhixuan and Nikishin, Evgenii and He, Xu Owen and Courville, Aaron},
  booktitle={ICLR}, year={2025}}"""

    def __init__(self, heads: int, model_dim: int, *, spans: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.heads, self.model_dim, self.spans = check_heads(heads), positive("model_dim", model_dim), spans
        if spans is not None and not (len(spans) == 2 and 0 < spans[0] <= spans[1]):
            raise ValueError(f"spans is (shortest, longest) in tokens, 0 < shortest <= longest, got {spans!r}")
        self.gate = nn.Linear(model_dim, heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gate.bias)
        if self.spans is None:
            return
        shortest, longest = (torch.tensor(span, dtype=torch.float64) for span in self.spans)
        span = torch.logspace(0, 1, self.heads, base=float(longest / shortest), dtype=torch.float64) * shortest
        with torch.no_grad():
            self.gate.weight.zero_()
            self.gate.bias.copy_(-torch.log(torch.expm1(1 / span)))

    def digest(self, content: Tensor) -> Tensor:
        """Log gates (batch, n, heads) of the layer's input (batch, n, model_dim), in float32 or wider."""
        if content.shape[-1] != self.model_dim:
            raise ValueError(f"FoX was built for model_dim={self.model_dim}, content has width {content.shape[-1]}")
        weight, bias = self.gate.weight, self.gate.bias
        dtype = torch.promote_types(torch.promote_types(content.dtype, weight.dtype), torch.float32)
        return nn.functional.logsigmoid(nn.functional.linear(content.to(dtype), weight.to(dtype), bias.to(dtype)))

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        """content: what `digest` made of all n_k tokens."""
        self.check_positions(q_pos, k_pos)
        assert isinstance(k_pos, Index | Times)
        if content is None:
            raise ValueError("FoX reads the layer's input: pass content=x, (batch, n_k, model_dim)")
        if not is_traced() and bool((k_pos.values[..., 1:] < k_pos.values[..., :-1]).any()):
            raise ValueError("FoX sums gates in the order of the tokens, so key positions must not decrease; sort them")
        n_q, n_k = q.shape[-2], k.shape[-2]
        offset = consecutive(q_pos, k_pos)
        first = n_k - n_q if offset is None else offset  # the token that query 0 is
        if first + n_q > n_k:
            raise ValueError(
                f"queries are tokens {first}..{first + n_q - 1}, but content ends at token {n_k - 1}: FoX needs the "
                "gates up to each query, so its queries must be among the keys"
            )
        total = content.to(torch.float64).cumsum(1).transpose(1, 2)  # (batch, heads, n_k)
        missing = max(-first, 0)  # queries before the first key see none of them; any number serves
        of_query = nn.functional.pad(total, (missing, 0)).narrow(-1, first + missing, n_q)
        return {"q_total": State(of_query, "query"), "k_total": State(total, "key")}

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        return (states["q_total"].unsqueeze(-1) - states["k_total"].unsqueeze(-2)).to(q.dtype)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        return {"q_total": grad.sum(-1).to(torch.float64), "k_total": -grad.sum(-2).to(torch.float64)}

    def extra_repr(self) -> str:
        return f"heads={self.heads}, model_dim={self.model_dim}" + (
            "" if self.spans is None else f", spans={self.spans}"
        )
