"""The kernels: every tile and orientation, in every order of tiles, exact and accurate."""

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
    matmul_and_grads,
    normal,
    oracle,
    poisoned,
    signs,
    torchs_own,
)
from sparsedrop import BlockMask, _native, reference, select
from sparsedrop.ops import How, Product, cuda
from ways import capability, legal_ways, tiles_here

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
SEVERAL = [
    (3240, 2696, 136),
    (1024, 1024, 128),  # one pair of small slots each
    (712, 3072, 328),  # some lines in narrower tiles
    (10000, 520, 136),  # groups of four and eight lines
    (16384, 264, 128),  # as many lines as a CTA orders itself
]
LONG = [(36864, 264, 128), (264, 36864, 128), (139264, 136, 64)]


def test_this_build_has_kernels_for_this_gpu():
    assert _native.runs_on(GPU)
    names = select.names_of(tiles_here())
    assert names in (("sm90", "sm80"), ("sm90",), ("sm80",))
    assert "sm90" not in names or capability() == (9, 0)


@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
@pytest.mark.parametrize("extents", KERNEL_EXTENTS, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_every_tile_and_orientation(blocks, extents, order, dtype, architecture):
    """Each on its own: exact, and blind to NaN in dropped blocks."""
    _check_every_way(Case(*extents, *blocks, *order), dtype, architecture)


@pytest.mark.parametrize("extents", SEVERAL, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
def test_several_tiles_a_cta(blocks, extents, architecture):
    """As CTAs order them: groups of lines, a ragged last one, slots without a partner."""
    _check_every_way(Case(*extents, *blocks), torch.bfloat16, architecture)


@pytest.mark.parametrize("extents", LONG, ids=str)
@pytest.mark.parametrize("blocks", KERNEL_BLOCKS, ids=str)
def test_many_lines_of_tiles(blocks, extents, architecture):
    """More lines than a CTA orders itself, and than the list's kernel keeps in shared memory."""
    _check_every_way(Case(*extents, *blocks, "row", "col"), torch.bfloat16, architecture)


def _check_every_way(case, dtype, architecture):
    # Kernels with an activation are others, and do not split tiles; some have fewer K tiles than 7.
    ways = {
        None: legal_ways(case, (1, 2, 7), architecture),
        "relu": legal_ways(case, (1,), architecture),
    }
    assert ways["relu"]
    tiles, widest = tiles_here(), select.architecture(architecture).limits.max_split_n
    splits = case.m * case.n < 2**20 and case.out_block is None
    splits = splits and any(tiles[way.tile].n <= widest for way in ways["relu"])
    assert not splits or any(choice.split_k > 1 for choice in ways[None])
    problem = build(case, signs, dtype, GPU)
    bias = signs(case.n).to(GPU, dtype)
    before = reference.matmul(
        problem.a.double(), problem.b.double(), bias=bias.double(), alpha=2.0, **problem.masks
    )
    truths = {None: before, "relu": before.relu()}
    a = poisoned(problem.a, problem.masks.get("a_mask"))
    weight = poisoned(problem.b, problem.masks.get("b_mask")).t()
    b_mask = problem.masks.get("b_mask")
    for activation, choice in ((name, choice) for name in truths for choice in ways[name]):
        with select.override(*choice[:4]):
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
        way = f"tile {tiles[choice.tile]}, {choice}, activation {activation}"
        assert torch.equal(out.double(), truths[activation]), way


@pytest.mark.parametrize("order", KERNEL_ORDERS, ids="-".join)
@pytest.mark.parametrize("blocks", [(None, (128, 128)), ((128, 128), None), ((128, 64), (64, 128))])
def test_tiles_split_along_k(blocks, order, architecture):
    """Accurate, the same in every run and under a graph, and blind to what a workspace holds."""
    case = Case(392, 520, 9000, *blocks, None, *order)
    problem = build(case, normal, torch.bfloat16, GPU)
    torchs = reference.matmul(problem.a, problem.b, **problem.masks)
    exact = reference.matmul(problem.a.double(), problem.b.double(), **problem.masks)
    bad = [
        poisoned(matrix, problem.masks.get(name))
        for matrix, name in ((problem.a, "a_mask"), (problem.b, "b_mask"))
    ]
    ways = legal_ways(case, (2, 3, 5, 8), architecture)
    assert ways
    for choice in ways:
        with select.override(*choice[:4]):
            garbage = torch.full((32 << 20,), float("nan"), device=GPU)
            del garbage  # and its memory is the next workspace
            first = sparsedrop.matmul(*bad, **problem.masks)
            for _ in range(10):
                assert torch.equal(sparsedrop.matmul(*bad, **problem.masks), first), choice
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = sparsedrop.matmul(*bad, **problem.masks)
        for _ in range(3):
            captured.zero_()
            graph.replay()
            assert torch.equal(captured, first), choice
        assert_accurate([first], [exact], [torchs])


def test_more_splits_than_sms_and_a_busy_gpu(architecture):
    """The last split waits for the others, which started before it."""
    case = Case(2048, 1024, 4096, None, (128, 128))
    problem = build(case, signs, torch.bfloat16, GPU)
    truth = oracle(problem)[0]
    other = torch.cuda.Stream()
    square = torch.randn(4096, 4096, device=GPU, dtype=torch.bfloat16)
    with torch.cuda.stream(other):
        for _ in range(50):
            square @ square
    for choice in legal_ways(case, (8,), architecture):
        with select.override(*choice[:4]):
            for _ in range(5):
                out = sparsedrop.matmul(problem.a, problem.b, **problem.masks)
        assert torch.equal(out.double(), truth), choice
    torch.cuda.synchronize()


def test_split_products_scale_and_add_a_bias_once(architecture):
    case = Case(200, 264, 8192, (128, 128))
    problem = build(case, signs, torch.bfloat16, GPU)
    problem.masks["a_mask"].live[0] = False  # lines with fewer live K tiles than splits
    mask = BlockMask.from_live(
        problem.masks["a_mask"].live, (case.m, case.k), block_shape=(128, 128)
    )
    bias = signs(case.n).to(GPU, torch.bfloat16)
    how = {"x_mask": mask, "alpha": 0.5}
    truth = reference.linear(problem.a.double(), problem.b.t().double(), bias.double(), **how)
    for choice in legal_ways(case, (2, 8), architecture):
        with select.override(*choice[:4]):
            out = sparsedrop.linear(problem.a, problem.b.t(), bias, **how)
        torch.testing.assert_close(out.double(), truth, rtol=2**-8, atol=0)


def test_small_layers_have_their_weight_gradient_split(architecture):
    """Few tiles and many rows: whole tiles would leave most of the GPU idle."""
    x = torch.randn(16384, 512, device=GPU, dtype=torch.bfloat16)
    dy = torch.randn(16384, 512, device=GPU, dtype=torch.bfloat16)
    mask = BlockMask.bernoulli(x.shape, 0.5, device=GPU)
    request = cuda.request_for(Product(dy.t(), x, None, How(b_mask=mask)))
    with select.override(architecture=architecture):
        assert select.decide(request).split_k > 1
        out = sparsedrop.matmul(dy.t(), x, b_mask=mask)
    exact = reference.matmul(dy.t().double(), x.double(), b_mask=mask)
    assert_accurate([out], [exact], [reference.matmul(dy.t(), x, b_mask=mask)])


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_every_tile_fuses_bias_and_activation(activation, dtype, architecture):
    case = Case(512, 768, 256, (128, 64), None, (128, 128))
    problem = build(case, normal, dtype, GPU)
    bias = normal(case.n).to(GPU, dtype)
    kwargs = {"alpha": 0.1, "bias": bias, "activation": activation, **problem.masks}
    torchs = reference.matmul(problem.a, problem.b, **kwargs)
    kwargs["bias"] = bias.double()
    exact = reference.matmul(problem.a.double(), problem.b.double(), **kwargs)
    for choice in legal_ways(case, (1,), architecture):
        with select.override(*choice[:4]):
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
def test_padded_operands_on_the_kernels(extents, order, architecture):
    case = Case(*extents, (128, 64), (64, 256), (128, 256), *order)
    problem = build(case, signs, torch.bfloat16, GPU)
    bad = problem._replace(
        a=poisoned(problem.a, problem.masks["a_mask"]),
        b=poisoned(problem.b, problem.masks["b_mask"]),
    )
    with select.override(architecture=architecture):
        out = sparsedrop.matmul(bad.a, bad.b, **bad.masks)
    assert torch.equal(out.double(), oracle(problem)[0])


def test_large_unaligned_products_run_on_the_kernels(architecture):
    case = Case(1100, 1030, 1027, (128, 128))
    problem = build(case, normal, torch.bfloat16, GPU)
    with select.override(architecture=architecture):
        ours = matmul_and_grads(problem)
    assert_accurate(ours, oracle(problem), *torchs_own(problem))


@pytest.mark.parametrize("extents", [(2048, 2048, 2048), (4096, 1024, 512)], ids=str)
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "blocks", [((128, 128), None, None), ((128, 128), None, (128, 256))], ids=str
)
def test_accurate_at_size(blocks, dtype, extents, architecture):
    problem = build(Case(*extents, *blocks), normal, dtype, GPU)
    with select.override(architecture=architecture):
        ours = matmul_and_grads(problem)
    assert_accurate(ours, oracle(problem), *torchs_own(problem))
