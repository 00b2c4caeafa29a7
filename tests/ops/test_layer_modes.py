"""A layer as one node: autocast's copies, checkpoints, graphs, the compiler, buffers."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparsedrop
from cases import normal, value_and_grads
from layer_cases import GPU, PRECISIONS, SHAPES, inputs_of, ops_of_compiled, run, way_of
from sparsedrop import BlockMask, reference
from sparsedrop.ops import copies
from sparsedrop.ops.layer import Options
from sparsedrop.ops.spelling import spelled
from ways import forced

pytestmark = pytest.mark.gpu


def test_a_weight_is_rounded_once_for_all_its_uses():
    layer = nn.Linear(768, 768, device=GPU)
    x = torch.randn(256, 768, device=GPU, dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        before = torch.cuda.memory_allocated()
        hidden = sparsedrop.dropout_linear(x, layer.weight, layer.bias, p=0.5)
        one = torch.cuda.memory_allocated() - before
        for _ in range(3):
            hidden = sparsedrop.dropout_linear(hidden, layer.weight, layer.bias, p=0.5)
        four = torch.cuda.memory_allocated() - before
    copy_bytes = 2 * layer.weight.numel()
    assert four - one < 3 * (one - copy_bytes) + copy_bytes // 2
    assert len(copies._copies) == 1
    hidden.sum().backward()
    del hidden
    assert not copies._copies


def test_a_changed_weight_is_rounded_anew():
    weight = torch.zeros(256, 256, device=GPU, requires_grad=True)
    x = torch.ones(128, 256, device=GPU, dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        kept = sparsedrop.dropout_linear(x, weight, p=0.5)
        with torch.no_grad():
            weight.fill_(1.0)
        torch.manual_seed(1)
        assert sparsedrop.dropout_linear(x, weight, p=0.5).sum() > 0
        assert kept.sum() == 0


def test_a_copy_that_was_never_filled_is_not_shared(monkeypatch):
    weight = torch.randn(256, 256, device=GPU, requires_grad=True)
    x = torch.randn(128, 256, device=GPU, dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        layer = way_of([x, weight], PRECISIONS["amp"], Options(0.5, (128, 128), "bernoulli"))

        class Failing:
            def __getattr__(self, name):
                raise torch.OutOfMemoryError("none left")

        with monkeypatch.context() as patch:
            patch.setattr(layer, "_forward", Failing())
            with pytest.raises(torch.OutOfMemoryError):
                sparsedrop.dropout_linear(x, weight, p=0.5)
    assert not copies._copies


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "amp", "amp of float32", "float32"])
def test_a_second_derivative_is_that_of_the_reference(precision, watched):
    inputs, _ = inputs_of("kernel", PRECISIONS[precision])
    autocast = PRECISIONS[precision].autocast

    def penalty(function, inputs):
        leaves = [t.detach().requires_grad_() for t in inputs]
        torch.manual_seed(5)
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            out = function(*leaves)
        with FlopCounterMode(display=False) if watched else nullcontext():
            grads = torch.autograd.grad(out.double().square().mean(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.double().square().sum() for g in grads), leaves)

    ours = penalty(lambda *args: sparsedrop.dropout_linear(*args, p=0.5), inputs)
    torch.manual_seed(5)
    mask = BlockMask.bernoulli((512, 768), 0.5, device=GPU)
    autocast = None
    truth = penalty(
        lambda *args: reference.dropout_linear(*args, mask, 0.5), [t.double() for t in inputs]
    )
    for own, exact in zip(ours, truth, strict=True):
        assert (own.double() - exact).norm() <= 0.03 * exact.norm()


def test_a_watched_backward_pass_is_the_same():
    for shape, precision in (("kernel", "amp"), ("ten outputs", "float32"), ("kernel", "bfloat16")):
        inputs, upstream = inputs_of(shape, PRECISIONS[precision])
        results = []
        for watched in (False, True):
            leaves = [t.detach().requires_grad_() for t in inputs]
            torch.manual_seed(3)
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "amp"):
                out = sparsedrop.dropout_linear(*leaves, p=0.5)
            with FlopCounterMode(display=False) if watched else nullcontext():
                results.append(torch.autograd.grad(out, leaves, upstream))
        for own, truth in zip(*results, strict=True):
            assert own.dtype == truth.dtype
            assert (own.double() - truth.double()).norm() <= 0.01 * truth.double().norm()


def test_checkpointing_replays_the_mask():
    inputs, upstream = inputs_of("kernel", PRECISIONS["amp"])

    def layer(*args):
        with torch.autocast("cuda", torch.bfloat16):
            return sparsedrop.dropout_linear(*args, p=0.5)

    def recomputed(*args):
        return torch.utils.checkpoint.checkpoint(layer, *args, use_reentrant=False)

    torch.manual_seed(5)
    expected = value_and_grads(layer, inputs, upstream)
    torch.manual_seed(5)
    for own, truth in zip(value_and_grads(recomputed, inputs, upstream), expected, strict=True):
        assert torch.equal(own, truth)


@pytest.mark.parametrize("precision", ["amp", "bfloat16"])
@pytest.mark.parametrize("shape", ["kernel", "ten outputs"])
def test_a_captured_step_is_the_eager_one(shape, precision):
    """Masks differ, so the sum of what is linear in the weight is compared within a replay."""
    precision = PRECISIONS[precision]
    inputs, upstream = inputs_of(shape, precision)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(inputs, upstream, precision, p=0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _, grad_weight, grad_bias = run(inputs, upstream, precision, p=0.5)
    _, weight, bias = inputs
    before = None
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        left = (grad_weight.double() * weight.double()).sum()
        right = (upstream.double() * (out.double() - bias.double())).sum()
        scale = (upstream.double() * out.double()).norm()
        assert abs(left - right) <= 0.05 * scale
        torch.testing.assert_close(
            grad_bias.double(), upstream.double().sum(0), rtol=1e-2, atol=1e-1
        )
        assert before is None or not torch.equal(out, before)
        before = out.clone()


@pytest.mark.parametrize("precision", ["amp", "amp of float32", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", ["kernel", "ragged", "ten outputs"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_draws_the_same_masks(shape, precision, backend):
    precision = PRECISIONS[precision]
    inputs, upstream = inputs_of(shape, precision)
    block = SHAPES[shape][3]

    def layer(*args):
        with torch.autocast("cuda", precision.autocast, enabled=precision.autocast is not None):
            return sparsedrop.dropout_linear(*args, p=0.5, block_shape=block)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for seed in (1, 2):
        torch.manual_seed(seed)
        plain = value_and_grads(layer, inputs, upstream)
        torch.manual_seed(seed)
        for own, truth in zip(value_and_grads(compiled, inputs, upstream), plain, strict=True):
            assert own.dtype == truth.dtype
            error = (own.double() - truth.double()).norm()
            assert error <= 0.01 * truth.double().norm()


@pytest.mark.parametrize("precision", ["amp", "amp of float32", "bfloat16"])
def test_compiled_it_is_one_op_each_way(precision):
    inputs, upstream = inputs_of("kernel", PRECISIONS[precision])
    autocast = PRECISIONS[precision].autocast

    def layer(*args):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            return sparsedrop.dropout_linear(*args, p=0.5)

    assert ops_of_compiled(layer, inputs, upstream) == [
        "sparsedrop.dropout_linear.default", "sparsedrop.dropout_linear_backward.default"
    ]  # fmt: skip


def test_opcheck():
    ops = torch.ops.sparsedrop
    x, weight, bias = (normal(*s).to(GPU) for s in ((2, 130, 256), (192, 256), (192,)))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for x_dtype in (torch.float32, torch.bfloat16):
        used = x.to(x_dtype)
        how = spelled("bernoulli", "input", torch.bfloat16)
        args = used, weight.float(), bias.float(), 0.5, 128, 64, how
        torch.library.opcheck(ops.dropout_linear.default, args, test_utils=tests)
    x, weight = x.bfloat16(), weight.bfloat16()
    how = spelled("balanced", "input", torch.bfloat16)
    pack = ops.dropout_linear(x, weight, None, 0.5, 128, 64, how)[1]
    grad = normal(2, 130, 192).to(GPU, torch.bfloat16)
    dtypes = torch.bfloat16, torch.float32, torch.float32
    for needs in itertools.product((False, True), repeat=3):
        args = grad, x, weight, pack, 0.5, 256, 128, 64, spelled("input", *dtypes, needs)
        torch.library.opcheck(ops.dropout_linear_backward.default, args)


@pytest.mark.parametrize("precision", ["amp of float32", "bfloat16"])
def test_what_lies_badly_goes_through_the_ops_too(precision):
    """The ops take any strides: a graph's tensors may lie otherwise than when it was traced."""
    precision = PRECISIONS[precision]
    (x, weight, bias), upstream = inputs_of("ragged", precision)
    forward = torch.ops.sparsedrop.dropout_linear.default
    backward = torch.ops.sparsedrop.dropout_linear_backward.default
    dtype = precision.product
    results = []
    for turn in (False, True):
        given = [t.transpose(0, 1).contiguous().transpose(0, 1) if turn else t for t in (x, weight)]
        torch.manual_seed(3)
        out, pack = forward(*given, bias, 0.5, 128, 64, spelled("bernoulli", "input", dtype))
        kept = [t if t.dtype == dtype else None for t in given]
        dtypes = x.dtype, weight.dtype, bias.dtype
        args = 0.5, x.shape[-1], 128, 64, spelled("input", *dtypes, [True] * 3)
        results.append((out, *backward(upstream, *kept, pack, *args)))
    for turned, plain in zip(results[1], results[0], strict=True):
        assert (turned.double() - plain.double()).norm() <= 0.01 * plain.double().norm()


