"""What torch's own tools do with layers and masks: tracing, counting, saving, exporting."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparsedrop
from sparsedrop import BlockMask
from sparsedrop.nn import SparseDropLinear
from sparsedrop.ops import flops
from sparsedrop.ops.spelling import spelled

BLOCK = (8, 8)


def _seeded(call):
    torch.manual_seed(3)
    return call()


@pytest.mark.parametrize("training", [True, False])
def test_symbolic_trace(training):
    model = nn.Sequential(SparseDropLinear(64, 32, block_shape=BLOCK), nn.ReLU()).train(training)
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(32, 64)
    assert torch.equal(_seeded(lambda: traced(x)), _seeded(lambda: model(x)))
    assert torch.equal(
        _seeded(lambda: copy.deepcopy(traced).recompile() and traced(x)), _seeded(lambda: model(x))
    )


def test_symbolic_trace_of_functions():
    class Model(nn.Module):
        def forward(self, x, weight):
            drop = sparsedrop.dropout_linear(x, weight, p=0.25, block_shape=BLOCK)
            gelu = sparsedrop.linear(x, weight, activation="gelu")
            return drop + gelu + sparsedrop.matmul(x, weight.t(), alpha=2.0)

    traced = torch.fx.symbolic_trace(Model())
    args = torch.randn(32, 64), torch.randn(16, 64)
    assert torch.equal(_seeded(lambda: traced(*args)), _seeded(lambda: Model()(*args)))


def test_a_tensor_subclass_stays_one(device):
    class Own(torch.Tensor):
        pass

    x = torch.randn(32, 64, device=device).as_subclass(Own)
    weight = torch.randn(16, 64, device=device)
    out = _seeded(lambda: sparsedrop.dropout_linear(x, weight, block_shape=BLOCK))
    assert type(out) is Own
    plain = x.as_subclass(torch.Tensor)
    expected = _seeded(lambda: sparsedrop.dropout_linear(plain, weight, block_shape=BLOCK))
    torch.testing.assert_close(out.as_subclass(torch.Tensor), expected)


def test_a_default_device_changes_nothing(device):
    x, weight = torch.randn(32, 64), torch.randn(16, 64)
    with device:
        out = _seeded(lambda: sparsedrop.dropout_linear(x, weight, block_shape=BLOCK))
    assert out.device.type == "cpu"
    with torch.device("cpu"):
        assert torch.equal(
            out, _seeded(lambda: sparsedrop.dropout_linear(x, weight, block_shape=BLOCK))
        )


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_flops_of_a_layer_are_those_of_live_parts(p, device):
    layer = SparseDropLinear(64, 32, p=p, block_shape=BLOCK, device=device)
    x = torch.randn(4, 16, 64, device=device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * round(2 * 64 * 64 * 32 * (1 - p))


def test_flops_of_masks_on_several_sides(device):
    a, b = torch.randn(64, 48, device=device), torch.randn(48, 32, device=device)
    left = BlockMask.bernoulli((64, 48), 0.25, block_shape=BLOCK, device=device)
    own = BlockMask.from_live(left.live, (64, 48), block_shape=BLOCK)
    for masks, share in (
        ({"a_mask": left}, 0.75),
        ({"a_mask": own}, 0.5),
        ({"a_mask": left, "b_mask": BlockMask.balanced((48, 32), 0.5, block_shape=BLOCK,
                                                       device=device)}, 0.375),
        ({}, 1.0),
    ):  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            sparsedrop.matmul(a, b, **masks)
        assert counter.get_total_flops() == 2 * 64 * 48 * 32 * share


def test_flops_of_the_ops_of_a_compiled_layer():
    assert flops._forward((4, 16, 64), (32, 64), (32,), 0.25) == 2 * 64 * 64 * 32 * 0.75
    for needs, products in (([True, True, True], 2), ([False, True, False], 1)):
        how = spelled("input", None, torch.float32, None, needs)
        counted = flops._backward((4, 16, 32), None, None, (9,), 0.25, 64, 128, 128, how)
        assert counted == products * 2 * 64 * 64 * 32 * 0.75


def test_flops_of_the_ops_of_a_compiled_stack():
    """A gated block of 64 -> 32 -> 48 features: what no gradient needs is not counted."""
    x, weights, gated, rates = (4, 16, 64), [(32, 64), (32, 64), (48, 32)], [True, False], [0, 0.5]
    rates = [*rates, 0.0]
    of_up, of_down = 2 * 64 * 64 * 32 // 2, 2 * 64 * 32 * 48 // 2
    parameters = [shape for weight in weights for shape in (weight, None)]
    layers = gated, "silu", None
    how = spelled("bernoulli", torch.bfloat16, *layers)
    assert flops._stack(x, parameters, rates, 128, 128, how) == 2 * of_up + of_down
    for needed, count in (
        (range(7), 2 * (2 * of_up + of_down)),
        ([5], of_down),
        ([6], 0),
        ([], 0),
        ([3], of_down + of_up),
        ([0], of_down + 2 * of_up),
    ):
        needs = [i in needed for i in range(7)]
        how = spelled(torch.float32, torch.float32, [True] * 3, needs, *layers)
        given = x, weights, (9,), [], rates, 128, 128, how
        assert flops._stack_backward((4, 16, 48), *given) == count


def test_a_mask_is_saved_and_loaded_with_weights_only(device):
    mask, saved = BlockMask.bernoulli((64, 48), 0.5, block_shape=BLOCK, device=device), io.BytesIO()
    torch.save({"mask": mask.T}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)["mask"]
    for other in (loaded, pickle.loads(pickle.dumps(mask.T)), copy.deepcopy(mask.T)):
        assert torch.equal(other.live, mask.T.live)
        assert (other.shape, other.block_shape, other.keep) == ((48, 64), BLOCK, 0.5)


def test_a_mask_moves_as_a_tensor_does(device):
    mask = BlockMask.bernoulli((64, 48), 0.5, block_shape=BLOCK, device=device)
    assert mask.to(device) is mask
    assert mask.cpu().device.type == "cpu"
    assert torch.equal(mask.to("cpu", non_blocking=False).live, mask.live.cpu())
    if device.type == "cuda":
        assert torch.equal(mask.cpu().pin_memory().cuda(non_blocking=True).live, mask.live)
        assert mask.cpu().pin_memory().live.is_pinned()


def test_a_mask_is_an_argument_of_an_exported_program():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 48))

        def forward(self, x, mask):
            return sparsedrop.linear(x, self.weight, x_mask=mask)

    model, x = Model(), torch.randn(64, 48)
    masks = [BlockMask.bernoulli((64, 48), 0.5, block_shape=BLOCK) for _ in range(2)]
    exported = torch.export.export(model, (x, masks[0]))
    saved = io.BytesIO()
    torch.export.save(exported, saved)
    saved.seek(0)
    for program in (exported, torch.export.load(saved)):
        for mask in masks:
            torch.testing.assert_close(program.module()(x, mask), model(x, mask))


def test_other_devices_have_an_implementation():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in ("masked_mm", "mask_words", "bernoulli_mask", "balanced_mask"):
        assert has(f"sparsedrop::{name}", "CompositeExplicitAutograd")


def test_a_generator_of_its_own(device):
    generator = torch.Generator(device).manual_seed(7)
    layer = SparseDropLinear(64, 32, block_shape=BLOCK, generator=generator, device=device)
    x = torch.randn(64, 64, device=device)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    generator.manual_seed(7)
    assert torch.equal(layer(x), first)
    mask = BlockMask.bernoulli(
        (64, 64), 0.5, block_shape=BLOCK, device=device, generator=generator.manual_seed(7)
    )
    expected = sparsedrop.linear(x, layer.weight, layer.bias, x_mask=mask, alpha=2.0)
    torch.testing.assert_close(first, expected)
    kwargs = {"block_shape": BLOCK, "generator": generator.manual_seed(7)}
    torch.testing.assert_close(
        sparsedrop.dropout_linear(x, layer.weight, layer.bias, **kwargs), expected
    )


def test_a_wrong_generator_is_refused(device):
    x = torch.randn(64, 64, device=device)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, not int"):
        sparsedrop.dropout_linear(x, x, generator=3)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, not str"):
        SparseDropLinear(8, 8, generator="cpu")
    if device.type == "cuda":
        for size in (64, 10):
            with pytest.raises(ValueError, match="generator is on cpu, but x is on cuda:0"):
                sparsedrop.dropout_linear(x, x[:size], generator=torch.Generator())


def test_a_layer_of_few_blocks_says_so_once():
    layer = SparseDropLinear(64, 32)
    with pytest.warns(UserWarning, match=r"32 rows of 64 features, is one block of 128x128: .*50%.*"
                                         r"block_shape=\(8, 16\)"):  # fmt: skip
        layer(torch.randn(32, 64))
    fine = SparseDropLinear(64, 32, block_shape=(8, 16))
    many = SparseDropLinear(1024, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(32, 64))
        fine(torch.randn(32, 64))
        many(torch.randn(128, 1024))
        SparseDropLinear(64, 32, p=0.0)(torch.randn(32, 64))
        SparseDropLinear(64, 32).eval()(torch.randn(32, 64))


def test_an_exported_program_in_training_has_all_gradients():
    model = nn.Sequential(SparseDropLinear(16, 8, block_shape=(2, 2)), nn.ReLU(), nn.Linear(8, 4))
    for strict in (False, True):
        program = torch.export.export(model.train(), (torch.randn(8, 16),), strict=strict).module()
        program(torch.randn(8, 16)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in program.parameters())


def test_a_compiled_transform_is_right_or_raises():
    layer = SparseDropLinear(16, 8, block_shape=(2, 2))
    parameters, x = dict(layer.named_parameters()), torch.randn(8, 16)

    def step(parameters, x):
        def loss(parameters):
            return torch.func.functional_call(layer, parameters, (x,)).square().sum()

        return torch.func.grad(loss)(parameters)

    torch._dynamo.reset()
    with pytest.raises(Exception, match="functorch transforms"):
        torch.compile(step, fullgraph=True, backend="aot_eager")(parameters, x)


def test_a_mask_without_a_device_is_drawn_under_the_compiler():
    def product(a, b):
        return sparsedrop.matmul(a, b, a_mask=BlockMask.balanced((32, 32), 0.5, block_shape=(4, 4)))

    torch._dynamo.reset()
    a, b = torch.randn(32, 32), torch.randn(32, 8)
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(_seeded(lambda: compiled(a, b)), _seeded(lambda: product(a, b)))


@pytest.mark.parametrize("path", ["cpu", "dense"])
def test_results_are_contiguous_whatever_the_mask(path, device):
    mask = BlockMask.bernoulli((6, 4), 0.5, block_shape=(1, 1), device=device)
    a, b = torch.randn(4, 5, device=device), torch.randn(5, 6, device=device)
    with sparsedrop.select.override(path="dense" if device.type == "cuda" else path):
        assert sparsedrop.matmul(a, b, out_mask=mask.T).is_contiguous()
