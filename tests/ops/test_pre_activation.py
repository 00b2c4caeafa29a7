"""What the gradient of an activation takes on a GPU: what went in, stored beside the result."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import sparsedrop
from cases import (
    KERNEL_BLOCKS,
    KERNEL_DTYPES,
    KERNEL_EXTENTS,
    KERNEL_ORDERS,
    Case,
    assert_accurate,
    build,
    normal,
    poisoned,
    random_mask,
    signs,
    value_and_grads,
)
from sparsedrop import reference, select
from sparsedrop.ops import How, Product, cuda
from ways import legal_ways

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
LONG = [(36864, 264, 128), (264, 36864, 128)]

EACH_DTYPE = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
EACH_ACTIVATION = pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
EACH_LATE = pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])


def _live(matrix, mask):
    return matrix if mask is None else matrix[mask.expand()]


@EACH_LATE
@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
@pytest.mark.parametrize("extents", KERNEL_EXTENTS, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
@EACH_DTYPE
def test_every_tile_stores_what_went_in(blocks, extents, order, activation, dtype, architecture):
    _check_every_way(Case(*extents, *blocks, *order), activation, dtype, architecture)


@EACH_LATE
@pytest.mark.parametrize("extents", LONG, ids=str)
@pytest.mark.parametrize("blocks", [((128, 64), None, (128, 128)), (None, None, (64, 128))])
def test_many_lines_of_tiles_store_what_went_in(blocks, extents, activation, architecture):
    _check_every_way(Case(*extents, *blocks), activation, torch.bfloat16, architecture)


def _check_every_way(case, activation, dtype, architecture):
    """What is stored equals the product without activation, and the result is torch's of it."""
    ways = legal_ways(case, (1,), architecture)
    assert ways
    problem = build(case, normal, dtype, GPU)
    a_mask, b_mask, out_mask = (problem.masks.get(f"{name}_mask") for name in ("a", "b", "out"))
    how = How(a_mask, b_mask, out_mask, 0.1)
    product = Product(
        poisoned(problem.a, a_mask),
        poisoned(problem.b, b_mask),
        normal(case.n).to(GPU, dtype),
        how,
    )
    activated = product._replace(how=how._replace(activation=activation))
    for choice in ways:
        with select.override(*choice[:4]):
            plain = cuda.product(product)
            out, before = cuda.product_and_pre_activation(activated)
            again = cuda.product_and_pre_activation(activated)
        way = str(choice)
        assert torch.equal(_live(before, out_mask), _live(plain, out_mask)), way
        assert torch.equal(_live(again[1], out_mask), _live(before, out_mask)), way
        assert torch.equal(again[0], out), way
        act = reference.ACTIVATIONS[activation]
        assert_accurate([out], [act(plain.double())], [act(plain)])
        if out_mask is not None:
            assert not out[~out_mask.expand()].any(), way


