"""BlockMask: which blocks of a matrix are live, on the device that will read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sparsedrop._torch import register_container
from sparsedrop.masks import ops
from sparsedrop.masks.checks import (
    check_block_shape,
    check_device,
    check_generator,
    check_p,
    check_shape,
)
from sparsedrop.masks.tensors import MaskTensors, grid_shape


@dataclass(frozen=True, eq=False, repr=False)
class BlockMask:
    """A grid of booleans over the blocks of a matrix: True = live, False = dropped, that is zero.

    Made by `bernoulli`, `balanced` or `from_live`. Frozen: the tensors are never written again.
    Two masks are equal only if they are the same object.

    Attributes:
        live: bool `[R, C]`, R = ceil(rows / block_rows), C = ceil(cols / block_cols). The last
            block row and column are ragged where the block does not divide the matrix.
        shape: (rows, cols) of the matrix.
        block_shape: (block_rows, block_cols).
        row_words: int32 `[R, words]`, what the kernels read: bit u % 32 of word u // 32 of row r
            says whether the columns [64u, 64u + 64) of block row r are live. Empty `[0, 0]` where
            no kernel reads them: off the GPU, and where a block extent is no multiple of 64.
        col_words: int32 `[C, words]`, the same for the block columns over the rows.
        keep: the expected live share where the host knows it (1 - p for the samplers), else None.
        tensors: what `live`, `row_words` and `col_words` are views of.
    """

    shape: tuple[int, int]
    block_shape: tuple[int, int]
    keep: float | None
    tensors: MaskTensors

    @property
    def live(self) -> Tensor:
        return self.tensors.all()[0]

    @property
    def row_words(self) -> Tensor:
        return self.tensors.all()[1]

    @property
    def col_words(self) -> Tensor:
        return self.tensors.all()[2]

    @staticmethod
    def bernoulli(
        shape: tuple[int, int],
        p: float,
        *,
        block_shape: tuple[int, int] = (128, 128),
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> BlockMask:
        """Drops each block independently with probability p (Lo 2024, section 3).

        On a GPU, where the kernels read such blocks, one kernel draws the mask from the generator's
        state, to 2**-32 of p, and advances it. In a CUDA graph, that of
        torch.compile(mode="reduce-overhead") too, the state is on the GPU and torch draws: as for
        nn.Dropout, a replay gives other masks than eager mode does from the same seed.

        Args:
            shape: (rows, cols) of the matrix.
            p: drop probability in [0, 1].
            block_shape: (block_rows, block_cols), each at least 1.
            device: where the mask lives; None is torch's default device.
            generator: of that device; None is torch's default one.

        Raises:
            ValueError: for p outside [0, 1], a negative extent or a block extent below 1.
            TypeError: for a shape or block shape that is not two integers, and a generator that is
                something else.
        """
        shape, block_shape, p = check_shape(shape), check_block_shape(block_shape), check_p(p)
        check_generator(generator)
        return draw("bernoulli", shape, p, block_shape, check_device(device), generator)

    @staticmethod
    def balanced(
        shape: tuple[int, int],
        p: float,
        *,
        block_shape: tuple[int, int] = (128, 128),
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> BlockMask:
        """Keeps equally many blocks in every block row, and in every block column to within one.

        That count is (1 - p) * C, rounded up or down at random on the host where it is no integer,
        so that every block is dropped with probability exactly p. The rounding comes from the
        generator that draws the mask: on a GPU from its state, which does not wait. A CUDA graph,
        that of torch.compile(mode="reduce-overhead") too, replays one count, the nearest.

        Args, Raises: as for `bernoulli`.
        """
        shape, block_shape, p = check_shape(shape), check_block_shape(block_shape), check_p(p)
        check_generator(generator)
        return draw("balanced", shape, p, block_shape, check_device(device), generator)

    @staticmethod
    def from_live(
        live: Tensor, shape: tuple[int, int], *, block_shape: tuple[int, int] = (128, 128)
    ) -> BlockMask:
        """The user's own grid: `live` is bool `[R, C]`, on the operands' device. It is copied.

        Raises:
            TypeError: where `live` is no bool tensor, or a shape is not two integers.
            ValueError: where `live` is not the grid of `shape` in blocks of `block_shape`.
        """
        shape, block_shape = check_shape(shape), check_block_shape(block_shape)
        if not isinstance(live, Tensor) or live.dtype != torch.bool:
            kind = live.dtype if isinstance(live, Tensor) else type(live).__name__
            raise TypeError(f"live must be a tensor of torch.bool, not {kind}")
        grid = grid_shape(*shape, *block_shape)
        if tuple(live.shape) != grid:
            raise ValueError(
                f"live is {list(live.shape)}, but a matrix of {list(shape)} in blocks of "
                f"{list(block_shape)} has a grid of {list(grid)}"
            )
        live = live.detach().clone(memory_format=torch.contiguous_format)
        return _of_grid(live, shape, block_shape, None)

    @property
    def T(self) -> BlockMask:  # noqa: N802 - the name torch gives a transpose
        """The mask of the transposed matrix; views and swaps, nothing is copied."""
        live, row_words, col_words = self.tensors.all()
        return BlockMask(
            (self.shape[1], self.shape[0]),
            (self.block_shape[1], self.block_shape[0]),
            self.keep,
            MaskTensors((live.t(), col_words, row_words)),
        )

    @property
    def device(self) -> torch.device:
        return self.tensors.device

    def density(self) -> float:
        """Share of the matrix's elements that are live. Reads the device, so it waits for a GPU."""
        rows, cols = (
            (n - torch.arange(0, n, block, device="cpu")).clamp(max=block).double()
            for n, block in zip(self.shape, self.block_shape, strict=True)
        )
        total = self.shape[0] * self.shape[1]
        return float(rows @ self.live.cpu().double() @ cols) / total if total else 1.0

    def expand(self) -> Tensor:
        """Bool `[rows, cols]`, True where the element is live."""
        return expand_live(self.live, self.block_shape, self.shape)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> BlockMask:
        """The same mask on another device; itself where it is there already.

        With `non_blocking` the host does not wait for a copy to or from pinned memory.
        """
        live = self.live.to(device, non_blocking=non_blocking)
        if live.device == self.live.device:
            return self
        return _of_grid(live.contiguous(), self.shape, self.block_shape, self.keep)

    def cpu(self) -> BlockMask:
        """The same mask on the CPU."""
        return self.to("cpu")

    def cuda(
        self, device: torch.device | int | None = None, *, non_blocking: bool = False
    ) -> BlockMask:
        """The same mask on a GPU; None is torch's current one."""
        index = torch.cuda.current_device() if device is None else device
        return self.to(
            torch.device("cuda", index) if isinstance(index, int) else index,
            non_blocking=non_blocking,
        )

    def pin_memory(self) -> BlockMask:
        """The same mask in pinned memory of the CPU, for `cuda(non_blocking=True)`."""
        live = self.live.contiguous().pin_memory()
        return _of_grid(live, self.shape, self.block_shape, self.keep)

    # What the kernels read belongs to a device: it is built anew wherever the grid ends up. By a
    # state, and not by a function that makes a mask: torch.load(weights_only=True) takes it where
    # BlockMask is allow-listed.
    def __getstate__(self) -> tuple[Any, ...]:
        live = self.live.clone(memory_format=torch.contiguous_format)
        return live, self.shape, self.block_shape, self.keep

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        made = _of_grid(*state)
        for field in fields(self):
            object.__setattr__(self, field.name, getattr(made, field.name))

    def __repr__(self) -> str:
        return (
            f"BlockMask(shape={tuple(self.shape)}, block_shape={tuple(self.block_shape)}, "
            f"grid={tuple(self.live.shape)}, device={self.device}, keep={self.keep})"
        )

    def __str__(self) -> str:
        """A picture: one character a block, `#` live and `.` dropped. Reads the device."""
        most = 64
        rows = self.live[:most, :most].tolist()
        right = " …" if self.live.shape[1] > most else ""
        lines = ["".join("#" if cell else "." for cell in row) + right for row in rows]
        if self.live.shape[0] > most:
            lines.append("…")
        return "\n".join([f"{self!r}, density {self.density():.3f}", *lines])


