"""The commands of docs/study.md are commands."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest

from sparsedrop.tools import bench, plot, study
from sparsedrop.tools.plot.study import best_rows
from sparsedrop.tools.study.tasks import TASKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text()
FENCES = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for fence in FENCES for line in fence.splitlines()]
TOOLS = {"study": study, "bench": bench, "plot": plot}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_understood(command):
    program, word, *argv = shlex.split(command)
    assert program == "sparsedrop"
    parser = argparse.ArgumentParser()
    TOOLS[word].add_arguments(parser)
    args = parser.parse_args(argv)
    if word == "study":
        task = TASKS[args.task]
        assert (args.data is None) is task.reads_text
        assert (args.data_file is not None) is task.reads_text
        assert args.resume or args.device == "cpu"
        assert set(args.methods or ()) <= {*task.methods, "all"}


def test_the_page_names_each_task():
    assert all(f"| `{name}` |" in PAGE for name in TASKS)
    assert len(COMMANDS) == 13


def test_the_small_study_is_that_of_its_file():
    found = json.loads((ROOT / "bench" / "results" / "study_fashion_mnist.json").read_text())
    lines = [
        "| "
        + " | ".join(
            [
                row["method"],
                "–" if row["method"] == "no dropout" else f"{row['p']:g}",
                spread(row["loss"], 4),
                spread(row["test_loss"], 4),
                spread(row["test_accuracy_percent"], 2),
                f"{row['times']['eager_ms']:.2f}",
                "–" if row["method"] == "no dropout" else f"{row['speedup_over_dropout']:.2f}",
            ]
        )
        + " |"
        for row in best_rows(found["rows"])
    ]
    assert len(lines) == 5
    assert "\n".join(lines) in PAGE


def spread(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"
