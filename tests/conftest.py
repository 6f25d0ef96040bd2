"""What every test starts from: one thread, no display, and the same random numbers on every run."""

import os
import random

import numpy as np
import pytest
import setuptools  # noqa: F401  (before anything imports distutils: torch's inductor needs it and then refuses to load)
import torch
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; kernels then run on the CPU
torch.set_num_threads(1)  # the workers of pytest-xdist share the cores

# The same examples on every run, and no deadline: a test never fails for being slow.
settings.register_profile("relpos", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("relpos")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give each test the same random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked cuda where there is no device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
