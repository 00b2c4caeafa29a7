"""Loads the extension of a wheel, whatever torch is there: python check_module.py WHEEL."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
import zipfile
from pathlib import Path


def main(wheel: Path) -> None:
    """Exits with an error where this Python cannot load it."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if re.match(r"sparsedrop/_C\..*\.so$", n))
        spec = importlib.util.spec_from_file_location("_C", archive.extract(name, folder))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    families = ", ".join(family.name for family in module.ARCHITECTURES)
    print(f"{wheel.name}: kernels of {families}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
