"""SparseDropMLP and SparseDropStack in the ways that PyTorch runs modules."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layer_cases import ops_of_compiled
from sparsedrop import Slice, slice_out
from sparsedrop.nn import (
    RowPatternMLP,
    SliceOutAttention,
    SliceOutMLP,
    SparseDropLinear,
    SparseDropMLP,
    SparseDropStack,
    TilePatternLinear,
)

BLOCK = (16, 32)


def _mlp(dtype=torch.float64, **kwargs):
    return SparseDropMLP(32, 128, p=0.5, block_shape=BLOCK, **kwargs).to(dtype)


def _stack(dtype=torch.float64):
    return SparseDropStack([32, 64, 32], block_shape=BLOCK).to(dtype)


MAKERS = {"mlp": lambda: _mlp(gated=True, out_p=0.25), "stack": _stack}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_copies_pickles_and_checkpoints(make):
    block = make()
    x = torch.randn(96, 32, dtype=torch.float64, requires_grad=True)

    def grads(run):
        torch.manual_seed(3)
        return torch.autograd.grad(run(x).square().sum(), [x, *block.parameters()])

    plain = grads(block)
    again = grads(lambda x: checkpoint(block, x, use_reentrant=False))
    assert all(map(torch.equal, plain, again))
    torch.manual_seed(3)
    out = block(x)
    buffer = io.BytesIO()
    torch.save(block, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(block), torch.load(buffer, weights_only=False)):
        torch.manual_seed(3)
        assert torch.equal(other(x), out)


class _Adapter(nn.Module):
    """A layer and a low-rank part, as adapters have it."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.low = linear, nn.Linear(linear.in_features, linear.out_features)

    def forward(self, x):
        return self.linear(x) + self.low(x)


