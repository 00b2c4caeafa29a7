"""The command's frame, and `sparsedrop info`."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import extension_stub
import sparsedrop
from sparsedrop import _native, select
from sparsedrop.tools import cli, info

EXTRAS = ("sklearn", "matplotlib", "tqdm")


def info_lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    column = lines[0].index(sparsedrop.__version__)
    assert all(line[column - 1] == " " and line[column] != " " for line in lines), "not aligned"
    return {line[:column].rstrip(): line[column:] for line in lines}


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with one GPU, as far as `info` asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    properties = SimpleNamespace(name="Some GPU", multi_processor_count=100, clock_rate=1_410_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return monkeypatch


def test_info_names_versions_and_the_cpu_path_of_every_dtype(capsys):
    facts = info_lines(capsys)
    assert facts["sparsedrop"] == sparsedrop.__version__
    assert facts["torch"] == torch.__version__
    assert "p = 0.5" in facts["paths"]
    assert facts["CPU"].endswith("threads" if torch.get_num_threads() > 1 else "thread")
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        assert facts[f"  {dtype}"]


def test_info_says_what_is_forced(capsys):
    with select.override(path="dense"):
        assert info_lines(capsys)["  float32"] == "dense: forced"


def test_info_says_why_what_is_forced_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with select.override(path="kernel"):
        assert "cannot run on the cpu, which has no tiles" in info_lines(capsys)["  float32"]


def test_info_says_that_a_build_is_cpu_only(capsys, monkeypatch):
    monkeypatch.setattr(_native, "C", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts = info_lines(capsys)
    assert facts["CUDA kernels"] == "none: this is a CPU-only build"
    assert facts["GPU"] == "none that this torch can use"


def test_info_says_why_a_cpu_only_build_leaves_a_gpu_unused(capsys, a_gpu):
    a_gpu.setattr(_native, "C", None)
    a_gpu.setattr(_native, "capability", lambda _: (9, 0))
    facts = info_lines(capsys)
    assert facts["GPU 0"] == "Some GPU, compute capability 9.0"
    assert "no CUDA kernels" in facts["  unused"]


WORKED_OUT = "worked out from 100 SMs at 1.41 GHz"
ALIKE = "as measured on NVIDIA H200"
UNTESTED = "sm80 (untested: only where forced or measured)"


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    ("capability", "path", "kernels", "costs"),
    [
        (
            (9, 0),
            "kernel",
            f"sm90, {UNTESTED}",
            f"sm90: {WORKED_OUT}, {ALIKE}; sm80: {WORKED_OUT}, {ALIKE}",
        ),
        ((8, 6), "dense: the kernels of sm80 have passed", UNTESTED, f"sm80: {WORKED_OUT}"),
        ((7, 5), "dense: no kernels for compute capability 7.5", None, None),
    ],
    ids=str,
)
def test_info_names_the_path_of_every_dtype_on_a_gpu(
    capsys, a_gpu, capability, path, kernels, costs
):
    a_gpu.setattr(_native, "C", extension_stub.C)
    a_gpu.setattr(_native, "capability", lambda _: capability)
    a_gpu.setattr(select, "gpu_facts", select.gpu_facts.__wrapped__)  # asked anew, not remembered
    facts = info_lines(capsys)
    assert facts["CUDA kernels"] == "sm_80, compute_80, sm_90a, sm_120"
    tiles = "128x256x64, 128x128x64, 64x128x64"
    assert facts["tiles of sm90"] == f"{tiles}, 128x192x64 (m x n x k)"
    assert facts["tiles of sm80"] == f"{tiles} (m x n x k)"
    assert facts["dtypes of sm90"] == "bfloat16, float16"
    assert facts["dtypes of sm80"] == "bfloat16, float16, float32 as TF32"
    assert facts.get("  kernels") == kernels
    assert facts.get("  costs") == costs
    assert ("  unused" in facts) == (capability < (8, 0))
    # The GPU's lines come after the CPU's, so these are the ones that are left under each name.
    assert facts["  bfloat16"].startswith(path)
    assert facts["  float16"].startswith(path)
    assert facts["  float32"].startswith("dense")
    assert facts["  float64"].startswith("dense")


def test_info_needs_no_extra():
    block = "".join(f"sys.modules[{name!r}] = None; " for name in EXTRAS)
    code = f"import sys; {block}from sparsedrop.tools.cli import main; sys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels" in done.stdout


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "sparsedrop", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"sparsedrop {sparsedrop.__version__}"


@pytest.mark.parametrize("argv", [[], ["infos"], ["info", "--nothing"]])
def test_a_wrong_command_line_exits_with_2(capsys, argv):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(argv)
    assert exit_info.value.code == 2
    assert "usage: sparsedrop" in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_what_the_user_can_put_right_is_one_sentence(capsys, monkeypatch):
    def run(_: object) -> int:
        raise cli.UserError("do it otherwise")

    monkeypatch.setattr(info, "run", run)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "sparsedrop info: do it otherwise\n"