@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
@pytest.mark.parametrize("extents", KERNEL_EXTENTS, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
@EACH_DTYPE
def test_gradients_behind_every_tile(blocks, extents, order, dtype, architecture):
    _check_gradients(Case(*extents, *blocks, *order), "gelu", dtype, architecture)


@EACH_ACTIVATION
@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
def test_gradients_of_padded_operands(order, activation, architecture):
    case = Case(515, 389, 261, (128, 64), None, (128, 256), *order)
    _check_gradients(case, activation, torch.bfloat16, architecture)


def _check_gradients(case, activation, dtype, architecture):
    """NaN in all dropped blocks, of the upstream gradient too."""
    # relu's gradient jumps where a sum of almost 0 changes its sign.
    problem = build(case, signs if activation == "relu" else normal, dtype, GPU)
    bias = (signs if activation == "relu" else normal)(case.n).to(GPU, dtype)
    a_mask, b_mask, out_mask = (problem.masks.get(f"{name}_mask") for name in ("a", "b", "out"))
    how = {"alpha": 2.0 if activation == "relu" else 0.1, "activation": activation}
    masks = {
        "x_mask": a_mask,
        "weight_mask": None if b_mask is None else b_mask.T,
        "out_mask": out_mask,
    }

    def truth(inputs, upstream):
        return value_and_grads(
            lambda *args: reference.linear(*args, **masks, **how), inputs, upstream
        )

    inputs = [problem.a, problem.b.t(), bias]
    torchs = truth(inputs, problem.upstream)
    exact = truth([x.double() for x in inputs], problem.upstream.double())
    bad = [poisoned(problem.a, a_mask), poisoned(problem.b, b_mask).t(), bias]
    upstream = poisoned(problem.upstream, out_mask)
    for choice in legal_ways(case, (1,), architecture):
        leaves = [x.detach().requires_grad_() for x in bad]
        with select.override("kernel", choice.tile, choice.swap):
            out = sparsedrop.linear(*leaves, **masks, **how)
        runs = [torch.autograd.grad(out, leaves, upstream, retain_graph=True) for _ in range(2)]
        for first, second in zip(*runs, strict=True):
            assert torch.equal(first, second)
        ours = [out.detach(), *runs[0]]
        if activation == "relu":
            for own, expected in zip(ours, exact, strict=True):
                assert torch.equal(own.double(), expected)
        else:
            assert_accurate(ours, exact, torchs)


@EACH_LATE
@pytest.mark.parametrize("extents", [(75, 10, 65), (130, 1, 7), (1, 300, 64), (64, 64, 1)], ids=str)
@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
def test_padded_operands(extents, order, activation, architecture):
    case = Case(*extents, (128, 64), None, (128, 256), *order)
    _check_every_way(case, activation, torch.float16, architecture)


@EACH_LATE
@EACH_DTYPE
def test_special_values_go_through_the_kernel(activation, dtype, architecture):
    """A product of zeros leaves the bias, and so every value of it goes into the activation."""
    bias = _all_finite(dtype)[:4096]
    bias[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    zeros = [torch.zeros(extent, 64, device=GPU, dtype=dtype) for extent in (256, 4096)]
    with select.override(architecture=architecture):
        how = How(activation=activation, b_turned=True)
        out, before = cuda.product_and_pre_activation(Product(*zeros, bias, how))
    assert torch.equal(before.isnan(), bias.isnan().expand_as(before))
    assert torch.equal(before[:, 3:], bias[3:].expand_as(before[:, 3:]))
    _assert_close(out, reference.ACTIVATIONS[activation](bias).expand_as(out))


def _all_finite(dtype):
    """All finite values of a 16-bit dtype in random order, so that any part has all magnitudes."""
    values = torch.arange(-(2**15), 2**15, device=GPU).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    return values[torch.randperm(values.numel(), device=GPU)]


def _assert_close(own, expected):
    """To one unit in the last place; near 0 to what fp32 leaves of sums that cancel."""
    torch.testing.assert_close(
        own, expected, rtol=torch.finfo(own.dtype).eps, atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize("path", [None, "kernel", "dense"])
def test_blocks_that_nobody_wrote_reach_nothing(path, architecture, monkeypatch):
    """NaN in what the kernel leaves unwritten, whichever way the gradients then go."""
    shape = (1024, 1024)
    inputs = [normal(*extents).to(GPU, torch.bfloat16) for extents in (shape, shape, shape[1:])]
    upstream = normal(*shape).to(GPU, torch.bfloat16)
    masks = {name: random_mask(shape, (128, 128), GPU) for name in ("x_mask", "out_mask")}

    def step():
        leaves = [x.detach().requires_grad_() for x in inputs]
        with select.override(architecture=architecture):
            out = sparsedrop.linear(*leaves, **masks, activation="silu")
        with select.override(path=path, architecture=architecture if path == "kernel" else None):
            return out.detach(), *torch.autograd.grad(out, leaves, upstream)

    clean, called, own_product = step(), [], cuda.product_and_pre_activation

    def poisoning(*args):
        out, before = own_product(*args)
        before[~masks["out_mask"].expand()] = torch.nan
        called.append(before)
        return out, before

    monkeypatch.setattr(cuda, "product_and_pre_activation", poisoning)
    for own, expected in zip(step(), clean, strict=True):
        assert torch.equal(own, expected)
    assert len(called) == 1


def _hidden_layer(activation):
    """Inputs, a function of them that the kernels run, and an upstream gradient."""
    inputs = [normal(*s).to(GPU, torch.bfloat16) for s in ((2048, 1024), (1536, 1024), (1536,))]
    mask = random_mask((2048, 1536), (128, 128), GPU)
    upstream = normal(2048, 1536).to(GPU, torch.bfloat16)
    return (
        inputs,
        lambda *args: sparsedrop.linear(*args, out_mask=mask, activation=activation),
        upstream,
    )


@EACH_ACTIVATION
@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)], ids=str)
def test_what_is_needed_does_not_change_it(needed, activation):
    inputs, layer, upstream = _hidden_layer(activation)
    _, *all_grads = value_and_grads(layer, inputs, upstream)
    leaves = [x.clone().requires_grad_(bool(need)) for x, need in zip(inputs, needed, strict=True)]
    layer(*leaves).backward(upstream)
    for leaf, expected, need in zip(leaves, all_grads, needed, strict=True):
        assert torch.equal(leaf.grad, expected) if need else leaf.grad is None


@EACH_ACTIVATION
def test_saved_off_the_gpu_recomputed_and_captured(activation):
    inputs, layer, upstream = _hidden_layer(activation)
    expected = value_and_grads(layer, inputs, upstream)
    with torch.autograd.graph.save_on_cpu():
        saved = value_and_grads(layer, inputs, upstream)
    recomputed = value_and_grads(
        lambda *args: checkpoint(layer, *args, use_reentrant=False), inputs, upstream
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        value_and_grads(layer, inputs, upstream)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_grads(layer, inputs, upstream)
    for _ in range(2):
        graph.replay()
        for results in zip(expected, saved, recomputed, captured, strict=True):
            assert all(torch.equal(result, results[0]) for result in results)
