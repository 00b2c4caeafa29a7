"""What a user forces: a path, a tile, an orientation, or how often tiles are split along k.

By `with override(path="dense"):`, or for a whole process by the environment variable
`SPARSEDROP_SELECT=path=kernel,tile=1,swap=0,split_k=1`. If a forced choice cannot run, a ValueError
says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sparsedrop.select.choosing import best, candidates, choose
from sparsedrop.select.request import PATHS, Choice, Request, describe
from sparsedrop.select.rules import refusal, why_no_kernel


class Override(NamedTuple):
    path: str | None = None
    tile: int | None = None
    swap: bool | None = None
    split_k: int | None = None


_VARIABLE = "SPARSEDROP_SELECT"


def override_from(text: str) -> Override | None:
    """The override that SPARSEDROP_SELECT=text asks for; None where it is empty.

    Raises:
        ValueError: for text that is not path=..., tile=..., swap=0 or 1 or split_k=..., separated
            by commas.
    """
    if not text:
        return None
    forced: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name == "path" and value in PATHS:
            forced[name] = value
        elif name in ("tile", "split_k") and value.isdecimal():
            forced[name] = int(value)
        elif name == "swap" and value in ("0", "1"):
            forced[name] = value == "1"
        else:
            raise ValueError(
                f"{_VARIABLE} has items such as path=dense ({', '.join(PATHS)}), tile=1, swap=0 "
                f"or split_k=2, separated by commas, not {item.strip()!r}"
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
) -> Iterator[None]:
    """Forces what is not None for every product inside, on all threads; nothing where all is None.

    Raises:
        ValueError: for an unknown path; inside, at a product that cannot be run that way.
    """
    global _forced
    if path is not None and path not in PATHS:
        raise ValueError(f"path is one of {', '.join(map(repr, PATHS))}, not {path!r}")
    wanted = Override(path, tile, swap, split_k)
    before, _forced = _forced, None if wanted == Override() else wanted
    try:
        yield
    finally:
        _forced = before


def is_free() -> bool:
    """True where nothing is forced: then equal requests are decided alike."""
    return _forced is None


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
    why_not = why_no_kernel(request)
    refusals = {
        choice: refusal(request, choice)
        for choice in (candidates(request, forced.split_k) if why_not is None else ())
        if forced.tile in (None, choice.tile) and forced.swap in (None, choice.swap)
    }
    legal = [choice for choice, reason in refusals.items() if reason is None]
    if legal:
        return best(request, legal)._replace(reason="forced")
    reasons = "; ".join(f"{describe(request, choice)}: {why}" for choice, why in refusals.items())
    no_tile = f"there are tiles 0 to {len(request.tiles) - 1}"
    raise ValueError(f"{forced} cannot run: {why_not or reasons or no_tile}")
