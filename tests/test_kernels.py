"""The kernels: every tile and orientation, in every order of tiles, exact and accurate."""

import itertools

import pytest
import torch

import sparsedrop
from cases import (
    KERNEL_BLOCKS,
    KERNEL_DTYPES,
    KERNEL_EXTENTS,
    KERNEL_ORDERS,
    Case,
    assert_accurate,
    build,
    legal_ways,
    matmul_and_grads,
    normal,
    oracle,
    poisoned,
    signs,
    torchs_own,
)
from sparsedrop import _native, reference, select

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
SEVERAL = [(3240, 2696, 136), (1024, 1024, 128)]  # the latter: one pair of small slots each
LONG = [(36864, 264, 128), (264, 36864, 128), (139264, 136, 64)]


def _tiles():
    return tuple(_native.C.TILES)


def test_this_build_has_kernels_for_this_gpu():
    assert _native.runs_on(GPU)


@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
@pytest.mark.parametrize("extents", KERNEL_EXTENTS, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_every_tile_and_orientation(blocks, extents, order, dtype):
    """Each on its own: exact, and blind to NaN in dropped blocks."""
    _check_every_way(Case(*extents, *blocks, *order), dtype)


@pytest.mark.parametrize("extents", SEVERAL, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
def test_several_tiles_a_cta(blocks, extents):
    """As CTAs order them: groups of lines, a ragged last one, slots without a partner."""
    _check_every_way(Case(*extents, *blocks), torch.bfloat16)


@pytest.mark.parametrize("extents", LONG, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
def test_many_lines_of_tiles(blocks, extents):
    """More lines than a CTA orders itself, and than the list's kernel keeps in shared memory."""
    _check_every_way(Case(*extents, *blocks, "row", "col"), torch.bfloat16)


def _check_every_way(case, dtype):
    ways = legal_ways(case)
    assert ways
    problem = build(case, signs, dtype, GPU)
    bias = signs(case.n).to(GPU, dtype)
    before = reference.matmul(
        problem.a.double(), problem.b.double(), bias=bias.double(), alpha=2.0, **problem.masks
    )
    truths = {None: before, "relu": before.relu()}  # in kernels of their own
    a = poisoned(problem.a, problem.masks.get("a_mask"))
    weight = poisoned(problem.b, problem.masks.get("b_mask")).t()
    b_mask = problem.masks.get("b_mask")
    for (tile, swap), activation in itertools.product(ways, truths):
        with select.override(tile=tile, swap=swap):
            out = sparsedrop.linear(
                a,
                weight,
                bias,
                x_mask=problem.masks.get("a_mask"),
                weight_mask=None if b_mask is None else b_mask.T,
                out_mask=problem.masks.get("out_mask"),
                alpha=2.0,
                activation=activation,
            )
        way = f"tile {_tiles()[tile]}, swap {swap}, activation {activation}"
        assert torch.equal(out.double(), truths[activation]), way


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_every_tile_fuses_bias_and_activation(activation, dtype):
    case = Case(512, 768, 256, (128, 64), None, (128, 128))
    problem = build(case, normal, dtype, GPU)
    bias = normal(case.n).to(GPU, dtype)
    kwargs = {"alpha": 0.1, "bias": bias, "activation": activation, **problem.masks}
    torchs = reference.matmul(problem.a, problem.b, **kwargs)
    kwargs["bias"] = bias.double()
    exact = reference.matmul(problem.a.double(), problem.b.double(), **kwargs)
    for tile, swap in legal_ways(case):
        with select.override(tile=tile, swap=swap):
            ours = sparsedrop.linear(
                problem.a,
                problem.b.t(),
                bias,
                x_mask=problem.masks["a_mask"],
                out_mask=problem.masks["out_mask"],
                alpha=0.1,
                activation=activation,
            )
        assert_accurate([ours], [exact], [torchs])


@pytest.mark.parametrize("extents", [(75, 10, 65), (130, 1, 7), (1, 300, 64), (64, 64, 1)], ids=str)
@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
def test_padded_operands_on_the_kernels(extents, order):
    case = Case(*extents, (128, 64), (64, 256), (128, 256), *order)
    problem = build(case, signs, torch.bfloat16, GPU)
    bad = problem._replace(
        a=poisoned(problem.a, problem.masks["a_mask"]),
        b=poisoned(problem.b, problem.masks["b_mask"]),
    )
    with select.override(path="sm90"):
        out = sparsedrop.matmul(bad.a, bad.b, **bad.masks)
    assert torch.equal(out.double(), oracle(problem)[0])


def test_large_unaligned_products_run_on_the_kernels():
    case = Case(1100, 1030, 1027, (128, 128))
    problem = build(case, normal, torch.bfloat16, GPU)
    assert_accurate(matmul_and_grads(problem), oracle(problem), *torchs_own(problem))


@pytest.mark.parametrize("extents", [(2048, 2048, 2048), (4096, 1024, 512)], ids=str)
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "blocks", [((128, 128), None, None), ((128, 128), None, (128, 256))], ids=str
)
def test_accurate_at_size(blocks, dtype, extents):
    problem = build(Case(*extents, *blocks), normal, dtype, GPU)
    assert_accurate(matmul_and_grads(problem), oracle(problem), *torchs_own(problem))
