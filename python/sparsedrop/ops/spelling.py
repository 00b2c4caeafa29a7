"""Constants of a graph in one argument of an op.

An argument that is a dtype or a list costs the host 1.5 µs in each call, and a string a third of
that: as a backward pass has it, all of a stack's took as long as a launch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

_NONE, _DTYPE, _FLAGS = "-", "torch.", ":"


def spelled(*constants: Any) -> str:
    """Names, dtypes, sequences of bools, and None, with a space between them."""
    return " ".join([_word(constant) for constant in constants])


@functools.lru_cache(maxsize=4096)
def read(text: str) -> tuple[Any, ...]:
    """The inverse; sequences are tuples."""
    return tuple(map(_constant, text.split(" ")))


def _word(constant: Any) -> str:
    if constant is None:
        return _NONE
    if isinstance(constant, str):
        return constant
    if isinstance(constant, torch.dtype):
        return str(constant)
    return _FLAGS + "".join(["1" if flag else "0" for flag in constant])


def _constant(word: str) -> Any:
    if word == _NONE:
        return None
    if word.startswith(_DTYPE):
        return getattr(torch, word.removeprefix(_DTYPE))
    return tuple(flag == "1" for flag in word[1:]) if word.startswith(_FLAGS) else word
