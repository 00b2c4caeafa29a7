"""Every code block of the pages: Python runs and prints what stands below it, C++ is a part of the
file that is named above it, commands are understood; links lead somewhere, tables and pictures are
those of their sources.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sparsedrop.tools import cli

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        ROOT / "bench" / "README.md",
        ROOT / "cpp" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
FENCE = re.compile(
    r"(?:^<!-- (needs|file): (.+?) -->\n)?^```(.*?)\n(.*?)^```", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, and what the comment above it says."""

    language: str
    code: str
    needs: str
    file: str


def blocks_of(page: str) -> list[Block]:
    return [
        Block(language, code, value if key == "needs" else "", value if key == "file" else "")
        for key, value, language, code in FENCE.findall(page)
    ]


def with_outputs(page: str) -> list[tuple[Block, str]]:
    """The Python blocks, each with the text that follows it, or nothing."""
    blocks = [*blocks_of(page), Block("", "", "", "")]
    return [
        (block, blocks[i + 1].code if blocks[i + 1].language == "text" else "")
        for i, block in enumerate(blocks)
        if block.language == "python"
    ]


ALONE, CUDA = "one process", "cuda"


def is_there(need: str) -> bool:
    """Whether the library is installed that a block needs."""
    return not need or importlib.util.find_spec(need) is not None


RUNNING = [
    name
    for name, page in PAGES.items()
    if any(block.needs != ALONE for block, _ in with_outputs(page))
    and not any(block.needs == ALONE for block, _ in with_outputs(page))
]


ON_A_GPU = [name for name in RUNNING if f"<!-- needs: {CUDA} -->" in PAGES[name]]


@pytest.mark.parametrize("name", RUNNING)
def test_python(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [each for each in with_outputs(PAGES[name]) if each[0].needs != CUDA]
    _run(name, blocks, capsys)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_A_GPU)
def test_python_on_a_gpu(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _run(name, with_outputs(PAGES[name]), capsys)


def _run(name: str, blocks: list[tuple[Block, str]], capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page one behind the other, with the names of those before."""
    names: dict[str, object] = {}
    torch.manual_seed(0)
    for i, (block, text) in enumerate(blocks):
        if not is_there(block.needs):
            continue
        names.pop("losses", None)
        exec(compile(block.code, f"{name}, block {i}", "exec"), names)
        assert text in capsys.readouterr().out
        if "losses" in names:
            assert sum(names["losses"][-5:]) < 0.7 * sum(names["losses"][:5])
        if isinstance(names.get("y"), torch.Tensor):
            assert torch.isfinite(names["y"]).all()


def test_python_of_a_process_group(tmp_path: Path) -> None:
    """As torchrun would start it, with one process."""
    page = with_outputs(PAGES["docs/distributed.md"])
    assert sum(block.needs == ALONE for block, _ in page) == 3
    script = tmp_path / "page.py"
    # A thread of gloo's that still wants the interpreter while that ends would abort the process.
    end = "import os, sys\nsys.stdout.flush()\nos._exit(0)\n"
    script.write_text("".join(block.code for block, _ in page) + end)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env={**os.environ, **where}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "".join(text for _, text in page)


def test_a_fine_tuned_model_is_again_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    ((block, _),) = with_outputs(PAGES["docs/fine-tuning.md"])
    names: dict[str, object] = {}
    exec(compile(block.code, "fine-tuning", "exec"), names)
    assert len(names["report"].converted) == 4
    assert sum(names["losses"][-5:]) < 0.3 * sum(names["losses"][:5])
    kinds = {type(module) for module in names["model"].modules()}
    assert transformers.pytorch_utils.Conv1D in kinds
    assert not any(kind.__module__.startswith("sparsedrop") for kind in kinds)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(name: str) -> None:
    before = ""
    for block in blocks_of(PAGES[name]):
        assert block.language in ("python", "text", "sh", "cpp", "cmake"), block
        if block.language in ("cpp", "cmake"):
            assert block.code in (ROOT / block.file).read_text(), f"not a part of {block.file}"
        if block.language == "text":
            assert before == "python", block
        before = block.language


def _commands() -> list[str]:
    """Whatever stands on the pages as a call of `sparsedrop`."""
    found = []
    for page in PAGES.values():
        lines = [line for block in blocks_of(page) if block.language == "sh" for line in
                 re.split(r"\n|&& ", block.code)]  # fmt: skip
        inline = re.findall(r"`(sparsedrop [^`]+)`", FENCE.sub("", page))
        found += [" ".join(x.split()) for x in inline]
        found += [line for line in lines if re.match(r"(\.venv/bin/)?sparsedrop ", line)]
    return sorted(set(found))


@pytest.mark.parametrize("command", _commands())
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = shlex.split(command)[1:]
    module = importlib.import_module(cli.COMMANDS[argv[0]].module)
    monkeypatch.setattr(module, "run", lambda args: 0)
    assert cli.main(argv) == 0


def _anchors(page: str) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for link in LINK.findall(FENCE.sub("", PAGES[name])):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text()), link


def test_pictures_are_those_of_their_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("the picture of the schedule compiles a header")
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    pictures = importlib.import_module("draw")
    for name, draw in pictures.PICTURES.items():
        assert draw().svg() == (ROOT / "docs" / "pictures" / name).read_text(), name


def test_tables_are_those_of_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    tables = importlib.import_module("tables")
    found = set()
    for name in tables.PAGES:
        assert tables.filled(PAGES[name]) == PAGES[name], f"{name}: run python bench/tables.py"
        found |= {table for _, table, _ in tables.PLACE.findall(PAGES[name])}
    assert found == tables.TABLES.keys()
