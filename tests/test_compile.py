"""The registered ops, and torch.compile(fullgraph=True) over everything public."""

import pytest
import torch

import sparsedrop
from cases import random_mask, value_and_grads
from sparsedrop import BlockMask
from sparsedrop._torch import is_exporting

CPU = torch.device("cpu")

# Traces forward and backward as the default backend does, without waiting for a C++ compiler.
TRACED = "aot_eager"


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def _inputs(device, rows=128):
    """Of float64, so that another order of sums cannot pass for another mask."""
    shapes = ((rows, 64), (96, 64), (96,))
    return [torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes]


def _upstream(device, *shape):
    return torch.randn(shape, dtype=torch.float64, device=device)


def _same(own, expected):
    for ours, truth in zip(own, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_to_compile_is_not_to_export():
    """Else layers of a compiled model would not run by their ops."""

    def traced(x):
        return x + 1, is_exporting()

    for backend in ("eager", TRACED):
        compiled = torch.compile(traced, fullgraph=True, backend=backend)
        assert compiled(torch.zeros(2))[1] is False

    class Exported(torch.nn.Module):
        def forward(self, x):
            return x + 2 if is_exporting() else x + 1

    for strict in (False, True):
        program = torch.export.export(Exported(), (torch.zeros(2),), strict=strict)
        assert program.module()(torch.zeros(2)).tolist() == [2.0, 2.0]


def test_opcheck_masked_mm(device):
    a, b, bias = (t.to(device) for t in (torch.randn(65, 48), torch.randn(48, 40), torch.randn(40)))
    masks = [random_mask(s, (16, 16), device) for s in ((65, 48), (48, 40), (65, 40))]
    tensors = [t for mask in masks for t in (mask.live, mask.row_words, mask.col_words)]
    op = torch.ops.sparsedrop.masked_mm.default
    for args in (
        (a, b, bias, tensors, [16] * 6, [0.5, -1.0, 0.5], 2.0, "relu"),
        (a, b, None, tensors[:3], [16, 16, 0, 0, 0, 0], [-1.0] * 3, 1.0, None),
        (a.t().contiguous().t(), b, None, tensors[6:], [0, 0, 0, 0, 16, 16], [-1.0] * 3, 1.0, None),
    ):
        torch.library.opcheck(op, args)


def test_opcheck_mask_ops(device):
    ops = torch.ops.sparsedrop
    live = (torch.rand(3, 2) < 0.5).to(device)
    torch.library.opcheck(ops.mask_words.default, (live, 300, 200, 128, 128))
    # Two draws differ, so what compares values is left out of these two.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    grid, drawn = (300, 500, 128, 128), {"p": 0.3, "device": live.device}
    torch.library.opcheck(ops.bernoulli_mask.default, grid, drawn, test_utils=tests)
    torch.library.opcheck(ops.balanced_mask.default, grid, drawn, test_utils=tests)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_linear_with_masks_as_arguments(activation, device):
    x_mask = random_mask((128, 64), (32, 16), device)
    out_mask = random_mask((128, 96), (32, 32), device)

    def layer(x, weight, bias, x_mask, out_mask):
        return sparsedrop.linear(
            x, weight, bias, x_mask=x_mask, out_mask=out_mask, alpha=2.0, activation=activation
        )

    compiled = torch.compile(layer, fullgraph=True, backend=TRACED)
    inputs, upstream = _inputs(device), _upstream(device, 128, 96)
    for masks in ((x_mask, out_mask), (None, out_mask), (x_mask, None)):
        plain = value_and_grads(lambda *args, m=masks: layer(*args, *m), inputs, upstream)
        _same(value_and_grads(lambda *args, m=masks: compiled(*args, *m), inputs, upstream), plain)


def test_matmul_with_a_transposed_mask(device):
    mask = random_mask((64, 128), (16, 32), device)
    compiled = torch.compile(
        lambda a, b, mask: sparsedrop.matmul(a, b, a_mask=mask.T), fullgraph=True, backend=TRACED
    )
    a, b = _upstream(device, 128, 64), _upstream(device, 64, 96)
    torch.testing.assert_close(compiled(a, b, mask), sparsedrop.matmul(a, b, a_mask=mask.T))


@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
def test_masks_made_inside_and_handed_out(sampler, device):
    def make(x):
        mask = getattr(BlockMask, sampler)(
            tuple(x.shape), 0.3, block_shape=(16, 16), device=x.device
        )
        return mask, sparsedrop.matmul(x, x.t(), a_mask=mask)

    x = torch.randn(128, 160, device=device)
    mask, out = torch.compile(make, fullgraph=True, backend=TRACED)(x)
    assert isinstance(mask, BlockMask)
    assert mask.keep == 0.7
    torch.testing.assert_close(out, sparsedrop.matmul(x, x.t(), a_mask=mask))


@pytest.mark.parametrize("backend", [TRACED, "inductor"])
@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
def test_dropout_linear_draws_the_same_masks(sampler, backend, device):
    def two_layers(x, weight, bias):
        hidden = sparsedrop.dropout_linear(
            x, weight, bias, p=0.3, sampler=sampler, block_shape=(16, 16)
        )
        return sparsedrop.dropout_linear(
            hidden.relu(), weight.t(), p=0.5, sampler=sampler, block_shape=(16, 16)
        )

    compiled = torch.compile(two_layers, fullgraph=True, backend=backend)
    inputs, upstream = _inputs(device), _upstream(device, 128, 64)
    for seed in (1, 2):
        torch.manual_seed(seed)
        plain = value_and_grads(two_layers, inputs, upstream)
        torch.manual_seed(seed)
        _same(value_and_grads(compiled, inputs, upstream), plain)


@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
def test_equal_draws_are_not_merged(sampler, device):
    """Torch knows its own random operations only: two layers would have the same mask."""

    def twice(x, weight, bias):
        how = {"p": 0.5, "sampler": sampler, "block_shape": (16, 16)}
        hidden = sparsedrop.dropout_linear(x, weight, bias, **how)
        return hidden, sparsedrop.dropout_linear(x, weight, bias, **how)

    compiled = torch.compile(twice, fullgraph=True, backend=TRACED)
    inputs = [tensor.requires_grad_() for tensor in _inputs(device)]
    torch.manual_seed(1)
    first, second = compiled(*inputs)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    _same([first, second], twice(*inputs))


def test_module_in_training_and_evaluation(device):
    module = sparsedrop.nn.SparseDropLinear(64, 96, p=0.5, block_shape=(16, 16), device=device)
    compiled = torch.compile(module, fullgraph=True, backend=TRACED)
    x = torch.randn(4, 32, 64, device=device)
    for p in (0.5, 0.25, 0.1, 1.0, 0.0):
        module.p = p
        torch.manual_seed(1)
        expected = module(x)
        torch.manual_seed(1)
        torch.testing.assert_close(compiled(x), expected)
    module.eval()
    torch.testing.assert_close(
        compiled(x), torch.nn.functional.linear(x, module.weight, module.bias)
    )


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
def test_changing_shapes(sampler, dynamic, device):
    def layer(*args):
        return sparsedrop.dropout_linear(*args, p=0.4, sampler=sampler, block_shape=(16, 16))

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=TRACED)
    for rows in (128, 96, 50, 33):
        inputs, upstream = _inputs(device, rows), _upstream(device, rows, 96)
        torch.manual_seed(rows)
        plain = value_and_grads(layer, inputs, upstream)
        torch.manual_seed(rows)
        _same(value_and_grads(compiled, inputs, upstream), plain)


