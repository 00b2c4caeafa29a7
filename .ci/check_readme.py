"""Installs as README says: python check_readme.py PIP runs its command for a CPU with that pip."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def main(pip: str) -> None:
    """Exits with an error where the command is not there, or fails."""
    text = " ".join(README.read_text().split())
    commands = re.findall(r"`(pip install [^`]*SPARSEDROP_CUDA=OFF)`", text)
    if len(commands) != 1:
        sys.exit(f"README has {len(commands)} commands that install without kernels, not one")
    print(commands[0])
    subprocess.run([pip, *shlex.split(commands[0])[1:]], check=True, cwd=README.parent)


if __name__ == "__main__":
    main(sys.argv[1])
