"""What the package has of torch: its import, and the names that torch does not publish."""

import subprocess
import sys

import torch

from sparsedrop._torch import constant_when_compiled


def test_importing_the_package_does_not_import_the_compiler():
    """Which takes as long as torch itself, for programs that compile nothing."""
    code = "import sys, sparsedrop; print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_constants_are_marked_as_torch_marks_them():
    def ours():
        """Nothing."""

    def torchs():
        """Nothing."""

    assert constant_when_compiled(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(torchs)) != {}


def test_constants_are_not_traced():
    @constant_when_compiled
    def three():
        torch._dynamo.graph_break()
        return 3

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x * three(), fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]
