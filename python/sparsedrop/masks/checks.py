"""Arguments of masks: the value in the form that everything below takes, or a sentence."""

from __future__ import annotations

import numbers
from typing import Any

import torch

from sparsedrop._torch import is_one_for_each

SAMPLERS = ("bernoulli", "balanced")
SIDES = ("input", "output")


def check_p(p: float) -> float:
    """p as a float, from any number or tensor of one; ValueError where it is no probability."""
    if type(p) is not float and not isinstance(p, torch.SymFloat):
        p = _number(p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p is a probability in [0, 1], not {p}")
    return float(p)


def check_block_shape(block_shape: tuple[int, int]) -> tuple[int, int]:
    """block_shape as two ints; TypeError or ValueError where it is invalid."""
    block = _two_ints("block_shape", block_shape)
    if block[0] <= 0 or block[1] <= 0:
        raise ValueError(f"block_shape must be positive, not {block}")
    return block


def check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """A matrix's shape as two ints; TypeError or ValueError where it is invalid."""
    extents = _two_ints("shape", shape)
    if extents[0] < 0 or extents[1] < 0:
        raise ValueError(f"shape must not be negative, not {extents}")
    return extents


def check_sampler(sampler: str) -> str:
    """The sampler's name; ValueError if it is unknown."""
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        known = ", ".join(repr(name) for name in SAMPLERS)
        raise ValueError(f"sampler is one of {known}, not {sampler!r}")
    return sampler


def check_side(side: str) -> str:
    """The side; ValueError if it is unknown."""
    if not isinstance(side, str) or side not in SIDES:
        known = ", ".join(repr(name) for name in SIDES)
        raise ValueError(f"side is one of {known}, not {side!r}")
    return side


def check_generator(generator: torch.Generator | None) -> torch.Generator | None:
    """The generator; TypeError where it is something else."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {type(generator).__name__}")
    return generator


def check_one_draw(drawn: torch.Tensor) -> None:
    """RuntimeError where torch.vmap has drawn it for each of its examples."""
    if is_one_for_each(drawn):
        raise RuntimeError(
            "a slice or a pattern is the same for all examples of torch.vmap: call it with "
            'randomness="same"'
        )


def check_device(device: torch.device | str | None) -> torch.device:
    """A device with its index, as every tensor on it will name it; None is torch's default."""
    if device is None:  # torch.compile cannot ask for the default
        is_compiling = torch.compiler.is_compiling()
        device = torch.empty(0).device if is_compiling else torch.get_default_device()
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        if not torch.cuda.is_available():
            raise RuntimeError(f"device is {device}, but this torch can use no GPU")
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _number(p: Any) -> float:
    is_number = isinstance(p, numbers.Real) and not isinstance(p, bool)
    if is_number or (isinstance(p, torch.Tensor) and p.dim() == 0 and not p.is_complex()):
        return float(p)
    raise TypeError(f"p must be a number in [0, 1], not {type(p).__name__}")


def _two_ints(name: str, pair: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be two integers, not {pair!r}")
    first, second = pair
    if type(first) is not int or type(second) is not int:
        return _integer(name, first, pair), _integer(name, second, pair)
    return first, second


def _integer(name: str, n: Any, pair: Any) -> Any:
    if isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool):
        return n
    is_tensor = isinstance(n, torch.Tensor) and n.dim() == 0 and not n.is_floating_point()
    if (isinstance(n, numbers.Integral) and not isinstance(n, bool)) or (
        is_tensor and n.dtype != torch.bool and not n.is_complex()
    ):
        return int(n)
    raise TypeError(f"{name} must be two integers, not {pair!r}")
