"""Fixtures: every test of an operation runs on each device there is, each time from one seed."""

import os
import random

import pytest
import torch

from sparsedrop import select
from ways import forced

# The products are small: where other processes keep the cores busy, threads that wait for one
# another take ten times as long as one thread alone.
torch.set_num_threads(1)


_NOTES = pytest.StashKey[list[str]]()


def pytest_addoption(parser):
    parser.addoption("--random-seed", type=int, help="of the random products; else a new one")
    parser.addoption(
        "--random-products-seconds", type=float, default=60.0, help="that they run on a GPU"
    )


def pytest_configure(config):
    if config.getoption("random_seed") is None:
        config.option.random_seed = random.SystemRandom().randrange(2**31)
    config.stash[_NOTES] = []
    # What the user has measured on this machine is not for the tests.
    os.environ["SPARSEDROP_CACHE"] = os.devnull


def pytest_terminal_summary(terminalreporter, config):
    for note in dict.fromkeys(config.stash[_NOTES]):
        terminalreporter.write_line(note)


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


@pytest.fixture(params=["sm90", "sm80"])
def architecture(request):
    """Each architecture that this GPU runs."""
    with forced(request.param):
        pass  # which skips the others
    return request.param


@pytest.fixture
def untested(monkeypatch):
    """As if no GPU had run the tests of sm80 yet."""
    for place in ("sparsedrop.select.rules.TESTED", "sparsedrop.select.TESTED"):
        monkeypatch.setattr(place, frozenset({"sm90"}))
    select.choose.cache_clear()
    yield
    select.choose.cache_clear()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def note(pytestconfig):
    """Prints a line at the end of the run, also where all is well."""
    return pytestconfig.stash[_NOTES].append


@pytest.fixture
def random_seed(pytestconfig, note):
    """Of this run's random products; printed at its end."""
    seed = pytestconfig.getoption("random_seed")
    note(f"random products drawn with --random-seed {seed}")
    return seed
