"""Compact copies of what lives of parameters, and whole tensors of compact ones.

Of tensors that are cut along the same extent a GPU copies several in one launch: slicing them piece
by piece takes the host longer than a GPU needs for the layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop._torch import storage_of
from sparsedrop.ops.program import Filled, Gathered, Space
from sparsedrop.ops.slices import products
from sparsedrop.ops.slices.products import Cut, Pieces, units_of
from sparsedrop.ops.slices.views import live, put_live
from sparsedrop.ops.units.facts import COUNTED, Units

if TYPE_CHECKING:
    from sparsedrop import _C

MOST = 8
"""Tensors of a launch."""

FACTOR = 0
"""The number of a call: what copies are multiplied by."""

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def gathered(
    tensors: Sequence[Tensor],
    dim: int,
    pieces: Pieces,
    dtype: torch.dtype | None = None,
    factor: float = 1.0,
) -> list[Tensor]:
    """What lives of each along that extent, times a factor; rounded to a dtype, or None: in its
    own. Where nothing has to be copied they are views. Tensors that nobody watches."""
    compact = dtype or tensors[0].dtype
    is_view = len(pieces) == 1 and dim == 0 and factor == 1.0 and compact is tensors[0].dtype
    call = None if is_view else _call_of(tensors, dim, pieces, compact)
    if call is not None:
        return call.gather(tensors, units_of(pieces), factor)
    own = [live(tensor, dim, pieces) for tensor in tensors]
    own = own if factor == 1.0 else [tensor * factor for tensor in own]
    return own if dtype is None else [tensor.to(dtype) for tensor in own]


def spread(
    likes: Sequence[Tensor],
    compacts: Sequence[Tensor],
    dim: int,
    pieces: Pieces,
    factor: float = 1.0,
) -> list[Tensor]:
    """Like each tensor one with the compact values times a factor in their places, and all else
    exactly 0; likewise."""
    call = _call_of(likes, dim, pieces, compacts[0].dtype)
    if call is not None and all(own.dtype is call.facts.compact for own in compacts):
        return call.spread(compacts, units_of(pieces), factor)
    cut, found = Cut(pieces) if dim == 0 else Cut(None, pieces), list[Tensor]()
    for like, own in zip(likes, compacts, strict=True):
        scaled = own if factor == 1.0 else own.to(like.dtype) * factor
        found.append(products.in_place_of(like, scaled, cut))
    return found


def put(wholes: Sequence[Tensor], compacts: Sequence[Tensor], pieces: Pieces) -> None:
    """Writes vectors that were gathered back to their places, and nothing else; likewise."""
    if len(pieces) == 1 and all(map(_is_within, compacts, wholes)):
        return
    call = _call_of(wholes, 0, pieces, compacts[0].dtype)
    if call is not None:
        call.put(wholes, compacts, units_of(pieces))
        return
    for whole, own in zip(wholes, compacts, strict=True):
        put_live(whole, own, pieces)


def _is_within(own: Tensor, whole: Tensor) -> bool:
    """Whether it is a view of that."""
    return storage_of(own) == storage_of(whole)


class Facts(NamedTuple):
    """Tensors without their data, cut along one extent to so many units; on one GPU."""

    device: int
    dim: int
    kept: int
    # Of the compact copies.
    compact: torch.dtype
    # Shape, strides and dtype of each.
    tensors: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0][2]

    def are_legal(self) -> bool:
        """Whether a launch copies them."""
        dtypes = {dtype for _, _, dtype in self.tensors}
        return (
            len(self.tensors) <= MOST
            and len(dtypes) == 1
            and {self.compact, self.dtype} <= set(_DTYPES)
            and (self.compact is self.dtype or torch.float32 in (self.compact, self.dtype))
            and all(_is_dense(*own[:2]) and own[0].numel() < COUNTED for own in self.tensors)
            and len({lies.features for lies in self.lie()}) == 1
        )

    def lie(self) -> list[_Lies]:
        """How each lies."""
        return [_Lies.of(shape, strides, self.dim) for shape, strides, _ in self.tensors]

    def compact_spaces(self) -> list[Space]:
        """Of the compact copies, in the order of the tensors' memory."""
        found = []
        for shape, strides, _ in self.tensors:
            own = (*shape[: self.dim], self.kept, *shape[self.dim + 1 :])
            space = Space.of(own, self.compact)
            is_turned = strides == _channels_last(shape)
            found.append(space._replace(strides=_channels_last(own)) if is_turned else space)
        return found

    def whole_spaces(self) -> list[Space]:
        """Of tensors like these."""
        return [Space(tuple(shape), strides, dtype) for shape, strides, dtype in self.tensors]


class _Lies(NamedTuple):
    """A dense tensor's memory as a matrix: units are its rows, or so many columns each."""

    rows: int
    cols: int
    by_rows: bool
    features: int

    @classmethod
    def of(cls, shape: torch.Size, strides: tuple[int, ...], dim: int) -> _Lies:
        units, inner = shape[dim], strides[dim]
        outer = shape.numel() // max(units * inner, 1)
        if outer == 1 and inner > 1:
            return cls(units, inner, True, 1)
        return cls(outer, units * inner, False, inner)

    def of_live(self, units: int) -> tuple[int, int]:
        """Rows and columns of the compact one."""
        return (units, self.cols) if self.by_rows else (self.rows, units * self.features)


