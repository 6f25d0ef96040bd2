"""A sequence shared among ranks gives what one process gives: values and gradients, every form, and clear ends."""

from __future__ import annotations

import multiprocessing
import queue
import socket
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

import relpos as rp
from relpos.mixers.context_parallel import shard, start
from tests.core import sharing

CASES = list(sharing.cases())
Answers = dict[str, dict[int, Any]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def collect(chosen: list[str], limit: float = 240.0) -> tuple[Answers, list[int | None]]:
    """What three ranks answer, by question and rank; and how each ended."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    port = free_port()
    ranks = [context.Process(target=sharing.work, args=(r, port, chosen, answers), daemon=True) for r in range(3)]
    for each in ranks:
        each.start()
    found: Answers = {}
    until = time.monotonic() + limit
    while time.monotonic() < until:
        try:
            question, rank, said = answers.get(timeout=0.5)
            found.setdefault(question, {})[rank] = said
        except queue.Empty:
            if not any(each.is_alive() for each in ranks):
                break
    for each in ranks:
        if each.is_alive():
            each.kill()
        each.join()
    return found, [each.exitcode for each in ranks]


@pytest.fixture(scope="module")
def outcome() -> tuple[Answers, list[int | None]]:
    return collect(CASES)


@pytest.fixture(scope="module")
def answers(outcome: tuple[Answers, list[int | None]]) -> Answers:
    assert "crash" not in outcome[0], outcome[0]["crash"]
    return outcome[0]


@pytest.mark.slow(30)
@pytest.mark.parametrize("name", CASES)
def test_ranks_give_what_one_process_gives(name: str, answers: Answers) -> None:
    asked = [question for question in answers if question.startswith(f"{name}, ") and question.count(",") >= 2]
    asked = [question for question in asked if question.rsplit(", ", 2)[0] == name]
    assert asked
    for question in asked:
        world = int(question.rsplit(", ", 2)[1][0])
        assert set(answers[question]) == set(range(world)), question
        limit = 1e-12 if "float64" in question else 3e-6 if name.startswith("sandwich") else 1e-6  # a bias of 30 nats
        for rank, said in answers[question].items():
            assert isinstance(said, dict), f"{question}, rank {rank}: {said}"
            for what, worst in said.items():  # a gradient in float32 is a sum over many rounded weights
                room = 1 if what == "out" or "float64" in question else 3
                assert worst <= room * limit, f"{question}, rank {rank}: {said}"


def test_bad_input_of_one_rank_raises_on_all(answers: Answers) -> None:
    heard = answers["refusals"]
    assert set(heard) == {0, 1, 2} and all(said["afterwards"] == "nothing" for said in heard.values())
    for name, words in {
        "no token": "ValueError: rank 1: every rank holds at least one query and one key",
        "another dtype": "ValueError: all ranks call with the same dtype; rank 0 has torch.float32, rank 1 torch.float",
        "causal here only": "ValueError: all ranks call with the same causal; rank 0 has False, rank 1 True",
        "a mask of another shape": r"ValueError: rank 1: key_mask has shape (batch, n_k) = (1, 8), got (1, 9)",
        "positions here only": "ValueError: all ranks call with the same arguments",
        "a ring of all at once": "ValueError: FoX needs the tokens of all ranks at once",
        "more ranks than tokens": "ValueError: 2 tokens cannot be shared among 3 ranks",
    }.items():
        for rank, said in heard.items():
            assert said[name].startswith(words), (name, rank, said[name])


def test_shares_and_what_is_left_to_others(answers: Answers) -> None:
    heard = answers["shares"]
    assert [heard[rank]["shard"] for rank in range(3)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for said in heard.values():
        assert said["shares of the gradient"] < 1e-5 < 1e-3 < said["differs from one share"]


def test_no_rank_allocates_what_grows_with_the_square(answers: Answers) -> None:
    assert all(said["largest of n x n"] < 0.2 for said in answers["shares"].values()), answers["shares"]


def test_a_silent_and_a_dead_rank_stop_the_others(outcome: tuple[Answers, list[int | None]]) -> None:
    answers, codes = outcome
    assert codes == [0, 0, 3]
    for question in ("silent", "dead"):
        for rank in (0, 1):
            assert answers[question][rank].startswith(f"rank {rank} of 3 has lost touch with the others"), question


def test_without_a_process_group() -> None:
    q = torch.randn(1, 2, 8, 4)
    assert not dist.is_initialized()
    for act in (lambda: rp.context_parallel_attention(q, q, q), lambda: shard(q)):
        with pytest.raises(RuntimeError, match="no process group: start the script by torchrun"):
            act()


def test_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="start it by torchrun"):
        start("gloo")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with pytest.raises(RuntimeError, match='this build of torch has no NCCL; backend="gloo"'):
        start("nccl")
