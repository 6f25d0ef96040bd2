"""The log-spaced continuous position bias of Swin Transformer V2: a network of the lag on a grid."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, check_heads
from relpos.encodings.network import evaluate
from relpos.encodings.reference import need
from relpos.encodings.window import sides_of, vectors
from relpos.positions import Grid


class LogCPB(Bias):
    """Adds 16 sigmoid(f_h(g(y_i - y_j), g(x_i - x_j))) to the score of head h, for tokens i (query), j (key) on a grid.

        g(u) = sign(u) log2(1 + |8 u / (side - 1)|) / log2(8)      side: of `pretrained` where given, else of `window`

    f        a network 2 -> 512 -> heads with ReLU: mlp.0.weight (512, 2), mlp.0.bias (512,), mlp.2.weight (heads, 512);
             truncated normal 0.02, bias 0
    window   (height, width) in cells; pretrained: the window that the weights were trained with
    Added after the scale, which for this method is that of cosine attention: hand over q and k divided by their norms,
    q times exp(min(s_h, ln 100)) with a learned s_h that starts at ln 10, and scale=1. `at` takes this library's lag
    (key - query) and turns it round here. A lag beyond the window is a number like any other. A side of 1 divides 0 by
    0 in the released code; the coordinate is 0 here. ValueError for lags that do not have two axes.
    Source: Liu et al. 2022, "Swin Transformer V2", eq. 3 and 4. The factor 8/(side - 1), the division by log2(8) and
    16 sigmoid are those of the released code.
    """

    takes = (Grid,)
    extrapolates = True
    reference = """@inproceedings{liu2022swin,
  title={Swin Transformer V2: Scaling Up Capacity and Resolution},
  author={Liu, Ze and Hu, Han and Lin, Yutong and Yao, Zhuliang and Xie, Zhenda and Wei, Yixuan and Ning, Jia
    and Cao, Yue and Zhang, Zheng and Dong, Li and Wei, Furu and Guo, Baining},
  booktitle={CVPR}, year={2022}}"""

    def __init__(
        self, heads: int, window: tuple[int, int] | int, pretrained: tuple[int, int] | int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.window = check_heads(heads), sides_of("window", window, axes=2)
        self.pretrained = self.window if pretrained is None else sides_of("pretrained", pretrained, axes=2)
        self.mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        for name, parameter in self.mlp.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.trunc_normal_(parameter, std=0.02)

    @classmethod
    def from_reference(
        cls,
        arrays: Mapping[str, Any],
        window: tuple[int, int] | int,
        pretrained: tuple[int, int] | int | None = None,
    ) -> LogCPB:
        """From released weights: cpb_mlp.0.weight, cpb_mlp.0.bias and cpb_mlp.2.weight."""
        names = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight")
        state = {name: need(arrays, f"cpb_{name}") for name in names}
        own = cls(len(state["mlp.2.weight"]), window, pretrained).to(state["mlp.2.weight"].dtype)
        own.load_state_dict(state)
        return own

    def coordinates(self, lag: Tensor) -> Tensor:
        """g of lags (.., 2), in the order query - key.

        In float32 even for a float64 module: released models keep this table in float32, so that their weights give
        their numbers to the last bit. The error is below 2e-7.
        """
        sides = torch.tensor([max(side - 1, 1) for side in self.pretrained], device=lag.device, dtype=torch.float32)
        u = -lag / sides * 8
        return u.sign() * torch.log2(u.abs() + 1) / 3

    def at(self, lag: Tensor) -> Tensor:
        lag = vectors(lag, 2, "LogCPB")
        if lag.numel() == 0:
            return self._network(lag)
        low, high = lag.reshape(-1, 2).amin(0), lag.reshape(-1, 2).amax(0)
        rows, columns = (high - low + 1).tolist()
        if rows * columns >= lag.numel() // 2:
            return self._network(lag)
        # The pairs of a grid share few lags: 512 hidden units for every pair would dwarf the attention itself.
        box = [torch.arange(side, device=lag.device) for side in (rows, columns)]
        table = self._network(torch.stack(torch.meshgrid(*box, indexing="ij"), -1) + low).flatten(1)
        y, x = (lag - low).unbind(-1)
        return table[:, y * columns + x]

    def _network(self, lag: Tensor) -> Tensor:
        return 16 * evaluate(self.mlp, self.coordinates(lag)).sigmoid().movedim(-1, 0)

    def resize(self, window: tuple[int, int] | int) -> LogCPB:
        """A new LogCPB for another window: the same function of the lag, nothing is interpolated."""
        other = copy.deepcopy(self)
        other.window = sides_of("window", window, axes=2)
        return other

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window={self.window}, pretrained={self.pretrained}"
