"""Causal Toeplitz-weighted sums, one token (or chunk) after the other, exactly: what decodes kernelised attention.

    y_i = sum_{j <= i} c_{i-j} (fq_i . fk_j) x_j,        c_D = exp(b_D - M),   b_D the bias of the key D tokens back

fq (batch, heads, t, m), fk (batch, kv_heads, t, m), x (batch, kv_heads, t, w); kv_heads divides heads. M keeps c at or
below 1 for each head and may grow from step to step, so a result is known up to a positive factor a row and head:
ratios of two columns of x are what is exact. A query never meets a later token: causal by construction.

| class      | for                                | a step of one token           | keeps                         |
|------------|------------------------------------|-------------------------------|-------------------------------|
| `BandSums` | b a straight line beyond a reach R | O(R (m + w) + m w), flat in n | 3 R rows, one m x w sum       |
| `FreeSums` | any b                              | O(m w log^2 n) on average     | n rows, and see its docstring |

A bias of pairs, without a generator, is read row by row (`cached.PairSums`).

Sources: running sums of linear attention, Katharopoulos et al. 2020, eq. 18; relaxed multiplication, van der Hoeven
2002 (J. Symbolic Computation 34), as used for decoding by FutureFill (Agarwal et al. 2024) and Flash Inference
(Oncescu et al. 2025). There the future of a row is a vector; here the query's features are not known in advance, so
it is an m x w matrix a row and head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from relpos.encodings.base import Tail
from relpos.encodings.diagonals import toeplitz
from relpos.kernels import future
from relpos.kernels.cached import Rows, peak_of, weighted
from relpos.kernels.call import computing

Logs = Callable[[int], Tensor]  # n to (heads or 1, n): the bias of the keys 0, 1, .., n - 1 tokens back

CROSSOVER = 8192  # tokens; below, reading every cached row is cheaper than preparing what future rows will need
MEMORY = 2**27  # bytes of prepared future a stream
ROOM = 2**22  # scores held at once while a chunk is worked off
SHORTEST, LONGEST = 64, 1024  # tokens of a block of free sums
BATCHED = 64  # rows that are moved into a running sum at once, at least
SUNK = 40.0  # nats that a row's own key may lie below the largest weight before float32 loses it
DEEPEST = 600.0  # before float64 does
LEAK = {torch.float32: 3.0, torch.float64: 9.0}  # the same for an FFT, whose errors are relative to its largest weight


class OnlineSums:
    """What the two generators share: chunks in pieces, the weights of near rows, widening to float64."""

    def __init__(self, logs: Logs) -> None:
        self.logs = logs
        self.length = 0
        self.work = 0  # multiply-adds so far over batch and heads; an FFT of length N counts 2.5 N log2 N a column
        self.rows = Rows()
        self.wide = False  # float32 inputs are summed in float64
        self.masked = False  # set by who masks rows (zeros in fk and x): see FreeSums
        self._spread = 0.0  # nats from a row's own key up to the largest weight, worst head
        self._cached: Tensor | None = None

    def step(self, fq: Tensor, fk: Tensor, x: Tensor) -> Tensor:
        """y of t new tokens, (batch, heads, t, w), in float64 where float32 could not hold how small c is."""
        t = fq.shape[2]
        self._know(self.length + t)  # first: where the bias refuses a lag, no trace is left
        fq, fk, x = (self._widened(z) for z in (fq, fk, x))
        done, parts = 0, []
        while done < t:
            size = min(t - done, self._room(fq, x))
            parts.append(self._piece(*(z.narrow(2, done, size) for z in (fq, fk, x))))
            done += size
        return torch.cat(parts, 2) if parts else x.new_zeros(*fq.shape[:3], x.shape[-1])

    def reorder(self, rows: Tensor) -> None:
        """Keeps the given batch rows in this order."""
        self._apply(lambda held: held.index_select(0, rows))

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self.rows.apply(change)

    def _widened(self, x: Tensor) -> Tensor:
        return x.double() if self.wide else x.to(computing(x.dtype))

    def _widen(self) -> None:
        if not self.wide:
            self.wide = True
            self._apply(lambda held: held.double())

    def _measure(self, logs: Tensor, peak: Tensor, enough: float) -> None:
        """How far a row's own key, which it always has, may lie below the largest weight; float64 beyond `enough`."""
        self._spread = float((peak - logs.detach()[:, 0]).max())
        if DEEPEST < self._spread < math.inf:
            raise ValueError(
                f"a bias that rises {self._spread:.0f} nats above that of lag 0 cannot be summed as it goes, "
                f"{DEEPEST:.0f} is the most; the softmax stream takes any"
            )
        if self._spread > enough:
            self._widen()

    def _near(self, fq: Tensor, start: int, c: Tensor) -> Tensor:
        """Rows of the newest t tokens against what is cached from `start` on; c as `_in_order` returns it."""
        fk, x = (z.narrow(2, start, len(self.rows) - start) for z in self.rows.view())
        (batch, heads, t, m), n = fq.shape, fk.shape[2]
        self.work += batch * heads * t * n * (m + x.shape[-1])
        middle = c.shape[-1] // 2
        c = c.narrow(-1, middle - n + 1, n + t - 1).to(fq.dtype)
        return weighted(fq, fk, x, c.unsqueeze(-2) if t == 1 else toeplitz(c, t))

    def _in_order(self, c: Tensor) -> Tensor:
        """c_D, D = 0..n-1, by lag -(n-1)..n-1: zero for keys to come."""
        return torch.cat([c.flip(-1), c.new_zeros(c.shape[0], c.shape[1] - 1)], -1)

    def _know(self, need: int) -> None:
        raise NotImplementedError

    def _room(self, fq: Tensor, x: Tensor) -> int:
        raise NotImplementedError

    def _piece(self, fq: Tensor, fk: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class BandSums(OnlineSums):
    """Sums for a bias that is a straight line beyond a reach: constant time and memory a token.

    The newest R to 2 R rows (R + 64 for a short reach) are read as they are, from a buffer of fixed size; older ones
    live in one float64 sum a head,

        S = sum_{j < s} exp(-rate (s - 1 - j)) fk_j x_j^T,   counted in row i with exp(b_R - M - rate (i - s + 1 - R)),

    into which rows move in batches, so that a step is two small matrix products and, now and then, a third.
    In gradient mode everything is differentiable, the bias included; the rates are constants (see `Tail`).
    """

    def __init__(self, logs: Logs, tail: Tail) -> None:
        super().__init__(logs)
        self.reach = tail.reach
        rates = torch.zeros(1) if tail.rates is None else tail.rates[:, 0]
        self.rates = rates.detach().double().view(-1, 1)
        self.batched = max(self.reach, BATCHED)
        self.rows = Rows(self.reach + 2 * self.batched)
        self.state: Tensor | None = None  # (batch, heads, m, w), float64
        self.absorbed = 0
        self._last: Tensor | None = None

    def _know(self, need: int) -> None:
        if self._cached is not None and not (torch.is_grad_enabled() or self._cached.requires_grad):
            return
        logs = self.logs(self.reach + 1).double()
        self.rates = self.rates.to(logs.device)
        peak = peak_of(logs)
        self._measure(logs, peak, SUNK)
        logs = logs - peak.unsqueeze(-1)
        self._last = logs[:, -1:]
        beyond = torch.arange(1, 2 * self.batched + 1, dtype=torch.float64, device=logs.device)
        line = self._last - self.rates * beyond
        self._cached = self._in_order(torch.cat([logs.expand(len(line), -1), line], -1).exp())

    def _room(self, fq: Tensor, x: Tensor) -> int:
        return self.batched

    def _piece(self, fq: Tensor, fk: Tensor, x: Tensor) -> Tensor:
        assert self._cached is not None
        self.rows.append(fk, x)
        y = self._near(fq, 0, self._cached)
        if self.state is not None:
            y = y + self._far(fq, self.state)
        self.length += fq.shape[2]
        if len(self.rows) >= self.reach + self.batched:
            self._absorb(len(self.rows) - max(self.reach - 1, 0), fq.shape[1])
        return y

    def _far(self, fq: Tensor, state: Tensor) -> Tensor:
        assert self._last is not None
        batch, heads, t, m = fq.shape
        self.work += batch * heads * t * m * state.shape[-1]
        beyond = torch.arange(t, dtype=torch.float64, device=fq.device) + self.length - self.absorbed + 1 - self.reach
        factor = (self._last - self.rates * beyond).exp().unsqueeze(-1)
        return ((fq.double() @ state) * factor).to(fq.dtype)

    def _absorb(self, count: int, heads: int) -> None:
        fk, x = (z.narrow(2, 0, count).double() for z in self.rows.view())
        batch, kv_heads, _, m = fk.shape
        back = torch.arange(count - 1, -1, -1, dtype=torch.float64, device=fk.device)
        decay = (-self.rates * back).exp().expand(heads, -1).view(kv_heads, heads // kv_heads, count, 1)
        added = (fk.unsqueeze(2) * decay).transpose(-1, -2) @ x.unsqueeze(2)
        added = added.view(batch, heads, m, x.shape[-1])
        self.work += batch * heads * count * m * x.shape[-1]
        held = 0 if self.state is None else self.state * (-self.rates * count).exp().unsqueeze(-1)
        self.state = held + added
        self.rows.drop(count)
        self.absorbed += count

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._apply(change)
        self.state = None if self.state is None else change(self.state)


class FreeSums(OnlineSums):
    """Sums for any bias of the lag: exact, in O(n log^2 n) multiply-adds for n tokens and each of m w columns.

    Up to `crossover` tokens a step reads every cached row, O(n (m + w)). Beyond, a row reads the cache of its own
    block only; what all earlier tokens owe to it has been prepared: whenever t tokens are complete, t a multiple of
    the block, the newest 2^k tokens (the largest power of two that divides t) are convolved with c for the 2^k rows
    that follow (`future.prepare`, one FFT a column).

    Memory: the cache, n (m + w) numbers a kv head, and the prepared rows, m w numbers each and head, as many as the
    largest 2^k in use: n / 2 without a bound. `memory` bytes bound them: larger steps of the schedule are taken in
    slabs of that many rows, each from the whole past, which costs O(n^2 / slab log slab) instead of n log^2 n for that
    part; at n = 16 slabs about twice the FFTs.

    FFT errors are relative to the largest weight of a block. So float32 is widened to float64 where a row's own key
    lies more than 3 nats below the largest weight; where it is more than 9, blocks are cut so that no row is computed
    beside a weight of a lag that it has not got (`future.staircase`); and with a key mask as well, which may hide the
    large ones, the cache is read directly at every length.

    In gradient mode, too, the cache is read directly. A bias that refuses lags is asked for those it has.
    """

    def __init__(self, logs: Logs, *, block: int | None = None, crossover: int | None = None, memory: int = MEMORY):
        super().__init__(logs)
        if block is not None and (block < 2 or block & (block - 1)):
            raise ValueError(f"block is a power of two of at least 2, got {block}")
        self.block, self.crossover, self.memory = block or 0, CROSSOVER if crossover is None else crossover, memory
        self.slab = 0
        self.future: Tensor | None = None  # (batch, heads, m, w, rows), of rows self.start and on
        self.start = 0
        self._current: Tensor | None = None  # (batch, heads, block, m, w), of the block that is being filled
        self._known = 0
        self._end: int | None = None  # lags that the bias has, where it refuses more
        self._c = torch.empty(0)
        self._peak: Tensor | None = None

    def _read_directly(self) -> bool:
        return torch.is_grad_enabled() or (self.masked and self._spread > LEAK[torch.float64])

    def _know(self, need: int, ahead: int = 0) -> None:
        if self._read_directly():
            self.future = self._current = None
        if torch.is_grad_enabled():
            self._weigh(self.logs(need))
            self._known = 0  # the next step without gradient asks for itself
            return
        if max(need, ahead if self._end is None else min(ahead, self._end)) > self._known:
            self._weigh(self._ask(need, max(64, 1 << (max(need, ahead) - 1).bit_length())))

    def _ask(self, need: int, ahead: int) -> Tensor:
        """The bias of the lags up to `ahead`, or of all there are; its own ValueError where `need` is refused."""
        if self._end is None:
            try:
                return self.logs(ahead)
            except ValueError:
                pass
            low, high = need, ahead
            found = self.logs(need)
            while high - low > 1:
                middle = (low + high) // 2
                try:
                    found, low = self.logs(middle), middle
                except ValueError:
                    high = middle
            self._end = low
            return found
        return self.logs(need if need > self._end else self._end)

    def _weigh(self, logs: Tensor) -> None:
        logs = logs.double()
        peak = peak_of(logs)
        self._measure(logs, peak, LEAK[torch.float32])
        self._rescale(peak)
        self._c = (logs - peak.unsqueeze(-1)).exp()
        self._cached, self._known = self._in_order(self._c), logs.shape[1]

    def _rescale(self, peak: Tensor) -> None:
        """Brings what is prepared from the old largest weight to the new one."""
        if self.future is not None and self._peak is not None:
            factor = (self._peak - peak).exp().view(-1, 1, 1, 1).to(self.future.dtype)
            self.future *= factor
            self._current = None if self._current is None else self._current * factor
        self._peak = peak

    def _room(self, fq: Tensor, x: Tensor) -> int:
        if not self.slab:
            self._plan(fq, x)
        rows = max(1, ROOM // max(1, fq.shape[0] * fq.shape[1] * (self.length + 1)))
        return min(rows, self.block - self.length % self.block)

    def _piece(self, fq: Tensor, fk: Tensor, x: Tensor) -> Tensor:
        assert self._cached is not None
        self.rows.append(fk, x)
        t, within = fq.shape[2], self.length % self.block
        if self._current is None:
            y = self._near(fq, 0, self._cached)
        else:
            owed = self._current.narrow(2, within, t)
            y = self._near(fq, self.length - within, self._cached) + (fq.unsqueeze(-2) @ owed).squeeze(-2)
            self.work += owed.numel()
        self.length += t
        if within + t == self.block:
            self._current = None
            if self.length >= self.crossover and not self._read_directly():
                self._advance(fq.shape[1])
        return y

    def _plan(self, fq: Tensor, x: Tensor) -> None:
        """Sizes of the block and of the slab, from the first rows."""
        (batch, heads, _, m), w = fq.shape, x.shape[-1]
        if not self.block:  # where one more level of FFTs costs what reading half a block costs
            self.block = min(LONGEST, max(SHORTEST, 1 << round(math.log2(45 * m * w / (m + w)))))
        rows = self.memory // max(1, batch * heads * m * w * fq.element_size())
        self.slab = max(self.block, 1 << max(rows, 1).bit_length() - 1)

    @torch.no_grad()
    def _advance(self, heads: int) -> None:
        """Prepares the next block, at the end of one."""
        steps = self._schedule()
        self._know(self.length, sum(steps[0][:2]))
        for t, size, chunks in steps if self.future is None else steps[-1:]:
            self._prepare(t, size, chunks, heads)
        assert self.future is not None
        block = self.future.narrow(-1, self.length - self.start, self.block)
        self._current = block.movedim(-1, 2).contiguous()

    def _schedule(self) -> list[tuple[int, int, int]]:
        """What the rows from self.length on are owed: (t, size, chunks), the `chunks` * `size` tokens before t towards
        rows t .. t + size - 1. The last is due now, the others were due before."""
        t = self.length // self.slab * self.slab
        steps = [(t, self.slab, t // self.slab)] if t else []
        rest = self.length - t
        while rest:
            size = 1 << rest.bit_length() - 1
            if t:
                steps.append((t + size, size, 1))
            else:
                steps = [(size, size, 1)]
            t, rest = t + size, rest - size
        return steps

    def _prepare(self, t: int, size: int, chunks: int, heads: int) -> None:
        fk, x = self.rows.view()
        if self.future is None or t >= self.start + self.future.shape[-1]:
            self.start = t
            self.future = fk.new_zeros(fk.shape[0], heads, fk.shape[-1], x.shape[-1], size)
        target = self.future.narrow(-1, t - self.start, size)
        cut = self._spread > LEAK[torch.float64]
        self.work += future.prepare(target, fk, x, self._c.to(fk.dtype), t, size, chunks, cut)

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._apply(change)
        self.future, self._current = (None if z is None else change(z) for z in (self.future, self._current))


def online_sums(logs: Logs, tail: Tail | None) -> BandSums | FreeSums:
    """A band where the bias is a straight line beyond a reach that is worth reading each step, else free sums."""
    return FreeSums(logs) if tail is None or tail.reach > CROSSOVER else BandSums(logs, tail)
