"""Missing events: the bound against exact likelihoods, what the posterior may know, the task and its baselines."""

from __future__ import annotations

import math
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from relpos.tasks import get
from relpos.tasks.base import Task
from relpos.tasks.events import Sequences
from relpos.tasks.events.missing import Missing
from relpos.tasks.events.neural import IMTPP, Following, Scales, Seen, Tape
from relpos.tasks.events.neural.imputation import Pieces, masses_of
from relpos.tasks.events.processes import Hawkes, simulate

SMALL = {"dim": 16, "depth": 1, "heads": 2, "scales": Scales(0.7, 0.1, 1.2)}


def network(seed: int = 0, **options: object) -> IMTPP:
    torch.manual_seed(seed)
    model = IMTPP(2, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in model.parameters():  # away from zero, so that everything matters
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def events(seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.uniform(1, 12, count)) for count in (6, 1, 0)]
    marks = [rng.integers(2, size=len(each)) for each in times]
    return Sequences.of(times, marks=marks, window=(1.0, 12.0), mark_count=2)


def taken(sequences: Sequences) -> tuple[Seen, Following]:
    tape = Tape(sequences)
    return tape.take(tape.runs(16, 0))


@pytest.mark.parametrize("encoding", ["nope", "rope", "alibi", "relative_channels", "sinusoidal"])
def test_without_hidden_events_the_bound_is_the_likelihood(encoding: str) -> None:
    model = network(encoding=encoding, latent=0)
    seen, following = taken(events())
    bound = model.bound(seen, following, 0.3)
    states = model.states_of(model.history(seen), seen)
    assert torch.allclose(bound, model.head.log_likelihood(states, following))
    assert float(bound[~following.scored].detach().abs().sum()) == 0.0


def exact(model: IMTPP, seen: Seen, following: Following, share: float, nodes: int = 60) -> Tensor:
    """log p of what follows each token with at most one hidden event: a sum over marks, a quadrature over times."""
    states = model.history(seen)
    z = model.states_of(states, seen)
    none = model.head.log_likelihood(z, following) + math.log1p(-share) * (following.marks >= 0)
    x, w = np.polynomial.legendre.leggauss(nodes)
    terms = []
    for place, weight in zip((x + 1) / 2, w / 2):
        bent = place**3  # densities are steep at 0
        gap = bent * following.gaps
        for mark in range(2):
            token = model._token(
                torch.nn.functional.one_hot(torch.tensor(mark), 2).float().expand(*gap.shape, 2), gap, gap, seen
            )
            after = model._read(model.generate, token[:, :, None], states, seen, (seen.times + gap)[..., None], 1)[
                :, :, 0
            ]
            closing = model.head.log_likelihood(after, following._replace(gaps=following.gaps - gap))
            first = model.head.log_prob(z, gap, torch.full_like(following.marks, mark))
            scale = torch.log(weight * 3 * place**2 * following.gaps)
            terms.append(math.log(share) + first + closing + scale)
    return torch.logsumexp(torch.stack([none, *terms]), 0)


def test_the_bound_is_below_the_likelihood_and_its_weights_average_to_it() -> None:
    """Weighted by p / q, draws of q recover the likelihood: so p and q are what they say, jacobians and coins too."""
    model = network(latent=1)
    seen, following = taken(events())
    with torch.no_grad():
        truth = exact(model, seen, following, 0.3)
        draws = 2000
        bound = model.bound(seen, following, 0.3, draws, torch.Generator().manual_seed(0))
        states = model.history(seen)
        paths = model.paths(states, seen, following, 0.3, draws, torch.Generator().manual_seed(1))
        parts = model.parts(states, seen, following, paths, 0.3)
        weights = parts.unflatten(0, (draws, -1)).logsumexp(-1)  # over the prefixes, which are summed
        found = weights.logsumexp(0) - math.log(draws)
    scored = following.scored
    assert bool((bound <= truth + 0.02)[scored].all()) and bool((bound < truth - 0.01)[scored].any())
    assert torch.allclose(found[scored], truth[scored], atol=0.05)


def test_learning_brings_the_bound_to_the_likelihood() -> None:
    """With the process held fast, training the posterior alone closes most of the gap."""
    model = network(1, latent=1, sides=3)
    seen, following = taken(events(1))
    with torch.no_grad():
        truth = float(exact(model, seen, following, 0.3)[following.scored].sum())
        before = float(model.bound(seen, following, 0.3, 256, torch.Generator().manual_seed(0)).sum())
    posterior = [*model.infer.parameters(), *model.ahead.parameters(), *model.time.parameters()]
    posterior += [*model.go.parameters(), *model.what.parameters()]
    optimizer = torch.optim.Adam(posterior, 5e-3)
    torch.manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        (-model.bound(seen, following, 0.3, 4).sum()).backward()
        optimizer.step()
    with torch.no_grad():
        after = float(model.bound(seen, following, 0.3, 256, torch.Generator().manual_seed(0)).sum())
    assert truth - after < 0.25 * (truth - before) and after < truth + 0.05


