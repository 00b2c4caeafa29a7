"""What only a GPU can show: every tile and orientation, no host waits, graphs, streams, size."""

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
    random_mask,
    signs,
    torchs_own,
    value_and_grads,
)
from sparsedrop import BlockMask, _native, reference, select

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
SAMPLERS = ("bernoulli", "balanced")

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


def _layer(rows=512, features=768, out=256, dtype=torch.bfloat16, device=GPU):
    return [
        torch.randn(shape, device=device, dtype=dtype)
        for shape in ((rows, features), (out, features), (out,))
    ]


@pytest.fixture
def no_waiting():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("features", [768, 65])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("p", [0.5, 0.3, 1.0])
def test_the_host_never_waits(p, sampler, features, dtype, no_waiting):
    inputs = [t.requires_grad_() for t in _layer(features=features, dtype=dtype)]
    upstream = torch.randn(512, 256, device=GPU, dtype=dtype)
    out_mask = getattr(BlockMask, sampler)((512, 256), p, device=GPU)
    for _ in range(2):
        hidden = sparsedrop.dropout_linear(*inputs, p=p, sampler=sampler)
        hidden.backward(upstream)
        for activation in ("relu", "gelu", "silu"):
            sparsedrop.linear(*inputs, out_mask=out_mask, activation=activation).backward(upstream)


@pytest.mark.parametrize("p", [0.5, 0.3])  # of 6 block columns: 0.3 is rounded, outside the graph
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_graph_replays_with_new_masks(sampler, p):
    x, weight, bias = (t.requires_grad_() for t in _layer())
    upstream = torch.randn(512, 256, device=GPU, dtype=torch.bfloat16)

    def step():
        mask = getattr(BlockMask, sampler)((512, 768), p, device=GPU)
        out = sparsedrop.linear(x, weight, bias, x_mask=mask, alpha=2.0)
        return mask, out, *torch.autograd.grad(out, (x, weight, bias), upstream)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask, *results = step()
    lives = []
    for _ in range(4):
        x.data.normal_()
        graph.replay()
        lives.append(mask.live.clone())
        with torch.no_grad():
            same_mask = BlockMask.from_live(mask.live, mask.shape)
        expected = value_and_grads(
            lambda *args, m=same_mask: sparsedrop.linear(*args, x_mask=m, alpha=2.0),
            [x, weight, bias],
            upstream,
        )
        for result, truth in zip(results, expected, strict=True):
            assert torch.equal(result, truth)
    assert len({tuple(live.flatten().tolist()) for live in lives}) > 1


def test_a_captured_dropout_linear_follows_the_seed():
    inputs = _layer()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        sparsedrop.dropout_linear(*inputs)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            out = sparsedrop.dropout_linear(*inputs)

    def replay():
        graph.replay()
        return out.clone()

    torch.cuda.manual_seed(1)
    first, second = replay(), replay()
    torch.cuda.manual_seed(1)
    assert torch.equal(replay(), first)
    assert not torch.equal(first, second)


def _philox(seed, position, subsequence):
    """The first word of Philox4x32-10 for a key and a counter."""
    words = [position, position >> 32, subsequence, subsequence >> 32]
    words, keys = [word & 0xFFFFFFFF for word in words], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            second >> 32 ^ words[1] ^ keys[0],
            second & 0xFFFFFFFF,
            first >> 32 ^ words[3] ^ keys[1],
            first & 0xFFFFFFFF,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words[0]