@pytest.mark.parametrize("p", [0.5, 0.3])  # of 5 block columns, so balanced rounds at random
@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
def test_checkpointing_inside(sampler, p, device):
    """The recomputation in the backward pass replays the mask of the forward pass.

    y - bias is linear in the weight: <grad of weight, weight> = <upstream, y - bias> where both
    have the same mask. On a GPU a compiled checkpoint draws other numbers than an eager one,
    nn.functional.dropout's too, so only the CPU's results are compared with those.
    """

    def layer(*args):
        return sparsedrop.dropout_linear(*args, p=p, sampler=sampler, block_shape=(16, 16))

    def recomputed(*args):
        return torch.utils.checkpoint.checkpoint(layer, *args, use_reentrant=False)

    compiled = torch.compile(recomputed, fullgraph=True, backend=TRACED)
    shapes = ((128, 80), (96, 80), (96,))
    inputs = [torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes]
    _, weight, bias = inputs
    upstream = _upstream(device, 128, 96)
    for seed in range(8):
        torch.manual_seed(seed)
        out, *grads = value_and_grads(compiled, inputs, upstream)
        torch.testing.assert_close((grads[1] * weight).sum(), (upstream * (out - bias)).sum())
        assert not torch.equal(value_and_grads(compiled, inputs, upstream)[0], out)
        if device.type == "cpu":
            torch.manual_seed(seed)
            _same((out, *grads), value_and_grads(layer, inputs, upstream))


def test_autocast_inside(device):
    @torch.compile(fullgraph=True, backend=TRACED)
    def layer(x, weight, bias):
        with torch.autocast(device.type, torch.bfloat16):
            return sparsedrop.dropout_linear(x, weight, bias, block_shape=(16, 16))

    upstream = _upstream(device, 128, 96).bfloat16()
    out, *grads = value_and_grads(layer, [x.float() for x in _inputs(device)], upstream)
    assert out.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_compiled_autograd(is_compiled, device):
    """A backward pass that is compiled as a whole finds the masks of a compiled forward pass."""
    x, weight, bias = (t.float() for t in _inputs(device))
    mask = random_mask((128, 64), (16, 16), device)

    def model(x, weight, bias):
        drop = sparsedrop.dropout_linear(x, weight, bias, p=0.3, block_shape=(16, 16))
        return drop + sparsedrop.linear(x, weight, bias, x_mask=mask, activation="gelu")

    def grads(forward):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        torch.manual_seed(2)
        forward(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    expected = grads(model)
    forward = torch.compile(model, backend=TRACED) if is_compiled else model
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend=TRACED)):
        found = grads(forward)
    for own, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-4, atol=1e-4)
