"""The Python examples of the README and of docs/ run as they stand, and print what stands there."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _examples(page: Path) -> list[tuple[str, str]]:
    """Each example, and the text that follows it, or nothing."""
    fences = [*FENCE.findall(page.read_text()), ("", "")]
    return [
        (code, text if other == "text" else "")
        for (kind, code), (other, text) in pairwise(fences)
        if kind == "python"
    ]


README = _examples(ROOT / "README.md")


def _run(code: str, expected: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(code, "example", "exec"), names)
    assert expected in capsys.readouterr().out
    return names


@pytest.mark.parametrize(("code", "text"), README, ids=range(len(README)))
def test_example_of_the_readme(code: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = _run(code, text, capsys)
    if "y" in names:
        assert torch.isfinite(names["y"]).all()
    assert "layer" in names or text


def test_there_are_examples() -> None:
    assert len(README) >= 3
    assert sum(bool(text) for _, text in README) == 1


def test_approximate_random_dropout(capsys: pytest.CaptureFixture[str]) -> None:
    ((code, text),) = _examples(ROOT / "docs" / "approximate-random-dropout.md")
    names = _run(code, text, capsys)
    assert names["y"].shape == (8, 64)
    assert torch.isfinite(names["y"]).all()


def test_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    """The loss falls, and the model is again what it was."""
    transformers = pytest.importorskip("transformers")
    ((code, text),) = _examples(ROOT / "docs" / "fine-tuning.md")
    names = _run(code, text, capsys)
    assert len(names["report"].converted) == 4
    assert sum(names["losses"][-5:]) < 0.3 * sum(names["losses"][:5])
    kinds = {type(module) for module in names["model"].modules()}
    assert transformers.pytorch_utils.Conv1D in kinds
    assert not any(kind.__module__.startswith("sparsedrop") for kind in kinds)


def test_slice_out(capsys: pytest.CaptureFixture[str]) -> None:
    """The examples of the page, one behind the other: losses fall."""
    examples = _examples(ROOT / "docs" / "slice-out.md")
    assert len(examples) == 4
    for code, text in examples:
        names = _run(code, text, capsys)
        losses = names["losses"]
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
