"""What only a GPU can show: no host waits, graphs, streams, size, launches that fail."""

import threading

import pytest
import torch

import sparsedrop
from cases import (
    Case,
    assert_accurate,
    build,
    matmul_and_grads,
    oracle,
    random_mask,
    signs,
    value_and_grads,
)
from sparsedrop import BlockMask, _native, reference, select

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
SAMPLERS = {"bernoulli": BlockMask.bernoulli, "balanced": BlockMask.balanced}


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
        for activation in ("relu", "gelu", "gelu_tanh", "silu"):
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


@pytest.mark.parametrize("blocks", [((128, 64), None), (None, (128, 128))], ids=str)
def test_a_product_is_the_first_that_a_thread_does_on_the_gpu(blocks, architecture):
    """The thread has no CUDA context before: tensor maps are encoded for the current one.

    A backward pass runs on threads of torch's, and its first work may be ours.
    """
    case = Case(1024, 1024, 512, blocks[0], None, blocks[1])
    problem = build(case, signs, torch.bfloat16, GPU)
    found = []

    def multiply():
        with select.override(architecture=architecture):
            found.append(sparsedrop.matmul(problem.a, problem.b, **problem.masks))

    for _ in range(2):  # the first tells the driver about the kernel, and binds the context
        multiply()
    threads = [threading.Thread(target=multiply) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(found) == 5
    assert all(torch.equal(out, found[0]) for out in found)


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
        mask = SAMPLERS[sampler]((512, 768), 0.3, block_shape=(128, 64), device=GPU)
        torch.manual_seed(seed)
        compiled_results = value_and_grads(compiled, inputs, upstream)
        if mode == "default":

            def own(*args, mask=mask):
                return reference.dropout_linear(*args, mask, 0.3)

            exact = value_and_grads(own, [t.double() for t in inputs], upstream.double())
            assert_accurate(compiled_results, exact, value_and_grads(own, inputs, upstream))
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
        sentence = r"no kernels for|as TF32 only"
        with pytest.raises(ValueError, match=sentence), select.override(path="kernel"):
            sparsedrop.matmul(problem.a, problem.b, **problem.masks)
        for own, truth in zip(matmul_and_grads(problem), oracle(problem), strict=True):
            assert torch.equal(own.double(), truth)


def test_a_failing_launch_raises_and_the_next_one_works():
    a = torch.randn(128, 64, device=GPU, dtype=torch.bfloat16)
    address, stream = a.data_ptr(), _native.current_stream(0)
    names = ("dtype", "m", "n", "k", "a_ld", "a_k_major", "b_ld", "b_k_major", "d_ld")
    lies = dict(zip(names, (0, 128, 128, 64, 64, True, 64, True, 128), strict=True))
    way = {"architecture": "sm90", "tile": 0, "swap": False, "split_k": 1, "device": 0}
    no_words = [0] * 6

    def make(a_block=None):
        blocks = {"a_block": a_block, "b_block": None, "d_block": None}
        return _native.C.Launch(**lies, **blocks, **way, activation=0)

    launch = make()
    with pytest.raises(RuntimeError, match=r"m=128.*not 16-byte aligned"):
        launch(address + 2, address, address, 0, *no_words, 1.0, 0, address, stream)
    masked = make((128, 64))
    with pytest.raises(RuntimeError, match=r"blocks of A 128x64.*a mask has blocks but no words"):
        masked(address, address, address, 0, *no_words, 1.0, 0, address, stream)
    with pytest.raises(RuntimeError, match="a mask has words but no blocks"):
        launch(address, address, address, 0, *[address] * 6, 1.0, 0, address, stream)
    with pytest.raises(
        RuntimeError, match="a pre-activation is stored for gelu, gelu_tanh and silu"
    ):
        launch(address, address, address, address + 16, *no_words, 1.0, 0, address, stream)
    way["architecture"] = "sm20"
    with pytest.raises(ValueError, match="no kernels of architecture sm20"):
        make()
    mask = random_mask((128, 64), (128, 64), GPU)
    assert bool(sparsedrop.matmul(a, a.t(), a_mask=mask).isfinite().all())
