"""`toeplitz_matmul`: a matrix whose entries depend on the lag alone, times many columns, without the matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relpos.encodings.diagonals import toeplitz
from relpos.kernels.call import Refusal, computing, exactly
from relpos.kernels.linear.band import Band, banded
from relpos.kernels.linear.line import Line
from relpos.kernels.linear.rows import Rows
from relpos.kernels.linear.split import Rectangle, split, transformed
from relpos.kernels.node import JOBS, Given, Job, compute, known_small, wanted
from relpos.kernels.node import transformed as under_transform
from relpos.kernels.triton.call import refusal_of_product
from relpos.positions import is_exporting

METHODS = ("auto", "dense", "band", "fft", "split", "triton")
SMALL = 2**18  # entries a matrix up to which the matrix itself is the quickest


def toeplitz_matmul(
    c: Tensor, x: Tensor, *, causal: bool = False, grid: tuple[int, ...] | None = None, method: str = "auto"
) -> Tensor:
    """y_i = sum_j c[.., j - i + n_q - 1] x_j: the product with a Toeplitz matrix, in memory linear in its sides.

    c (.., n_q + n_k - 1), one number a lag (key - query), and x (.., n_k, width); leading axes broadcast. The number of
    queries follows from both: n_q = c's length + 1 - n_k, and is 0 where both are empty. Returns (.., n_q, width) in
    the dtype of x; sums run in float64 where c or x is, else in float32. The gradient to c and x is defined once
    (twice with "dense"); the gradient of a forbidden lag is exactly 0.

    causal  queries sit at the end, query i at key i + n_k - n_q, and keys after it are left out: with every method but
            "fft" they have no influence at all, not even where they hold NaN or 1e300
    grid    (height, width) or (frames, height, width): the tokens are all cells in row-major order,
            c (.., [2 frames - 1,] 2 height - 1, 2 width - 1) with index lag + side - 1 an axis, and x has
            height * width rows. causal is then the order of the tokens: row-major
    method  "dense"  the definition: O(n^2) time and memory
            "band"   O(n): c is constant beyond some lag on either side, exactly; running sums do the rest. Refused
                     where c wants a gradient, since then every lag of the tail wants its own
            "fft"    one zero-padded FFT, O(n log n): errors are in proportion to the largest entry of c and x wherever
                     it stands, and in a causal product that includes the future
            "split"  lags near 0 directly, FFT for the rest; a causal product is cut into rectangles of past keys
                     and later queries, O(n log^2 n). On a grid "near" is the query's own row and those next to it
            "triton" O(n^2) time, O(n) memory: tiles of the matrix read from c, multiplied on the tensor's CUDA device;
                     float32. Two runs give the same bits, gradients included
            "auto"   the quickest of dense, band and split by size; never fft or triton

    Raises ValueError or TypeError for shapes, types and methods that do not fit.
    Source: Luo et al. 2021, eq. 11-13 (the FFT); Choromanski et al. 2022, arXiv 2107.07999 (grids).
    """
    _check(c, x, method)
    sides = _sides(grid, c, x)
    axes = 1 if sides is None else len(sides)
    try:
        lead = torch.Size(torch.broadcast_shapes(c.shape[:-axes], x.shape[:-2]))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"the leading axes of c, {tuple(c.shape[:-axes])}, and of x, {tuple(x.shape[:-2])}, do not broadcast"
        ) from None
    dtype = computing(torch.promote_types(c.dtype, x.dtype))
    with exactly(x):
        generator, columns, restore = _flat(c.to(dtype).flatten(-axes), x.to(dtype), lead)
        return restore(_traced(generator, columns, sides, causal, method)).to(x.dtype)


KIND = "toeplitz_matmul"


def _traced(c: Tensor, x: Tensor, sides: tuple[int, ...] | None, causal: bool, method: str) -> Tensor:
    """(heads, n_q, columns), as one node where values may not be looked at: `auto` reads its method off c."""
    if not wanted():
        return run(_product(c, x, sides, causal), method)
    if is_exporting() or under_transform():
        product = _product(c, x, sides, causal)
        if method == "dense" or (method == "auto" and known_small(product.n_q, product.n_k, SMALL)):
            return dense(product)
    words = {"method": method, "causal": str(causal), "sides": " ".join(map(str, sides or ()))}
    return compute(KIND, Given({"c": c, "x": x}, words=words))[0]


def _product_of(given: Given) -> Product:
    sides = tuple(int(side) for side in given.words["sides"].split())
    return _product(given.tensors["c"], given.tensors["x"], sides or None, given.words["causal"] == "True")


def _shapes(given: Given) -> tuple[Tensor]:
    c, x = given.tensors["c"], given.tensors["x"]
    n_q = x.shape[1] if given.words["sides"] else _queries(c, x.shape[1])
    return (x.new_empty(x.shape[0], n_q, x.shape[2]),)


@dataclass(frozen=True)
class Product:
    """c (heads, lags) against x (heads, n_k, columns).

    near  lags on either side that "split" takes directly, None for its own choice
    line  where the tokens stand, one place a row of x, if that is not 0, 1, 2, ...; c then belongs to the places
    """

    c: Tensor
    x: Tensor
    n_q: int
    offset: int
    causal: bool
    near: int | None = None
    line: Line | None = None

    @property
    def n_k(self) -> int:
        return self.x.shape[1]

    def forbidden(self) -> Tensor:
        lag = torch.arange(self.c.shape[1], device=self.c.device) - (self.n_q - 1) - self.offset
        return lag > 0

    def tokens(self) -> tuple[Tensor, Tensor, Rows]:
        """Queries and keys of a linear attention in which all products are 1."""
        heads = self.c.shape[0]
        return self.x.new_ones(1, heads, self.n_q, 1), self.x.new_ones(1, heads, self.n_k, 1), Rows(None)


def _queries(c: Tensor, n_k: int) -> int:
    return c.shape[1] + 1 - n_k if c.shape[1] or n_k else 0


def _product(c: Tensor, x: Tensor, sides: tuple[int, ...] | None, causal: bool) -> Product:
    if sides is not None:
        line = Line.of_grid(sides, x.device)
        return Product(c, x, x.shape[1], 0, causal, line=line)
    n_k = x.shape[1]
    n_q = _queries(c, n_k)
    return Product(c, x, n_q, n_k - n_q, causal)


def run(product: Product, method: str) -> Tensor:
    """(heads, n_q, columns)"""
    if 0 in (product.n_q, *product.x.shape):
        shape = (product.x.shape[0], product.n_q, product.x.shape[2])
        return product.x.new_zeros(shape) + product.x[..., :0].sum() + product.c[..., :0].sum()
    chosen = DIRECT[pick(product, method)]
    y = chosen(product)
    if not product.causal or bool(torch.isfinite(y.detach().sum())):
        return y
    bad = ~torch.isfinite(product.x)
    after = torch.arange(product.n_q, device=bad.device) + product.offset  # the last key that each query sees
    met = bad.cummax(1).values[:, after.clamp(min=0)] & (after >= 0)[:, None]
    y = chosen(replace(product, x=product.x.masked_fill(bad, 0)))  # 0 * NaN is NaN, so what is not seen is taken out
    return y.masked_fill(met, torch.nan)


JOBS[KIND] = Job(lambda given: (run(_product_of(given), given.words["method"]),), _shapes)


def pick(product: Product, method: str) -> str:
    if method == "band":
        why = _no_band(product)
        if why is not None:
            raise Refusal(f'method "band" cannot serve this product: {why}; "split" takes any c')
    if method == "triton":
        why = refusal_of_product(product.c, product.x)
        if why is not None:
            raise Refusal(f'method "triton" cannot serve this product: {why}; "split" takes any')
    if method != "auto":
        return method
    if product.n_q * product.n_k <= SMALL:
        return "dense"
    if _no_band(product) is None and 4 * reach_of(product)[0] <= product.n_k:
        return "band"
    return "split"


def dense(product: Product) -> Tensor:
    if product.line is None:
        c = product.c.masked_fill(product.forbidden(), 0) if product.causal else product.c
        return toeplitz(c, product.n_q) @ product.x
    place = product.line.keys
    matrix = product.c[:, place - place[:, None] + place[-1]]
    return (matrix.tril() if product.causal else matrix) @ product.x


def band(product: Product) -> Tensor:
    c, n_q, n_k = product.c, product.n_q, product.n_k
    reach, middle = reach_of(product)
    index = torch.arange(middle - reach, middle + reach + 1, device=c.device)
    near = c[:, index.clamp(0, c.shape[1] - 1)]
    if product.causal:
        near = near.masked_fill(index >= n_k, 0)
    q, k, phi = product.tokens()
    weights = Band(near, reach, None)
    return banded(q, k, product.x[None], weights, phi, middle - n_q + 1, product.causal)[0].squeeze(0)


def fft(product: Product) -> Tensor:
    c = product.c.masked_fill(product.forbidden(), 0) if product.causal else product.c
    q, k, phi = product.tokens()
    return transformed(q, k, product.x[None], c, phi, [Rectangle(0, product.n_q, 0, product.n_k)])[0]


def free(product: Product) -> Tensor:
    q, k, phi = product.tokens()
    return split(q, k, product.x[None], product.c, phi, product.offset, product.causal, product.near)[0]


def tiled(product: Product) -> Tensor:
    from relpos.kernels.triton.toeplitz_matmul import multiply

    return multiply(product.c, product.x, product.n_q, product.offset, product.causal)


def _on_line(method: Callable[[Product], Tensor]) -> Callable[[Product], Tensor]:
    """A method for consecutive tokens, for tokens with gaps between them: a gap is a token that is 0."""

    def laid_out(product: Product) -> Tensor:
        line = product.line
        if line is None:
            return method(product)
        x = line.spread(product.x, line.keys, line.n_k)
        whole = replace(product, x=x, n_q=line.n_q, offset=line.offset, near=line.near, line=None)
        return method(whole)[:, line.queries]

    return laid_out


DIRECT: dict[str, Callable[[Product], Tensor]] = {
    "dense": dense,
    "band": band,
    "fft": _on_line(fft),
    "split": _on_line(free),
    "triton": _on_line(tiled),
}


def reach_of(product: Product) -> tuple[int, int]:
    """The smallest reach, in lags, beyond which c is constant on either side, and the index of the lag in between.

    A causal product counts from the query's own place, and its keys lie on one side.
    """
    c = product.c.detach()
    count = c.shape[1]
    left = _run(c == c[:, :1]) - 1  # last index of the constant part on the left
    if product.causal:
        own = product.n_k - 1
        return max(own - left, 0), own
    right = count - _run((c == c[:, -1:]).flip(-1))  # first index of the one on the right
    middle = (left + right) // 2
    return max(right - middle, 0), middle


def _run(equal: Tensor) -> int:
    """How many of the first entries are True in every row."""
    return int(equal.all(0).long().cumprod(0).sum())


def _no_band(product: Product) -> str | None:
    if product.line is not None:
        return "on a grid no tail of c is constant for long"
    if product.c.requires_grad and torch.is_grad_enabled():
        return "c wants a gradient, and every lag of a constant tail wants its own"
    reach, middle = reach_of(product)
    if reach and (reach >= middle if product.causal else 2 * reach + 1 >= product.c.shape[1]):
        return "c is not constant beyond any lag"
    return None


def _flat(c: Tensor, x: Tensor, lead: torch.Size) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """c (heads, lags), x (heads, n_k, columns), and the way back from (heads, n_q, columns).

    Leading axes along which c is one and the same join the columns: one matrix times more columns.
    """
    sizes = (1,) * (len(lead) + 1 - c.dim()) + tuple(c.shape[:-1])
    own = next((axis for axis, size in enumerate(sizes) if size != 1), len(lead))
    batch, heads, width = math.prod(lead[:own]), math.prod(lead[own:]), x.shape[-1]
    generator = c.reshape(*sizes[own:], c.shape[-1]).expand(*lead[own:], c.shape[-1]).reshape(heads, c.shape[-1])
    columns = x.expand(*lead, *x.shape[-2:]).reshape(batch, heads, x.shape[-2], width)
    columns = columns.permute(1, 2, 0, 3).reshape(heads, x.shape[-2], batch * width)

    def restore(y: Tensor) -> Tensor:
        return y.reshape(heads, y.shape[1], batch, width).permute(2, 0, 1, 3).reshape(*lead, y.shape[1], width)

    return generator, columns, restore


def _check(c: object, x: object, method: object) -> None:
    for name, tensor, least, form in (("c", c, 1, "(.., n_q + n_k - 1)"), ("x", x, 2, "(.., n_k, width)")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a tensor {form}, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} holds real floating-point numbers, got {tensor.dtype}")
        if tensor.dim() < least:
            raise ValueError(f"{name} has the shape {form}, got {tuple(tensor.shape)}")
    assert isinstance(c, Tensor) and isinstance(x, Tensor)
    if c.device != x.device:
        raise ValueError(f"c is on {c.device} and x on {x.device}; move one of them")
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")


def _sides(grid: object, c: Tensor, x: Tensor) -> tuple[int, ...] | None:
    if grid is None:
        if c.shape[-1] + 1 < x.shape[-2]:
            raise ValueError(
                f"c holds {c.shape[-1]} lags, too few for {x.shape[-2]} keys: n_q queries have n_q + n_k - 1 lags"
            )
        return None
    sides = tuple(grid) if isinstance(grid, tuple | list) else ()
    if len(sides) not in (2, 3) or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides):
        raise ValueError(f"grid is (height, width) or (frames, height, width), integers of at least 1; got {grid!r}")
    wanted = tuple(2 * side - 1 for side in sides)
    if tuple(c.shape[-len(sides) :]) != wanted:
        raise ValueError(
            f"a grid of {sides} needs c of shape (.., {', '.join(map(str, wanted))}), got {tuple(c.shape)}"
        )
    if x.shape[-2] != math.prod(sides):
        raise ValueError(f"a grid of {sides} has {math.prod(sides)} cells; x holds {x.shape[-2]} rows")
    return sides