Masks = tuple[BlockMask | None, BlockMask | None, BlockMask | None]
"""The masks of a product's a, b and out."""


def expand_live(live: Tensor, block_shape: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """The grid `live` with each cell spread over its block, cropped to `shape`."""
    (rows, cols), (block_rows, block_cols) = shape, block_shape
    r, c = live.shape
    # A block that is larger than the matrix is not spread beyond it.
    if type(rows) is int and type(cols) is int:
        block_rows, block_cols = min(block_rows, max(rows, 1)), min(block_cols, max(cols, 1))
    full = live[:, None, :, None].expand(r, block_rows, c, block_cols)
    return full.reshape(r * block_rows, c * block_cols)[:rows, :cols]


def draw(
    sampler: str,
    shape: tuple[int, int],
    p: float,
    block_shape: tuple[int, int],
    device: torch.device,
    generator: torch.Generator | None = None,
) -> BlockMask:
    """The mask of "bernoulli" or "balanced" on checked arguments; the device has its index."""
    tensors = ops.draw_tensors(sampler, (*shape, *block_shape), p, device, generator)
    return BlockMask(shape, block_shape, 1.0 - p, tensors)


def scale(p: float) -> float:
    """What live elements are multiplied by, so that they keep their expectation.

    At p = 1 nothing is left to scale.
    """
    return 1.0 / (1.0 - p) if p < 1.0 else 1.0


def _of_grid(
    live: Tensor, shape: tuple[int, int], block_shape: tuple[int, int], keep: float | None
) -> BlockMask:
    """The mask of a contiguous grid, with what the kernels read on the grid's device."""
    words = ops.words(live, *shape, *block_shape)
    return BlockMask(shape, block_shape, keep, MaskTensors((live, *words)))


def _flatten(mask: BlockMask) -> tuple[list[Tensor], list[Any]]:
    return list(mask.tensors.all()), [*mask.shape, *mask.block_shape, mask.keep]


def _unflatten(tensors: Iterable[Tensor], rest: list[Any]) -> BlockMask:
    rows, cols, block_rows, block_cols, keep = rest
    live, row_words, col_words = tensors
    held = MaskTensors((live, row_words, col_words))
    return BlockMask((rows, cols), (block_rows, block_cols), keep, held)


# A mask is its grid: torch.load(weights_only=True) may build one.
torch.serialization.add_safe_globals([BlockMask])
register_container(BlockMask, ("live", "row_words", "col_words"), _flatten, _unflatten)
