"""Stochastic positional encoding: what SineSPE and ConvSPE share, which is the gate, the draws and the contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from relpos.encodings.base import Transform, check_heads, positive
from relpos.encodings.reference import find
from relpos.encodings.transform.shared import as_heads
from relpos.positions import Position, Positions, as_positions

Noise = Literal["gaussian", "orthogonal", "exact"]
NOISES = ("gaussian", "orthogonal", "exact")


@dataclass(eq=False)
class Codes:
    """One draw: all that is random in a stochastic encoding, and nothing that is learned.

    The same object for queries, keys, every chunk of a stream, and every layer that shall share the noise: a layer
    applies its own parameters to it. Serves any positions, drawn ahead or not; equal seeds give equal numbers.

    owner          the encoding that drew it, whose parameters `at` uses
    noise          SineSPE: standard normal (heads, dim, 2 sines, realizations), in the order cos_0, sin_0, cos_1, ..;
                   ConvSPE: a `relpos.encodings.transform.conv_spe.Lattice`; None where noise="exact"
    gating         standard normal (heads, dim, realizations), None where there is no gate
    n_q, n_k, offset   what `sample` was asked for: the positions that `at` takes where it is given none
    """

    owner: SPE
    noise: Any
    gating: Tensor | None
    n_q: int
    n_k: int
    offset: int = 0

    def at(self, positions: object = None) -> tuple[Tensor, Tensor]:
        """The codes of every feature, q side and k side: two tensors (heads, n, dim, width).

        Their product summed over the width estimates the template, 1/realizations included:
        E sum_r q_side[h, i, d, r] k_side[h, j, d, r] = template[h, d, j - i]. Attention never forms these; they are
        to be looked at. positions as in `relpos.attention`; None: the ones sampled, offset..offset+n-1.
        """
        if positions is not None:
            n = len(positions) if isinstance(positions, Position | Sequence) else torch.as_tensor(positions).shape[0]
            given = as_positions(positions, n, 0, "positions", self.owner.device, grid=self.owner.on_grid)
            sides: list[Positions] = [given, given]
        else:
            sides = [self.owner.running(n, self.offset) for n in (self.n_q, self.n_k)]
        found = [self.owner.materialise(self, pos, side) for side, pos in enumerate(sides)]
        return found[0], found[1]


class SPE(Transform):
    """Base of the stochastic encodings: q'_i.k'_j estimates sum_d q_id k_jd P_d(j - i), before any feature map.

    q' = sum_d q_d Qbar_d / sqrt(R), k' likewise, with Gaussian codes E Qbar_d(i) Kbar_d(j) = P_d(j - i). A subclass
    gives `positional`, `draw` and `mapped`.
    """

    side = "before"
    extrapolates = True
    learned = True
    on_grid: bool = False
    gate: nn.Parameter | None
    reference = """@inproceedings{liutkus2021relative,
  title={Relative Positional Encoding for {Transformers} with Linear Complexity},
  author={Liutkus, Antoine and C{\\'i}fka, Ond{\\v{r}}ej and Wu, Shih-Lun and {\\c{S}}im{\\c{s}}ekli, Umut and
    Yang, Yi-Hsuan and Richard, Ga{\\"e}l},
  booktitle={ICML}, year={2021}}"""

    def __init__(self, heads: int, dim: int, realizations: int, gated: bool, noise: Noise) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"noise is one of {', '.join(NOISES)}, got {noise!r}")
        self.heads, self.dim = check_heads(heads), positive("dim", dim)
        self.realizations, self.gated, self.noise = positive("realizations", realizations), bool(gated), noise
        self.register_parameter("gate", nn.Parameter(torch.randn(heads, dim)) if gated else None)

    # ---- what a subclass gives

    def positional(self, lags: Tensor) -> Tensor:
        """The template without its gate, float64 (heads, dim, lags)."""
        raise NotImplementedError

    def draw(self, generator: torch.Generator | None) -> Any:
        """Fresh noise for the positions."""
        raise NotImplementedError

    def mapped(self, x: Tensor, positions: Position, codes: Codes, side: int, dtype: torch.dtype) -> Tensor:
        """sum_d x_d code_d, (batch, heads, n, width) in dtype, from x (batch, heads, n, dim); side 0 is q's, 1 k's."""
        raise NotImplementedError

    def running(self, n: int, start: int) -> Positions:
        """The positions start..start+n-1."""
        return as_positions(None, n, start, "positions", self.device)

    # ---- public

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def template(self, lags: object) -> Tensor:
        """What multiplies q_d k_d at each lag = key position - query position, in closed form: (heads, dim, lags).

            gate_d + (1 - gate_d) P_d(lag),   gate_d = sigmoid(gate[h, d]) the share that ignores positions

        lags: integers (or, for SineSPE, reals), on several axes (lags, axes). In the dtype of the parameters.
        """
        given = torch.as_tensor(lags, device=self.device)
        found = self.positional(given)
        if self.gate is not None:
            share = self.gate.to(torch.float64).sigmoid().view(self.heads, self.dim, *(1,) * (found.dim() - 2))
            found = share + (1 - share) * found
        return found.to(next(self.parameters()).dtype)

    def sample(
        self, n_q: int, n_k: int | None = None, offset: int = 0, generator: torch.Generator | None = None
    ) -> Codes:
        """Draws codes, for queries offset..offset+n_q-1 and keys offset..offset+n_k-1 and for any other position.

        generator makes the draw reproducible, gate included; the numbers do not depend on the lengths, so codes drawn
        alike with another offset or length agree wherever both have an entry. Always fresh, in eval() too: pass one
        object where two calls are to agree.
        """
        n_k = n_q if n_k is None else n_k
        for name, n in (("n_q", n_q), ("n_k", n_k)):
            if not isinstance(n, int) or n < 0:
                raise ValueError(f"{name} is a number of tokens, got {n!r}")
        if self.noise == "exact":
            return Codes(self, None, None, n_q, n_k, offset)
        noise, gating = self._drawn(generator)
        return Codes(self, noise, gating, n_q, n_k, offset)

    def make_codes(self, q_pos: Positions, k_pos: Positions, generator: torch.Generator | None = None) -> Codes:
        self.check_positions(q_pos, k_pos)
        return self.sample(len(q_pos), len(k_pos), 0, generator)

    def width_after(self, dim: int) -> int:
        return self.realizations

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._encode(q, q_pos, codes, 0)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return self._encode(k, k_pos, codes, 1)

    def materialise(self, codes: Codes, positions: Positions, side: int) -> Tensor:
        """The code of every feature, (heads, n, dim, width): what unit vectors are mapped to."""
        one_hot = torch.eye(self.dim, dtype=next(self.parameters()).dtype, device=self.device)
        x = one_hot.view(self.dim, 1, 1, self.dim).expand(-1, self.heads, len(positions), -1)
        return self._encode(x, positions, codes, side).permute(1, 2, 0, 3)

    # ---- shared work

    def _drawn(self, generator: torch.Generator | None) -> tuple[Any, Tensor | None]:
        noise = self.draw(generator)
        return noise, self._normal((self.heads, self.dim, self.realizations), generator) if self.gated else None

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return normal(shape, generator, self.device)

    def _shares(self, dtype: torch.dtype) -> tuple[Tensor | float, Tensor | None]:
        """sqrt(1 - gate) and sqrt(gate), (heads, dim); by logarithms, because sqrt has no gradient at 0."""
        if self.gate is None:
            return 1.0, None
        raw = self.gate.to(torch.float64)
        plain, through = (0.5 * logsigmoid(sign * raw) for sign in (-1, 1))
        return plain.exp().to(dtype), through.exp().to(dtype)

    def _gate_code(self, codes: Codes, dtype: torch.dtype) -> Tensor | None:
        """The part of the codes that is the same at every position, (heads, dim, realizations)."""
        _, through = self._shares(torch.float64)
        if through is None or codes.gating is None:
            return None
        code: Tensor = through.unsqueeze(-1) * codes.gating.to(torch.float64) * self.realizations**-0.5
        return code.to(dtype)

    def _encode(self, x: Tensor, positions: Positions, codes: Any, side: int) -> Tensor:
        self.check_positions(positions)
        assert isinstance(positions, Position)
        name = type(self).__name__
        if x.shape[-1] != self.dim:
            raise ValueError(f"{name} was built for heads of width {self.dim}, got {x.shape[-1]}")
        codes = self._checked(codes)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.mapped(as_heads(x, self.heads, name).to(dtype), positions, codes, side, dtype).to(x.dtype)

    def _checked(self, codes: Any) -> Codes:
        name = type(self).__name__
        if codes is None and self.noise == "exact":
            return Codes(self, None, None, 0, 0)
        if codes is None:
            raise ValueError(
                f"{name} is random and both sides need the same draw: codes = encoding.sample(n_q, n_k), passed to "
                "encode_q and encode_k"
            )
        if not isinstance(codes, Codes):
            raise TypeError(f"{name} takes the codes that its sample() makes, got {type(codes).__name__}")
        if codes.owner is not self and codes.owner.layout() != self.layout():
            raise ValueError(f"{name} {self.layout()} got codes of {type(codes.owner).__name__} {codes.owner.layout()}")
        if self.gated and self.noise != "exact" and codes.gating is None:
            raise ValueError("this layer has a gate and the codes hold no gating noise; let a gated layer draw them")
        return codes

    def layout(self) -> dict[str, Any]:
        """What two encodings must have in common to share codes."""
        exact = self.noise == "exact"
        return {"heads": self.heads, "dim": self.dim, "realizations": None if exact else self.realizations}

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, dim={self.dim}, realizations={self.realizations}, gated={self.gated}, "
            f"noise={self.noise!r}"
        )


def normal(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal numbers, float64 whatever the module is cast to, so that one seed means one draw."""
    where = "cpu" if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=where).to(device)


def frame(batch: int, rows: int, columns: int, normal: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """Random F (batch, rows, columns), uniform under rotation, with E[F F'] = columns * identity.

    For columns >= rows the rows are orthogonal, so that F F' is that identity itself; below it the columns are.
    """
    long, short = max(rows, columns), min(rows, columns)
    turned: Tensor
    turned, upper = torch.linalg.qr(normal((batch, long, short)))
    turned = turned * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2) * math.sqrt(long)  # else not uniform
    return turned if rows == long else turned.mT.contiguous()


def reference_gate(arrays: Mapping[str, Any], convention: str) -> Tensor | None:
    """The gate's parameter in our sense; sigmoid(-x) = 1 - sigmoid(x)."""
    if convention not in ("pytorch", "jax"):
        raise ValueError(f'convention is "pytorch" or "jax", the package that made the arrays, got {convention!r}')
    gate = find(arrays, "gate", "gate_raw")
    return gate if gate is None or convention == "pytorch" else -gate


def check_noise(name: str, given: Tensor | None, want: tuple[int, ...]) -> None:
    if not isinstance(given, Tensor) or tuple(given.shape) != want:
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{name} is noise of shape {want}, got {got}")


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), keeping nothing of its inside for the backward pass, which runs it again.

    Gradients reach the tensors given and nothing else that function reads. May be differentiated twice. (torch's own
    checkpoint loads its compiler at the first call: 3 seconds and 100 MB.)
    """
    return cast(Tensor, _Recomputed.apply(function, *tensors))  # type: ignore[no-untyped-call]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases, so that one tensor made from another keeps its gradient apart, and a graph leads on from both.
            inputs = [t.view_as(t) if t.requires_grad else t for t in ctx.saved_tensors]
            out = ctx.function(*inputs)
        wanted = [t for t in inputs if t.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grads[0], create_graph=twice))
        return None, *(next(found) if t.requires_grad else None for t in inputs)