@pytest.mark.parametrize("path", ["kernel", "sm80", "dense"])
@pytest.mark.parametrize("where", ["grad", "main_grad"])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("buffer_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_added_in_place(path, where, weight_dtype, buffer_dtype):
    if where == "grad" and buffer_dtype != weight_dtype:
        return
    layer = sparsedrop.nn.SparseDropLinear(
        768, 384, p=0.5, fuse_wgrad_accumulation=True, device=GPU, dtype=weight_dtype
    )
    plain = sparsedrop.nn.SparseDropLinear.from_linear(layer, p=0.5)
    x = normal(512, 768).to(GPU, torch.bfloat16)
    upstream = normal(512, 384).to(GPU, torch.bfloat16)
    params = (layer.weight, layer.bias)
    buffers = [torch.ones(t.shape, device=GPU, dtype=buffer_dtype) for t in params]
    for module in (plain, layer):
        for parameter, buffer in zip(params, buffers, strict=True):
            parameter.grad = None
            if module is layer:
                if where == "grad":
                    parameter.grad = buffer
                else:
                    parameter.main_grad, parameter.grad_added_to_main_grad = buffer, False
        torch.manual_seed(3)
        with forced(path), torch.autocast("cuda", torch.bfloat16):
            module(x).backward(upstream)
        if module is plain:
            made = [parameter.grad for parameter in params]
    for parameter, buffer, grad in zip(params, buffers, made, strict=True):
        if where == "grad":
            assert parameter.grad is buffer
        else:
            assert parameter.grad is None
            assert parameter.grad_added_to_main_grad
        tolerance = 1e-3 if torch.float32 is weight_dtype is buffer_dtype else 2e-2
        error = (buffer.double() - 1 - grad.double()).norm()
        assert error <= tolerance * grad.double().norm()


def test_a_buffer_of_less_precision_is_added_to_by_torch():
    layer = sparsedrop.nn.SparseDropLinear(
        64, 64, p=0.5, fuse_wgrad_accumulation=True, device=GPU, dtype=torch.float64
    )
    layer.weight.main_grad = torch.zeros(64, 64, device=GPU)
    layer(torch.randn(64, 64, device=GPU, dtype=torch.float64)).square().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_without_a_buffer_gradients_are_made():
    layer = sparsedrop.nn.SparseDropLinear(64, 64, p=0.5, fuse_wgrad_accumulation=True, device=GPU)
    layer(torch.randn(64, 64, device=GPU)).sum().backward()
    first = layer.weight.grad
    before = first.clone()
    layer(torch.randn(64, 64, device=GPU)).sum().backward()
    assert layer.weight.grad is first
    assert not torch.equal(first, before)
