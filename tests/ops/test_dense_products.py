"""Products that a program leaves to cuBLASLt, and to cuBLAS where that has no way: on a GPU."""

import subprocess
import sys

import pytest
import torch

from sparsedrop import _native

pytestmark = pytest.mark.gpu

BF16, F32 = torch.bfloat16, torch.float32
SHAPES = [
    (192, 128, 64), (192, 128, 65), (4096, 10, 1024), (16384, 65, 1024), (1000, 1000, 1000),
    (333, 77, 129), (128, 8, 8192), (2048, 1001, 784), (500, 264, 520), (1, 1, 1),
]  # fmt: skip
OFFSETS = {"as torch allocates": 0, "by 16 bytes": 8, "by an element": 1}


def _lying(tensor, offset):
    """A copy that starts so many elements behind what torch has allocated."""
    room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")
    room[offset:].copy_(tensor.flatten())
    return room[offset:].view(tensor.shape)


class _Multiplying:
    """alpha * a bᵀ + bias by a program of one step; alpha is 0.5."""

    def __init__(self, a, b, bias, out, *, accumulates=False):
        assert _native.has_blas()
        self.program = _native.C.Program(0)
        scratch = self.program.dense_product(
            m=a.shape[0], n=b.shape[0], k=a.shape[1], a=0, b=1, b_turned=True, out=3,
            dtype=_native.dtype_code(a.dtype), out_dtype=_native.dtype_code(out.dtype), alpha=0,
            accumulates=accumulates, bias=None if bias is None else 2, workspace=4, handle=5,
            handle_now=torch.cuda.current_blas_handle(),
        )  # fmt: skip
        self.room = torch.empty(max(scratch, 1), dtype=torch.uint8, device="cuda")

    def __call__(self, a, b, bias, out):
        """Of such operands as the program was made for, which may lie elsewhere."""
        tensors = (a, b, a if bias is None else bias, out, self.room)
        narrow = _native.allows_narrow_sums(a.dtype)
        handle = torch.cuda.current_blas_handle()
        places = (*(t.data_ptr() for t in tensors), handle, narrow)
        self.program.run(places, (0.5,), _native.current_stream(0))


def _multiply(a, b, bias, out, **options):
    _Multiplying(a, b, bias, out, **options)(a, b, bias, out)


def _operands(m, n, k, dtype, offset):
    a, b, bias, out = (torch.randn(*shape) for shape in ((m, k), (n, k), (n,), (m, n)))
    return [_lying(t.to(dtype), offset) for t in (a, b / k**0.5, bias, out)]


@pytest.mark.parametrize("offset", ["as torch allocates", "by 16 bytes"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_rounded_once_and_not_before_its_bias(shape, offset):
    a, b, bias, out = _operands(*shape, BF16, OFFSETS[offset])
    _multiply(a, b, bias, out)
    truth = 0.5 * a.double() @ b.double().t() + bias.double()
    # Half of the last of eight binary places, and what is lost of the sum in float32.
    allowed = truth.abs() * 2**-8 + 1e-4
    assert ((out.double() - truth).abs() <= allowed).all()


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [BF16, torch.float16, F32, torch.float64], ids=str)
def test_every_dtype_however_it_lies(dtype, offset):
    a, b, bias, out = _operands(300, 130, 96, dtype, OFFSETS[offset])
    for added, accumulates in ((bias, False), (None, False), (None, True)):
        held = out.double().clone()
        _multiply(a, b, added, out, accumulates=accumulates)
        truth = 0.5 * a.double() @ b.double().t()
        truth += 0 if added is None else added.double()
        truth += held if accumulates else 0
        error = (out.double() - truth).norm()
        assert error <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_what_is_accumulated_has_no_bias():
    a, b, bias, out = _operands(32, 32, 32, BF16, 0)
    with pytest.raises(ValueError, match="has no bias"):
        _multiply(a, b, bias, out, accumulates=True)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_one_program_multiplies_wherever_its_operands_lie(dtype):
    multiply = None
    for offset in (0, 8, 1, 0):
        a, b, bias, out = _operands(300, 136, 96, dtype, offset)
        multiply = multiply or _Multiplying(a, b, bias, out)
        for added in (bias, torch.randn_like(bias)):
            out.fill_(float("nan"))
            multiply(a, b, added, out)
            truth = 0.5 * a.double() @ b.double().t() + added.double()
            assert (out.double() - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_float32_is_multiplied_as_torch_is_told_at_the_time():
    a, b, bias, out = _operands(256, 256, 512, F32, 0)
    truth = 0.5 * a.double() @ b.double().t() + bias.double()
    multiply, before = _Multiplying(a, b, bias, out), torch.backends.cuda.matmul.allow_tf32
    errors = []
    try:
        for tf32 in (False, True, False):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            out.fill_(float("nan"))
            multiply(a, b, bias, out)
            errors.append((out.double() - truth).norm() / truth.norm())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert errors[0] < 1e-6 < 1e-5 < errors[1] < 1e-3
    assert errors[2] < 1e-6


def test_a_backward_pass_in_a_thread_of_its_own_warns_of_nothing():
    code = (
        "import torch; from sparsedrop.nn import SliceOutMLP\n"
        "block = SliceOutMLP(256, 512, p=0.5, device='cuda', dtype=torch.bfloat16)\n"
        "x = torch.randn(64, 256, device='cuda', dtype=torch.bfloat16, requires_grad=True)\n"
        "block(x).sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "context" not in run.stderr
