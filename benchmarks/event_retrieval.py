"""Retrieval of event sequences with learned hash codes, against comparing a query with the whole corpus.

    python benchmarks/event_retrieval.py [--markdown docs/results/event-retrieval-codes.md]

50 simulated classes of processes, 400 corpus sequences of each; queries are other items, on a bent clock. A network is
trained on items that are in neither. Counted are full-precision scores (embeddings, and all events of the sequences
against each other) and, beside them, Hamming distances of codes. Takes about three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure import machine

from relpos.tasks.events.metrics.retrieval import evaluate
from relpos.tasks.events.retrieval import Codes, Index, NeuroSeqRet
from relpos.tasks.events.retrieval.documents import Halves
from relpos.tasks.events.retrieval.relevance import Encoded
from relpos.tasks.events.retrieval.simulated import simulated
from relpos.tasks.events.retrieval.task import EventRetrieval, read
from relpos.tasks.events.sequences import Sequences

CLASSES, TRAINED, CORPUS, ASKED = 50, 16, 400, 6  # and items of each class: to train, in the corpus, as queries
BITS, TWENTIETH = (16, 64), 20
GOAL = f"{max(BITS)} learned bits, scan, 1/{TWENTIETH} rescored"
TABLES = {"tables": 4, "bits": 14, "flips": 1}


class Trained(EventRetrieval):
    """The task's batches and loss, on the items of a set that is made here."""

    def __init__(self, halves: Halves) -> None:
        super().__init__(dataset="simulated", hold="people")
        self._take(halves)
        self._sides["train"] = np.arange(len(halves.labels))


def parts(seed: int) -> tuple[Halves, Halves, Halves]:
    """Training, corpus and queries: items of the same classes, each in one part only."""
    whole = simulated(CLASSES, TRAINED + CORPUS + ASKED, seed=seed)
    number = np.tile(np.arange(TRAINED + CORPUS + ASKED), CLASSES)
    chosen = (number < TRAINED, (number >= TRAINED) & (number < TRAINED + CORPUS), number >= TRAINED + CORPUS)
    found = []
    for mask in chosen:
        queries, corpus = whole.queries.select(mask), whole.corpus.select(mask)
        found.append(Halves(queries, corpus, whole.labels[mask], whole.classes, whole.source))
    return found[0], found[1], found[2]