class PartsCall:
    """What a GPU does with tensors of some facts. What depends on no address is worked out once."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._lie = facts.lie()
        self._features = self._lie[0].features
        self._units = 2 * len(facts.tensors)  # the place of theirs, behind the tensors'
        self._allocate = _native.allocator(facts.device)
        self._compact, self._whole = facts.compact_spaces(), facts.whole_spaces()

    def gather(self, tensors: Sequence[Tensor], units: Units, factor: float) -> list[Tensor]:
        """Compact copies."""
        found = [self._allocate(*space) for space in self._compact]
        self._run(self._gathering, tensors, found, units, factor)
        return found

    def spread(self, compacts: Sequence[Tensor], units: Units, factor: float) -> list[Tensor]:
        """Whole tensors, 0 where nothing lives."""
        found = [self._allocate(*space) for space in self._whole]
        self._run(self._spreading, found, self._placed(compacts), units, factor)
        return found

    def put(self, wholes: Sequence[Tensor], compacts: Sequence[Tensor], units: Units) -> None:
        """Overwrites what lives."""
        self._run(self._putting, wholes, self._placed(compacts), units, 1.0)

    def _placed(self, compacts: Sequence[Tensor]) -> list[Tensor]:
        """Each as it would have been gathered."""
        found = []
        for space, own in zip(self._compact, compacts, strict=True):
            if own.stride() != space.strides:
                own = self._allocate(*space).copy_(own)
            found.append(own)
        return found

    def _run(
        self,
        program: _C.Program,
        wholes: Sequence[Tensor],
        compacts: Sequence[Tensor],
        units: Units,
        factor: float,
    ) -> None:
        places = [t.data_ptr() for pair in zip(wholes, compacts, strict=True) for t in pair]
        step, first, count, second = units
        size = self._features
        places += (step, first * size, count * size, second * size)
        program.run(places, (factor,), _native.current_stream(self.facts.device))

    @functools.cached_property
    def _gathering(self) -> _C.Program:
        facts, arrays = self.facts, list[Gathered]()
        program, source = _native.C.Program(facts.device), _native.dtype_code(facts.dtype)
        for i, lies in enumerate(self._lie):
            rows, cols = lies.of_live(facts.kept)
            ends = 2 * i, source, lies.cols, 2 * i + 1, cols
            arrays.append(Gathered(*ends, rows, cols, _along(lies), FACTOR))
        program.gather(dtype=_native.dtype_code(facts.compact), arrays=arrays, **self._count)
        return program

    @functools.cached_property
    def _spreading(self) -> _C.Program:
        return self._fill("zeroed")

    @functools.cached_property
    def _putting(self) -> _C.Program:
        return self._fill("kept")

    def _fill(self, dropped: str) -> _C.Program:
        facts, becomes = self.facts, _native.C.DROPPED[dropped]
        program, code = _native.C.Program(facts.device), _native.dtype_code(facts.dtype)
        compact = _native.dtype_code(facts.compact)
        arrays = [
            Filled(
                2 * i, code, lies.rows, lies.cols, _along(lies), 2 * i + 1, compact, FACTOR, becomes
            )
            for i, lies in enumerate(self._lie)
        ]
        program.fill_units(arrays=arrays, **self._count)
        return program

    @property
    def _count(self) -> dict[str, Any]:
        return {"units": self._units, "count": self.facts.kept * self._features}


def _along(lies: _Lies) -> int:
    return _native.C.UNITS_ALONG["rows" if lies.by_rows else "cols"]


def _channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of such an order; of tensors that have none, nothing."""
    if len(shape) != 4:
        return ()
    _, channels, height, width = shape
    return height * width * channels, 1, width * channels, channels


def _is_dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether elements lie without gaps in one of two orders."""
    contiguous = Space.of(tuple(shape), torch.float32).strides
    return 0 not in shape and strides in (contiguous, _channels_last(shape))


def make_call(facts: tuple[Any, ...]) -> PartsCall | None:
    """The call for `Facts` in a plain tuple; None where a GPU has none."""
    of = Facts(*facts)
    is_legal = _native.runs_portable(_native.gpu(of.device)) and of.are_legal()
    return PartsCall(of) if is_legal else None


call_for = functools.lru_cache(maxsize=1024)(make_call)


def _call_of(
    tensors: Sequence[Tensor], dim: int, pieces: Pieces, compact: torch.dtype
) -> PartsCall | None:
    index = tensors[0].get_device()
    if len(pieces) > 2:
        return None
    for own in tensors:
        if not own.is_cuda or own.get_device() != index:
            return None
    kept = products.width(pieces, 0)
    operands = tuple([(own.shape, own.stride(), own.dtype) for own in tensors])
    return call_for((index, dim, kept, compact, operands))
