"""The kernel that sums up a masked matrix's columns: the gradient of a bias on a GPU."""

import pytest
import torch

from sparsedrop import BlockMask, reference
from sparsedrop.ops import cuda

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [None, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(4096, 1024), (1000, 776), (64, 8), (130, 4104), (2177, 264)])
def test_column_sums(shape, p, dtype):
    """Against float64, over live blocks only, and the same bits every time."""
    matrix = torch.randn(shape, device=GPU).to(dtype)
    mask = None if p is None else BlockMask.bernoulli(shape, p, device=GPU)
    live = matrix if mask is None else reference.keep_live(matrix, mask)
    given = matrix if mask is None else torch.where(mask.expand(), matrix, torch.nan)
    sums = cuda.sums_by_kernel(given, mask)
    assert sums is not None
    assert sums.dtype == dtype
    rounding = torch.finfo(dtype).eps * live.double().sum(0).abs()
    wide = torch.finfo(torch.float32).eps * live.double().abs().sum(0)
    assert torch.all((sums.double() - live.double().sum(0)).abs() <= rounding + wide)
    assert all(torch.equal(cuda.sums_by_kernel(given, mask), sums) for _ in range(5))


@pytest.mark.parametrize("block_shape", [(64, 64), (128, 256), (192, 128)])
def test_column_sums_of_any_blocks_and_strides(block_shape):
    wide = torch.randint(-3, 4, (2600, 1024), device=GPU).to(torch.bfloat16)
    matrix = wide[:, 64:840]  # of rows that lie apart
    mask = BlockMask.bernoulli((2600, 776), 0.5, block_shape=block_shape, device=GPU)
    expected = reference.keep_live(matrix, mask).float().sum(0).to(torch.bfloat16)
    assert torch.equal(cuda.sums_by_kernel(matrix, mask), expected)
    one_row = wide[:1].expand(1000, -1)  # as the gradient of a sum is
    assert torch.equal(cuda.sums_by_kernel(one_row, None), (1000 * wide[0].float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1000, 10), (3000, 65), (64, 1001), (70000, 3)], ids=str)
def test_column_sums_of_any_extents(shape, dtype):
    wide = torch.randn(shape[0], shape[1] + 1, device=GPU, dtype=dtype)
    for matrix in (wide[:, 1:], wide[:, 1:].contiguous()):
        sums = cuda.sums_by_kernel(matrix, None)
        exact = matrix.double().sum(0)
        unit = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}.get(
            dtype, 2**-50
        )
        assert sums.dtype == dtype
        assert (sums.double() - exact).abs().max() <= unit * (1 + exact.abs().max()) * 4


def test_column_sums_leave_to_torch_what_they_cannot_read():
    matrix = torch.randn(256, 264, device=GPU, dtype=torch.bfloat16)
    assert cuda.sums_by_kernel(matrix, None) is not None
    assert cuda.sums_by_kernel(matrix.t(), None) is None
    mask = BlockMask.bernoulli((256, 264), 0.5, block_shape=(32, 32), device=GPU)
    assert cuda.sums_by_kernel(matrix, mask) is None