def train(task: EventRetrieval, steps: int, seed: int) -> NeuroSeqRet:
    torch.manual_seed(seed)
    model = task.model("relative_channels", channels="time", dim=32, depth=1)
    assert isinstance(model, NeuroSeqRet)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps, pct_start=0.1)
    for step in range(steps):
        loss = task.loss(model, task.batch(step, seed, 32))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % 50 == 0:
            print(f"training, step {step} of {steps}: loss {float(loss.detach()):.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def encode(model: NeuroSeqRet, sequences: Sequences, query: bool, size: int = 500) -> Encoded:
    """All sequences; states, which only cross-attention needs, are let go."""
    longest = int(sequences.lengths.max())
    found = []
    for first in range(0, len(sequences), size):
        seen = read(sequences.select(np.arange(first, min(first + size, len(sequences)))))
        one = model.encode(seen, query)
        missing = longest - one.events.mask.shape[1]
        wide = [torch.nn.functional.pad(part, (0, missing)) for part in one.events[:3]]
        none = wide[1].new_zeros((*wide[1].shape, 0))
        found.append(Encoded(seen, one.states[:, :0], one.vectors, one.events._replace(
            marks=wide[0], times=wide[1], mask=wide[2], places=none, profiles=none)))  # fmt: skip
        if first // size % 10 == 0:
            print(f"encoding {first + len(one.vectors)} of {len(sequences)}", flush=True)
    columns = [torch.cat(column) for column in zip(*(one.events for one in found))]
    events = type(found[0].events)(*columns)
    return Encoded(events, torch.cat([f.states for f in found]), torch.cat([f.vectors for f in found]), events)


@torch.no_grad()
def rescored(model: NeuroSeqRet, queries: Encoded, corpus: Encoded, rows: np.ndarray | None) -> np.ndarray:
    """(queries, corpus) full-precision scores of the candidates in ``rows`` (-1: none), -inf elsewhere; None: all."""
    whole = np.full((len(queries.vectors), len(corpus.vectors)), -np.inf)
    for query in range(len(whole)):
        one = queries.take(torch.tensor([query]))
        if rows is None:
            whole[query] = model.score(one, corpus)[0].numpy()
            continue
        near = torch.from_numpy(rows[query][rows[query] >= 0])
        whole[query, near.numpy()] = model.score(one, corpus.take(near))[0].numpy()
    return whole


def ndcg(scores: np.ndarray, relevant: np.ndarray) -> float:
    return evaluate(scores, relevant, 10).mean("ndcg")


def measured(seed: int, steps: int) -> dict[str, tuple[float, float, float, float]]:
    """name -> NDCG@10, share of the ten best of the exhaustive search that are rescored, full-precision scores a query,
    Hamming distances a query."""
    learned_from, searched, asked = parts(seed)
    model = train(Trained(learned_from), steps, seed)
    corpus, queries = encode(model, searched.corpus, False), encode(model, asked.queries, True)
    relevant = asked.labels[:, None] == searched.labels[None]
    count = len(searched.labels)
    whole = rescored(model, queries, corpus, None)
    best = np.argsort(-whole, axis=1, kind="stable")[:, :10]
    found = {"exhaustive": (ndcg(whole, relevant), 1.0, float(count), 0.0)}

    def through(name: str, index: Index, codes: np.ndarray, most: int) -> None:
        near = index.search(codes, most)
        note(name, near.rows, near.looked)

    def note(name: str, rows: np.ndarray, looked: float) -> None:
        used = float((rows >= 0).sum(1).mean())
        kept = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best.tolist(), rows.tolist())]))
        found[name] = ndcg(rescored(model, queries, corpus, rows), relevant), kept, used, looked
        print(f"{name}: NDCG@10 {found[name][0]:.3f}", flush=True)

    lot = np.random.default_rng(seed)
    drawn = np.stack([lot.choice(count, count // TWENTIETH, replace=False) for _ in range(len(asked.labels))])
    note("drawn by lot, 1/20 rescored", drawn, 0.0)
    for bits in BITS:
        plain = Codes(corpus.vectors.shape[1], bits, seed)
        learned = Codes(corpus.vectors.shape[1], bits, seed).fit(corpus.vectors, seed=seed)
        for kind, codes in ((f"{bits} random projections", plain), (f"{bits} learned bits", learned)):
            stored, given = codes.codes(corpus.vectors), codes.codes(queries.vectors)
            for share in (TWENTIETH, 10 * TWENTIETH):
                through(f"{kind}, scan, 1/{share} rescored", Index(stored), given, count // share)
                if bits == max(BITS):
                    tables = Index(stored, "tables", **TABLES, seed=seed)
                    through(f"{kind}, tables, 1/{share} rescored", tables, given, count // share)
    return found


def page(
    results: list[dict[str, tuple[float, float, float, float]]], seeds: list[int], steps: int, backend: str
) -> str:
    rows = ["| search | NDCG@10 | of exhaustive | of its ten best | full scores a query | Hamming distances a query |",
            "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name in results[0]:
        values = np.array([each[name] for each in results])
        share = values[:, 0] / np.array([each["exhaustive"][0] for each in results])
        rows.append(
            f"| {name} | {values[:, 0].mean():.3f} | {100 * share.mean():.1f} % ({100 * share.min():.1f} at least) | "
            f"{100 * values[:, 1].mean():.0f} % | {values[:, 2].mean():,.0f} | {values[:, 3].mean():,.0f} |"
        )
    goal = 100 * min(each[GOAL][0] / each["exhaustive"][0] for each in results)
    verdict = f"Reached: {goal:.1f} % in the worst seed" if goal >= 90 else f"Missed: {goal:.1f} % in the worst seed"
    flips, tables, bits = TABLES["flips"], TABLES["tables"], TABLES["bits"]
    return "\n\n".join([
        "# Retrieval of event sequences with hash codes",
        f"A corpus of {CLASSES * CORPUS:,} simulated sequences in {CLASSES} classes of processes "
        "(`relpos.tasks.events.retrieval.simulated`), "
        f"{CLASSES * ASKED} queries of other items on a bent clock; a network (self-attention relevance, unwarping on) "
        f"trained for {steps} steps on {TRAINED} further items a class. Means over seeds {', '.join(map(str, seeds))}, "
        "each with its own classes, network and codes.",
        "\n".join(rows),
        "**Aim: at least 90 % of the exhaustive NDCG@10 at a twentieth of its comparisons.** "
        f"{verdict}, by *{GOAL}*.",
        "A comparison is a full score: the cosine of two vectors of 32 numbers and the model-free distance over all "
        "events of both sequences. Hamming distances of codes are counted apart, since each is one XOR and one count "
        "of bits on a machine word: a *scan* takes one for every sequence of the corpus; *tables* take one only for "
        f"those that agree with the query in all but {flips} of the bits of one of {tables} sets of {bits} bits. "
        "Candidates are ranked by full score. *Of its ten best*: how many of the first ten of the exhaustive search "
        f"are among them. Index: {backend}.",
        "*Random projections* are the codes before learning, bases at right angles. NDCG alone flatters every search "
        f"here: {CORPUS} sequences are relevant, so that even a twentieth drawn by lot keeps much of it. How many of "
        "the ten best are kept tells more, and tells what learning the codes is worth.",
        f"Command: `python benchmarks/event_retrieval.py`. Machine: {machine()}.",
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--results", type=Path, help="JSON that seeds are added to; those in it are not run again")
    given = parser.parse_args()
    begin = time.monotonic()
    stored = json.loads(given.results.read_text()) if given.results and given.results.exists() else {}
    for seed in given.seeds:
        if str(seed) not in stored:
            stored[str(seed)] = measured(seed, given.steps)
        if given.results:
            given.results.write_text(json.dumps(stored))
    results = [stored[str(seed)] for seed in given.seeds]
    backend = "FAISS" if Index(np.zeros((1, 8), dtype=np.uint8)).backend == "faiss" else "numpy"
    text = page(results, given.seeds, given.steps, backend)
    print(text, f"{time.monotonic() - begin:.0f} s")
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
