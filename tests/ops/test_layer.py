"""A layer as one node: by the kernels and densely, in every precision, against the reference."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import nn

import sparsedrop
from cases import assert_accurate, normal, value_and_grads
from sparsedrop import BlockMask, reference, select
from sparsedrop.ops.layer import Options, copies, layer_of
from sparsedrop.ops.layer.dense import DenseLayer
from sparsedrop.ops.layer.kernels import KernelLayer

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
SAMPLERS = {"bernoulli": BlockMask.bernoulli, "balanced": BlockMask.balanced}


class Precision(NamedTuple):
    """Of x, of the parameters, and of autocast (None: off)."""

    x: torch.dtype
    weight: torch.dtype
    autocast: torch.dtype | None = None

    @property
    def product(self):
        return self.autocast or self.x


PRECISIONS = {
    "bfloat16": Precision(torch.bfloat16, torch.bfloat16),
    "float16": Precision(torch.float16, torch.float16),
    "float32": Precision(torch.float32, torch.float32),
    "float64": Precision(torch.float64, torch.float64),
    "amp": Precision(torch.bfloat16, torch.float32, torch.bfloat16),
    "amp of float32": Precision(torch.float32, torch.float32, torch.bfloat16),
    "amp in float16": Precision(torch.float16, torch.float32, torch.float16),
    "amp of 16-bit weights": Precision(torch.float32, torch.bfloat16, torch.bfloat16),
}

# Leading extents, n, k, block: kernels, ragged ones, and what only dense products can do.
SHAPES = {
    "kernel": ((512,), 384, 768, (128, 128)),
    "ragged": ((3, 100), 136, 328, (128, 64)),
    "rank 1": ((), 64, 256, (64, 64)),
    "ten outputs": ((256,), 10, 512, (128, 128)),
    "odd inputs": ((96,), 64, 65, (32, 32)),
    "odd blocks": ((70,), 72, 80, (7, 13)),
}


def _inputs(shape, precision, bias=True):
    lead, n, k, _ = SHAPES[shape]
    x = normal(*lead, k).to(GPU, precision.x)
    params = [normal(n, k), normal(n)][: 1 + bias]
    upstream = normal(*lead, n).to(GPU, precision.product)
    return [x, *(t.to(GPU, precision.weight) for t in params)], upstream


def _run(inputs, upstream, precision, **kwargs):
    def layer(*args):
        with torch.autocast("cuda", precision.autocast, enabled=precision.autocast is not None):
            return sparsedrop.dropout_linear(*args, **kwargs)

    return value_and_grads(layer, inputs, upstream)


def _way(inputs, precision, options):
    with torch.autocast("cuda", precision.autocast, enabled=precision.autocast is not None):
        return layer_of(inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None, options)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_the_reference_under_the_mask_it_draws(shape, precision, p, sampler):
    lead, _, k, block = SHAPES[shape]
    for bias, path in itertools.product((True, False), (None, "dense", "kernel")):
        if path == "kernel" and not _has_kernel(shape, precision):
            continue
        inputs, upstream = _inputs(shape, precision, bias)
        torch.manual_seed(5)
        with select.override(path=path):
            ours = _run(inputs, upstream, precision, p=p, sampler=sampler, block_shape=block)
        torch.manual_seed(5)
        rows = torch.Size(lead).numel()
        mask = SAMPLERS[sampler]((rows, k), p, block_shape=block, device=GPU)
        rounded = [t.to(precision.product) for t in inputs]

        def own(x, weight, bias=None, mask=mask):
            return reference.dropout_linear(x, weight, bias, mask, p)

        exact = value_and_grads(own, [t.double() for t in rounded], upstream.double())
        assert_accurate(ours, exact, value_and_grads(own, rounded, upstream))
        assert [t.dtype for t in ours] == [precision.product, *(t.dtype for t in inputs)]
        assert ours[0].shape == upstream.shape


def _has_kernel(shape, precision):
    return precision.product in select.KERNEL_DTYPES and shape in ("kernel", "ragged", "rank 1")


@pytest.mark.parametrize(
    ("shape", "precision", "way"),
    [
        ("kernel", "bfloat16", KernelLayer),
        ("kernel", "amp of float32", KernelLayer),
        ("ragged", "amp", KernelLayer),
        ("kernel", "float32", DenseLayer),
        ("ten outputs", "amp", DenseLayer),
        ("odd inputs", "bfloat16", DenseLayer),
        ("odd blocks", "float64", DenseLayer),
    ],
)
def test_the_usual_layer_goes_the_short_way(shape, precision, way):
    inputs, _ = _inputs(shape, PRECISIONS[precision])
    path = "kernel" if way is KernelLayer else None
    with select.override(path=path):
        found = _way(inputs, PRECISIONS[precision], Options(0.5, SHAPES[shape][3], "bernoulli"))
    assert type(found) is way


@pytest.mark.parametrize("path", ["kernel", "dense"])
@pytest.mark.parametrize("precision", ["amp", "amp of float32", "amp in float16"])
def test_gradients_of_float32_parameters_are_not_rounded(precision, path):
    inputs, upstream = _inputs("kernel", PRECISIONS[precision])
    torch.manual_seed(5)
    with select.override(path=path):
        ours = _run(inputs, upstream, PRECISIONS[precision], p=0.5)
    torch.manual_seed(5)
    mask = BlockMask.bernoulli((512, 768), 0.5, device=GPU)
    doubled = [t.to(PRECISIONS[precision].product).double() for t in inputs]

    def own(x, weight, bias):
        return reference.dropout_linear(x, weight, bias, mask, 0.5)

    exact = value_and_grads(own, doubled, upstream.double())
    for grad, truth in zip(ours[2:], exact[2:], strict=True):
        assert grad.dtype == torch.float32
        assert (grad - truth).norm() <= 1e-5 * truth.norm()  # 16 bits err by 2e-4 at least


@pytest.mark.parametrize("path", ["kernel", "dense"])
@pytest.mark.parametrize("precision", ["bfloat16", "amp of float32"])
def test_dropped_blocks_are_never_read(precision, path):
    precision = PRECISIONS[precision]
    inputs, upstream = _inputs("kernel", precision)
    torch.manual_seed(5)
    mask = BlockMask.bernoulli((512, 768), 0.5, device=GPU)
    with select.override(path=path):
        torch.manual_seed(5)
        clean = _run(inputs, upstream, precision, p=0.5)
        inputs[0][~mask.expand()] = float("nan")
        torch.manual_seed(5)
        poisoned = _run(inputs, upstream, precision, p=0.5)
    for own, other in zip(poisoned, clean, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("path", ["kernel", "dense"])
def test_only_wanted_gradients_are_made(path):
    precision = PRECISIONS["amp"]
    inputs, upstream = _inputs("kernel", precision)
    with select.override(path=path), torch.autocast("cuda", torch.bfloat16):
        torch.manual_seed(5)
        expected = _run(inputs, upstream, precision, p=0.5)[1:]
        for wanted in itertools.product((False, True), repeat=3):
            leaves = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
            torch.manual_seed(5)
            out = sparsedrop.dropout_linear(*leaves, p=0.5)
            assert out.requires_grad == any(wanted)
            if any(wanted):
                out.backward(upstream)
            for leaf, truth, is_wanted in zip(leaves, expected, wanted, strict=True):
                assert torch.equal(leaf.grad, truth) if is_wanted else leaf.grad is None


@pytest.mark.parametrize("shape", ["kernel", "ten outputs"])
@pytest.mark.parametrize("precision", ["bfloat16", "amp", "float32"])
def test_gradients_and_operands_of_any_strides(shape, precision):
    """What is unusual goes the long way, or is copied: the results are those of the usual."""
    precision = PRECISIONS[precision]
    (x, weight, bias), upstream = _inputs(shape, precision)
    rows, n = upstream.shape

    def run(x, weight, bias, upstream):
        torch.manual_seed(5)
        return _run([x, weight, bias], upstream, precision, p=0.5)

    expected = run(x, weight, bias, upstream)
    padded = torch.cat([x, x], 1)[:, : x.shape[1]]
    shifted = torch.cat([bias.new_zeros(1), bias])[1:]
    expanded = upstream[:1].expand(rows, n)
    for changed in (
        (padded, weight, bias, upstream),
        (x.t().contiguous().t(), weight, bias, upstream),
        (x, weight.t().contiguous().t(), bias, upstream),
        (x, weight, shifted, upstream),
        (x, weight, bias, upstream.t().contiguous().t()),
        (x, weight, bias, torch.cat([upstream, upstream], 1)[:, n:]),
    ):
        for own, truth in zip(run(*changed), expected, strict=True):
            torch.testing.assert_close(own, truth, rtol=2e-2, atol=1.0)
    plain = run(x, weight, bias, expanded.contiguous())
    for own, truth in zip(run(x, weight, bias, expanded), plain, strict=True):
        assert torch.equal(own, truth)


def test_a_result_may_be_written_to():
    for shape in ("ragged", "odd blocks"):
        inputs, upstream = _inputs(shape, PRECISIONS["bfloat16"])
        block = SHAPES[shape][3]

        def run(x, weight, bias, block=block):
            return sparsedrop.dropout_linear(x, weight, bias, p=0.3, block_shape=block).add_(1)

        torch.manual_seed(5)
        value_and_grads(run, inputs, upstream)


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


def test_under_create_graph_what_would_be_missed_raises():
    for precision in ("bfloat16", "amp", "float32"):
        inputs, _ = _inputs("kernel", PRECISIONS[precision])
        leaves = [t.requires_grad_() for t in inputs]
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "amp"):
            out = sparsedrop.dropout_linear(*leaves, p=0.5)

        def twice(out=out, leaves=leaves):
            grads = torch.autograd.grad(out.float().square().sum(), leaves, create_graph=True)
            grads[1].float().square().sum().backward()

        with pytest.raises(RuntimeError, match="differentiated once, not twice"):
            twice()


def test_checkpointing_replays_the_mask():
    inputs, upstream = _inputs("kernel", PRECISIONS["amp"])

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
    inputs, upstream = _inputs(shape, precision)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _run(inputs, upstream, precision, p=0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _, grad_weight, grad_bias = _run(inputs, upstream, precision, p=0.5)
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
    inputs, upstream = _inputs(shape, precision)
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


def test_opcheck():
    ops = torch.ops.sparsedrop
    x, weight, bias = (normal(*s).to(GPU) for s in ((2, 130, 256), (192, 256), (192,)))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for x_dtype in (torch.float32, torch.bfloat16):
        used = x.to(x_dtype)
        args = (used, weight.float(), bias.float(), 0.5, 128, 64, "bernoulli", torch.bfloat16)
        torch.library.opcheck(ops.dropout_linear.default, args, test_utils=tests)
    x, weight = x.bfloat16(), weight.bfloat16()
    mask = ops.dropout_linear(x, weight, None, 0.5, 128, 64, "balanced", torch.bfloat16)[1]
    grad = normal(2, 130, 192).to(GPU, torch.bfloat16)
    for needs in itertools.product((False, True), repeat=3):
        args = (grad, x, weight, mask, 0.5, 128, 64, torch.float32, torch.float32, list(needs))
        torch.library.opcheck(ops.dropout_linear_backward.default, args)
