"""A call of `context_parallel_attention`: what a rank was given, what ranks tell each other, how it is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relpos.encodings.base import Encoding, Pairwise, Transform
from relpos.kernels.mask import Mask
from relpos.kernels.ranks import Ranks
from relpos.kernels.ring import Plan, Shifted, acting, gathered, ring, summed
from relpos.mixers.functional import (
    Window,
    check_tensors,
    mask_of,
    rate,
    read_by,
    request_of,
    resolve,
    score_factor,
)
from relpos.mixers.request import Digest, check_value_width, cleaned, undefined
from relpos.positions import Grid, Index, Positions, as_positions, joined, narrowed

METHODS = ("auto", "ring", "gather")


@dataclass(frozen=True)
class Facts:
    """What a rank tells the others: `alike` must be the same everywhere, the rest is of its own tokens.

    bad: which of its keys and values hold NaN or infinity, (batch, heads, n_k), None for none.
    """

    alike: dict[str, Any]
    n_q: int
    n_k: int
    seed: int
    q_pos: Positions | None
    k_pos: Positions | None
    key_mask: Tensor | None
    k_segments: Tensor | None
    k_order: Tensor | None
    bad: Tensor | None


@dataclass(frozen=True)
class Given:
    """The arguments of one rank."""

    q: Tensor
    k: Tensor
    v: Tensor
    encoding: Encoding | str | None
    q_pos: object
    k_pos: object
    causal: bool
    key_mask: Tensor | None
    segments: Tensor | tuple[Tensor, Tensor] | None
    window: Window | None
    scale: float | None
    content: Tensor | None
    codes: Any
    dropout: float
    generator: torch.Generator | None
    q_order: Tensor | None
    k_order: Tensor | None
    method: str
    reduce: bool

    def facts(self) -> Facts:
        """This rank's, checked as far as it can be seen from here."""
        if self.method not in METHODS:
            raise ValueError(f"method is {', '.join(METHODS)}; got {self.method!r}")
        batch, heads, n_q, n_k, dim = check_tensors(self.q, self.k, self.v)
        if not n_q or not n_k:
            raise ValueError(
                f"every rank holds at least one query and one key, this one {n_q} and {n_k}; more ranks than tokens "
                "are of no use: take fewer"
            )
        encoding = resolve(self.encoding, heads, dim, self.causal)
        queries, keys = self.positions(encoding, 0, 0)
        read_by(encoding, queries, keys, self.q)
        score_factor(self.scale, encoding, dim)
        mask = mask_of(
            batch, n_q, n_k, queries, keys, self.causal, self.window, self.key_mask, self.split(),
            self.q_order, self.k_order, self.q.device,
        )  # fmt: skip
        self._check_content(encoding)
        return Facts(
            self._alike(encoding, queries, keys),
            n_q,
            n_k,
            int(torch.randint(2**31 - 1, ())) if self._draws(encoding) else 0,
            _moved(queries, "cpu") if self.q_pos is not None and isinstance(encoding, Transform) else None,
            _moved(keys, "cpu") if self.k_pos is not None else None,
            None if self.key_mask is None else self.key_mask.cpu(),
            None if mask.k_segments is None else mask.k_segments.cpu(),
            None if self.k_order is None else self.k_order.expand(batch, -1).cpu(),
            self._bad_keys(),
        )

    def _alike(self, encoding: Encoding | None, queries: Positions, keys: Positions) -> dict[str, Any]:
        """What all ranks must agree in, by the name that an error gives it."""
        optional = ("q_pos", "k_pos", "segments", "q_order", "content", "codes")
        tensors = (self.q, self.k, self.v)
        return {
            "batch": self.q.shape[0],
            "heads": (self.q.shape[1], self.k.shape[1]),
            "widths": (self.q.shape[3], self.v.shape[3], None if self.content is None else self.content.shape[-1]),
            "dtype": str(self.q.dtype),
            "encoding": str(encoding),
            "causal": bool(self.causal),
            "window": self.window,
            "scale": self.scale,
            "dropout": rate(self.dropout),
            "method": self.method,
            "reduce": bool(self.reduce),
            "state of the generator": None if self.generator is None else _fingerprint(self.generator),
            "kinds of positions": (_kinds(queries), _kinds(keys)),
            "arguments": tuple(name for name in optional if getattr(self, name) is not None),
            "gradients": torch.is_grad_enabled() and any(x.requires_grad for x in tensors),
        }

    def _draws(self, encoding: Encoding | None) -> bool:
        """Whether the ranks need one seed between them."""
        return self.generator is None and (
            bool(self.dropout) or (isinstance(encoding, Transform) and self.codes is None)
        )

    def _check_content(self, encoding: Encoding | None) -> None:
        if not isinstance(encoding, Pairwise) or not encoding.needs_content:
            return
        got = None if self.content is None else tuple(self.content.shape)
        if got is None or len(got) != 3 or got[:2] != (self.k.shape[0], self.k.shape[2]):
            raise ValueError(
                f"{type(encoding).__name__} reads the layer's input: pass content=x, (batch, n_k, model_dim), a row "
                f"for each key of this rank; got {got}"
            )

    def _bad_keys(self) -> Tensor | None:
        bad = undefined(self.k) | undefined(self.v)
        if self.key_mask is not None:
            bad &= self.key_mask[:, None]
        return bad.repeat_interleave(self.q.shape[1] // bad.shape[1], 1).cpu() if bool(bad.any()) else None

    def positions(self, encoding: Encoding | None, first_q: int, first_k: int) -> tuple[Positions, Positions]:
        """This rank's, of which the first query and the first key have these places where none are given."""
        grid = encoding is not None and Grid in encoding.takes and Index not in encoding.takes
        batch, device = self.q.shape[0], self.q.device
        return (
            as_positions(self.q_pos, self.q.shape[2], first_q, "q_pos", device, batch, grid),
            as_positions(self.k_pos, self.k.shape[2], first_k, "k_pos", device, batch, grid),
        )

    def split(self) -> tuple[Tensor, Tensor] | None:
        """Segments of own queries and own keys."""
        if not isinstance(self.segments, Tensor):
            return self.segments
        if self.q.shape[2] != self.k.shape[2]:
            raise ValueError(
                "one tensor of segments serves queries that are the keys; a rank with "
                f"{self.q.shape[2]} queries and {self.k.shape[2]} keys gives a pair (of queries, of keys)"
            )
        return self.segments, self.segments


@dataclass(frozen=True)
class Whole:
    """The call as this rank sees it once all have spoken: own queries, keys of all ranks but for their vectors."""

    ranks: Ranks
    given: Given
    encoding: Pairwise | Transform | None
    parameters: dict[str, Tensor]
    queries: Positions
    keys: Positions
    key_mask: Tensor | None
    segments: tuple[Tensor, Tensor] | None
    orders: tuple[Tensor | None, Tensor | None]
    bad: Tensor | None
    codes: Any
    dropout: Shifted | None

    @classmethod
    def of(cls, ranks: Ranks, given: Given, facts: list[Facts]) -> Whole:
        batch, heads, _, dim = given.q.shape
        device, n_k = given.q.device, sum(ranks.lengths)
        encoding = resolve(given.encoding, heads, dim, given.causal)
        sizes = [each.n_q for each in facts]
        first = n_k - sum(sizes)  # queries stand at the end of the keys
        first_own = first + sum(sizes[: ranks.rank])
        queries, _ = given.positions(encoding, first_own, 0)
        keys = _places([each.k_pos for each in facts], n_k, 0, device)
        parameters = {} if encoding is None else summed(ranks, encoding, given.reduce)
        codes = given.codes
        if codes is None and isinstance(encoding, Transform):
            everyone = [each.q_pos for each in facts]
            codes = _codes(
                given, encoding, parameters, _places(everyone, sum(sizes), first, device), keys, facts[0].seed
            )
        pair, (q_order, k_order) = given.split(), _orders(given, facts, queries, keys, first_own)
        bad = [each.bad for each in facts]
        return cls(
            ranks,
            given,
            encoding,
            parameters,
            queries,
            keys,
            _filled([each.key_mask for each in facts], ranks.lengths, (batch,), True, device),
            None if pair is None else (pair[0], torch.cat([each.k_segments for each in facts], 1).to(device)),  # type: ignore[misc]
            (q_order, k_order),
            _filled(bad, ranks.lengths, (batch, heads), False, device),
            codes,
            _dropout(given, facts[0].seed, first_own),
        )

    def run(self) -> Tensor:
        encoding, method = self.encoding, self.given.method
        at_once = isinstance(encoding, Pairwise) and (encoding.needs_content or not encoding.in_parts)
        if method == "ring" and at_once:
            raise ValueError(
                f"{type(encoding).__name__} needs the tokens of all ranks at once, which a ring never holds; "
                'method="gather" serves'
            )
        return self._by_gathering() if at_once or method == "gather" else self._by_ring()

    def _by_gathering(self) -> Tensor:
        given, encoding = self.given, self.encoding
        k, v = gathered(self.ranks, given.k, given.v)
        content: Digest | None = None
        if isinstance(encoding, Pairwise) and encoding.needs_content:
            assert given.content is not None
            seen = given.content
            if given.key_mask is not None:
                seen = seen.masked_fill(~given.key_mask.unsqueeze(-1), 0)
            kept = acting(encoding, self.parameters, lambda own: own.digest(seen))
            content = Digest(self._of_all(kept) if encoding.content_of == "all" else self._of_queries(kept))

        def act(own: Any) -> Tensor:
            request = request_of(
                given.q, k, v, own, q_pos=self.queries, k_pos=self.keys, causal=given.causal, key_mask=self.key_mask,
                segments=self.segments, window=given.window, scale=given.scale, content=content, codes=self.codes,
                q_order=self.orders[0], k_order=self.orders[1],
            )  # fmt: skip
            return replace(request, dropout=self.dropout).run()

        return act(None) if encoding is None else acting(encoding, self.parameters, act)

    def _of_all(self, kept: Tensor) -> Tensor:
        (whole,) = gathered(self.ranks, kept.flatten(2).unsqueeze(1))
        return whole.squeeze(1).reshape(*whole.shape[:1], whole.shape[2], *kept.shape[2:])

    def _of_queries(self, kept: Tensor) -> Tensor:
        """Own rows as the last of as many as there are keys; nobody reads the others."""
        n_q, n_k = self.given.q.shape[2], sum(self.ranks.lengths)
        own = kept[:, kept.shape[1] - n_q :]
        return torch.cat([own.new_zeros(own.shape[0], n_k - n_q, *own.shape[2:]), own], 1)

    def _by_ring(self) -> Tensor:
        given, encoding, n_k = self.given, self.encoding, sum(self.ranks.lengths)
        mask = mask_of(
            given.q.shape[0], given.q.shape[2], n_k, self.queries, self.keys, given.causal, given.window,
            self.key_mask, self.segments, *self.orders, given.q.device,
        )  # fmt: skip
        queries, keys = read_by(encoding, self.queries, self.keys, given.q)
        scale = score_factor(given.scale, encoding, given.q.shape[3])
        q, k, v, lost = self._without_bad(mask)
        parameters, term = self.parameters, encoding if isinstance(encoding, Pairwise) else None
        if isinstance(encoding, Transform):
            start = self.ranks.start()
            own = narrowed(keys, start, start + k.shape[2])

            def encode(e: Any, q: Tensor = q, k: Tensor = k) -> tuple[Tensor, Tensor]:
                return e.encode_q(q, queries, scale, self.codes), e.encode_k(k, own, scale, self.codes)

            (q, k), parameters = acting(encoding, parameters, encode), {}
        if term is not None:
            check_value_width(term, q, v)
        plan = Plan(self.ranks, scale, mask, queries, keys, term, dropout=self.dropout)
        out = ring(plan, q, k, v.to(k.dtype), parameters).to(given.q.dtype)
        return out if lost is None else out.masked_fill(lost.unsqueeze(-1), torch.nan)

    def _without_bad(self, mask: Mask) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k and v without padding and without tokens that hold NaN or infinity, and the rows that these spoil."""
        q, k, v, real = self.given.q, self.given.k, self.given.v, self.given.key_mask
        if real is not None:
            hidden = ~real[:, None, :, None]
            k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
        bad_q = undefined(q)
        if self.bad is None and not bool(bad_q.any()):
            return q, k, v, None
        everyone = torch.ones(*q.shape[:2], mask.n_k, dtype=torch.bool, device=q.device)
        lost = bad_q & mask.seeing(everyone)
        if self.bad is not None:
            lost = lost | mask.seeing(self.bad)
        return cleaned(q), cleaned(k), cleaned(v), lost


def agreed(heard: list[Any]) -> list[Facts]:
    """What all said; the first complaint, or where they differ, is raised on every rank."""
    for rank, said in enumerate(heard):
        if isinstance(said, Exception):
            raise type(said)(f"rank {rank}: {said}") from said
    for rank, said in enumerate(heard):
        for name, value in said.alike.items():
            if value != heard[0].alike[name]:
                raise ValueError(
                    f"all ranks call with the same {name}; rank 0 has {heard[0].alike[name]}, rank {rank} {value}"
                )
    return heard


def _places(said: list[Positions | None], n: int, first: int, device: torch.device) -> Positions:
    """Positions of the tokens of all ranks: those given, else consecutive ones."""
    given = [each for each in said if each is not None]
    return _moved(joined(given), device) if given else Index.arange(n, first, device=device)


def _orders(
    given: Given, facts: list[Facts], queries: Positions, keys: Positions, first: int
) -> tuple[Tensor | None, Tensor | None]:
    """Orders of own queries and all keys; None where integer positions say it."""
    device, n_k = given.q.device, sum(each.n_k for each in facts)
    if given.q_order is not None:
        return given.q_order, torch.cat([each.k_order for each in facts], 1).to(device)  # type: ignore[misc]
    if all(isinstance(p.get("index") if isinstance(p, Mapping) else p, Index) for p in (queries, keys)):
        return None, None
    return torch.arange(first, first + given.q.shape[2], device=device), torch.arange(n_k, device=device)


def _filled(
    said: list[Tensor | None], lengths: tuple[int, ...], shape: tuple[int, ...], value: bool, device: torch.device
) -> Tensor | None:
    """(*shape, n) of all ranks, `value` where one has said nothing; None where nobody has said anything."""
    if all(each is None for each in said):
        return None
    whole = [torch.full((*shape, n), value) if each is None else each for each, n in zip(said, lengths)]
    return torch.cat(whole, -1).to(device)


def _codes(
    given: Given, encoding: Transform, parameters: dict[str, Tensor], queries: Positions, keys: Positions, seed: int
) -> Any:
    """The codes of the whole sequence: the same on every rank."""
    queries, keys = encoding.select(queries), encoding.select(keys)
    drawn = given.generator or torch.Generator(given.q.device).manual_seed(seed)
    return acting(encoding, parameters, lambda own: own.make_codes(queries, keys, drawn))


def _dropout(given: Given, seed: int, first_query: int) -> Shifted | None:
    if not given.dropout:
        return None
    if (drawn := given.generator) is not None:
        seed = int(torch.randint(2**31 - 1, (), generator=drawn, device=drawn.device))
    return Shifted(rate(given.dropout), seed, first_query=first_query)


def _fingerprint(generator: torch.Generator) -> str:
    return hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest()[:16]


def _kinds(positions: Positions) -> Any:
    """What parts of a sequence must agree in to be joined."""
    if isinstance(positions, Mapping):
        return {name: _kinds(channel) for name, channel in positions.items()}
    shape = list(positions.values.shape)
    shape[positions.axis] = -1
    return type(positions).__name__, tuple(shape)


def _moved(positions: Positions, device: torch.device | str) -> Positions:
    if isinstance(positions, Mapping):
        return {name: channel.to(device) for name, channel in positions.items()}
    return positions.to(device)
