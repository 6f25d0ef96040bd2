"""IMTPP: what was recorded, and what was not, as one process with hidden events; learned by variational inference.

Every event is hidden with a probability ``share`` that is known; which ones are hidden is not. Between two recorded
events e_k and e_k+1 there may be up to ``latent`` hidden ones, eps_1, eps_2, ..

* **The process** p: after e_k, or after eps_r, the next event of either kind comes after a gap from a mixture of
  log-normals and has a mark, both from a state; then a coin says whether it is hidden. As hiding is by chance, prior
  and generator are one density. State r of gap k has read e_1 .. e_k and eps_1 .. eps_r of its own gap.
* **The posterior** q sees e_k+1 as well. After e_k, and after every eps_r, it says whether there is a further hidden
  event; its time is drawn from log-normals cut off at t_k+1; its mark from a softmax.

    log p(e_k+1 | e_1 .. e_k) >= E_q[ log p(eps_1 .. eps_n, e_k+1 | e_1 .. e_k) - log q(eps_1 .. eps_n | e_1 .. e_k+1) ]

The sum over n is done, not drawn: a path of ``latent`` times is drawn, and its prefix of length r has the weight that q
gives it. The divergence of the marks is a sum over marks; what later states read of a mark is a draw, whose gradient
goes straight through. Every gap forgets what was guessed in the gaps before it, which the states of recorded events
stand for; that makes all gaps one batch, and the bound one of a model of the recorded events alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, one_hot

from relpos.encodings.base import Encoding
from relpos.encodings.registry import key_of
from relpos.mixers.functional import attention
from relpos.positions import Index, Labels, Position, Times
from relpos.tasks.events.neural.heads import MixtureHead
from relpos.tasks.events.neural.history import History, Scales
from relpos.tasks.events.neural.tape import Following, Seen
from relpos.tasks.events.neural.truncated import TruncatedLogNormal
from relpos.tasks.events.processes.densities import LogNormalMixture

POSTERIORS = ("sampled", "deterministic")


class Paths(NamedTuple):
    """A drawn path of hidden events in each gap; (draws * batch, n, ..).

    gaps      (.., latent) float64: from the event before to each hidden one
    left      (.., latent + 1) float64: from the event before to the end of the gap
    marks     (.., latent, marks): which mark, one-hot; in training with the gradient of q
    log_q     (.., latent) float64: log density of each gap
    log_marks (.., latent, marks) float64: log q of the mark
    go        (.., latent): logit of a further hidden event, at the share given
    densities of each gap, one a slot
    """

    gaps: Tensor
    left: Tensor
    marks: Tensor
    log_q: Tensor
    log_marks: Tensor
    go: Tensor
    densities: list[TruncatedLogNormal]

    def reached(self) -> Tensor:
        """(.., latent) q's probability that there are at least r + 1 hidden events, given the path."""
        return torch.sigmoid(self.go).cumprod(-1)


class Reader(nn.Module):
    """One block of a Transformer: queries within gaps read the states of recorded events up to their gap's first."""

    def __init__(self, dim: int, heads: int, encoding: Encoding | None, kernel: str = "auto") -> None:
        super().__init__()
        self.heads, self.encoding, self.kernel = heads, encoding, kernel
        self.norm, self.norm_mlp, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        for linear in (self.q, self.k, self.v, self.out, self.mlp[0], self.mlp[2]):
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, states: Tensor, order: Tensor, q_pos: Any, k_pos: Any) -> Tensor:
        """x (batch, m, dim) beside states (batch, n, dim); query i sees states 0 .. order[i], none for -1."""
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.q(self.norm(x)), self.k(states), self.v(states))
        )
        seen = torch.arange(states.shape[1], device=x.device)
        found = attention(
            q, k, v, self.encoding, q_pos=q_pos, k_pos=k_pos, causal=True, q_order=order, k_order=seen,
            kernel=self.kernel,
        )  # fmt: skip
        x = x + self.out(found.transpose(1, 2).flatten(2))
        out: Tensor = self.norm_out(x + self.mlp(self.norm_mlp(x)))
        return out


