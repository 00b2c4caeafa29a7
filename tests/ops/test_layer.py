"""A layer as one node: by the kernels and densely, in every precision, against the reference."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import sparsedrop
from cases import assert_accurate, normal, value_and_grads
from layer_cases import GPU, PRECISIONS, SAMPLERS, SHAPES, inputs_of, run, way_of
from sparsedrop import BlockMask, functional, reference, select
from sparsedrop.ops.layer import Options
from sparsedrop.ops.layer.dense import DenseLayer
from sparsedrop.ops.layer.kernels import KernelLayer
from ways import forced, tiles_here

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_the_reference_under_the_mask_it_draws(shape, precision, p, sampler, side):
    lead, n, k, block = SHAPES[shape]
    for bias, path in itertools.product((True, False), (None, "dense", *_architectures())):
        if path not in (None, "dense") and not _has_kernel(shape, precision):
            continue
        inputs, upstream = inputs_of(shape, precision, bias)
        torch.manual_seed(5)
        with forced(path):
            how = {"p": p, "sampler": sampler, "block_shape": block, "side": side}
            ours = run(inputs, upstream, precision, **how)
        torch.manual_seed(5)
        masked = torch.Size(lead).numel(), k if side == "input" else n
        mask = SAMPLERS[sampler](masked, p, block_shape=block, device=GPU)
        rounded = [t.to(precision.product) for t in inputs]

        def own(x, weight, bias=None, mask=mask):
            return reference.dropout_linear(x, weight, bias, mask, p, side)

        exact = value_and_grads(own, [t.double() for t in inputs], upstream.double())
        # torch adds up a bias's gradient in another order where the rows lie otherwise.
        turned = upstream.transpose(0, -1).contiguous().transpose(0, -1)
        torchs = (value_and_grads(own, rounded, given) for given in (upstream, turned))
        assert_accurate(ours, exact, *torchs)
        assert [t.dtype for t in ours] == [precision.product, *(t.dtype for t in inputs)]
        assert ours[0].shape == upstream.shape


@pytest.mark.parametrize("path", ["dense", "kernel", "sm80"])
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32", "amp", "amp of float32"])
@pytest.mark.parametrize("shape", ["kernel", "ragged", "ten outputs"])
def test_a_turned_weight(shape, precision, side, path):
    """As the layer of the transposed weight; also for whoever watches the backward pass."""
    precision = PRECISIONS[precision]
    if path != "dense" and not _has_kernel(shape, precision):
        path = None
    (x, weight, bias), upstream = inputs_of(shape, precision)
    results = []
    for turned, watched in ((False, False), (True, False), (True, True)):
        given = x, weight.t().contiguous() if turned else weight, bias
        leaves = [t.detach().requires_grad_() for t in given]
        options = Options(0.5, SHAPES[shape][3], "bernoulli", side=side, weight_turned=turned)
        torch.manual_seed(5)
        autocast = torch.autocast("cuda", precision.autocast, enabled=bool(precision.autocast))
        with forced(path), autocast:
            out = functional.dropped_linear(*leaves, options, True)
        with FlopCounterMode(display=False) if watched else nullcontext():
            grads = torch.autograd.grad(out, leaves, upstream)
        results.append([out, grads[0], grads[1].t() if turned else grads[1], grads[2]])
    for own in results[1:]:
        for ours, truth in zip(own, results[0], strict=True):
            assert ours.dtype == truth.dtype
            assert (ours.double() - truth.double()).norm() <= 0.01 * truth.double().norm()


def _architectures():
    """Whose kernels this GPU runs."""
    return select.names_of(tiles_here())


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
    inputs, _ = inputs_of(shape, PRECISIONS[precision])
    path = "kernel" if way is KernelLayer else None
    with select.override(path=path):
        found = way_of(inputs, PRECISIONS[precision], Options(0.5, SHAPES[shape][3], "bernoulli"))
    assert type(found) is way


@pytest.mark.parametrize("path", ["kernel", "sm80", "dense"])
@pytest.mark.parametrize("precision", ["amp", "amp of float32", "amp in float16"])
def test_gradients_of_float32_parameters_are_not_rounded(precision, path):
    inputs, upstream = inputs_of("kernel", PRECISIONS[precision])
    torch.manual_seed(5)
    with forced(path):
        ours = run(inputs, upstream, PRECISIONS[precision], p=0.5)
    torch.manual_seed(5)
    mask = BlockMask.bernoulli((512, 768), 0.5, device=GPU)
    doubled = [t.to(PRECISIONS[precision].product).double() for t in inputs]

    def own(x, weight, bias):
        return reference.dropout_linear(x, weight, bias, mask, 0.5)

    exact = value_and_grads(own, doubled, upstream.double())
    for grad, truth in zip(ours[2:], exact[2:], strict=True):
        assert grad.dtype == torch.float32
        assert (grad - truth).norm() <= 1e-5 * truth.norm()  # 16 bits err by 2e-4 at least


@pytest.mark.parametrize("path", ["kernel", "sm80", "dense"])
@pytest.mark.parametrize("precision", ["bfloat16", "amp of float32"])
def test_dropped_blocks_are_never_read(precision, path):
    precision = PRECISIONS[precision]
    inputs, upstream = inputs_of("kernel", precision)
    torch.manual_seed(5)
    mask = BlockMask.bernoulli((512, 768), 0.5, device=GPU)
    with forced(path):
        torch.manual_seed(5)
        clean = run(inputs, upstream, precision, p=0.5)
        inputs[0][~mask.expand()] = float("nan")
        torch.manual_seed(5)
        poisoned = run(inputs, upstream, precision, p=0.5)
    for own, other in zip(poisoned, clean, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("path", ["kernel", "dense"])
def test_only_wanted_gradients_are_made(path):
    precision = PRECISIONS["amp"]
    inputs, upstream = inputs_of("kernel", precision)
    with select.override(path=path), torch.autocast("cuda", torch.bfloat16):
        torch.manual_seed(5)
        expected = run(inputs, upstream, precision, p=0.5)[1:]
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
    (x, weight, bias), upstream = inputs_of(shape, precision)
    rows, n = upstream.shape

    def seeded(x, weight, bias, upstream):
        torch.manual_seed(5)
        return run([x, weight, bias], upstream, precision, p=0.5)

    expected = seeded(x, weight, bias, upstream)
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
        for own, truth in zip(seeded(*changed), expected, strict=True):
            torch.testing.assert_close(own, truth, rtol=2e-2, atol=1.0)
    plain = seeded(x, weight, bias, expanded.contiguous())
    for own, truth in zip(seeded(x, weight, bias, expanded), plain, strict=True):
        assert torch.equal(own, truth)


def test_a_result_may_be_written_to():
    for shape in ("ragged", "odd blocks"):
        inputs, upstream = inputs_of(shape, PRECISIONS["bfloat16"])
        block = SHAPES[shape][3]

        def layer(x, weight, bias, block=block):
            return sparsedrop.dropout_linear(x, weight, bias, p=0.3, block_shape=block).add_(1)

        torch.manual_seed(5)
        value_and_grads(layer, inputs, upstream)


@pytest.mark.parametrize(("n", "k"), [(10, 2048), (65, 1032), (520, 129)])
@pytest.mark.parametrize("path", [None, "kernel", "sm80"])
def test_layers_that_have_to_be_padded(n, k, path):
    """Large ones, and where the kernels are forced: each product pads for itself."""
    m = 1 + 2**30 // (n * k) if path is None else 200
    x, weight, bias = (normal(*s).to(GPU, torch.bfloat16) for s in ((m, k), (n, k), (n,)))
    upstream = normal(m, n).to(GPU, torch.bfloat16)
    torch.manual_seed(5)
    with forced(path):
        ours = run([x, weight, bias], upstream, PRECISIONS["bfloat16"], p=0.5)
    torch.manual_seed(5)
    mask = BlockMask.bernoulli((m, k), 0.5, device=GPU)

    def own(x, weight, bias):
        return reference.dropout_linear(x, weight, bias, mask, 0.5)

    exact = value_and_grads(own, [t.double() for t in (x, weight, bias)], upstream.double())
    assert_accurate(ours, exact, value_and_grads(own, [x, weight, bias], upstream))


def test_wrong_operands_get_the_sentences_of_the_long_way():
    x, weight = torch.randn(128, 256, device=GPU), torch.randn(128, 256, device=GPU)
    for bad_x, bad_weight, error, sentence in (
        (x.bfloat16(), weight, ValueError, "x is torch.bfloat16 and weight is torch.float32"),
        (x.long(), weight.long(), TypeError, "not torch.int64"),
        (x.to_sparse(), weight, TypeError, "must be a dense tensor"),
        (x, weight.to_sparse(), TypeError, "must be a dense tensor"),
        (x, weight.cpu(), ValueError, "x is on cuda:0 and weight is on cpu"),
        (x, weight[:, :128], ValueError, "inner extents differ"),
        (x[0, 0], weight, ValueError, "at least one extent"),
    ):
        with pytest.raises(error, match=sentence):
            sparsedrop.dropout_linear(bad_x, bad_weight, p=0.5)


def test_blocks_beyond_what_kernels_count():
    x = torch.randn(128, 256, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(128, 256, device=GPU, dtype=torch.bfloat16)
    out = sparsedrop.dropout_linear(x, weight, p=0.5, block_shape=(2**40, 2**31))
    out.sum().backward()
    assert out.count_nonzero() in (0, out.numel())
