"""Fixtures: every test of an operation runs on each device there is, each time from one seed."""

import pytest
import torch

from sparsedrop import select

# The products are small: where other processes keep the cores busy, threads that wait for one
# another take ten times as long as one thread alone.
torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """On the CPU small products would run densely: the tests are there for the other path."""
    if request.param == "cpu":
        with select.override(path="cpu"):
            yield torch.device("cpu")
    else:
        yield torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
