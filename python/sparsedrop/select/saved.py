"""The costs that `sparsedrop bench --tune --save` keeps in the user's cache folder, GPU by GPU.

One file a GPU, such as `~/.cache/sparsedrop/costs-nvidia-h200.json`; under XDG_CACHE_HOME where
that is set, or in the folder that SPARSEDROP_CACHE names. It is read once in a process.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparsedrop.select.architectures import Tile, names_of
from sparsedrop.select.gpus import CUBLAS, HALF, TF32, Cost, Costs

VERSION = 1
"""Of the file. What has another one is not read."""

VARIABLE = "SPARSEDROP_CACHE"


class Saved(NamedTuple):
    """The costs in a file: of a precision, and of a tile or CUBLAS."""

    path: str
    costs: tuple[tuple[str, Tile | str, Cost], ...]

    def cost(self, precision: str, tile: Tile | str) -> Cost | None:
        """None where it was not measured."""
        return next((c for p, t, c in self.costs if (p, t) == (precision, tile)), None)

    def covers(self, architecture: str, precision: str) -> bool:
        """Whether the tiles of an architecture were measured."""
        return any(
            p == precision and isinstance(t, Tile) and t.architecture == architecture
            for p, t, _ in self.costs
        )

    def by_precision(self) -> dict[str, dict[Tile | str, Cost]]:
        found: dict[str, dict[Tile | str, Cost]] = {}
        for precision, tile, cost in self.costs:
            found.setdefault(precision, {})[tile] = cost
        return found


def folder() -> Path:
    """Where the files are: the user's cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "sparsedrop"


def path_for(gpu: str) -> Path:
    """The file of a GPU, by its name."""
    return folder() / f"costs-{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


@functools.cache
def saved_costs(gpu: str, sms: int, tiles: tuple[Tile, ...]) -> Saved | None:
    """What was saved for that GPU, or None; a file that is not for it, or broken, is ignored with a
    warning.

    Args:
        gpu: its name.
        sms: its count of SMs.
        tiles: those of this build that run on it.
    """
    path = path_for(gpu)
    try:
        if not path.is_file():
            return None
        return _parse(path, gpu, sms, tiles)
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is ignored: {error}", stacklevel=2)
        return None


def save(gpu: str, sms: int, tiles: tuple[Tile, ...], costs: Mapping[str, Costs]) -> Path:
    """Keeps costs by precision, beside those of other architectures and precisions that are there.

    Raises:
        OSError: where the file cannot be written.
    """
    path = path_for(gpu)
    try:
        merged = _parse(path, gpu, sms, tiles).by_precision()
    except (OSError, ValueError):  # there is none, or none that may be read
        merged = {}
    for precision, some in costs.items():
        merged.setdefault(precision, {}).update(some)
    content = {
        "version": VERSION,
        "gpu": gpu,
        "sms": sms,
        "costs": {p: [_entry(*item) for item in some.items()] for p, some in merged.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever reads it meanwhile finds the old one or the new one.
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(content, indent=1))
    beside.replace(path)
    return path


def _entry(tile: Tile | str, cost: Cost) -> dict[str, Any]:
    named = tile._asdict() if isinstance(tile, Tile) else {"name": tile}
    return {**named, **cost._asdict()}


def _parse(path: Path, gpu: str, sms: int, tiles: tuple[Tile, ...]) -> Saved:
    """The costs in a file.

    Raises:
        ValueError: where they are not for this GPU and these tiles, in a sentence.
    """
    try:
        content = json.loads(path.read_text())
        version, of = content["version"], (content["gpu"], content["sms"])
        if version != VERSION:
            raise ValueError(f"its version is {version!r}, and this release reads {VERSION}")
        found = tuple(
            (precision, *_read(entry))
            for precision, entries in content["costs"].items()
            for entry in entries
        )
    except (LookupError, TypeError, AttributeError, OverflowError, UnicodeDecodeError,
            json.JSONDecodeError) as error:  # fmt: skip
        raise ValueError(f"it is broken ({type(error).__name__}: {error})") from None
    if of != (gpu, sms):
        raise ValueError(f"it is of {of[0]} with {of[1]} SMs, and this is {gpu} with {sms}")
    for precision in content["costs"]:
        if precision not in (HALF, TF32):
            raise ValueError(f"it is broken (costs in {precision!r})")
        _require_whole({t for p, t, _ in found if p == precision}, tiles)
    return Saved(str(path), found)


def _read(entry: Any) -> tuple[Tile | str, Cost]:
    cost = Cost(*(float(entry[name]) for name in Cost._fields))
    if not all(map(math.isfinite, cost)) or cost.k_tile_us <= 0.0:
        raise ValueError(f"it is broken (costs of {tuple(cost)} us)")
    if "name" in entry:
        return str(entry["name"]), cost
    m, n, k, slot_n = (int(entry[name]) for name in Tile._fields[:4])
    return Tile(m, n, k, slot_n, str(entry["architecture"])), cost


def _require_whole(measured: set[Tile | str], tiles: tuple[Tile, ...]) -> None:
    """Raises where an architecture has other tiles here than it was measured with."""
    theirs = [tile for tile in measured if isinstance(tile, Tile)]
    if CUBLAS not in measured:
        raise ValueError("it is broken (no costs of cuBLAS)")
    for name in names_of(tuple(theirs)):
        ours = {tile for tile in tiles if tile.architecture == name}
        if {tile for tile in theirs if tile.architecture == name} != ours:
            raise ValueError(
                f"its tiles of {name} are not those of this build: run `sparsedrop bench --tune "
                "--save` again"
            )
