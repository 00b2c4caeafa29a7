"""Arguments of masks: the value in the form that everything below takes, or a sentence."""

from __future__ import annotations

import torch

SAMPLERS = ("bernoulli", "balanced")


def check_p(p: float) -> float:
    """p as a float; ValueError where it is no probability."""
    if not isinstance(p, (float, int, torch.SymFloat)) or isinstance(p, bool):
        raise TypeError(f"p must be a number in [0, 1], not {type(p).__name__}")
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


def check_device(device: torch.device | str | None) -> torch.device:
    """A device with its index, as every tensor on it will name it; None is torch's default."""
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type == "cuda" and device.index is None:
        if not torch.cuda.is_available():
            raise RuntimeError(f"device is {device}, but this torch can use no GPU")
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _two_ints(name: str, pair: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be two integers, not {pair!r}")
    first, second = pair
    if type(first) is not int or type(second) is not int:
        for n in pair:
            if not isinstance(n, (int, torch.SymInt)) or isinstance(n, bool):
                raise TypeError(f"{name} must be two integers, not {pair!r}")
    return first, second
