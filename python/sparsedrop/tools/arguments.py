"""Options that several commands share: what they accept, and the sentence where they do not."""

from __future__ import annotations

import argparse
import math

import torch

from sparsedrop import _native
from sparsedrop.tools.cli import UserError

DEVICES = ("auto", "cpu", "cuda")


def count(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def not_negative(text: str) -> float:
    """A finite number from 0 on."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number from 0 on, not {number}")
    return number


def rate(text: str) -> float:
    """A drop probability below 1, at which something is left to multiply."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"is a drop probability in [0, 1), not {number}")
    return number


def block(text: str) -> tuple[int, int]:
    """An argument such as 128x128."""
    words = text.split("x")
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"is two extents such as 128x128, not {text!r}")
    return int(words[0]), int(words[1])


def pick_device(name: str) -> torch.device:
    """The device of that name in DEVICES; "auto" is a GPU where this build can use one.

    Raises:
        UserError: for "cuda" where there is no GPU, or no kernels for one.
    """
    usable = torch.cuda.is_available() and _native.C is not None
    if name == "cuda" and not usable:
        raise UserError(
            "--device cuda needs a GPU that torch can use and a build of sparsedrop with CUDA "
            "kernels: `sparsedrop info` says what there is"
        )
    if name == "cpu" or not usable:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def plural(number: int, noun: str) -> str:
    """Such as "1 thread" and "2 threads"."""
    return f"{number} {noun}{'s' * (number > 1)}"