def test_the_gradient_of_the_bound_is_that_of_its_mean() -> None:
    """By differences with the same random numbers: the draws move with the parameters."""
    model = network(latent=1)
    seen, following = taken(events())
    draws = 1500

    def value() -> Tensor:
        return model.bound(seen, following, 0.3, draws, torch.Generator().manual_seed(0)).sum()

    model.zero_grad()
    value().backward()
    bias = model.time.bias
    assert bias.grad is not None
    for index in (0, 2):
        with torch.no_grad():
            sides = []
            for sign in (1, -1):
                bias[index] += sign * 0.02
                sides.append(float(value()))
                bias[index] -= sign * 0.02
        assert float(bias.grad[index]) == pytest.approx((sides[0] - sides[1]) / 0.04, abs=0.15)


def test_states_know_nothing_of_what_comes() -> None:
    """Later events change neither the bound of earlier gaps nor what is imputed there; the next one changes its gap."""
    model = network()
    sequences = events()
    seen, following = taken(sequences)
    changed = Sequences.of(
        [[*sequences.times[:4], 11.0, 11.5], [2.0], []], marks=[[*sequences.kinds[:4], 0, 0], [0], []],
        window=(1.0, 12.0), mark_count=2,
    )  # fmt: skip
    other_seen, other_following = taken(changed)
    with torch.no_grad():
        first = model.bound(seen, following, 0.3, 3, torch.Generator().manual_seed(0))
        second = model.bound(other_seen, other_following, 0.3, 3, torch.Generator().manual_seed(0))
    assert torch.allclose(first[0, :4], second[0, :4], atol=1e-5)
    assert not torch.isclose(first[0, 4], second[0, 4], atol=1e-3)
    with torch.no_grad():  # of p nothing changes even in the gap that ends otherwise
        paths = model.paths(model.history(seen), seen, following, 0.3)
        found = [model._path_states(model.history(each), each, paths)[0] for each in (seen, other_seen)]
    assert torch.allclose(found[0][:5], found[1][:5], atol=1e-5)
    assert not torch.allclose(found[0][5], found[1][5], atol=1e-3)


@pytest.mark.parametrize("channels", ["position", "time", "position+time"])
def test_a_shift_of_the_clock_changes_nothing(channels: str) -> None:
    model = network(channels=channels)
    one, two = events(), events().shifted(1e6)
    with torch.no_grad():
        bounds = [model.bound(*taken(x), 0.3, 2, torch.Generator().manual_seed(0)) for x in (one, two)]
    assert torch.allclose(bounds[0], bounds[1], atol=1e-5)


def test_a_change_of_unit_changes_the_bound_by_the_logarithm_an_event() -> None:
    model = network(latent=2)
    own = Scales(7.0, 0.1, 1.2)
    other = network(latent=2, scales=own)
    seen, following = taken(events())
    more, after = taken(events().scaled(10.0))
    with torch.no_grad():
        first = model.bound(seen, following, 0.3, 2, torch.Generator().manual_seed(0))
        second = other.bound(more, after, 0.3, 2, torch.Generator().manual_seed(0))
    assert torch.allclose(
        first - second, math.log(10.0) * (following.scored & (following.marks >= 0)).double(), atol=1e-4
    )


def test_pads_change_nothing() -> None:
    model = network()
    both = events()
    seen, following = taken(both)
    alone = taken(both.select([1]))
    with torch.no_grad():
        states = model.states_of(model.history(seen), seen)
        own = model.states_of(model.history(alone[0]), alone[0])
    assert torch.allclose(states[1, :2], own[0], atol=1e-6)
    with torch.no_grad():
        bound = model.bound(seen, following, 0.3, 2)
    assert bool(torch.isfinite(bound).all()) and float(bound[1, 2:].abs().sum()) == 0


def test_no_random_number_where_the_posterior_is_deterministic() -> None:
    model = network()
    seen, following = taken(events())
    with torch.no_grad():
        state = torch.get_rng_state()
        one = model.bound(seen, following, 0.3, posterior="deterministic")
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(one, model.bound(seen, following, 0.3, posterior="deterministic"))
        assert not torch.equal(model.bound(seen, following, 0.3), model.bound(seen, following, 0.3))


