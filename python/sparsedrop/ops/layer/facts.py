"""All that decides how a layer is run on a GPU, and what every way of running it has."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparsedrop import _native
from sparsedrop.masks import scale
from sparsedrop.ops.plan import ALIGNMENT_BITS

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

Grads = tuple["Tensor | None", "Tensor | None", "Tensor | None"]
"""Of x, weight and bias."""

Needs = tuple[bool, bool, bool]
"""Whether the gradients of x, weight and bias are needed."""

Buffers = tuple["Tensor | None", "Tensor | None"]
"""What the gradients of weight and bias are added to."""


class Facts(NamedTuple):
    """A layer's operands without their data: contiguous, 16-byte aligned, on one GPU.

    x is flattened to [m, k], weight is [n, k], or turned [k, n], bias [n].
    """

    device: int
    x_shape: torch.Size
    x_dtype: torch.dtype
    weight_shape: torch.Size
    weight_dtype: torch.dtype
    bias_shape: torch.Size | None
    bias_dtype: torch.dtype | None
    # Of the products: that of autocast, where it is on and casts float32 operands to it.
    dtype: torch.dtype
    casts: bool
    # The share that is kept: a choice may change with it, but not with every step of a schedule.
    keep_percent: int
    block_shape: tuple[int, int]
    # Of the layer: what of it is dropped.
    side: str
    weight_turned: bool
    # Whether products in float32 may be TF32.
    tf32: bool = False

    @property
    def features(self) -> int:
        """n."""
        return self.weight_shape[1 if self.weight_turned else 0]

    @property
    def extents(self) -> tuple[int, int, int]:
        """m, n, k."""
        k = self.x_shape[-1]
        return self.x_shape.numel() // k, self.features, k

    @property
    def drops_output(self) -> bool:
        return self.side == "output"

    @property
    def masked_shape(self) -> tuple[int, int]:
        """Of the matrix whose blocks are dropped."""
        m, n, k = self.extents
        return m, n if self.drops_output else k

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.x_shape[:-1], self.features)

    def are_legal(self) -> bool:
        """Whether there is a layer of these operands, with something to multiply."""
        dtypes = (self.x_dtype, self.weight_dtype, self.bias_dtype or self.weight_dtype)
        rounds = self.casts and self.dtype in (torch.bfloat16, torch.float16)
        return (
            self.dtype in DTYPES
            and len(self.x_shape) > 0
            and len(self.weight_shape) == 2
            and self.x_shape[-1] == self.weight_shape[0 if self.weight_turned else 1]
            and self.bias_shape in (None, (self.features,))
            and 0 not in (*self.x_shape, *self.weight_shape)
            and all(own is self.dtype or (rounds and own is torch.float32) for own in dtypes)
        )


def lie_well(*tensors: Tensor) -> bool:
    """Whether they are contiguous and 16-byte aligned."""
    bits = 0
    for tensor in tensors:  # a generator costs the host as much again
        if not tensor.is_contiguous():
            return False
        bits |= tensor.data_ptr()
    return not bits & ALIGNMENT_BITS


def facts_of(
    x: Tensor,
    options: Options,
    of_products: tuple[torch.dtype, bool],
    of_weight: tuple[torch.Size, torch.dtype],
    of_bias: tuple[torch.Size | None, torch.dtype | None],
) -> tuple[Any, ...]:
    """`Facts`, in a plain tuple: it is looked up for every call."""
    percent = round(100 * (1.0 - options.p))
    dtype, _ = of_products
    return (
        x.get_device(), x.shape, x.dtype, *of_weight, *of_bias, *of_products, percent,
        options.block_shape, options.side, options.weight_turned,
        dtype is torch.float32 and _native.allows_tf32(),
    )  # fmt: skip


class Options(NamedTuple):
    """What the user asked for, checked: see `functional.dropout_linear`."""

    p: float
    block_shape: tuple[int, int]
    sampler: str
    fuse_wgrad_accumulation: bool = False
    generator: torch.Generator | None = None
    side: str = "input"
    # Whether the weight is [k, n].
    weight_turned: bool = False

    @property
    def drops_output(self) -> bool:
        return self.side == "output"

    @property
    def alpha(self) -> float:
        """What live elements are multiplied by."""
        return scale(self.p)


class Saved(NamedTuple):
    """What a backward pass needs of the forward pass: of x nothing, where the weight is frozen."""

    x: Tensor | None
    weight: Tensor
    mask: Tensor


class Layer(Protocol):
    """One way of running the layers of some facts."""

    facts: Facts
    # Whether what is saved of x is not x itself.
    remakes_x: bool

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options
    ) -> tuple[Tensor, Saved]:
        """The result, of the shape of the facts, and what `backward` needs."""

    def backward(
        self,
        saved: Saved,
        grad: Tensor,
        options: Options,
        needs: Needs,
        into: Buffers = (None, None),
    ) -> Grads:
        """The gradients that are needed; `grad` is contiguous, aligned and of the facts' dtype.

        Those of weight and bias that have a buffer, one of those that `adds_into` takes, are added
        to it, and are None.
        """

    def adds_into(self, buffer: Tensor) -> bool:
        """Whether `backward` can add a gradient to that."""

    def backward_by_ops(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        """The same by torch's ops and registered ones, for whoever watches, and any `grad`."""

    def backward_again(self, saved: Saved, grad: Tensor, options: Options, needs: Needs) -> Grads:
        """The same, and can be differentiated; what is saved depends on what was given."""

    def through_kept(self, saved: Saved, grad: Tensor) -> Tensor:
        """The gradient of x that one of what is kept of it has for a consequence."""