class IMTPP(nn.Module):
    """See the module. Methods take the share that is hidden in what they are given.

    latent      hidden events within a gap at most; 0: no hidden events, and the bound is the likelihood
    posterior   "sampled", or "deterministic": medians in place of draws while it learns, and where it imputes
    components  of the density of a gap; sides: of the posterior's
    kernel      of attention; "auto" takes what is several times slower for relative channels of this size
    Further options: `History`.
    """

    def __init__(
        self,
        marks: int,
        encoding: str = "relative_channels",
        *,
        latent: int = 3,
        posterior: str = "sampled",
        components: int = 8,
        sides: int = 2,
        scales: Scales | None = None,
        dim: int = 32,
        heads: int = 2,
        kernel: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if kernel is None:
            kernel = "tiled" if key_of(encoding) == "relative_channels" else "auto"
        if not isinstance(latent, int) or isinstance(latent, bool) or latent < 0 or sides < 1:
            raise ValueError(f"latent is a number of events from 0 on and sides at least 1, got {latent!r}, {sides!r}")
        if posterior not in POSTERIORS:
            raise ValueError(f"posterior is one of {', '.join(POSTERIORS)}, got {posterior!r}")
        self.marks, self.latent, self.posterior, self.dim, self.heads = marks, latent, posterior, dim, heads
        self.history = History(marks, encoding, scales=scales, dim=dim, heads=heads, kernel=kernel, **options)
        self.scales = self.history.scales
        last = self.history.stack.blocks[-1].attention.encoding  # type: ignore[union-attr]
        own = [copy.deepcopy(last) if isinstance(last, Encoding) else None for _ in range(2)]
        self.generate = Reader(dim, heads, own[0], kernel)
        self.head = MixtureHead(dim, marks, components, self.scales)
        if not latent:
            return
        self.infer = Reader(dim, heads, own[1], kernel)
        self.earlier = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.earlier.weight, std=0.02)
        self.ahead = nn.Linear(marks + 3 + 6 * len(self.history.periods), dim)
        self.time = nn.Linear(dim, 3 * sides)
        nn.init.normal_(self.time.weight, std=0.02)
        with torch.no_grad():
            # about even over the gap, or near one of its ends
            self.time.bias.copy_(torch.cat([torch.linspace(-2.0, 0.5, sides), torch.zeros(2 * sides)]))
        self.go = nn.Linear(dim, 1)
        nn.init.zeros_(self.go.weight)
        nn.init.zeros_(self.go.bias)
        self.what = nn.Sequential(nn.Linear(dim + 1, 2 * dim), nn.GELU(), nn.Linear(2 * dim, marks))

    # ---- the bound

    def forward(self, seen: Seen, following: Following, share: float, **options: Any) -> Tensor:
        """The bound; what a trainer that wraps networks may call."""
        return self.bound(seen, following, share, **options)

    def bound(
        self,
        seen: Seen,
        following: Following,
        share: float,
        draws: int = 1,
        generator: torch.Generator | None = None,
        posterior: str = "sampled",
    ) -> Tensor:
        """(batch, n) float64: a lower bound in expectation of log p(what follows each token), 0 where not scored.

        Mean over ``draws`` paths. Exact with latent=0. What follows begins at its token: ``floors`` above 0 raise
        ValueError, as a difference of two bounds is none. posterior="deterministic" puts medians in the place of draws;
        then it is no bound. A gap of 0 counts as a billionth of the unit.
        """
        if bool((following.floors > 0).any()):
            raise ValueError("scoring begins within a gap, which a bound cannot do: let it begin at an event")
        following = following._replace(gaps=following.gaps.clamp_min(1e-9 * self.scales.unit))
        states = self.history(seen)
        if not self.latent:
            return self.head.log_likelihood(self.states_of(states, seen), following)
        paths = self.paths(states, seen, following, share, draws, generator, posterior)
        states, seen, following = (_repeated(each, draws) for each in (states, seen, following))
        total = self._weighed(states, seen, following, paths, share)
        mean: Tensor = total.unflatten(0, (draws, -1)).mean(0)
        return torch.where(following.scored[: len(mean)], mean, 0.0)

    def states_of(self, states: Tensor, seen: Seen) -> Tensor:
        """(batch, n, dim) what the densities after each recorded event are made of, as long as none is hidden."""
        return self._read(self.generate, self._recorded(seen)[:, :, None], states, seen, seen.times[..., None], 0)[
            :, :, 0
        ]

    def _weighed(self, states: Tensor, seen: Seen, following: Following, paths: Paths, share: float) -> Tensor:
        """Sum over prefixes of each path of q's weight times log p - log q, all (draws * batch, n) by now."""
        closing, step = self._terms(states, seen, following, paths, share)
        marks = (paths.log_marks.exp() * step).sum(-1)  # the divergence of marks, exactly
        stay, go = logsigmoid(-paths.go), logsigmoid(paths.go)
        reach = torch.cat([torch.zeros_like(go[..., :1]), go.cumsum(-1)], -1)  # log weight of reaching r
        stay = torch.cat([stay, torch.zeros_like(stay[..., :1])], -1)
        ends = torch.exp(reach + stay) * (closing - stay)
        return ends.sum(-1) + (torch.exp(reach[..., 1:]) * (marks - go)).sum(-1)

    def parts(self, states: Tensor, seen: Seen, following: Following, paths: Paths, share: float) -> Tensor:
        """(draws * batch, n, latent + 1) log of p / q by number of hidden events, with the marks that were drawn.

        The mean of exp over draws, summed over numbers, is the likelihood of what follows each token.
        """
        many = len(paths.gaps) // len(states)
        states, seen, following = (_repeated(each, many) for each in (states, seen, following))
        closing, step = self._terms(states, seen, following, paths, share)
        drawn = (step * paths.marks).sum(-1).cumsum(-1)
        return closing + torch.cat([torch.zeros_like(closing[..., :1]), drawn], -1)

    def _terms(
        self, states: Tensor, seen: Seen, following: Following, paths: Paths, share: float
    ) -> tuple[Tensor, Tensor]:
        """log p of what follows after r hidden events, (.., latent + 1), and log p - log q of a further one of each
        mark, (.., latent, marks)."""
        z = self._path_states(states, seen, paths)
        shape = paths.left.shape
        each = Following(
            paths.left,
            following.marks[..., None].expand(shape),
            torch.zeros_like(paths.left),
            following.scored[..., None].expand(shape),
        )
        closing = self.head.log_likelihood(z.flatten(1, 2), Following(*(x.flatten(1) for x in each))).view(shape)
        coin = torch.full_like(closing, math.log1p(-share)) * (following.marks >= 0)[..., None]
        coin[..., -1] = 0.0  # after the last that there may be, the next is recorded for certain
        density = self.head.density(z[:, :, :-1]).log_prob(paths.gaps)
        log_p = self.head.log_marks(z[:, :, :-1], paths.gaps)
        step = math.log(share) + (density - paths.log_q)[..., None] + log_p - paths.log_marks
        return closing + coin, step

    # ---- the posterior

    def paths(
        self,
        states: Tensor,
        seen: Seen,
        following: Following,
        share: float,
        draws: int = 1,
        generator: torch.Generator | None = None,
        posterior: str = "sampled",
    ) -> Paths:
        """Paths of hidden events from q, ``draws`` for each gap."""
        states, seen, following = (_repeated(each, draws) for each in (states, seen, following))
        left, since = following.gaps, torch.zeros_like(following.gaps)
        x, before = self._recorded(seen), torch.zeros_like(states)
        odds = math.log(share / (1 - share))
        found: dict[str, list[Any]] = {name: [] for name in Paths._fields}
        found["left"].append(left)
        for slot in range(self.latent):
            asked = (x + states + self._ahead(seen, following, left))[:, :, None]
            z = self._read(self.infer, asked, states, seen, (seen.times + since)[..., None], slot)[:, :, 0]
            loc, log_scale, log_weight = self.time(z).chunk(3, -1)
            density = TruncatedLogNormal(loc, log_scale, log_weight, left)
            log_share = density.middle() if posterior == "deterministic" else density.log_share(generator)
            gap = torch.exp(log_share) * left
            known = self.scales.log_gap(gap).to(z.dtype)[..., None]
            log_marks = self.what(torch.cat([z, known], -1)).to(torch.float64).log_softmax(-1)
            marks = _chosen(log_marks, generator, posterior).to(z.dtype)
            parts = (gap, -torch.expm1(log_share) * left, marks, density.log_prob(gap), log_marks)
            for name, value in zip(Paths._fields, (*parts, self.go(z)[..., 0].double() + odds, density)):
                found[name].append(value)
            left, since = parts[1], since + gap
            token = self._token(marks, gap, since, seen)
            x, before = token + self.earlier(before), before + token
        densities = found.pop("densities")
        axes = {"marks": -2, "log_marks": -2}
        return Paths(**{name: torch.stack(x, axes.get(name, -1)) for name, x in found.items()}, densities=densities)

    def _ahead(self, seen: Seen, following: Following, left: Tensor) -> Tensor:
        """What the posterior knows of the next recorded event: its mark and how far off it is, and its hour."""
        comes = following.marks >= 0
        mark = one_hot(following.marks.clamp_min(0), self.marks) * comes[..., None]
        far = torch.stack([comes.double(), self.scales.log_gap(left), torch.log(left / following.gaps)], -1)
        clock = self.history.calendar(seen.times + following.gaps)
        return self.ahead(torch.cat([mark.double(), far, *clock], -1).to(torch.float32))

    def _recorded(self, seen: Seen) -> Tensor:
        """(batch, n, dim) what is read of each recorded event at first."""
        found: Tensor = self.history.mark(seen.marks)
        return found if self.history.more is None else found + self.history.more(self.history.features(seen))

    def _token(self, marks: Tensor, gap: Tensor, since: Tensor, seen: Seen) -> Tensor:
        """The same of a hidden event, by the same tables: nothing tells it from a recorded one."""
        found = marks @ self.history.mark.weight[: self.marks]
        if self.history.more is None:
            return found
        known = [torch.stack([self.scales.log_gap(gap), torch.ones_like(gap)], -1)] if self.history.gap else []
        clock = self.history.calendar(seen.times + since)
        return found + self.history.more(torch.cat([*known, *clock], -1).to(torch.float32))

    def _path_states(self, states: Tensor, seen: Seen, paths: Paths) -> Tensor:
        """(batch, n, latent + 1, dim): states of p along each path."""
        since = paths.gaps.cumsum(-1)
        x, before = [self._recorded(seen)], torch.zeros_like(states)
        for slot in range(self.latent):
            token = self._token(paths.marks[..., slot, :], paths.gaps[..., slot], since[..., slot], seen)
            x.append(token + self.earlier(before))
            before = before + token
        times = seen.times[..., None] + torch.cat([torch.zeros_like(since[..., :1]), since], -1)
        return self._read(self.generate, torch.stack(x, 2), states, seen, times, 0)

    def _read(self, reader: Reader, x: Tensor, states: Tensor, seen: Seen, times: Tensor, first: int) -> Tensor:
        """x (batch, n, m, dim) of slots first .. first + m - 1 at ``times`` (batch, n, m), to the same shape."""
        n, slots = x.shape[1], x.shape[2]
        token = torch.arange(n, device=x.device)
        place = (token[:, None] + torch.arange(first, first + slots, device=x.device)).flatten()
        # A recorded event is read like a hidden one, by its own token and the states of recorded ones before it.
        own = (torch.arange(first, first + slots, device=x.device) == 0).repeat(n) & (reader is self.generate)
        order = token.repeat_interleave(slots) - own.long()
        # rounding must not put a hidden event behind the recorded one that it comes before
        at = times.detach().flatten(1).cummax(1).values
        keys = self.history.positions(seen)
        queries: Position | dict[str, Position]
        if isinstance(keys, dict):
            queries = {"index": Index(place), "time": Times(at)}
            queries["mark"] = Labels((seen.marks + 1).repeat_interleave(slots, 1))
        else:
            queries = Times(at / self.scales.unit)
        return reader(x.flatten(1, 2), states, order, queries, keys).view(x.shape)

    # ---- what comes next

    @torch.no_grad()
    def foretold(
        self, seen: Seen, share: float, draws: int = 4, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(batch, n) median gap to the next recorded event, (batch, n, marks) probabilities of its mark; by p alone.

        The coins are summed over and the last gap is a density, so that only gaps to hidden events are drawn; with
        latent=0 the median is exact.
        """
        states = self.history(seen)
        draws = draws if self.latent else 1
        states, seen = _repeated(states, draws), _repeated(seen, draws)
        x, before, since = self._recorded(seen), torch.zeros_like(states), torch.zeros_like(seen.times)
        parts, marks = [], torch.zeros(*seen.marks.shape, self.marks, dtype=torch.float64)
        for slot in range(self.latent + 1):
            z = self._read(self.generate, x[:, :, None], states, seen, (seen.times + since)[..., None], slot)[:, :, 0]
            density, weight = self.head.density(z), share**slot * ((1 - share) if slot < self.latent else 1.0)
            step = density.sample(1, generator)[0]
            log_marks = self.head.log_marks(z, step)
            marks += weight * log_marks.exp()
            parts.append((weight, since, density))
            if slot < self.latent:
                chosen, since = _chosen(log_marks, generator, "sampled").to(z.dtype), since + step
                token = self._token(chosen, step, since, seen)
                x, before = token + self.earlier(before), before + token
        return self._median(parts, draws), marks.unflatten(0, (draws, -1)).mean(0)

    def _median(self, parts: list[tuple[float, Tensor, LogNormalMixture]], draws: int) -> Tensor:
        """Of a mixture of gaps that begin at different times, by bisection; the mean over draws is within it."""
        low = torch.full_like(parts[0][1].unflatten(0, (draws, -1))[0], math.log(1e-6 * self.scales.unit))
        high = torch.full_like(low, math.log(1e6 * self.scales.unit))
        for _ in range(40):
            middle = (low + high) / 2
            time = torch.exp(middle).repeat(draws, 1)
            levels = [
                weight * torch.exp(density.log_cdf((time - since).clamp_min(1e-300)))
                for weight, since, density in parts
            ]
            below = sum(levels, torch.zeros_like(time)).unflatten(0, (draws, -1)).mean(0) < 0.5
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.exp(high)

    def encodings(self) -> list[tuple[str, Encoding]]:
        """Every encoding by where it acts."""
        found = [*self.history.stack.encodings()]
        readers = [("generator", self.generate)] + ([("posterior", self.infer)] if self.latent else [])
        return found + [(name, reader.encoding) for name, reader in readers if reader.encoding is not None]


def _chosen(log_p: Tensor, generator: torch.Generator | None, posterior: str) -> Tensor:
    """One-hot draws (or the likeliest, without random numbers); the gradient is that of the probabilities."""
    with torch.no_grad():
        score = log_p
        if posterior != "deterministic":
            noise = torch.rand(log_p.shape, generator=generator, dtype=torch.float64).to(log_p.device)
            score = log_p - torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))
        hard = one_hot(score.argmax(-1), log_p.shape[-1]).to(log_p.dtype)
    if not log_p.requires_grad:
        return hard
    soft = log_p.exp()
    return hard + soft - soft.detach()


def _repeated(value: Any, draws: int) -> Any:
    """Along the batch, ``draws`` times."""
    if draws == 1:
        return value
    if isinstance(value, Tensor):
        return value.repeat(draws, *[1] * (value.dim() - 1))
    parts: Sequence[Tensor] = value
    return type(value)(*(each.repeat(draws, *[1] * (each.dim() - 1)) for each in parts))
