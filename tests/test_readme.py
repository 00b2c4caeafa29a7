"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    if "y" in names:
        assert torch.isfinite(names["y"]).all()
    assert "layer" in names


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2