@pytest.mark.parametrize("gated", [True, False])
def test_modules_that_are_not_plain_are_called(gated):
    mlp = _mlp(gated=gated, out_p=0.25)
    x = torch.randn(96, 32, dtype=torch.float64)
    torch.manual_seed(3)
    before = mlp(x)
    seen = []
    mlp.up.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    torch.manual_seed(3)
    torch.testing.assert_close(mlp(x), before)
    assert seen == [(96, 128)]
    mlp.up = _Adapter(mlp.up).double()
    torch.manual_seed(3)
    after = mlp(x)
    assert not torch.allclose(after, before)
    after.sum().backward()
    assert mlp.up.low.weight.grad.any()
    stack = _stack()
    torch.manual_seed(3)
    before = stack(x)
    stack.layers[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    torch.manual_seed(3)
    torch.testing.assert_close(stack(x), before)
    assert seen[1:] == [(96, 128), (96, 32)]


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_layer_whose_forward_was_replaced_is_called(is_compiled):
    x = torch.randn(96, 32, dtype=torch.float64)
    for make, name in ((_mlp, "down"), (_stack, "layers.1")):
        usual, changed = make().eval(), make().eval()
        changed.load_state_dict(usual.state_dict())
        linear = changed.get_submodule(name)
        own = linear.forward
        linear.forward = lambda x, own=own: own(x) + 1
        if is_compiled:  # one after the other, from the same code
            usual, changed = (
                torch.compile(m, fullgraph=True, backend="eager") for m in (usual, changed)
            )
        expected = usual(x) + 1
        torch.testing.assert_close(changed(x), expected)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_compiled_blocks_skip_work(make):
    """Their products are the library's ops, not dense ones behind a dropout."""
    block, x = make(), torch.randn(96, 32, dtype=torch.float64)
    names = ops_of_compiled(block, [x], torch.ones_like(block(x)))
    weights = sum(isinstance(module, nn.Linear) for module in block.modules())
    assert names.count("sparsedrop.masked_mm.default") == 3 * weights


@pytest.mark.parametrize("has_hooks", [False, True])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_fx_traces_dropout_as_one_call(make, has_hooks):
    block = make()
    if has_hooks:
        for module in [m for m in block.modules() if isinstance(m, nn.Linear)]:
            module.register_forward_hook(lambda *_: None)
    traced = torch.fx.symbolic_trace(block)
    names = [n.target.__name__ for n in traced.graph.nodes if n.op == "call_function"]
    dropping = [name for name in names if name.startswith("dropped")]
    assert dropping == (["dropped_activation"] * 2 if has_hooks else ["dropped_stack"])
    x = torch.randn(96, 32, dtype=torch.float64)
    torch.manual_seed(3)
    expected = block(x)
    torch.manual_seed(3)
    assert torch.equal(traced(x), expected)


@pytest.mark.parametrize(
    ("make", "sizes", "what"),
    [
        (lambda sizes: SparseDropMLP(*sizes), (512, 64), "hidden activation"),
        (SparseDropStack, (512, 64, 512), "hidden activation"),
        (SparseDropStack, (64, 512, 512), "input"),
    ],
)
def test_blocks_that_are_too_coarse_are_reported_once(make, sizes, what):
    module, x = make(sizes), torch.randn(128, sizes[0])
    sentence = f"^the {what} of this layer, 128 rows of 64 features, is one block of 128x128"
    with pytest.warns(UserWarning, match=sentence):
        module(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x)


def test_without_its_child_nothing_is_dropped():
    x = torch.randn(96, 32)
    for module in (_mlp(torch.float32), _stack(torch.float32), SparseDropLinear(32, 32)):
        expected = copy.deepcopy(module).eval()(x)
        del module.dropout
        assert torch.equal(module(x), expected)
        assert module.p == 0.0


def test_autocast():
    for module in (_mlp(torch.float32, gated=True), _stack(torch.float32)):
        x = torch.randn(96, 32)
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(3)
            out = module(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
        torch.manual_seed(3)
        full = module(x)
        assert (out - full).norm() <= 0.02 * full.norm()


def test_compiled_without_recompiling():
    torch.compiler.reset()
    for make in MAKERS.values():
        module = make()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        x = torch.randn(96, 32, dtype=torch.float64)
        with torch._dynamo.config.patch(error_on_recompile=True):
            outs = [compiled(x) for _ in range(3)]
            outs[0].sum().backward()
        assert not torch.equal(outs[0], outs[1])
        assert all(p.grad is not None for p in module.parameters())
        module.eval()
        torch.testing.assert_close(compiled(x), module(x))


def test_the_last_module_may_be_one_of_ours():
    """A linear layer that drops by itself has a forward pass of its own."""
    mlp = _mlp()
    mlp.down = SparseDropLinear.from_linear(mlp.down, 0.5, side="output", block_shape=BLOCK)
    out = mlp(torch.randn(256, 32, dtype=torch.float64))
    assert 0 < out.all(1).sum() < 256  # a block is as wide as the result


@pytest.mark.filterwarnings("ignore:the (hidden activation|input) of this layer, 1 rows")
@pytest.mark.parametrize("lead", [(0,), (3, 0), ()], ids=str)
def test_batches_of_any_shape(lead):
    x = torch.randn(*lead, 32, dtype=torch.float64, requires_grad=True)
    for make in MAKERS.values():
        out = make()(x)
        assert out.shape == (*lead, 32)
        out.sum().backward()


def _sliced(x):
    return slice_out.linear(x, torch.ones(64, 32), in_slice=Slice.at(8, 16, 32))


RESULTS = {
    "SparseDropLinear": lambda: SparseDropLinear(16, 32, block_shape=(8, 8)),
    "SparseDropMLP": lambda: SparseDropMLP(16, 64, block_shape=(8, 8)),
    "SparseDropStack": lambda: SparseDropStack([16, 64, 32], block_shape=(8, 8)),
    "SliceOutMLP": lambda: SliceOutMLP(16, 128),
    "SliceOutMLP, gated": lambda: SliceOutMLP(16, 128, gated=True),
    "SliceOutAttention": lambda: SliceOutAttention(16, 4),
    "RowPatternMLP": lambda: RowPatternMLP(16, 64),
    "TilePatternLinear": lambda: TilePatternLinear(16, 32, tile=8),
    "slice_out.linear": lambda: _sliced,
}


@pytest.mark.parametrize("shape", [(6, 16), (2, 3, 16), (2, 1, 3, 16)], ids=str)
@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)
def test_results_may_be_changed_in_place(make, shape):
    """As nn.ReLU(inplace=True) and residual sums do."""
    if make is RESULTS["SliceOutAttention"] and len(shape) != 3:
        shape = 5, *shape[-2:]
    layer = make()
    x = torch.randn(shape, requires_grad=True)
    torch.manual_seed(0)
    expected = torch.relu(layer(x) + 0.5)
    torch.manual_seed(0)
    out = layer(x)
    out += 0.5
    out.relu_()
    assert torch.equal(out, expected)
    found, wanted = (torch.autograd.grad(y.sum(), x)[0] for y in (out, expected))
    assert torch.equal(found, wanted)
