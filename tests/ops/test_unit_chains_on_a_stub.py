"""Layers behind one another by one node, a call for each way of a layer, without a GPU."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sparsedrop
from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop.ops.units.chain import _Chain
from stack_cases import BF16, F32, PRECISIONS
from unit_chain_cases import (
    ACTIVATIONS,
    CASES,
    one_by_one,
    random_case,
    run_and_compare,
)

pytestmark = pytest.mark.usefixtures("poisoned_gpu")
RELU, GELU = CASES["slices, relu"], CASES["rows, gelu"]


@pytest.mark.parametrize("precision", PRECISIONS[:4], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_chain_is_the_masked_model_by_one_node(launches, case, precision):
    out, *_ = run_and_compare(case, precision)
    assert isinstance(out.grad_fn, _Chain._backward_cls)
    assert len(launches) == 3 * (len(case.sizes) - 1)  # two passes back


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("case", [c for c in CASES.values() if c.method == "sliceout"], ids=str)
def test_slices_in_two_parts_of_large_weights(case):
    for seed in range(4):
        run_and_compare(case, PRECISIONS[0], seed=seed)


@pytest.mark.parametrize("seed", range(40))
def test_random_chains(seed):
    run_and_compare(random_case(seed), PRECISIONS[seed % 4], seed=seed)


def _grads(model, x, seed=5):
    torch.manual_seed(seed)
    out = model(x)
    leaves = [t for t in (x, *model.parameters()) if t.requires_grad]
    return out, torch.autograd.grad(out.float().square().sum(), leaves) if leaves else ()


@pytest.mark.parametrize("case", [RELU, GELU], ids=str)
def test_units_are_drawn_as_one_by_one(case):
    model = case.model(dtype=BF16)
    x = normal(7, case.sizes[0]).to(BF16)
    own, theirs = (_grads(m, x) for m in (model, one_by_one(model)))
    torch.testing.assert_close(own[0], theirs[0], rtol=0.02, atol=0.02)
    for a, b in zip(own[1], theirs[1], strict=True):
        assert torch.equal(a == 0, b == 0)
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.02 * b.abs().max())


@pytest.mark.parametrize("case", [RELU, GELU], ids=str)
def test_only_wanted_gradients_are_made(case, launches):
    model = case.model(dtype=BF16)
    x = normal(7, case.sizes[0]).to(BF16).requires_grad_()
    leaves = [x, *model.parameters()]
    _, full = _grads(model, x)
    for i, leaf in enumerate(leaves):
        for other in leaves:
            other.requires_grad_(other is leaf)
        launches.clear()
        out, (grad,) = _grads(model, x)
        assert (grad - full[i]).norm() <= 0.02 * full[i].norm()
        # Back to the layer of the leaf, and no further.
        assert len(launches) == 3 + (3 if i == 0 else 3 - (i - 1) // 2)
    for leaf in leaves:
        leaf.requires_grad_(False)
    torch.manual_seed(5)
    with torch.no_grad():
        assert torch.equal(model(x), out)


@pytest.mark.parametrize("case", [RELU, GELU], ids=str)
def test_a_checkpoint_around_all_layers(case):
    model = case.model(dtype=BF16)
    x = normal(7, case.sizes[0]).to(BF16).requires_grad_()
    _, expected = _grads(model, x)
    _, found = _grads(_Checkpointed(model), x)
    assert all(map(torch.equal, found, expected))


class _Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


def _model(method, activations=("gelu", "silu"), dtype=BF16):
    """As layers are initialised: what goes into an activation is near 0, and slopes differ."""
    torch.manual_seed(1)
    first, second = (ACTIVATIONS[name]() for name in activations)
    model = nn.Sequential(
        nn.Linear(40, 256), first, nn.Dropout(0.5), nn.Linear(256, 192), second, nn.Dropout(0.5),
        nn.Linear(192, 10),
    ).to(dtype)  # fmt: skip
    sparsedrop.convert(model, method=method, min_speedup=0)
    return model


FROZEN = {
    "none": (), "the first weight": ("0.weight",), "the first layer": ("0.weight", "0.bias"),
    "all but the head": ("0.weight", "0.bias", "3.weight", "3.bias"),
    "all": ("0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("needs_x", [False, True], ids=["", "x too"])
@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("method", ["sliceout", "row-pattern"])
def test_gradients_in_every_way_are_those_one_by_one(method, frozen, needs_x, dtype):
    model = _model(method, dtype=dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    x = normal(9, 40).to(BF16).requires_grad_(needs_x)
    leaves = [t for t in (x, *model.parameters()) if t.requires_grad]
    if not leaves:
        return
    found = []
    for each in (model, one_by_one(model)):
        own = [t for t in (x, *each.parameters()) if t.requires_grad]
        torch.manual_seed(5)
        with autocast_on_stub(BF16 if dtype is F32 else None):
            out = each(x)
        upstream = torch.ones_like(out)
        plain = torch.autograd.grad(out, own, upstream, retain_graph=True)
        with FlopCounterMode(display=False):
            watched = torch.autograd.grad(out, own, upstream, retain_graph=True)
        batched = torch.autograd.grad(
            out, own, upstream[None], is_grads_batched=True, retain_graph=True
        )
        first = torch.autograd.grad(out.float().square().sum(), own, create_graph=True)
        penalty = sum(g.float().square().sum() for g in first)
        second = torch.autograd.grad(penalty, own, allow_unused=True)
        found.append([*plain, *watched, *(g[0] for g in batched), *first, *second])
    for own, expected in zip(*found, strict=True):
        assert (own is None) == (expected is None)
        if own is not None:
            assert (own.double() - expected.double()).norm() <= 0.05 * expected.double().norm()


def test_what_is_frozen_in_front_leaves_nothing_behind(launches):
    model, x, kept = _model("sliceout"), normal(9, 40).to(BF16), []
    model[:6].requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = model(x)
    assert sorted(kept) == sorted([(9, 128), (10, 192), (10,)])
    assert isinstance(out.grad_fn, _Chain._backward_cls)
    launches.clear()
    out.sum().backward()
    assert len(launches) == 1


def test_a_weight_that_is_made_of_others_is_made_once():
    class Counted(nn.Module):
        def forward(self, weight):
            made.append(weight)
            return weight

    model, made = _model("sliceout"), []
    parametrize.register_parametrization(model[3], "weight", Counted())
    for each, x in ((model, normal(9, 40).to(BF16)), (one_by_one(model), normal(9, 40).to(BF16))):
        made.clear()
        each(x)
        assert len(made) == 1


@pytest.mark.parametrize("case", [RELU, GELU], ids=str)
def test_saved_tensors_may_come_back_turned(case):
    model = case.model(dtype=BF16)
    x = normal(7, case.sizes[0]).to(BF16).requires_grad_()

    def turned(tensor):
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor

    def gradients(unpack):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            return _grads(model, x)[1]

    assert all(map(torch.equal, gradients(turned), gradients(lambda tensor: tensor)))


def test_an_activation_behind_the_last_layer(launches):
    linears = [nn.Linear(40, 256, dtype=BF16), nn.Linear(256, 24, dtype=BF16)]
    behind = nn.GELU(), nn.LayerNorm(24, dtype=BF16)
    model = nn.Sequential(linears[0], nn.ReLU(), nn.Dropout(0.5), linears[1], *behind)
    sparsedrop.convert(model, method="sliceout", min_speedup=0)
    x = normal(7, 40).to(BF16)
    own, theirs = (_grads(m, x) for m in (model, one_by_one(model)))
    assert len(launches) == 8
    torch.testing.assert_close(own, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("case", [RELU, GELU], ids=str)
def test_rates_that_are_set_later(case, launches):
    model = case.model(dtype=BF16)
    x = normal(7, case.sizes[0]).to(BF16)
    dense = copy.deepcopy(model).eval()(x)
    assert not launches
    sparsedrop.set_rate(model, 0.0)
    assert torch.equal(model(x), dense)
    assert not launches
    sparsedrop.set_rate(model, 0.25)
    model(x)
    assert len(launches) == 3
    model[2].p = 0.0  # the other hidden value is still dropped: one by one
    out = model(x)
    assert out.isfinite().all()
    assert len(launches) == 5


def test_what_no_node_takes_runs_one_by_one(launches):
    model = RELU.model()  # float32 without autocast
    x = normal(7, RELU.sizes[0]).to(F32)
    own, theirs = (_grads(m, x) for m in (model, one_by_one(model)))
    torch.testing.assert_close(own, theirs)
    assert not launches


@pytest.mark.parametrize("case", [RELU, GELU], ids=str)
def test_a_weight_of_another_size_is_told_of(case):
    x, hidden = normal(7, 40).to(BF16), case.sizes[1:3]
    for i, shape in ((0, (51, 40)), (3, (51, hidden[0])), (3, (hidden[1], 51))):
        model = case.model(dtype=BF16)
        model[i].weight.data = torch.zeros(shape, dtype=BF16)
        with pytest.raises(ValueError, match=rf"weight is \[{shape[0]}, {shape[1]}\], but units"):
            model(x)


def test_wrong_inputs_have_the_sentence_of_the_layer():
    model = RELU.model(dtype=BF16)
    for x, sentence in (
        (normal(7, 40).to(F32), "float32"),
        (normal(7, 41).to(BF16), "41"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=sentence):
            model(x)
    model[3].weight.data = model[3].weight.data.float()
    with pytest.raises(ValueError, match="float32"):
        model(normal(7, 40).to(BF16))
