"""The commands of docs/study.md are commands."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from sparsedrop.tools import bench, plot, study
from sparsedrop.tools.study.tasks import TASKS

PAGE = (Path(__file__).parents[2] / "docs" / "study.md").read_text()
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
        assert args.resume
        assert set(args.methods or ()) <= {*task.methods, "all"}


def test_the_page_names_each_task():
    assert all(f"| `{name}` |" in PAGE for name in TASKS)
    assert len(COMMANDS) == 11
