"""A `_C` that does on CPU memory what a layer's calls do on a GPU: by their addresses, in float64.

What it cannot show is a kernel; all that Python does around one it can: plans, places, dtypes.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparsedrop.masks.block_mask import expand_live
from sparsedrop.masks.samplers import balanced_live

DTYPES = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3}
_DTYPES = [getattr(torch, name) for name in DTYPES]


def at(address: int, dtype: torch.dtype, *shape: int) -> Tensor:
    """What lies there."""
    size = dtype.itemsize * torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


class Generator:
    """Stands for a GPU's, whose state is a seed and an offset."""

    def __init__(self) -> None:
        self.device, self.seed, self.offset = torch.device("cpu"), 3, 0

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


class Launch:
    workspace_bytes = 64

    def __init__(self, **plan) -> None:
        self.plan = plan


class _Layer:
    """`live` is the grid of the last forward pass."""

    live: Tensor

    def _draw(self, address: int, keep: float, seed: int, offset: int) -> Tensor:
        (rows, cols), (block_rows, block_cols) = self.shape, self.block
        grid = -(-rows // block_rows), -(-cols // block_cols)
        live = at(address, torch.bool, *grid)
        if offset >= 0:
            generator = torch.Generator().manual_seed(1000 * seed + offset)
            live.copy_(torch.rand(grid, generator=generator) < keep)
        C.live = live.clone()
        return expand_live(live, self.block, self.shape)

    def _is_live(self, address: int) -> Tensor:
        (rows, cols), (block_rows, block_cols) = self.shape, self.block
        live = at(address, torch.bool, -(-rows // block_rows), -(-cols // block_cols))
        return expand_live(live, self.block, self.shape)

    def _given(self, address: int, rounded: int, dtype: torch.dtype, *shape: int) -> Tensor:
        """An operand, as float64; rounded from float32 to that place, if there is one."""
        if rounded:
            at(rounded, dtype, *shape).copy_(at(address, torch.float32, *shape))
        return at(rounded or address, dtype, *shape).double()

    def _store(self, value: Tensor, address: int, dtype: torch.dtype, adds: bool) -> None:
        if address:
            place = at(address, dtype, *value.shape)
            place.copy_(place.double() + value if adds else value)


class KernelLayer(_Layer):
    def __init__(self, *, forward, grad_x, grad_weight, block, col_words_at, live_at, bias_dtype):
        plan = forward.plan
        self.shape, self.n, self.block = (plan["m"], plan["k"]), plan["n"], block
        self.dtype, self.bias_dtype = _DTYPES[plan["dtype"]], _DTYPES[bias_dtype]
        is_wide = grad_weight.plan.get("d_is_fp32", False)
        self.weight_dtype = torch.float32 if is_wide else self.dtype
        self.live_at = live_at
        self.forward_workspace_bytes = self.backward_workspace_bytes = 64

    def forward(self, x, weight, bias, rounded_x, rounded_weight, rounded_bias, out, mask,
                workspace, keep, seed, offset, alpha, stream):  # fmt: skip
        (m, k), n = self.shape, self.n
        is_live = self._draw(mask + self.live_at, keep, seed, offset)
        x = self._given(x, rounded_x, self.dtype, m, k)
        weight = self._given(weight, rounded_weight, self.dtype, n, k)
        result = alpha * torch.where(is_live, x, 0) @ weight.t()
        if bias:
            result = result + self._given(bias, rounded_bias, self.dtype, n)
        self._store(result, out, self.dtype, False)
        at(workspace, torch.uint8, 64).zero_()

    def backward(self, grad, x, weight, mask, grad_x, grad_weight, grad_bias, workspace, alpha,
                 adds_weight, adds_bias, stream):  # fmt: skip
        (m, k), n = self.shape, self.n
        is_live, grad = self._is_live(mask + self.live_at), at(grad, self.dtype, m, n).double()
        x, weight = at(x, self.dtype, m, k).double(), at(weight, self.dtype, n, k).double()
        x = torch.where(is_live, x, 0)
        self._store(alpha * torch.where(is_live, grad @ weight, 0), grad_x, self.dtype, False)
        self._store(alpha * grad.t() @ x, grad_weight, self.weight_dtype, adds_weight)
        self._store(grad.sum(0), grad_bias, self.bias_dtype, adds_bias)
        at(workspace, torch.uint8, 64).zero_()


class DenseLayer(_Layer):
    def __init__(self, *, rows, cols, outputs, block, x_dtype, dtype, weight_dtype, bias_dtype,
                 device):  # fmt: skip
        self.shape, self.n, self.block = (rows, cols), outputs, block
        codes = x_dtype, dtype, weight_dtype, bias_dtype
        self.x_dtype, self.dtype, self.weight_dtype, self.bias_dtype = (_DTYPES[c] for c in codes)

    def forward(self, x, masked, weight, rounded_weight, bias, out, live, keep, seed, offset, alpha,
                handle, allows_narrow_sums, stream):  # fmt: skip
        (m, k), n = self.shape, self.n
        is_live = self._draw(live, keep, seed, offset)
        kept = at(masked, self.dtype, m, k)
        kept.copy_(torch.where(is_live, at(x, self.x_dtype, m, k), 0))
        weight = self._given(weight, rounded_weight, self.dtype, n, k)
        if out:
            result = alpha * kept.double() @ weight.t()
            if bias:
                result = result + at(bias, self.bias_dtype, n).to(self.dtype).double()
            self._store(result, out, self.dtype, False)

    def backward(self, grad, masked, weight, live, product, grad_x, grad_weight, grad_bias, alpha,
                 adds_weight, adds_bias, handle, allows_narrow_sums, stream):  # fmt: skip
        (m, k), n = self.shape, self.n
        grad, kept = (at(p, self.dtype, m, c).double() for p, c in ((grad, n), (masked, k)))
        if grad_x:
            made = alpha * grad @ at(weight, self.dtype, n, k).double()
            self._store(made, product, self.dtype, False)
            made = at(product, self.dtype, m, k).double()
            self._store(torch.where(self._is_live(live), made, 0), grad_x, self.x_dtype, False)
        self._store(alpha * grad.t() @ kept, grad_weight, self.weight_dtype, adds_weight)
        self._store(grad.sum(0), grad_bias, self.bias_dtype, adds_bias)


class C:
    """Stands for the extension."""

    DTYPES, ACTIVATIONS, ARCHITECTURES = DTYPES, {"none": 0}, []
    MAX_SUM_COLUMNS = 64 * 65535
    Launch, Layer, DenseLayer = Launch, KernelLayer, DenseLayer
    live: Tensor

    @staticmethod
    def load_blas(release: int) -> bool:
        return True

    @staticmethod
    def mask_words(*args: int) -> None:
        pass

    @staticmethod
    def balanced_live(keys, rows, columns, count, live, device, stream):
        bands = -(-rows * torch.gcd(torch.tensor(count), torch.tensor(columns)).item() // columns)
        drawn = balanced_live(at(keys, torch.int32, bands, columns), rows, count)
        at(live, torch.bool, rows, columns).copy_(drawn)
