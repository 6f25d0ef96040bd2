"""A process of its own for what must not see, or be seen by, anything else: `python -m relpos.lab.bench.child`.

Takes one JSON object on its standard input and prints one as its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from relpos.lab.bench.problem import Problem


def ask(job: dict[str, Any], limit: float) -> dict[str, Any]:
    """The answer of a fresh process, or {"skipped": reason} when it died, or took more than `limit` seconds."""
    source = str(Path(__file__).parents[3])
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": source if not known else os.pathsep.join([source, known])}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "relpos.lab.bench.child"],
            input=json.dumps(job), capture_output=True, text=True, timeout=limit, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"skipped": f"not finished in {limit:.0f} s"}
    if done.returncode < 0:
        return {"skipped": f"its process was ended by signal {-done.returncode}, which for 9 means out of memory"}
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        answer = None
    if done.returncode or not isinstance(answer, dict):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"skipped": f"its process failed: {last[:160]}"}
    return answer


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What the fresh process does. Jobs: memory, and the race of one contestant with the floor."""
    import torch

    torch.set_num_threads(job["threads"])
    problem = Problem(**job["problem"])
    if job["kind"] == "memory":
        from relpos.lab.bench.memory import measure

        return measure(job["contestant"], problem)
    from relpos.lab.bench.contestants import CONTESTANTS, FLOOR
    from relpos.lab.bench.timing import Patience, race

    rows = race(problem, CONTESTANTS[FLOOR], [CONTESTANTS[job["contestant"]]], Patience(**job["patience"]))
    return {"skipped": None, "row": rows[1]}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
