"""Stochastic encoding by convolution: a learned, finite template of the lag for every feature, on one to three axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from relpos.encodings.base import positive
from relpos.encodings.diagonals import toeplitz
from relpos.encodings.reference import need
from relpos.encodings.transform.spe import SPE, Codes, Noise, check_noise, recomputed, reference_gate
from relpos.positions import Grid, Index, Position, Positions

Cell = tuple[int, ...]
TILE = 64  # positions of one piece of work: the noise around them is drawn, used and forgotten


class ConvSPE(SPE):
    """Multiplies q_d k_d by the correlation of two learned kernels, in expectation: zero from kernel_size tokens on.

        P_d(lag) = sum_p query_kernel_d[p] key_kernel_d[p - lag],     lag = key position - query position
        E[q'_i.k'_j] = sum_d q_id k_jd (gate_d + (1 - gate_d) P_d(lag)),     gate_d = sigmoid(gate)

    Qbar_d(i) = sum_p query_kernel_d[p] Z_d(i + p) of white noise Z, Kbar_d alike: P need not be symmetric.

    heads, dim     number of heads and width of one
    kernel_size    tokens the kernels reach on each axis, one number or one an axis
    axes           1: Index positions, or Grid of one axis; 2 or 3: Grid
    realizations   R, the width of what comes out: the error of a logit falls as 1/R
    gated          a share gate_d of every product ignores positions
    noise          "gaussian" only. Orthogonal noise is refused: dim * kernel vectors meet in every pair of positions,
                   others in each, and making those of one cell orthogonal would take away one part in kernel_size of
                   the error. So is exact: a template that ends is of no finite rank, the features would be as many as
                   dim * length. SineSPE has both
    [query_kernel, key_kernel (heads, dim, *kernel_size), gate (heads, dim)]

    Positions may have gaps, differ by row and come in any order. The noise of a cell follows from the codes' seed and
    the cell alone, so any part of a sequence can be computed by itself: a tile of positions draws the cells under it
    and forgets them, again in the backward pass, and memory is that of the output. Work a token: heads * dim * R *
    (kernel + tile). Differs between devices for one seed.
    Source: Liutkus et al. 2021, eq. 22. The released PyTorch code makes Kbar with conv_q and Qbar with conv_k, the JAX
    code does not; `from_reference` knows. Its codes are (R / dim)^(1/4) times ours.
    """

    takes = (Index, Grid)

    def __init__(
        self,
        heads: int,
        dim: int,
        kernel_size: int | Sequence[int],
        axes: int = 1,
        realizations: int = 64,
        gated: bool = True,
        noise: Noise = "gaussian",
    ) -> None:
        super().__init__(heads, dim, realizations, gated, noise)
        if noise != "gaussian":
            raise ValueError(
                f'ConvSPE takes noise="gaussian": {noise} noise has no finite form for a template that ends (see its '
                "docstring); SineSPE has it"
            )
        if axes not in (1, 2, 3):
            raise ValueError(f"axes is 1, 2 or 3, got {axes!r}")
        sizes = (kernel_size,) * axes if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(sizes) != axes:
            raise ValueError(f"kernel_size is one number or one for each of {axes} axes, got {kernel_size!r}")
        self.axes, self.kernel_size = axes, tuple(positive("kernel_size", size) for size in sizes)
        if axes > 1:
            self.takes, self.on_grid = (Grid,), True  # type: ignore[misc, assignment]
        shape = (heads, dim, *self.kernel_size)
        level = (math.prod(self.kernel_size) / 2) ** -0.5  # P falls in a line from 1/2
        self.query_kernel = nn.Parameter(torch.rand(shape) * level)
        self.key_kernel = nn.Parameter(torch.rand(shape) * level)

    @classmethod
    def from_reference(
        cls,
        arrays: Mapping[str, Any],
        convention: Literal["pytorch", "jax"] = "pytorch",
        heads: int | None = None,
        realizations: int = 64,
    ) -> ConvSPE:
        """From the released package's conv_q.weight and conv_k.weight and, where gated, gate (heads, dim).

        The kernels are (heads, dim, *kernel), or as the package saves them (heads * dim, 1, *kernel): then the heads
        are those of the gate, or must be given. convention: which package made them. PyTorch's conv_q is our key
        kernel, JAX's our query kernel; PyTorch's gate weighs the part without positions, JAX's the other one.
        """
        gate = reference_gate(arrays, convention)
        heads = int(gate.shape[0]) if heads is None and gate is not None else heads
        first, second = (
            _unfolded(need(arrays, f"conv_{side}.weight", f"w_conv_{side}", f"conv_{side}"), heads) for side in "qk"
        )
        sizes = first.shape[2:]
        made = cls(first.shape[0], first.shape[1], tuple(sizes), len(sizes), realizations, gate is not None)
        query, key = (second, first) if convention == "pytorch" else (first, second)
        state = {"query_kernel": query, "key_kernel": key} | ({} if gate is None else {"gate": gate})
        made.to(first.dtype).load_state_dict(state)
        return made

    def codes_from(
        self, noise: Tensor, gating: Tensor | None = None, origin: int | Sequence[int] | None = None
    ) -> Codes:
        """Codes of given white noise (realizations, heads * dim, *lattice), for the positions that it covers.

        origin: the lattice point under position 0; default kernel_size on each axis, as the package has it. Position i
        needs the points i..i+kernel_size-1 behind it. gating (heads, dim, realizations) where there is a gate.
        """
        check_noise("noise", noise, (self.realizations, self.heads * self.dim, *noise.shape[2:]))
        origins = (origin,) * self.axes if isinstance(origin, int) else tuple(origin or self.kernel_size)
        if noise.dim() != 2 + self.axes or len(origins) != self.axes:
            raise ValueError(f"noise and origin have {self.axes} axes, got {tuple(noise.shape)} and {origins}")
        if self.gated:
            check_noise("gating", gating, (self.heads, self.dim, self.realizations))
        lattice = Lattice((self.heads * self.dim, self.realizations), given=noise.movedim(0, -1), origin=origins)
        return Codes(self, lattice, gating, 0, 0)

    def check_positions(self, *positions: Positions) -> None:
        super().check_positions(*positions)
        for position in positions:
            if isinstance(position, Grid) and position.axes != self.axes:
                raise ValueError(f"this ConvSPE has {self.axes} axes, the Grid positions {position.axes}")

    def running(self, n: int, start: int) -> Positions:
        if self.axes == 1:
            return super().running(n, start)
        raise ValueError("cells of a grid have no running number: give the positions, codes.at(Grid.of(height, width))")

    def positional(self, lags: Tensor) -> Tensor:
        if lags.is_floating_point():
            raise TypeError(f"lags are integers on a lattice, got {lags.dtype}")
        if self.axes > 1 and (lags.dim() == 0 or lags.shape[-1] != self.axes):
            raise ValueError(f"lags on {self.axes} axes have shape (.., {self.axes}), got {tuple(lags.shape)}")
        lags = lags.unsqueeze(-1) if self.axes == 1 else lags
        sizes = torch.tensor(self.kernel_size, device=lags.device)
        inside = (lags.abs() < sizes).all(-1)
        index = torch.where(inside.unsqueeze(-1), sizes - 1 - lags, 0)
        at: tuple[Any, ...] = (slice(None), slice(None), *index.unbind(-1))
        return self._correlation()[at] * inside

    def draw(self, generator: torch.Generator | None) -> Lattice:
        where = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**32, (), generator=generator, device=where))
        return Lattice((self.heads * self.dim, self.realizations), seed)

    def mapped(self, x: Tensor, positions: Position, codes: Codes, side: int, dtype: torch.dtype) -> Tensor:
        cells = positions.values if isinstance(positions, Grid) else positions.values.unsqueeze(-1)
        cells = cells.squeeze(0) if cells.dim() == 3 and cells.shape[0] == 1 else cells
        rows = x
        if cells.dim() == 3:  # one long row: the tokens of all sequences meet the same lattice
            rows, cells = x.transpose(0, 1).flatten(1, 2).unsqueeze(0), cells.flatten(0, 1)
        plain, _ = self._shares(dtype)
        kernel = (self.key_kernel if side else self.query_kernel).to(dtype) * self.realizations**-0.5
        if isinstance(plain, Tensor):
            kernel = kernel * plain.view(self.heads, self.dim, *(1,) * self.axes)
        out = self._tiles(rows, cells, kernel, codes.noise)
        if rows is not x:
            out = out.view(self.heads, x.shape[0], x.shape[2], -1).transpose(0, 1)
        gate = self._gate_code(codes, dtype)
        return out if gate is None else out + x @ gate

    def layout(self) -> dict[str, Any]:
        return super().layout() | {"kernel_size": self.kernel_size}

    def _correlation(self) -> Tensor:
        """sum_p query[p] key[p + t - (size - 1)] for t = 0..2 size - 2 on every axis, float64."""
        query, key = (w.to(torch.float64).flatten(0, 1) for w in (self.query_kernel, self.key_kernel))
        around = [size - 1 for size in reversed(self.kernel_size) for _ in (0, 1)]
        convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[self.axes - 1]
        found = convolve(pad(key, around).unsqueeze(0), query.unsqueeze(1), groups=len(query))
        return found.view(self.heads, self.dim, *found.shape[2:])

    def _tiles(self, x: Tensor, cells: Tensor, kernel: Tensor, lattice: Lattice) -> Tensor:
        """(batch, heads, n, realizations) from cells (n, axes), the tokens of one tile of the lattice at a time."""
        if not len(cells):
            return x @ x.new_zeros(self.dim, self.realizations)
        sides = _sides(self.axes)
        _, tile, counts = torch.unique(
            cells // torch.tensor(sides, device=cells.device), dim=0, return_inverse=True, return_counts=True
        )
        order = tile.argsort(stable=True)
        # Tokens that share cells (rows of a batch, documents) are split too, because each gets a copy of its codes.
        sizes = [min(TILE, count - done) for count in counts.tolist() for done in range(0, count, TILE)]
        sorted_already = bool((tile[1:] >= tile[:-1]).all())
        pieces = zip(torch.split(x if sorted_already else x[:, :, order], sizes, 2), torch.split(cells[order], sizes))
        work = partial(self._tile, lattice=lattice)
        run = work if len(sizes) == 1 else partial(recomputed, work)
        out = torch.cat([run(x_t, at, kernel) for x_t, at in pieces], 2)
        return out if sorted_already else out[:, :, order.argsort()]

    def _tile(self, x: Tensor, cells: Tensor, kernel: Tensor, lattice: Lattice) -> Tensor:
        low, high = cells.amin(0), cells.amax(0)
        shape = (high - low + 1).tolist()
        window = [side + size - 1 for side, size in zip(shape, self.kernel_size)]
        noise = lattice.window(low.tolist(), window, x.device).to(x.dtype)  # (heads * dim, *window, realizations)
        last = shape[-1]
        bands = toeplitz(pad(kernel.flatten(0, 1), (last - 1, last - 1)), last)  # (heads * dim, .., last, window)
        codes: Tensor | None = None
        for shift in itertools.product(*(range(size) for size in self.kernel_size[:-1])):
            cut: tuple[Any, ...] = (slice(None), *(slice(s, s + n) for s, n in zip(shift, shape)))
            part = noise[cut]
            first: tuple[Any, ...] = (slice(None), *shift)
            band = bands[first].view(-1, *(1,) * (self.axes - 1), last, window[-1])
            term = band @ part
            codes = term if codes is None else codes + term
        assert codes is not None
        flat = codes.view(self.heads, self.dim, -1, self.realizations)
        strides = torch.tensor([math.prod(shape[a + 1 :]) for a in range(self.axes)], device=cells.device)
        index = ((cells - low) * strides).sum(-1)
        if len(index) != flat.shape[2] or bool((index != torch.arange(len(index), device=index.device)).any()):
            flat = flat[:, :, index]
        return torch.einsum("bhtd,hdtr->bhtr", x, flat)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"


@dataclass(eq=False)
class Lattice:
    """White noise on all integer cells, each cell (heads * dim, realizations) by a seed of its own, or a given part.

    The cells of the last window are kept, because the next one mostly overlaps it.
    """

    cell: tuple[int, int]
    seed: int = 0
    given: Tensor | None = None
    origin: Cell = ()
    _held: dict[Cell, Tensor] = field(default_factory=dict, repr=False)

    def window(self, low: list[int], shape: list[int], device: torch.device) -> Tensor:
        """The noise of the cells low..low+shape-1, (heads * dim, *shape, realizations)."""
        if self.given is not None:
            starts = [a + b for a, b in zip(low, self.origin)]
            for start, side, size in zip(starts, shape, self.given.shape[1:]):
                if start < 0 or start + side > size:
                    raise ValueError(
                        f"the given noise has {size} points on an axis, points {start}..{start + side - 1} are needed"
                    )
            cut = [slice(start, start + side) for start, side in zip(starts, shape)]
            return self.given[:, *cut].to(device)
        held = {at: x for at in _cells(low, shape) if (x := self._held.get(at)) is not None and x.device == device}
        generator = torch.Generator(device)
        for at in _cells(low, shape):
            if at not in held:
                generator.manual_seed(_mixed(self.seed, at))
                held[at] = torch.randn(*self.cell, generator=generator, device=device)
        self._held = held
        return torch.stack([held[at] for at in _cells(low, shape)], 1).view(-1, *shape, self.cell[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": {}}


def _cells(low: list[int], shape: list[int]) -> Iterator[Cell]:
    return itertools.product(*(range(start, start + side) for start, side in zip(low, shape)))


def _mixed(seed: int, cell: Cell) -> int:
    """32 bits (more are cut off by the generator) that differ for all cells of a line."""
    word = seed
    for coordinate in cell:
        word = _mix(word ^ _mix(coordinate & 0xFFFFFFFF))
    return word


def _mix(word: int) -> int:
    """A bijection of 32-bit words that scatters neighbours: xor-shifts and odd factors."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = ((word ^ (word >> shift)) * factor) & 0xFFFFFFFF
    return word ^ (word >> 16)


def _sides(axes: int) -> list[int]:
    """Sides of a tile, the last axis longest."""
    return [1] * (axes - 2) + [2, TILE // 2] if axes > 1 else [TILE]


def _unfolded(weight: Tensor, heads: int | None) -> Tensor:
    """(heads * dim, 1, *kernel) to (heads, dim, *kernel)."""
    if weight.dim() < 3:
        raise ValueError(f"a kernel has shape (heads, dim, *kernel), got {tuple(weight.shape)}")
    if weight.shape[1] != 1 or heads == weight.shape[0]:
        return weight
    if heads is None:
        raise ValueError(f"kernels {tuple(weight.shape)} do not say how many heads they serve: pass heads=")
    if weight.shape[0] % heads:
        raise ValueError(f"{weight.shape[0]} kernels do not divide into {heads} heads")
    return weight.reshape(heads, -1, *weight.shape[2:])
