"""Ctrl-C in the middle of a benchmark: what was measured is kept."""

import json

import pytest

from sparsedrop.tools import cli
from sparsedrop.tools.bench import network, report, step, sweep

COMMON = ["bench", "--device", "cpu"]
RUNS = {
    "products": (sweep, "measure", ["--products", "forward", "dX"]),
    "step": (step, "_measure", ["--step", "--rates", "0.5", "0.3"]),
    "network": (
        network,
        "_measure",
        ["--network", "mlp", "--batch", "32", "--rates", "0.5", "0.3"],
    ),
}
SMALL = ["--shapes", "128x128x256"]


@pytest.fixture(params=RUNS)
def stopped(request, monkeypatch, tmp_path):
    """Runs a benchmark that is stopped in its row of that number; its exit code and results."""
    module, name, argv = RUNS[request.param]
    original = getattr(module, name)

    def run(row):
        done = []

        def measure(*args, **kwargs):
            done.append(args)
            if len(done) == row:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, measure)
        small = [] if request.param == "network" else SMALL
        code = cli.main([*COMMON, *argv, *small, "--out", str(tmp_path)])
        return code, json.loads((tmp_path / f"{request.param}.json").read_text())

    return run


def test_rows_that_are_done_are_saved_with_a_note(stopped):
    code, saved = stopped(2)
    assert code == 130
    assert len(saved["rows"]) == 1
    assert report.STOPPED in saved["notes"]


def test_without_a_row_there_is_nothing_to_save(stopped, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stopped(1)
    assert not list(tmp_path.iterdir())
