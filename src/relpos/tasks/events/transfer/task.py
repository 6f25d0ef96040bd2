"""The task transfer: a network trained on the regions of one area, brought to regions elsewhere that have few events.

**Data.** Police stops of Minneapolis: regions are neighbourhoods, the source those of the precinct with most stops, as
far as they have at least ``enough`` of them. Targets lie in other precincts and have fewer than ``under`` stops in the
year; those that have up to half as many more are the validation split.

**Lengths** are how many events of a target are known: a copy of the trained network adapts to the first of them (how:
the contestant's ``transfer``, see `methods`). What is scored is the same for every length: all that comes after the
last of the longest, up to the end of the year, as one window (silence included), in nats an event of time (in hours),
mark and distance (in km) jointly. The states that it is scored from have read all that came before.

**The price of a slower clock**: the same targets with all times ten times as long, as if the clock of the data were
another or the town a quieter one. What is lost besides the change of unit, nats an event, is what a model knew of the
pace of the source and not of the events before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn, no_grad

from relpos.encodings.base import positive
from relpos.tasks import held_out
from relpos.tasks.base import Artifact, Evaluation, Measure, Metric, Progress
from relpos.tasks.data import sets
from relpos.tasks.events.sequences import Sequences
from relpos.tasks.events.transfer import methods, rivals
from relpos.tasks.events.transfer.network import PARTS, Traveller
from relpos.tasks.events.transfer.regions import Journey, Prior, Region, Size, joined

GROUP = 4  # runs of one region in a row of a batch
LEFT = 10  # events of a target that are scored, at least
GAIN, PRICE = "gain", "price"
STRETCH = 10.0  # how many times slower the clock of a target is made to run, to see what a model relies on
SPLITS = ("validation", "test")
SLOWER = ", slower"
CONTESTANTS = ("scratch", "zero-shot", "fine-tune", "meta", "ours", "ours,units=source")
MORE = ("ours,units=region", "ours,reset=marks", "ours,reset=tables,freeze=body+flows+items")


class Transfer:
    """From a region of many events to regions of few; see the module for the rules.

    source    the area that is learned from, by its name; default that of most events
    lengths   how many events of a target are known, rising
    under     targets have fewer events than that; enough: regions of the source have at least so many
    tokens    of a run of training, and at most of what a state has read
    """

    name = "transfer"
    title = "transfer: from the neighbourhoods of one precinct to sparse ones elsewhere (time, mark and distance)"
    unit = "nats an event"
    metrics = (
        Metric(GAIN, f"gain over the {rivals.POOLED}", unit="nats an event"),
        Metric(PRICE, "price of a clock ten times slower", higher_is_better=False, unit="nats an event"),
    )
    multiples = (1,)
    measure = Measure("known events of the target", "events", "most known events", trains=False)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {
            "encodings": tuple(f"relative_channels[transfer={each}]" for each in CONTESTANTS),
            "seeds": (0, 1), "steps": 250, "batch": 16, "rates": (3e-3,), "budget": None, "validations": 1, "model": {},
        },
        "results": {
            "encodings": tuple(f"relative_channels[transfer={each}]" for each in (*CONTESTANTS, *MORE)),
            "seeds": (0, 1, 2), "steps": 300, "batch": 16, "rates": (3e-3,), "budget": None, "validations": 1,
            "model": {},
        },
    }  # fmt: skip

    def __init__(
        self,
        source: str | None = None,
        lengths: Sequence[int] = (5, 10, 20),
        under: int = 100,
        enough: int = 100,
        tokens: int = 64,
    ) -> None:
        self.lengths = tuple(positive("lengths", each) for each in lengths)
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths rise and there is at least one, got {lengths}")
        self.area, self.under, self.enough = source, positive("under", under), positive("enough", enough)
        self.tokens = positive("tokens", tokens)
        if self.tokens <= self.lengths[-1] + 1:
            raise ValueError(f"runs of {tokens} tokens do not hold {self.lengths[-1]} events and the start of a window")
        if self.under <= self.lengths[-1] + LEFT:
            raise ValueError(f"under={under} leaves no target with {self.lengths[-1]} events and {LEFT} to score")
        self.train_length = self.lengths[-1]
        self._data: sets.Events | None = None
        self._clear()

    def _clear(self) -> None:
        self._regions: dict[str, list[Region]] = {}
        self._used: Sequences | None = None
        self._area = ""
        self._prior: Prior | None = None
        self._excitement: rivals.Excitement | None = None
        self._rows: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without data that can be loaded again."""
        left: dict[str, Any] = {"_data": None, "_used": None, "_prior": None, "_excitement": None}
        left |= {"_regions": {}, "_rows": {}}
        return {**self.__dict__, **left}

    @property
    def source(self) -> str:
        """Where the data comes from; in full once it is read."""
        return "the data set mpls-stops" if self._data is None else held_out.origin(self._data.card)

    # ---- data

    def prepare(self, progress: Progress | None = None) -> None:
        if self._data is None:
            self._take(held_out.load(sets.Events, "mpls-stops", None, progress))

    def _take(self, found: sets.Events) -> None:
        labels, whole = found.labels, untied(found.sequences)
        if labels is None or whole.places is None or whole.marks is None:
            raise ValueError(f"{found.card.name} lacks what this task reads: marks, places and the area of each region")
        counts = np.bincount(labels, weights=whole.lengths, minlength=len(found.classes))
        if self.area is not None and self.area not in found.classes:
            raise ValueError(f"source is one of {', '.join(found.classes)}, got {self.area!r}")
        area = int(counts.argmax()) if self.area is None else found.classes.index(self.area)
        inside, n = labels == area, whole.lengths
        few, some = n < self.under, (n >= self.under) & (n < 1.5 * self.under)
        long = n >= self.lengths[-1] + LEFT
        parts = {
            "source": inside & (n >= self.enough),
            "validation": ~inside & some & long,
            "test": ~inside & few & long,
        }
        for name, mask in parts.items():
            least = 2 if name == "source" else 1
            if mask.sum() < least:
                raise ValueError(f"{name} has {mask.sum()} regions, and needs {least}: change under or enough")
        chosen = {name: [whole.select([row]) for row in np.flatnonzero(mask)] for name, mask in parts.items()}
        self._clear()
        for name, each in chosen.items():
            self._regions[name] = [Region(one, None if name == "source" else self._cut(one)) for one in each]
            slower = [one.scaled(STRETCH, one.unit) for one in each] if name == "test" else []
            self._regions[name + SLOWER] = [Region(one, self._cut(one)) for one in slower]
        self._prior, self._data = Prior.of(whole.select(parts["source"])), found
        self._used, self._area = whole.select(parts["source"]), found.classes[area]

    def _cut(self, one: Sequences) -> float:
        """What comes later is scored."""
        return float(one.times[self.lengths[-1] - 1])

    def regions(self, split: str) -> list[Region]:
        """Those of "source", "validation" or "test"; "test, slower" are those of the test with times `STRETCH` times
        as long."""
        self.prepare()
        if split not in self._regions:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self._regions)}")
        return self._regions[split]

    @property
    def prior(self) -> Prior:
        """What the source says of a region."""
        self.prepare()
        assert self._prior is not None
        return self._prior

    def describe(self) -> dict[str, object]:
        sides = {name: self.regions(name) for name in ("source", *SPLITS)}
        prior, typical = self.prior, self.prior.size()
        return {
            "task": self.name,
            "source": self.source,
            "source area": self._area,
            "regions": {name: {region.name: len(region) for region in found} for name, found in sides.items()},
            "scored": {split: self._scored(split) for split in SPLITS},
            "prior": {
                "rate": f"gamma of shape {prior.shape:.3g}, mean {1 / typical.gap:.3g} events an hour",
                "distance": f"about {typical.way:.3g} km, a factor of {np.exp(prior.between):.3g} between regions",
            },
        }

    def _scored(self, split: str) -> int:
        return sum(region.tape.events for region in self.regions(split))

    # ---- training on the source

    def model(self, encoding: str, transfer: str = "ours", **options: Any) -> nn.Module:
        """A `Movable`. Options: reset, freeze, units, adapt_steps, adapt_rate, adapt_pull, and `Traveller`'s."""
        changes = {"reset": options.pop("reset", None), "freeze": options.pop("freeze", None)}
        changes |= {name: options.pop(f"adapt_{name}", None) for name in ("steps", "rate", "pull")}
        how = methods.method(transfer, units=options.pop("units", None), **changes)
        typical = self.prior.size()
        marks = self.regions("source")[0].events.mark_count
        given = {"length": self.tokens, **options}

        def fresh() -> Traveller:
            return Traveller(marks, encoding, typical=(typical.gap, typical.way), units=how.units, **given)

        return methods.Movable(how, fresh, GROUP, self.lengths[-1] + 1)

    def batch(self, step: int, seed: int, size: int) -> tuple[Tensor, ...]:
        """``size`` runs, four and four of one region, as `Journey.tensors`; a pure function of the arguments.

        A region is drawn by the root of its events. Its size is what a number of events just before the run tell of
        it, one of ``lengths`` or all: as uncertain as the size of a target will be.
        """
        if min(step, seed) < 0 or size < 1:
            raise ValueError(f"step and seed must be 0 or more and size 1 or more, got {step}, {seed}, {size}")
        rng, regions = np.random.default_rng([seed, step, 11]), self.regions("source")
        weights = np.sqrt([len(region) for region in regions])
        found = []
        for first in range(0, size, GROUP):
            region = regions[rng.choice(len(regions), p=weights / weights.sum())]
            runs = region.tape.draw(rng, min(GROUP, size - first), self.tokens, self.tokens // 8)
            known = [int(rng.choice([*self.lengths, len(region)])) for _ in runs]
            found.append(region.take(runs, [self._size(region, run.begin, n) for run, n in zip(runs, known)]))
        return joined(found).tensors()

    def _size(self, region: Region, token: int, count: int) -> Size:
        """Of a region as the ``count`` events before a token tell it; the first ones where there are not so many."""
        last = max(token - 1, min(count, len(region)))
        return region.size(self.prior, max(last - count, 0), last)

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Nats an event of the runs; of meta-learning: after some steps on other runs of the region."""
        found: Tensor = model(Journey.of(batch))
        return found

    # ---- adapting and judging

    def adapted(
        self, model: nn.Module, region: Region, length: int, told: Callable[[int], None] | None = None
    ) -> tuple[Traveller, Size]:
        """A copy of the network after the first ``length`` events of a target, and the size that they tell."""
        assert isinstance(model, methods.Movable)
        size = self._known(model.how, region, length)
        start = region.start(length)
        journey = start.take(start.tape.runs(self.tokens, 0), [size])
        network, _ = model.begin()
        return methods.adapt(network, journey, model.how, told), size

    def _known(self, how: methods.Method, region: Region, length: int) -> Size:
        if not how.own:
            return region.size(self.prior, 0, length)
        found = region.ways[:length]
        moved = found[found > 0]
        return Size(region.elapsed(0, length) / length, float(np.exp(np.log(moved).mean())) if len(moved) else 1.0)

    @no_grad()
    def score(self, network: Traveller, region: Region, size: Size) -> np.ndarray:
        """(3,) log likelihood of time, mark and distance of what is scored of a region."""
        runs = region.tape.runs(self.tokens, self.tokens // 2)
        parts = network(region.take(runs, [size] * len(runs)))
        found: np.ndarray = parts.sum((0, 1)).cpu().numpy()
        return found

    def evaluate(self, model: nn.Module, split: str, length: int, progress: Progress | None = None) -> Evaluation:
        """Nats an event on the rest of the targets, each after a copy has adapted to its first ``length`` events."""
        self._check(split, length)
        count = self._scored(split)

        def nats(side: str) -> float:
            return -sum(float(each.sum()) for each in self.judged(model, side, length, progress).values()) / count

        loss = nats(split)
        if split == "validation":
            return Evaluation(length, loss, None, count)
        pooled = -float(self.rivals(split, length)[rivals.POOLED].sum()) / count
        return Evaluation(length, loss, None, count, {GAIN: pooled - loss, PRICE: self._price(loss, nats)})

    @staticmethod
    def _price(loss: float, nats: Callable[[str], float]) -> float:
        """What is lost where the clock is slower, besides the change of unit."""
        return nats("test" + SLOWER) - float(np.log(STRETCH)) - loss

    def judged(
        self, model: nn.Module, split: str, length: int, progress: Progress | None = None
    ) -> dict[str, np.ndarray]:
        """(3,) log likelihood of time, mark and distance by target."""
        regions, found = self.regions(split), {}
        for row, region in enumerate(regions):
            if progress is not None:
                progress(row, len(regions), f"{split}, adapting to {length} events of {region.name}")
            network, size = self.adapted(model, region, length)
            found[region.name] = self.score(network, region, size)
        return found

    def _check(self, split: str, length: int) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if length not in self.lengths:
            raise ValueError(f"length is one of {', '.join(map(str, self.lengths))} events, got {length}")

    def rivals(self, split: str, length: int, progress: Progress | None = None) -> dict[str, np.ndarray]:
        """(2,) log likelihood by classical model, all targets together: time and mark, distance."""
        key = (split, length)
        if key not in self._rows:
            regions = self.regions(split)
            if self._excitement is None:
                assert self._used is not None
                self._excitement = rivals.Excitement.of(self._used, self.prior, progress)
            each = [
                rivals.scores(region, length, self._cut(region.events), self.prior, self._excitement)
                for region in regions
            ]
            self._rows[key] = rivals.total(each)
        return self._rows[key]

    def baselines(self, split: str, length: int) -> dict[str, dict[str, float]]:
        """Poisson and Hawkes processes that know the source, see `rivals`, on what `evaluate` scores."""
        self._check(split, length)
        count = self._scored(split)

        def nats(side: str, name: str) -> float:
            return -float(self.rivals(side, length)[name].sum()) / count

        found: dict[str, dict[str, float]] = {}
        for name in self.rivals(split, length):
            loss = nats(split, name)
            found[name] = {"loss": loss, GAIN: nats(split, rivals.POOLED) - loss}
            if split == "test":
                found[name][PRICE] = self._price(loss, partial(nats, name=name))
        return found

    # ---- something to look at

    def pictures(self, model: nn.Module, directory: Path) -> list[Artifact]:
        """What elapsed time does to attention in the source and in the targets, and when the next event comes."""
        from relpos.tasks.events.transfer import pictures

        return pictures.artifacts(self, model, Path(directory))

    def sample(self, model: nn.Module, directory: Path, seed: int) -> list[Artifact]:
        """A text: every target, its size as the adaptation events tell it, nats an event by part; what was kept."""
        assert isinstance(model, methods.Movable)
        length = self.lengths[-1]
        lines = [f"after {length} events of each target, nats an event", ""]
        lines += [f"{'target':26}{'scored':>7}{'gap (h)':>9}{'km':>6}" + "".join(f"{part:>10}" for part in PARTS)]
        for name, parts in self.judged(model, "test", length).items():
            region = next(each for each in self.regions("test") if each.name == name)
            size = self._known(model.how, region, length)
            row = "".join(f"{-value / region.tape.events:10.3f}" for value in parts)
            lines.append(f"{name:26}{region.tape.events:7}{size.gap:9.1f}{size.way:6.2f}{row}")
        _, report = model.begin()
        path = Path(directory) / "targets.txt"
        path.write_text("\n".join([*lines, "", str(report)]) + "\n", encoding="utf-8")
        return [Artifact(path, "text", "Every target, and what was kept, reset and frozen")]


def untied(whole: Sequences) -> Sequences:
    """Events at one time laid out within a tick of the clock: a gap of 0 has no density."""
    if not len(whole.times) or not (np.nan_to_num(whole.gaps(), nan=1.0) == 0).any():
        return whole
    gaps = whole.gaps()
    tick = float(gaps[gaps > 0].min())
    filled, end = whole.lengths > 0, whole.end.copy()
    tied = np.flatnonzero(filled)[gaps[whole.offsets[1:][filled] - 1] == 0]
    end[tied] = np.maximum(end[tied], whole.latest[tied] + tick)  # the last event may go a tick beyond the others
    return Sequences.from_flat(
        whole.times, whole.offsets, marks=whole.marks, places=whole.places, ids=whole.ids, unit=whole.unit,
        window=(whole.start, end), mark_names=whole.mark_names,
        mark_count=whole.mark_count, ties="spread",
    )  # fmt: skip