@pytest.mark.parametrize(
    ("shape", "block"),
    [((640, 1000), (128, 64)), ((5000, 70), (64, 64)), ((70, 9000), (64, 192)), ((1, 1), (64, 64))],
)
def test_a_drawn_mask_follows_its_definition(shape, block):
    generator = torch.Generator(GPU).manual_seed(2**63 + 12345)
    torch.rand(1000, device=GPU, generator=generator)
    offset = generator.get_offset()
    mask = BlockMask.bernoulli(shape, 0.3, block_shape=block, device=GPU, generator=generator)
    assert generator.get_offset() == offset + 4
    assert mask.tensors.addresses() == tuple(
        tensor.data_ptr() for tensor in (mask.live, mask.row_words, mask.col_words)
    )
    count, seed = mask.live.numel(), generator.initial_seed()
    below = round(0.7 * 2**32)
    live = [_philox(seed, offset // 4, i) < below for i in range(count)]
    assert mask.live.flatten().tolist() == live
    built = BlockMask.from_live(mask.live, shape, block_shape=block)
    assert torch.equal(mask.row_words, built.row_words)
    assert torch.equal(mask.col_words, built.col_words)


@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_drawn_blocks_are_dropped_with_probability_p(p):
    grid = (1000, 1200)
    shape = (64 * grid[0], 64 * grid[1])
    first, second = (
        BlockMask.bernoulli(shape, p, block_shape=(64, 64), device=GPU).live.double()
        for _ in range(2)
    )
    sigma = (p * (1 - p)) ** 0.5
    centred = first - (1 - p)
    assert abs(centred.mean().item()) <= 5 * sigma / first.numel() ** 0.5
    assert centred.mean(0).abs().max().item() <= 5.5 * sigma / grid[0] ** 0.5
    assert centred.mean(1).abs().max().item() <= 5.5 * sigma / grid[1] ** 0.5
    # Neighbours, and one draw and the next, are independent.
    for other in (centred[:, 1:], centred[1:], second - (1 - p)):
        product = centred[: other.shape[0], : other.shape[1]] * other
        assert abs(product.mean().item()) <= 5 * sigma**2 / product.numel() ** 0.5


def test_a_draw_follows_the_state_of_torchs_generator():
    def draw():
        return BlockMask.bernoulli((4096, 4096), 0.5, device=GPU).live

    torch.manual_seed(11)
    first = draw()
    state = torch.cuda.get_rng_state()
    noise, second = torch.rand(100, device=GPU), draw()
    assert not torch.equal(first, second)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(100, device=GPU), noise)
    assert torch.equal(draw(), second)
    torch.cuda.set_rng_state(state)
    assert not torch.equal(draw(), second)  # a draw in between moves what follows
    assert not torch.equal(torch.rand(100, device=GPU), noise)
    torch.manual_seed(11)
    assert torch.equal(draw(), first)
    with torch.random.fork_rng(devices=[0]):
        draw()
    assert torch.equal(torch.rand(100, device=GPU), noise)


def test_a_generator_of_another_device_is_refused():
    with pytest.raises(RuntimeError, match="generator"):
        BlockMask.bernoulli((256, 256), 0.5, device=GPU, generator=torch.Generator("cpu"))


def test_eager_draws_go_on_after_a_captured_graph():
    """A replay advances the state that the host reads; no two draws are the same."""
    BlockMask.bernoulli((4096, 4096), 0.5, device=GPU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = BlockMask.bernoulli((4096, 4096), 0.5, device=GPU)
    lives = []
    for _ in range(3):
        graph.replay()
        lives += [captured.live.clone(), BlockMask.bernoulli((4096, 4096), 0.5, device=GPU).live]
    assert len({tuple(live.flatten().tolist()) for live in lives}) == len(lives)
    built = BlockMask.from_live(captured.live, captured.shape)
    assert torch.equal(captured.row_words, built.row_words)


def test_a_side_stream():
    """Work queued on a side stream is ordered there, workspace and copies included."""
    inputs, upstream = _layer(4096, 1031, 512), torch.randn(4096, 512, device=GPU).bfloat16()
    mask = random_mask((4096, 1031), (128, 64), GPU)

    def layer(*args):
        return sparsedrop.linear(*args, x_mask=mask)

    expected = value_and_grads(layer, inputs, upstream)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late = [t.clone() for t in inputs]
        for t in inputs:
            t.fill_(float("nan"))
        results = [value_and_grads(layer, late, upstream) for _ in range(3)]
    torch.cuda.current_stream().wait_stream(stream)
    for result in results:
        for own, truth in zip(result, expected, strict=True):
            assert torch.equal(own, truth)


def test_a_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    second = torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    inputs = _layer(device=second)
    upstream = torch.randn(512, 256, device=second).bfloat16()
    mask = random_mask((512, 768), (128, 64), second)
    here = [t.to(GPU) for t in (*inputs, upstream)]
    there = value_and_grads(lambda *a: sparsedrop.linear(*a, x_mask=mask), inputs, upstream)
    expected = value_and_grads(
        lambda *a: sparsedrop.linear(*a, x_mask=mask.to(GPU)), here[:3], here[3]
    )
    for own, truth in zip(there, expected, strict=True):
        assert own.device == second
        assert torch.equal(own.to(GPU), truth)
    for sampler in SAMPLERS:
        drawn = getattr(BlockMask, sampler)((512, 768), 0.5, device="cuda:1")
        assert drawn.device == drawn.row_words.device == second
    with pytest.raises(ValueError, match="x_mask is on cuda:1, but its matrix is on cuda:0"):
        sparsedrop.linear(*here[:3], x_mask=mask)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_draws_the_same_masks(mode, sampler):
    def layer(x, weight, bias):
        return sparsedrop.dropout_linear(
            x, weight, bias, p=0.3, sampler=sampler, block_shape=(128, 64)
        )

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    inputs, upstream = _layer(), torch.randn(512, 256, device=GPU).bfloat16()
    for seed in range(4):
        torch.manual_seed(seed)
        plain = value_and_grads(layer, inputs, upstream)
        torch.manual_seed(seed)
        compiled_results = value_and_grads(compiled, inputs, upstream)
        if mode == "default":
            for own, truth in zip(compiled_results, plain, strict=True):
                torch.testing.assert_close(own, truth, rtol=0.02, atol=0.1)
        else:  # a graph's draws are offset from those of eager mode
            assert all(bool(result.isfinite().all()) for result in compiled_results)


def test_beyond_two_to_the_31_elements():
    m, n, k = 2**15 + 128, 128, 2**16
    a = torch.randint(-1, 2, (m, k), device=GPU, dtype=torch.int8).bfloat16()
    b = (torch.randint(0, 64, (k, n), device=GPU) == 0).bfloat16()  # short sums, so exact ones
    mask = BlockMask.balanced((m, k), 0.5, device=GPU)
    out = sparsedrop.matmul(a, b, a_mask=mask)
    tail = slice(m - 256, m)
    live = BlockMask.from_live(mask.live[-2:], (256, k))
    truth = reference.matmul(a[tail].float(), b.float(), a_mask=live)
    assert torch.equal(out[tail].float(), truth)
    # The large matrix as the output of a product, and as its gradient's operand.
    grad = sparsedrop.matmul(out, b.t(), out_mask=mask)
    expected = reference.matmul(out[tail].float(), b.t().float(), out_mask=live).bfloat16()
    torch.testing.assert_close(grad[tail], expected)
    grad_b = sparsedrop.matmul(a.t(), out, a_mask=mask.T)
    columns = slice(k - 128, k)
    some = BlockMask.from_live(mask.live[:, -1:], (m, 128))
    expected = reference.matmul(a[:, columns].t().float(), out.float(), a_mask=some.T)
    torch.testing.assert_close(grad_b[columns].float(), expected, rtol=2**-8, atol=0.0)


def test_other_dtypes_run_densely():
    for dtype in (torch.float32, torch.float64):
        problem = build(Case(256, 384, 128, (128, 128), None, (128, 128)), signs, dtype, GPU)
        with pytest.raises(ValueError, match="no kernels for"), select.override(path="sm90"):
            sparsedrop.matmul(problem.a, problem.b, **problem.masks)
        for own, truth in zip(matmul_and_grads(problem), oracle(problem), strict=True):
            assert torch.equal(own.double(), truth)


def test_a_failing_launch_raises_and_the_next_one_works():
    a = torch.randn(128, 64, device=GPU, dtype=torch.bfloat16)
    address, stream = a.data_ptr(), _native.current_stream(0)
    lies = (0, 128, 128, 64, 64, True, 64, True, 128)
    no_words = [0] * 6
    launch = _native.C.Launch(*lies, None, None, None, 0, 0, False, 0)
    with pytest.raises(RuntimeError, match=r"m=128.*not 16-byte aligned"):
        launch(address + 2, address, address, 0, *no_words, 1.0, 0, address, stream)
    masked = _native.C.Launch(*lies, (128, 64), None, None, 0, 0, False, 0)
    with pytest.raises(RuntimeError, match="blocks of 128x64 has no words"):
        masked(address, address, address, 0, *no_words, 1.0, 0, address, stream)
    with pytest.raises(RuntimeError, match="has words"):
        launch(address, address, address, 0, *[address] * 6, 1.0, 0, address, stream)
    with pytest.raises(RuntimeError, match="a pre-activation is stored for gelu and silu only"):
        launch(address, address, address, address + 16, *no_words, 1.0, 0, address, stream)
    mask = random_mask((128, 64), (128, 64), GPU)
    assert bool(sparsedrop.matmul(a, a.t(), a_mask=mask).isfinite().all())
