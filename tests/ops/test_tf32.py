"""float32 operands on the kernels, which multiply them as TF32 where torch may, too."""

import itertools

import pytest
import torch

import sparsedrop
from cases import (
    KERNEL_BLOCKS,
    KERNEL_EXTENTS,
    KERNEL_ORDERS,
    Case,
    assert_accurate,
    build,
    matmul_and_grads,
    normal,
    oracle,
    poisoned,
    signs,
    torchs_own,
    value_and_grads,
)
from layer_cases import PRECISIONS, SAMPLERS, SHAPES, inputs_of, run, way_of
from sparsedrop import functional, reference, select
from sparsedrop.ops.layer import Options
from sparsedrop.ops.layer.kernels import KernelLayer
from sparsedrop.ops.stack import Dropped
from stack_cases import CASES, layers_of, reference_of
from ways import forced, legal_ways

pytestmark = pytest.mark.gpu

GPU, F32 = torch.device("cuda", 0), torch.float32


@pytest.fixture(autouse=True)
def tf32():
    """torch may use TF32; and with it the kernels that have it, on a GPU that runs them."""
    with forced("sm80"):
        assert F32 in select.architecture("sm80").dtypes
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
@pytest.mark.parametrize("extents", [*KERNEL_EXTENTS, (3240, 2696, 136)], ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
def test_every_tile_and_orientation(blocks, extents, order):
    """Exact, and blind to NaN in dropped blocks."""
    case = Case(*extents, *blocks, *order)
    problem = build(case, signs, F32, GPU)
    bad = [
        poisoned(matrix, problem.masks.get(name))
        for matrix, name in ((problem.a, "a_mask"), (problem.b, "b_mask"))
    ]
    ways, truth = legal_ways(case, (1, 2), "sm80", F32), oracle(problem)[0]
    assert ways
    for choice in ways:
        with select.override(*choice[:4]):
            out = sparsedrop.matmul(*bad, **problem.masks)
        assert out.dtype is F32
        assert torch.equal(out.double(), truth), choice


@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
@pytest.mark.parametrize(
    "blocks", [((128, 128), None, None), (None, None, (128, 128)), ((128, 128), None, (128, 256))]
)
def test_products_err_no_more_than_torchs(blocks, order):
    problem = build(Case(1024, 1024, 2048, *blocks, *order), normal, F32, GPU)
    with select.override(architecture="sm80"):
        ours = matmul_and_grads(problem)
    assert_accurate(ours, oracle(problem), *torchs_own(problem))


@pytest.mark.parametrize("extents", [(75, 10, 65), (130, 1, 7), (100, 132, 68)], ids=str)
def test_padded_operands(extents):
    problem = build(Case(*extents, (128, 64), (64, 256), (128, 256)), signs, F32, GPU)
    with select.override(architecture="sm80"):
        out = sparsedrop.matmul(problem.a, problem.b, **problem.masks)
    assert torch.equal(out.double(), oracle(problem)[0])


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_bias_and_activation(activation):
    problem = build(Case(512, 768, 256, (128, 64), None, (128, 128)), normal, F32, GPU)
    inputs = [problem.a, problem.b.t().contiguous(), normal(768).to(GPU, F32)]
    masks = {"x_mask": problem.masks["a_mask"], "out_mask": problem.masks["out_mask"]}
    how = {**masks, "alpha": 0.1, "activation": activation}

    def layer(*args):
        return sparsedrop.linear(*args, **how)

    def own(*args):
        return reference.linear(*args, **how)

    with select.override(architecture="sm80"):
        ours = value_and_grads(layer, inputs, problem.upstream)
    exact = value_and_grads(own, [x.double() for x in inputs], problem.upstream.double())
    torchs = value_and_grads(own, inputs, problem.upstream)
    if activation == "relu":  # whose slope jumps where its argument rounds to the other sign
        assert_accurate(ours[:1], exact[:1], torchs[:1])
    else:
        assert_accurate(ours, exact, torchs)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", ["kernel", "ragged", "rank 1"])
def test_a_layer_is_the_reference(shape, sampler, side):
    (lead, n, k, block), precision = SHAPES[shape], PRECISIONS["float32"]
    for bias in (True, False):
        inputs, upstream = inputs_of(shape, precision, bias)
        torch.manual_seed(5)
        with select.override(architecture="sm80"):
            way = way_of(inputs, precision, Options(0.5, block, sampler, side=side))
            torch.manual_seed(5)
            how = {"p": 0.5, "sampler": sampler, "block_shape": block, "side": side}
            ours = run(inputs, upstream, precision, **how)
        assert type(way) is KernelLayer
        torch.manual_seed(5)
        masked = torch.Size(lead).numel(), k if side == "input" else n
        mask = SAMPLERS[sampler](masked, 0.5, block_shape=block, device=GPU)

        def own(x, weight, bias=None, mask=mask):
            return reference.dropout_linear(x, weight, bias, mask, 0.5, side)

        exact = value_and_grads(own, [t.double() for t in inputs], upstream.double())
        if shape == "rank 1":  # torch's product of a vector and a matrix is in float32, not in TF32
            inputs, upstream = [_as_tf32(t) for t in inputs], _as_tf32(upstream)
        assert_accurate(ours, exact, value_and_grads(own, inputs, upstream))


def _as_tf32(x):
    """Rounded to the nearest number of 10 bits behind the leading one."""
    bits = x.detach().view(torch.int32) + (1 << 12)
    return (bits & -(1 << 13)).view(torch.float32).requires_grad_(x.requires_grad)


@pytest.mark.parametrize("case", ["gelu", "dropped behind", "one layer"])
def test_a_stack_is_the_reference(case):
    """Product by product: there are no kernels in float32 for what stands between them."""
    case, block = CASES[case], (128, 128)
    x = normal(192, case.sizes[0]).to(GPU, F32).requires_grad_()
    layers, upstream = layers_of(case, F32, GPU), normal(192, case.sizes[-1]).to(GPU, F32)
    params = [t for layer in layers for t in (layer.weight, layer.bias)]
    torch.manual_seed(5)
    with select.override(architecture="sm80"):
        dropped = Dropped(case.rates, block, "bernoulli")
        out = functional.dropped_stack(x, layers, dropped, True)
        ours = [out.detach(), *torch.autograd.grad(out, [x, *params], upstream)]
    torch.manual_seed(5)
    masks = {
        i: SAMPLERS["bernoulli"]((192, n), p, block_shape=block, device=GPU)
        for i, (n, p) in enumerate(zip(case.sizes, case.rates, strict=True))
        if p > 0
    }
    results = []
    for dtype in (F32, torch.float64):
        out, leaves = reference_of(x, layers, masks, case.rates, F32, dtype)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))])
    assert_accurate(ours, results[1], results[0])


