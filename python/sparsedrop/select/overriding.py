"""What a user forces: a path, an architecture, a tile, an orientation, a split along k.

By `with override(path="dense"):`, or for a whole process by the environment variable
`SPARSEDROP_SELECT=architecture=sm90,tile=1,swap=0,split_k=1`. If a forced choice cannot run, a
ValueError says why. Forcing anything but a path of "cpu" or "dense" forces the kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sparsedrop.select.architectures import built, id_within, names_of
from sparsedrop.select.choosing import best, candidates, choose
from sparsedrop.select.request import PATHS, Choice, Request, describe
from sparsedrop.select.rules import best_architecture, refusal, why_no_kernel


class Override(NamedTuple):
    path: str | None = None
    # Among those of the architecture; where none is forced, among all of the GPU.
    tile: int | None = None
    swap: bool | None = None
    split_k: int | None = None
    architecture: str | None = None


_VARIABLE = "SPARSEDROP_SELECT"


def override_from(text: str) -> Override | None:
    """The override that SPARSEDROP_SELECT=text asks for; None where it is empty.

    Raises:
        ValueError: for text that is not path=..., architecture=..., tile=..., swap=0 or 1 or
            split_k=..., separated by commas.
    """
    if not text:
        return None
    forced: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if (name == "path" and value in PATHS) or (name == "architecture" and value):
            forced[name] = value
        elif name in ("tile", "split_k") and value.isdecimal():
            forced[name] = int(value)
        elif name == "swap" and value in ("0", "1"):
            forced[name] = value == "1"
        else:
            raise ValueError(
                f"{_VARIABLE} has items such as path=dense ({', '.join(PATHS)}), "
                "architecture=sm90, tile=1, swap=0 or split_k=2, separated by commas, not "
                f"{item.strip()!r}"
            )
    return Override(**forced)


# A global and not a context variable: the backward pass runs on threads of its own.
_forced: Override | None = override_from(os.environ.get(_VARIABLE, ""))


@contextmanager
def override(
    path: str | None = None,
    tile: int | None = None,
    swap: bool | None = None,
    split_k: int | None = None,
    architecture: str | None = None,
) -> Iterator[None]:
    """Forces what is not None for every product inside, on all threads; nothing where all is None.

    Args:
        path: "kernel" (block-sparse), "cpu" (live parts only) or "dense" (masked operands).
        tile: its position among the tiles of the architecture; among all of the GPU where no
            architecture is forced.
        swap: whether the transposed problem is run.
        split_k: into how many each tile is split along k.
        architecture: of the kernels, such as "sm90": one of this build that runs on the GPU.

    Raises:
        ValueError: for an unknown path, or an architecture that this build lacks; inside, at a
            product that cannot be run that way.
    """
    global _forced
    if path is not None and path not in PATHS:
        raise ValueError(f"path is one of {', '.join(map(repr, PATHS))}, not {path!r}")
    if architecture is not None and architecture not in built():
        raise ValueError(f"this build has kernels of {_listed(built())}, not of {architecture!r}")
    wanted = Override(path, tile, swap, split_k, architecture)
    before, _forced = _forced, None if wanted == Override() else wanted
    try:
        yield
    finally:
        _forced = before


def is_free() -> bool:
    """True where nothing is forced: then equal requests are decided alike."""
    return _forced is None


def forced_architecture() -> str | None:
    """The architecture that is forced; None where none is."""
    return None if _forced is None else _forced.architecture


def takes_kernels(request: Request) -> bool:
    """Whether kernels may be taken for products like this one, whatever their masks and extents."""
    name = forced_architecture()
    if why_no_kernel(request) is not None or name not in (None, *names_of(request.tiles)):
        return False
    return best_architecture(request, asked=name is not None) is not None


def forced_way() -> Override | None:
    """What is forced; None where nothing is."""
    return _forced


def decide(request: Request) -> Choice:
    """What `choose` says, unless the user overrides it."""
    return choose(request) if _forced is None else _obey(request, _forced)


def _obey(request: Request, forced: Override) -> Choice:
    if forced.path == "dense":
        return Choice("dense", reason="forced")
    if request.device != "cuda":
        if forced._replace(path=None) != Override() or forced.path == "kernel":
            raise ValueError(f"{forced} cannot run on the {request.device}, which has no tiles")
        return Choice("cpu", reason="forced") if forced.path == "cpu" else choose(request)
    if forced.path == "cpu":
        raise ValueError(f"{forced} cannot run: the operands are on a GPU")
    why_not = why_no_kernel(request) or _why_not_there(request, forced)
    refusals = {
        choice: refusal(request, choice)
        for choice in (_ways(request, forced) if why_not is None else ())
        if forced.swap in (None, choice.swap)
    }
    legal = [choice for choice, reason in refusals.items() if reason is None]
    if legal:
        return best(request, legal)._replace(reason="forced")
    reasons = "; ".join(f"{describe(request, choice)}: {why}" for choice, why in refusals.items())
    count = sum(forced.architecture in (None, tile.architecture) for tile in request.tiles)
    no_tile = f"there are tiles 0 to {count - 1}"
    raise ValueError(f"{forced} cannot run: {why_not or reasons or no_tile}")


def _why_not_there(request: Request, forced: Override) -> str | None:
    """Why the kernels of the forced architecture are not there; None where they are."""
    names = names_of(request.tiles)
    if forced.architecture in (None, *names):
        return None
    major, minor = request.capability
    return f"a GPU of compute capability {major}.{minor} runs the kernels of {_listed(names)}"


def _ways(request: Request, forced: Override) -> list[Choice]:
    """All of the forced architecture and tile; of the best architecture where neither is forced."""
    name, tile = forced.architecture, forced.tile
    if name is None and tile is None:
        name = best_architecture(request, asked=True)
    ways = candidates(request, forced.split_k, name)
    if tile is None:
        return ways
    if name is None:
        return [choice for choice in ways if choice.tile == tile]
    return [choice for choice in ways if id_within(request.tiles, choice.tile) == tile]


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names) or "no architecture"
