"""`sparsedrop plot`: pictures of results that are there already.

    sparsedrop plot study.json                     a study: loss against time, quality against time
    sparsedrop plot network.json [network2.json]   speed-up of whole networks against p

Each picture is written twice, NAME.png for a light page and NAME-dark.png for a dark one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from sparsedrop.tools.cli import UserError

MODES = ("eager", "graph")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sparsedrop plot`."""
    parser.description = (
        "Draws the JSON of `sparsedrop study` or of `sparsedrop bench --network`; files of the "
        "latter make one picture."
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="JSON")
    out_help = "of the picture; default: that of the first file, with .png"
    add("--out", type=Path, metavar="PNG", help=out_help)
    mode_help = "whose time of a step counts in a study; default: eager"
    add("--mode", choices=MODES, default="eager", help=mode_help)


def run(args: argparse.Namespace) -> int:
    """Draws, and says what it wrote."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('it needs matplotlib: pip install "sparsedrop[bench]"')
    from sparsedrop.tools.plot.speedups import save_speedups
    from sparsedrop.tools.plot.study import save_study

    found = [_read(path) for path in args.files]
    kinds = [_kind(path, each) for path, each in zip(args.files, found, strict=True)]
    out = args.out or args.files[0].with_suffix(".png")
    if "study" in kinds and len(found) > 1:
        raise UserError(f"{args.files[kinds.index('study')]} is a study: draw it alone")
    try:
        if kinds == ["study"]:
            paths = save_study(found[0], out, args.mode)
        else:
            paths = save_speedups(_compared(args.files, found), out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {(error.strerror or str(error)).lower()}") from error
    print("saved " + " and ".join(map(str, paths)))
    return 0


def _compared(files: list[Path], found: list[Any]) -> list[dict[str, Any]]:
    """The rows of all files."""
    rows = [row for each in found for row in each["rows"]]
    if not any(row["speedups"] for row in rows):
        names = ", ".join(map(str, files))
        raise UserError(
            f"{names} compares nothing with nn.Dropout: time it too, with --methods dropout "
            "and another"
        )
    return rows


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON, or is cut off: {error}") from error


def _kind(path: Path, found: Any) -> str:
    """Which of the two it is, "study" or "network", by what the rows have."""
    rows = found.get("rows") if isinstance(found, dict) else None
    for kind, key in (("study", "times"), ("network", "speedups")):
        if rows and all(key in row for row in rows):
            return kind
    raise UserError(
        f"{path} is neither of `sparsedrop study` nor of `sparsedrop bench --network`, whose JSON "
        "can be drawn"
    )