def test_extreme_gaps_have_finite_bounds_and_gradients() -> None:
    model = network().train()
    times = [[1.0, 1.0 + 1e-9, 1.0 + 2e-9, 500.0, 1e6]]
    seen, following = taken(Sequences.of(times, marks=[[0, 1, 0, 1, 1]], window=(1.0, 2e6), mark_count=2))
    model.zero_grad()
    bound = model.bound(seen, following, 0.3)
    scored = following.scored & (following.gaps > 0)
    bound[scored].sum().backward()
    assert bool(torch.isfinite(bound[scored]).all())
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_expected_hidden_events_add_up() -> None:
    model = network()
    sequences = events()
    tape = Tape(sequences)
    runs = tape.runs(16, 0)
    seen, following = tape.take(runs)
    from relpos.tasks.events.imputers import Cells

    own = Cells(sequences.start, sequences.end, 0.3)
    pieces = Pieces(tape, runs, following, own)
    assert float((pieces.high - pieces.low).sum()) == pytest.approx(33.0)  # three windows of 11
    values = masses_of(model, seen, following, pieces, 0.3, 5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = model.history(seen)
        paths = model.paths(states, seen, following, 0.3, 5, torch.Generator().manual_seed(0))
    wanted = float(paths.reached()[following.scored.repeat(5, 1)].sum() / 5)
    assert values.sum() == pytest.approx(wanted, rel=1e-6)
    masses = [np.zeros((int(count), 2)) for count in own.counts]
    pieces.add(masses, values)
    assert sum(mass.sum() for mass in masses) == pytest.approx(wanted, rel=1e-6)
    points = network(posterior="deterministic")
    with torch.no_grad():
        paths = points.paths(points.history(seen), seen, following, 0.3, posterior="deterministic")
    found = masses_of(points, seen, following, pieces, 0.3, 5)
    assert found.sum() == pytest.approx(float(paths.reached()[following.scored].sum()))


def test_without_hidden_states_they_are_expected_by_the_odds_of_the_hazard() -> None:
    model = network(latent=0)
    sequences = events()
    tape = Tape(sequences)
    runs = tape.runs(16, 0)
    seen, following = tape.take(runs)
    from relpos.tasks.events.imputers import Cells

    pieces = Pieces(tape, runs, following, Cells(sequences.start, sequences.end, 0.3))
    values = masses_of(model, seen, following, pieces, 0.25, 1)
    with torch.no_grad():
        survival = model.head.log_survival(model.states_of(model.history(seen), seen), following.gaps)
    assert values.sum() == pytest.approx(float(-survival[following.scored].sum()) / 3, rel=1e-6)


def test_what_is_foretold_is_the_median_and_the_mark() -> None:
    model = network(latent=0)
    seen, _ = taken(events())
    gaps, marks = model.foretold(seen, 0.3, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        density = model.head.density(model.states_of(model.history(seen), seen))
    assert torch.allclose(gaps, density.quantile(0.5), rtol=1e-4)
    assert torch.allclose(marks.sum(-1), torch.ones_like(gaps))


def test_what_is_foretold_counts_hidden_events_in() -> None:
    """By simulation: gaps and coins drawn one after the other, up to the first recorded event."""
    model = network(latent=2)
    one = events().select([0])
    seen = taken(one)[0]
    seen = Seen(*(each[:, :4] for each in seen))
    gaps, _ = model.foretold(seen, 0.4, 400, torch.Generator().manual_seed(0))
    drawn = torch.Generator().manual_seed(1)
    many = Seen(*(each.repeat(2000, *[1] * (each.dim() - 1)) for each in seen))
    with torch.no_grad():
        states = model.history(many)
        x, before, since = model._recorded(many), torch.zeros_like(states), torch.zeros_like(many.times)
        done, found = torch.zeros_like(many.mask), torch.zeros_like(many.times)
        for slot in range(3):
            z = model._read(model.generate, x[:, :, None], states, many, (many.times + since)[..., None], slot)[:, :, 0]
            step = model.head.density(z).sample(1, drawn)[0]
            mark = torch.multinomial(model.head.log_marks(z, step).exp().flatten(0, 1), 1, generator=drawn).view(
                done.shape
            )
            since = since + step
            recorded = ~done & ((torch.rand(done.shape, generator=drawn) >= 0.4) | (slot == 2))
            found, done = torch.where(recorded, since, found), done | recorded
            token = model._token(torch.eye(2)[mark], step, since, many)
            x, before = token + model.earlier(before), before + token
    below = (found <= gaps).double().mean(0)
    assert bool(((below - 0.5).abs() < 0.05).all())


@pytest.mark.parametrize(
    ("options", "said"),
    [({"latent": -1}, "latent"), ({"latent": 1.5}, "latent"), ({"posterior": "no"}, "sampled, deterministic")],
)
def test_options_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        IMTPP(2, **options)


def test_scoring_cannot_begin_within_a_gap() -> None:
    tape = Tape(events(), since=5.0)
    with pytest.raises(ValueError, match="begins within a gap"):
        network().bound(*tape.take(tape.runs(16, 4)), 0.3)


# --- the task


@cache
def task() -> Missing:
    found = Missing(least=20, most=3, draws=2)
    found.take(simulate(Hawkes([0.15, 0.1], [[0.3, 0.1], [0.1, 0.3]], 1.0), window=(0, 600), seed=0, count=3))
    return found


TINY = {"dim": 8, "depth": 1, "heads": 2, "latent": 2, "components": 2}


def test_the_task_fulfils_the_protocol_and_is_registered() -> None:
    assert isinstance(task(), Task) and type(get("missing")) is Missing
    assert task().train_length in task().lengths


def test_hiding_is_nested_and_by_chance() -> None:
    own = task()
    whole = own.plan.sequences.times
    gone = {share: set(own.hidden("test", share).times) for share in (10, 30, 50)}
    assert gone[10] < gone[30] < gone[50] < set(whole)
    for share, hidden in gone.items():
        assert abs(len(hidden) / len(whole) - share / 100) < 4 * math.sqrt(0.25 / len(whole))
        assert hidden | set(own.recorded("test", share).times) == set(whole)
        assert not hidden & set(own.recorded("test", share).times)


def test_what_is_learned_from_ends_before_what_is_judged() -> None:
    own = task()
    assert own.tape.sequences.times.max() <= 0.72 * 600 < own.until("validation")[1][0] == 0.8 * 600
    assert set(own.tape.sequences.times) <= set(own.recorded("validation", 30).times)
    for split in ("validation", "test"):
        assert (own.since(split, 30) > own.until(split)[0]).all()


def test_training_and_judging() -> None:
    own = task()
    torch.manual_seed(0)
    model = own.model("relative_channels", **TINY)
    first, again = own.batch(3, 0, 4), own.batch(3, 0, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    loss = own.loss(model, first)
    loss.backward()
    assert torch.isfinite(loss) and loss.dim() == 0
    found = [own.evaluate(model, "test", 30) for _ in range(2)]
    assert found[0] == found[1] and set(found[0].metrics) == {metric.name for metric in own.metrics}
    assert found[0].count == own.budget("test", 30) * 7 // 3 or abs(found[0].count - own.budget("test", 30) * 7 / 3) < 2
    assert own.evaluate(model, "validation", 30).count > 0
    for options in ({"latent": 0}, {"posterior": "deterministic"}):
        other = own.evaluate(own.model("nope", **{**TINY, **options}), "test", 50)
        assert all(math.isfinite(value) for value in (other.loss, *other.metrics.values()))
    with pytest.raises(ValueError, match="percent hidden"):
        own.evaluate(model, "test", 20)


def test_baselines_and_pictures(tmp_path: Path) -> None:
    own = task()
    rows = own.baselines("test", 30)
    assert list(rows)[:2] == ["no imputation", "median gap"] and rows["no imputation"]["f1"] == 0
    assert rows["Hawkes on that rate"]["rate"] > rows["constant rate"]["rate"]
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    names = {metric.name for metric in own.metrics} | {"loss"}
    assert all(set(row) <= names for row in rows.values())
    (picture,) = own.sample(own.model("nope", **TINY), tmp_path, 0)
    assert picture.path.exists() and picture.kind == "image"


def test_the_truth_is_an_upper_mark_of_every_metric() -> None:
    own = task()
    hidden, counts = own.truth("test", 30)
    best = own.judged([0.99 * table + 1e-6 for table in counts], "test", 30)
    budget, count = own.budget("test", 30), len(hidden.times)
    most = 2 * min(budget, count) / (budget + count)
    assert 0.9 * most < best["f1"] <= most and best["mark"] > 0.8 and best["error"] < 0.2
    assert own.recovered([(one.times, one.kinds) for one in hidden], "test", 30).f1 == 1.0


def test_a_pickled_task_is_without_its_data() -> None:
    assert len(pickle.dumps(task())) < 2000
    with pytest.raises(ValueError, match="tolerance"):
        Missing(tolerance=0)
