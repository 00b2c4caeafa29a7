"""Checks what a wheel with kernels must and must not hold: python check_wheel.py WHEEL."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIMIT_MB = 40
# No libtorch, no libcuda, no libcudart: one wheel serves every torch release and driver.
ALLOWED = re.compile(r"lib(stdc\+\+|gcc_s|c|m|rt|dl|pthread)\.so|ld-linux")


def main(wheel: Path) -> None:
    """Exits with a sentence where the wheel is too large, incomplete or linked to too much."""
    size = wheel.stat().st_size / 1e6
    if size > LIMIT_MB:
        sys.exit(f"{wheel.name} is {size:.1f} MB, more than {LIMIT_MB} MB")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for wanted in (
            "sparsedrop/py.typed",
            "sparsedrop/_C.pyi",
            "sparsedrop/include/sparsedrop/sparsedrop.h",
            "sparsedrop/lib/cmake/sparsedrop/sparsedropConfig.cmake",
        ):
            if wanted not in names:
                sys.exit(f"{wheel.name} lacks {wanted}")
        modules = [name for name in names if re.match(r"sparsedrop/_C\..*\.so$", name)]
        if len(modules) != 1:
            sys.exit(f"{wheel.name} has {len(modules)} modules sparsedrop/_C, and should have one")
        module = modules[0]
        path = archive.extract(module, folder)
        dynamic = subprocess.run(
            ["readelf", "-d", path], capture_output=True, text=True, check=True
        )
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic.stdout)
    extra = [name for name in needed if not ALLOWED.match(name)]
    if extra:
        sys.exit(f"{module} needs {extra}, which not every machine has")
    print(f"{wheel.name}: {size:.1f} MB, {module} needs {', '.join(needed)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
