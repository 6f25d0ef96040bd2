"""Any number of relative channels: index, time, place, profile and mark of two events, each where it is wanted."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, check_heads, positive
from relpos.encodings.pairs import steps
from relpos.encodings.pairs.channel import Channel
from relpos.encodings.pairs.encoders import Rotary, Sparse, Unit, finite
from relpos.encodings.pairs.features import feature_of, personal_unit
from relpos.encodings.pairs.terms import Terms
from relpos.encodings.reference import find
from relpos.encodings.transform.rotation import turn
from relpos.positions import Index, Labels, Places, Position, Positions, Profiles, Times


class RelativeChannels(ContentBias):
    """Adds, for every channel c, a learned function of a feature x_c of the pair, to keys, values or scores.

        score_ij = scale q_i . (k_j + sum_c K_c(x_c)) + sum_c b_c(x_c),   out_i = sum_j p_ij (v_j + sum_c V_c(x_c))
        K_c(x) = sum_r phi_r(x) keys_c[r], and likewise V_c and b_c (a number a head), phi: see the channel's encoder

    dim       width of a head, and then all heads share each table; or of the model, and then each has its columns
    channels  one dict each: feature "index" (signed lag), "time" (elapsed), "place" (km), "profile" (1 - cosine),
              "mark" (same or not) or "key" (the key's own place); encoder "buckets", "log", "linear", "sinusoid",
              "decay" or "rotary"; inject any of "key", "value", "bias", "gate". See `encodings.pairs.channel.Channel`
    heads     needed for "bias" and "gate"
    scale     of the key terms, default 1/sqrt(width of q); if given, of q.k too where `attention` is not told

    channels[c].keys, .values (rows, dim), .bias, .gate (heads, rows); rows = clip + 1, or 2 clip + 1 where the sign
    counts (index), row clip + step. "gate" multiplies the score of the content by g_c(x_c), 1 at the start; "rotation"
    turns q and k. Positions are named, q_pos = {"index": .., "time": .., ..}: what the queries know about their time
    (the event's, or that of the request) is in q_pos alone, see `positions.query_times`.

    O(n rows) memory. Keys in rising order, many a bucket, have index and time by prefix sums between the edges of
    buckets, all such channels at once; others share a lookup as far as their rows multiply to some hundreds, with one
    comparison a pair and channel in place of logarithms and inverse sines. Sinusoids and decays cost rows products a
    pair. Times and places lose their origin in float64: a shift of the clock changes nothing.
    Source: the design of TiSASRec (Li et al. 2020) for any number of channels, as ReVAMP (Gupta and Bedathur 2022) has
    them for places, profiles and time; `revamp`, `tisasrec` and `stan` build their configurations.
    """

    takes: ClassVar[tuple[type, ...]] = (Mapping, Index, Times, Places, Profiles, Labels)
    extrapolates = True
    burden = 2
    reads_qk = False  # True of an object with a gate or keys
    reference = """@article{gupta2022revamp,
  title={Modeling Human Actions in Time-stamped Activity Sequences: Sequential Recommendation with Relative Encodings},
  author={Gupta, Vinayak and Bedathur, Srikanta},
  journal={IEEE Transactions on Big Data}, year={2022}}
@inproceedings{li2020time,
  title={Time Interval Aware Self-Attention for Sequential Recommendation},
  author={Li, Jiacheng and Wang, Yujie and McAuley, Julian},
  booktitle={WSDM}, year={2020}}"""

    def __init__(
        self,
        dim: int,
        channels: Sequence[Mapping[str, Any]],
        heads: int | None = None,
        *,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.heads = positive("dim", dim), None if heads is None else check_heads(heads)
        self.scale = None if scale is None else finite("scale", scale)
        if not isinstance(channels, list | tuple) or not channels or not all(isinstance(c, Mapping) for c in channels):
            raise ValueError(f"channels are one or more dicts such as {{'feature': 'time', ..}}, got {channels!r}")
        self.channels = nn.ModuleList(_channel(number, dim, heads, c) for number, c in enumerate(channels))
        self.has_values = any("value" in c.inject for c in self._each())
        self.reads_qk = any(c.gate is not None or c.keys is not None for c in self._each())  # type: ignore[misc]
        self._latest = _Latest()

    # ---- well-known configurations

    @classmethod
    def revamp(
        cls,
        dim: int,
        *,
        index: int | None = 16,
        time: tuple[Unit, int] | None = (3600.0, 64),
        place: tuple[float, int] | None = (1.0, 32),
        profile: tuple[float, int] | None = (0.1, 10),
        length: int | None = None,
        **options: Any,
    ) -> RelativeChannels:
        """ReVAMP: separate tables for keys and values of the clipped variation in time (unit in seconds, clip), place
        (kilometres) and profile; None leaves a channel out. index: the clip of the relative position; length: rows of
        an absolute table of the key's place besides.

        ReVAMP has no public code; this is its design as far as TiSASRec, which it extends, gives it.
        """
        given = {"time": time, "place": place, "profile": profile}
        channels: list[dict[str, Any]] = [] if index is None else [{"feature": "index", "clip": index}]
        channels += [{"feature": name, "unit": c[0], "clip": c[1]} for name, c in given.items() if c is not None]
        channels += [] if length is None else [{"feature": "key", "clip": length - 1, "name": "absolute"}]
        return cls(dim, channels, **options)

    @classmethod
    def tisasrec(
        cls, dim: int, span: int = 256, length: int = 50, unit: Unit = "user", **options: Any
    ) -> RelativeChannels:
        """TiSASRec: tables for keys and values of min(span, floor(elapsed time / unit)) and of the key's place.

        The default unit is that of the method: each sequence's smallest gap above zero. The released code masks padded
        queries and not padded keys; here key_mask hides keys, so padding changes nothing.
        """
        key: dict[str, Any] = {"feature": "key", "clip": length - 1, "name": "pos"}
        return cls(dim, [{"feature": "time", "unit": unit, "clip": span, "name": "rel"}, key], **options)

    @classmethod
    def stan(
        cls,
        heads: int,
        *,
        place: tuple[float, float] = (0.0, 100.0),
        time: tuple[float, float] = (0.0, 7 * 86400.0),
        dim: int = 1,
        as_released: bool = False,
    ) -> RelativeChannels:
        """STAN: a bias of distance (low and high in kilometres) plus one of elapsed time (in seconds), each a straight
        line between two learned numbers: delta = [low (su - x) + high (x - sl)]/(su - sl).

        The method sums two learned vectors over their width; their sums are the two numbers here, and beyond the bounds
        the line goes on as a constant. as_released: scores without 1/sqrt(dim), and no bias for pairs with padding,
        which a position "real" (0 for padding) tells; give no key_mask then and zeros as the padded values, for in the
        released code padded keys stay in the denominator.
        """
        more: dict[str, Any] = {"encoder": "linear", "clip": 1, "inject": "bias"}
        more |= {"where": "real"} if as_released else {}
        channels = [{"feature": name, "start": low, "unit": high - low, **more}
                    for name, (low, high) in (("place", place), ("time", time))]  # fmt: skip
        return cls(dim, channels, heads, scale=1.0 if as_released else None)

    @classmethod
    def from_reference(
        cls, arrays: Mapping[str, Any], channels: Sequence[Mapping[str, Any]], **options: Any
    ) -> RelativeChannels:
        """From "<name>_key", "<name>_value" (rows, width), "<name>_bias" and "<name>_gate" (heads, rows), where name is
        the channel's, default that of its feature. Further options go to the constructor."""
        found: list[dict[str, Tensor]] = []
        for given in channels:
            name = given.get("name", given.get("feature"))
            arrays_of = {what: find(arrays, f"{name}_{what}") for what in ("key", "value", "bias", "gate")}
            found.append({what: x for what, x in arrays_of.items() if x is not None})
        tables = [x for parts in found for what, x in parts.items() if what in ("key", "value")]
        numbers = [x for parts in found for what, x in parts.items() if what in ("bias", "gate")]
        if not all(found):
            raise ValueError(
                f"every channel has arrays called after it (<name>_key, ..); there are {', '.join(arrays)}"
            )
        built = [{"inject": tuple(parts), **given} for parts, given in zip(found, channels)]
        options.setdefault("dim", tables[0].shape[-1] if tables else 1)
        options.setdefault("heads", numbers[0].shape[0] if numbers else None)
        own = cls(channels=built, **options).to((tables + numbers)[0].dtype)
        with torch.no_grad():
            for channel, parts in zip(own._each(), found):
                for what, array in parts.items():
                    target = getattr(channel, what + "s" if what in ("key", "value") else what)
                    if target is None or target.shape != array.shape:
                        wanted = "no such table" if target is None else tuple(target.shape)
                        raise ValueError(f"{channel.name}_{what} has shape {tuple(array.shape)}, the channel {wanted}")
                    target.copy_(array)
        return own

    # ---- positions

    def reads(self) -> dict[str, type[Position]]:
        """The named positions that the channels read, and of which kind they are."""
        found: dict[str, type[Position]] = {}
        for channel in self._each():
            found[channel.position] = channel.feature.kind
            if channel.where is not None:
                found[channel.where] = Labels
        return found

    def select(self, positions: Positions) -> Positions:
        if not isinstance(positions, Mapping):
            return positions
        return {name: positions[name] for name in self.reads() if name in positions} or positions

    def check_positions(self, *positions: Positions) -> None:
        for position in positions:
            self._named(position)

    def _named(self, position: Positions) -> Mapping[str, Position]:
        """All that is read, by name; TypeError or ValueError names the channel whose position is missing."""
        reads = self.reads()
        if not isinstance(position, Mapping) and len(reads) == 1:
            position = {next(iter(reads)): position}
        for number, channel in enumerate(self._each()):
            for name in filter(None, (channel.position, channel.where)):
                who = f"channel {number} ({channel.kind}) of {type(self).__name__} reads the position {name!r}"
                if not isinstance(position, Mapping):
                    raise TypeError(
                        f"{who}: positions are named, q_pos={{{name!r}: .., ..}}, and so are k_pos; got "
                        f"{type(position).__name__}"
                    )
                if name not in position:
                    raise ValueError(f"{who}, which is not given; there are {', '.join(position) or 'none'}")
                if not isinstance(position[name], reads[name]):
                    got = type(position[name]).__name__
                    raise TypeError(f"{who} as {reads[name].__name__}, got {got}")
        assert isinstance(position, Mapping)
        return position

    # ---- the protocol of kernels

    def score_scale(self, dim: int) -> float | None:
        return self.scale

    def value_width(self, dim: int) -> int | None:
        return dim if self.has_values else None

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        queries, keys = self._named(q_pos), self._named(k_pos)
        states: States = {}
        for channel in self._each():
            for name, feature in ((channel.position, channel.feature), (channel.where, feature_of("mark"))):
                if name is not None:
                    states[f"q:{name}"] = State(feature.read(queries[name]), "query", 1, True)
                    states[f"k:{name}"] = State(feature.read(keys[name]), "key", 1, True)
        dtype = torch.promote_types(q.dtype, torch.float32)
        dtype = dtype if not any(True for _ in self.parameters()) else torch.promote_types(dtype, self._dtype())
        for c, channel in enumerate(self._each()):
            if channel.rotates:
                states |= self._rotation(c, channel, q.to(dtype), k.to(dtype), states)
            elif channel.absolute:
                states |= self._of_keys(c, channel, q, states, dtype)
            else:
                states |= self._tables(c, channel, keys, states, dtype)
        own = [c for c in self._each() if not c.absolute]
        for name, tables in (("keys", [c.keys for c in own]), ("values", [c.values for c in own])):
            found = [self._headed(table.to(dtype), q) for table in tables if table is not None]
            if found:
                states[name] = State(torch.cat(found, 1), "whole", batched=False)
        return states

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        return self._terms(states, tile).score(q, k, states, self._factor(q)).to(q.dtype)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        return self._terms(states, tile).score_backward(grad, q, k, states, self._factor(q))

    def value_term(self, p: Tensor, states: Slices, tile: Tile) -> Tensor | None:
        return self._terms(states, tile).values(p, states) if self.has_values else None

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        return self._terms(states, tile).values_backward(grad, p, states) if self.has_values else None

    # ---- what is made once a call

    def _each(self) -> list[Channel]:
        return [c for c in self.channels if isinstance(c, Channel)]

    def _dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters())

    def _factor(self, q: Tensor) -> float:
        return float(q.shape[-1] ** -0.5) if self.scale is None else self.scale

    def _terms(self, states: Slices, tile: Tile) -> Terms:
        return self._latest.of(self._each(), states, tile)

    def _headed(self, table: Tensor, q: Tensor) -> Tensor:
        """A table (rows, dim) as (heads or 1, rows, width of q)."""
        heads, width = q.shape[1], q.shape[3]
        if self.dim == width:
            return table.unsqueeze(0)
        if self.dim != heads * width:
            raise ValueError(
                f"{type(self).__name__} was built for dim={self.dim}; q has {heads} heads of width {width}, so dim is "
                f"{width} (one table for all heads) or {heads * width} (each head has its columns)"
            )
        return table.view(len(table), heads, width).transpose(0, 1)

    def _tables(
        self, c: int, channel: Channel, keys: Mapping[str, Position], states: States, dtype: torch.dtype
    ) -> States:
        encoder = channel.encoder
        found: States = {}
        for name, numbers in (("bias", channel.bias), ("gate", channel.gate)):
            if numbers is not None:
                found[f"{c}.{name}"] = State(numbers.to(dtype), "whole", batched=False)
        scales = getattr(encoder, "log_scales", None)
        if scales is not None:
            found[f"{c}.scales"] = State(scales, "whole", batched=False)
        if isinstance(encoder, Sparse):
            unit: Tensor | None = None
            if encoder.personal:
                times = keys[channel.position]
                assert isinstance(times, Times)
                own = personal_unit(times)
                unit = own.view(-1, 1, 1)
                found[f"{c}.unit"] = State(unit, "whole", batched=True)
            found |= self._buckets(c, channel, encoder, unit, states)
        return found

    def _buckets(self, c: int, channel: Channel, encoder: Sparse, unit: Tensor | None, states: States) -> States:
        """Where buckets begin: among the keys, where these are in order, else among the numbers of the feature."""
        q, k = (states[f"{side}:{channel.position}"].tensor for side in "qk")
        if unit is not None:
            bounds = unit.squeeze(2) * torch.arange(1, encoder.reach + 1, device=k.device)
        else:
            assert channel.bounds is not None
            bounds = torch.tensor(channel.bounds, dtype=torch.float64, device=k.device).unsqueeze(0)
        ordered = channel.feature.ordered and channel.where is None and q.shape[1] and k.shape[1]
        if ordered and steps.pays(encoder.steps, k.shape[1]) and steps.is_rising(k):
            edges = steps.edges_of(lambda x: encoder.step(x, unit), q, k, bounds)
            return {f"{c}.edges": State(edges, "query", 1, True)}
        cuts = () if channel.cuts is None else channel.cuts.tensors(k.device)
        return {f"{c}.{name}": State(x, "whole", batched=False) for name, x in zip(("at", "below"), cuts)}

    def _of_keys(self, c: int, channel: Channel, q: Tensor, states: States, dtype: torch.dtype) -> States:
        assert isinstance(channel.encoder, Sparse)
        row = channel.encoder.code(states[f"k:{channel.position}"].tensor)  # (batch or 1, n_k)
        found: States = {}
        for what, table, factor in (("vectors", channel.keys, self._factor(q)), ("added", channel.values, 1.0)):
            if table is not None:
                own = self._headed(table.to(dtype), q)[:, row].transpose(0, 1)  # (batch or 1, heads or 1, n_k, width)
                found[f"{c}.{what}"] = State(own * factor, "key", 2, True)
        if channel.bias is not None:
            numbers = channel.bias.to(dtype)[:, row].transpose(0, 1).unsqueeze(2)
            found[f"{c}.numbers"] = State(numbers, "key", 3, True)
        return found

    def _rotation(self, c: int, channel: Channel, q: Tensor, k: Tensor, states: States) -> States:
        encoder = channel.encoder
        assert isinstance(encoder, Rotary)
        width = 2 * len(encoder.scales)
        if width > q.shape[-1]:
            raise ValueError(f"{len(encoder.scales)} periods turn {width} channels, q has {q.shape[-1]}; give count=..")
        places = [states[f"{side}:{channel.position}"].tensor for side in "qk"]
        origin = places[1][:, :1] if places[1].shape[1] else places[1].new_zeros(1, 1)
        found: States = {}
        for side, x, at, along in (("q", q, places[0], "query"), ("k", k, places[1], "key")):
            x = x[..., :width]
            angle = encoder.angles(at - origin).unsqueeze(1)
            turned = turn(x, angle.cos(), angle.sin(), "interleaved")
            both = torch.cat([turned, -x], -1) * self._factor(q) if side == "q" else torch.cat([turned, x], -1)
            found[f"{c}.{side}_turned"] = State(both, "query" if along == "query" else "key", 2, True)
        return found

    def extra_repr(self) -> str:
        return f"dim={self.dim}" + ("" if self.heads is None else f", heads={self.heads}")


def _channel(number: int, dim: int, heads: int | None, options: Mapping[str, Any]) -> Channel:
    try:
        channel = Channel(dim, heads, **options)
        plain = isinstance(channel.encoder, Sparse) and channel.where is None and "gate" not in channel.inject
        if channel.absolute and not plain:
            raise ValueError('the key\'s own place has "buckets" or "log" buckets, and neither a gate nor where')
        return channel
    except (TypeError, ValueError) as error:
        message = str(error).replace("Channel.__init__() ", "")
        raise type(error)(f"channel {number} ({dict(options)}): {message}") from None


class _Latest:
    """What the tile at hand has worked out of its pairs, until the tile is gone: forgotten in copies and pickles."""

    def __init__(self) -> None:
        self._held: tuple[Any, Any, Terms] | None = None

    def of(self, channels: Sequence[Channel], states: Slices, tile: Tile) -> Terms:
        place = next((x for name, x in states.items() if name.startswith("q:")), None)
        held = self._held
        if held is not None and held[0]() is tile and place is not None and held[1]() is place:
            return held[2]
        terms = Terms(channels, states, tile)
        if place is not None:
            self._held = (weakref.ref(tile, self._forget), weakref.ref(place), terms)
        return terms

    def _forget(self, gone: Any) -> None:
        held = self._held
        if held is not None and held[0] is gone:
            self._held = None

    def __deepcopy__(self, memo: Any) -> _Latest:
        return _Latest()

    def __reduce__(self) -> tuple[type[_Latest], tuple[()]]:
        return _Latest, ()
