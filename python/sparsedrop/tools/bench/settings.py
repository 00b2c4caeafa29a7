"""The arguments of a run with every default filled in."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsedrop.tools.bench.products import PRODUCTS, Extents, Product
from sparsedrop.tools.cli import UserError
from sparsedrop.tools.names import dtype_name
from sparsedrop.tools.networks import DEFAULT_METHODS

DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
}

Block = tuple[int, int]


class Defaults(NamedTuple):
    """What depends on the kind of device."""

    dtype: torch.dtype
    masks: int
    shapes: tuple[str, ...]
    quick_shapes: tuple[str, ...]


RATES = (0.1, 0.3, 0.5, 0.7)
QUICK_RATES = (0.3, 0.5)
KINDS = ("step", "tune", "against", "network")
"""What is measured instead of products, by the option that asks for it."""

MODES = ("eager", "graph", "compile", "reduce-overhead")
"""How a network's step is run."""

CAPTURED_MODES = ("graph", "reduce-overhead")
"""In CUDA graphs."""

DEFAULTS = {
    "cuda": Defaults(
        torch.bfloat16,
        4,
        (
            *("1024x1024x1024", "2048x2048x2048", "4096x4096x4096", "8192x8192x8192"),
            *("16384x4096x1024", "16384x1024x4096", "8192x4096x1024", "8192x1024x4096"),
            *("12608x3072x768", "8192x11008x4096"),
        ),
        ("2048x2048x2048", "4096x4096x4096", "16384x4096x1024"),
    ),
    "cpu": Defaults(torch.float32, 2, ("1024x1024x1024", "2048x2048x2048"), ("1024x1024x1024",)),
}


@dataclass(frozen=True)
class Settings:
    """What all rows of a run share, and what they differ in."""

    shapes: tuple[Extents, ...]
    rates: tuple[float, ...]  # empty: each network's own
    products: tuple[Product, ...]
    dtypes: tuple[torch.dtype, ...]
    tf32: bool  # float32 may be multiplied so
    block: Block  # of the mask of X
    both_blocks: tuple[Block, ...]  # of the mask of Y
    sampler: str
    masks: int
    device: torch.device
    seed: int
    tiles: bool
    peers: bool
    compiled: bool
    amp: bool  # of layers: a network has a precision
    against: Path | None  # the extension of another build
    architectures: tuple[str, ...]  # whose tiles are measured; none named: all of the GPU
    save: bool  # what was measured
    networks: tuple[str, ...]
    methods: tuple[str, ...]  # of a network: words of METHODS
    modes: tuple[str, ...]
    precisions: tuple[str, ...]
    whole_step: bool
    batch: int | None

    def as_json(self) -> dict[str, Any]:
        """JSON values, named like the options."""
        return {
            "shapes": list(map(str, self.shapes)),
            "rates": list(self.rates),
            "products": [product.name for product in self.products],
            "dtype": list(map(dtype_name, self.dtypes)),
            "tf32": self.tf32,
            "block": block_name(self.block),
            "both_block": list(map(block_name, self.both_blocks)),
            "sampler": self.sampler,
            "masks": self.masks,
            "device": self.device.type,
            "seed": self.seed,
            "tiles": self.tiles,
            "peers": self.peers,
            "compile": self.compiled,
            "amp": self.amp,
            "network": list(self.networks),
            "methods": list(self.methods),
            "modes": list(self.modes),
            "precision": list(self.precisions),
            "whole_step": self.whole_step,
            "batch": self.batch,
            "architecture": list(self.architectures),
            "save": self.save,
            "against": None if self.against is None else self.against.name,
        }


def resolve(args: argparse.Namespace, device: torch.device) -> Settings:
    """The settings that the arguments ask for on that device.

    Raises:
        UserError: for options that go neither together nor with the device.
    """
    about_kernels = {"tune": args.tune, "tiles": args.tiles, "against": args.against is not None}
    for option in (name for name, asked in about_kernels.items() if asked):
        if device.type == "cpu":
            raise UserError(f"--{option} is about the kernels, which a CPU has not: use a GPU")
    if args.tf32 and device.type == "cpu":
        raise UserError("--tf32 is about products of a GPU, which a CPU has not: leave it out")
    kind = next((name for name in KINDS if getattr(args, name)), None)
    if kind is not None and (args.tiles or args.peers):
        option = "tiles" if args.tiles else "peers"
        raise UserError(f"--{option} is about products and dense ones: leave out --{kind}")
    for option in ("architecture", "save"):
        if getattr(args, option) and not args.tune:
            raise UserError(f"--{option} is about the constants of the kernels: add --tune")
    if args.against is not None and not args.against.is_file():
        raise UserError(f"--against {args.against} is not a file")
    for option in ("compile", "amp"):
        if getattr(args, option) and not args.step:
            raise UserError(f"--{option} is about the training step: add --step")
    for option in ("modes", "methods", "batch", "whole_step"):
        if getattr(args, option) and not args.network:
            name = option.replace("_", "-")
            raise UserError(f"--{name} is about whole networks: add --network")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is no folder")
    defaults = DEFAULTS[device.type]
    dtypes = tuple(DTYPES[name] for name in _distinct(args.dtype or ())) or (defaults.dtype,)
    if args.amp and any(dtype.itemsize > 2 for dtype in dtypes):
        named = " ".join(map(dtype_name, dtypes))
        raise UserError(f"--amp is for 16 bits, not {named}: add --dtype bfloat16")
    shapes = map(Extents.parse, defaults.quick_shapes if args.quick else defaults.shapes)
    return Settings(
        shapes=_distinct(args.shapes or shapes),
        rates=_distinct(args.rates or _rates(args)),
        products=tuple(PRODUCTS[name] for name in _distinct(args.products)),
        dtypes=dtypes,
        tf32=args.tf32,
        block=args.block,
        both_blocks=_distinct(args.both_block),
        sampler=args.sampler,
        masks=args.masks or defaults.masks,
        device=device,
        seed=args.seed,
        tiles=args.tiles,
        peers=args.peers,
        compiled=args.compile,
        amp=args.amp,
        against=args.against,
        architectures=_distinct(args.architecture or ()),
        save=args.save,
        networks=_distinct(args.network or ()),
        methods=_distinct(args.methods or DEFAULT_METHODS),
        modes=_modes(args, device),
        precisions=_distinct(args.precision),
        whole_step=args.whole_step,
        batch=args.batch,
    )


def _rates(args: argparse.Namespace) -> tuple[float, ...]:
    return () if args.network else QUICK_RATES if args.quick else RATES


def _modes(args: argparse.Namespace, device: torch.device) -> tuple[str, ...]:
    """Those that the arguments name, or all that the device has; captured ones need a GPU."""
    if device.type == "cuda":
        return _distinct(args.modes or MODES)
    captured = [mode for mode in args.modes or () if mode in CAPTURED_MODES]
    if captured:
        raise UserError(f"--modes {captured[0]} needs a GPU, whose work it captures")
    return _distinct(args.modes or [mode for mode in MODES if mode not in CAPTURED_MODES])


def block_name(block: Block) -> str:
    """Such as "128x128"."""
    return f"{block[0]}x{block[1]}"


def _distinct(values: Any) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))
