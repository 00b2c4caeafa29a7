"""Layers whose weights are frozen, as a fine-tuned model has them: x is not kept for them."""

import pytest
import torch
from torch import nn

import sparsedrop
from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop import RowPattern, Slice, _native, slice_out
from sparsedrop.nn import SparseDropLinear
from sparsedrop.ops import rows
from stack_cases import BF16, F32

pytestmark = pytest.mark.usefixtures("poisoned_gpu")


def _sliced():
    layer, live = nn.Linear(64, 96, dtype=BF16), Slice.at(16, 32, 96)
    return layer, lambda x: slice_out.linear(x, layer.weight, layer.bias, out_slice=live)


def _by_rows():
    layer, live = nn.Linear(64, 96, dtype=BF16), RowPattern(96, 3, 1)
    return layer, lambda x: rows.linear(x, layer.weight, layer.bias, None, live, 1.0)


def _dropped(out_features, side, dtype=BF16):
    layer = SparseDropLinear(64, out_features, side=side).to(dtype)
    return layer, layer


def _output_of_a_model():
    model = nn.Sequential(nn.Linear(64, 128, dtype=BF16), nn.Dropout(0.5))
    sparsedrop.convert(model, torch.zeros(512, 64, dtype=BF16), min_speedup=0)
    return model, model


MAKERS = {
    "slices": _sliced, "rows": _by_rows, "output of a model": _output_of_a_model,
    "input": lambda: _dropped(128, "input"), "output": lambda: _dropped(128, "output"),
    "input, densely": lambda: _dropped(10, "input"),
    "output, densely": lambda: _dropped(10, "output"),
}  # fmt: skip


def _seed():
    torch.manual_seed(3)
    _native.default_generator(None).set_offset(0)


def _run(run, leaf, dtype=None):
    """The result, its gradient by the leaf, and whether something like x was kept."""
    kept = []

    def pack(tensor):
        kept.append(tensor.shape)
        return tensor.detach()  # an output that keeps itself is never freed

    _seed()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast_on_stub(dtype):
        out = run(leaf)
    (grad,) = torch.autograd.grad(out.float().square().sum(), leaf, retain_graph=True)
    return out, grad, leaf.shape in kept


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_x_is_kept_for_the_weight_alone(make):
    module, run = make()
    leaf = normal(512, 64).to(BF16).requires_grad_()
    out, grad, is_kept = _run(run, leaf)
    assert is_kept
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("bias" in name)
    frozen = _run(run, leaf)
    assert torch.equal(frozen[0], out)
    assert torch.equal(frozen[1], grad)
    assert not frozen[2]
    bias = next(p for n, p in module.named_parameters() if "bias" in n)
    (of_bias,) = torch.autograd.grad(frozen[0].float().sum(), bias, retain_graph=True)
    assert of_bias.isfinite().all()


@pytest.mark.parametrize("name", ["slices", "rows", "input, densely"])
def test_a_gradient_that_is_differentiated_again_does_without_x(name):
    module, run = MAKERS[name]()
    leaf = normal(512, 64).to(BF16).requires_grad_()
    found = []
    for is_trained in (True, False):
        module.requires_grad_(is_trained)
        _seed()
        (grad,) = torch.autograd.grad(run(leaf).float().square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(grad.float().square().sum(), leaf)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["slices", "rows"])
def test_a_batch_of_gradients_does_without_x(name):
    module, run = MAKERS[name]()
    module.weight.requires_grad_(False)
    leaf = normal(7, 64).to(BF16).requires_grad_()
    out = run(leaf)
    upstream = normal(3, *out.shape).to(BF16)
    (batched,) = torch.autograd.grad(out, leaf, upstream, is_grads_batched=True, retain_graph=True)
    for own, grad in zip(batched, upstream, strict=True):
        (expected,) = torch.autograd.grad(out, leaf, grad, retain_graph=True)
        torch.testing.assert_close(own, expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("make", [MAKERS["input"], MAKERS["output"]], ids=["input", "output"])
def test_a_rounded_copy_of_x_is_not_kept_either(make):
    module, run = make()
    module.to(F32)
    leaf = normal(512, 64).to(F32).requires_grad_()
    _, grad, is_kept = _run(run, leaf, BF16)
    module.weight.requires_grad_(False)
    _, frozen, is_kept_again = _run(run, leaf, BF16)
    assert torch.equal(frozen, grad)
    assert (is_kept, is_kept_again) == (True, False)