def test_without_tf32_products_are_exact_to_float32():
    torch.set_float32_matmul_precision("highest")
    problem = build(Case(512, 512, 512, (128, 128)), normal, F32, GPU)
    with select.override(architecture="sm80"), pytest.raises(ValueError, match="as TF32 only"):
        sparsedrop.matmul(problem.a, problem.b, **problem.masks)
    out, exact = sparsedrop.matmul(problem.a, problem.b, **problem.masks), oracle(problem)[0]
    assert (out.double() - exact).norm() <= 1e-6 * exact.norm()  # TF32 errs by 2e-4 at least


@pytest.mark.parametrize("compiled", [False, True])
def test_a_setting_that_changes_is_obeyed(compiled):
    """By plans that were made before, and by compiled code."""
    x, weight = (normal(512, 512).to(GPU, F32) for _ in range(2))

    def layer(x, weight):
        return sparsedrop.dropout_linear(x, weight, p=0.5)

    torch._dynamo.reset()
    function = torch.compile(layer, fullgraph=True) if compiled else layer
    for setting, _ in itertools.product(("high", "highest"), range(2)):
        torch.set_float32_matmul_precision(setting)
        torch.manual_seed(5)
        with select.override(architecture="sm80" if setting == "high" else None):
            out = function(x, weight)
        torch.manual_seed(5)
        mask = SAMPLERS["bernoulli"]((512, 512), 0.5, device=GPU)
        exact = reference.dropout_linear(x.double(), weight.double(), None, mask, 0.5)
        error = (out.double() - exact).norm() / exact.norm()
        assert error < 1e-6 if setting == "highest" else error < 1e-3
