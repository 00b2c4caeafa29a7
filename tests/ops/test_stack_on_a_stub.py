"""What Python does around a stack's calls, without a GPU: against the reference."""

from typing import NamedTuple

import pytest
import torch

import extension_stub
from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop import BlockMask, functional, reference, select
from sparsedrop.ops import copies
from sparsedrop.ops.stack import Dropped, Layer
from sparsedrop.ops.stack import node as stack_node
from sparsedrop.ops.stack.facts import parameters_of

pytestmark = pytest.mark.usefixtures("stub_gpu")

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

# Of x, of the parameters, and of autocast.
PRECISIONS = [
    (BF16, BF16, None), (F16, F16, None), (BF16, F32, BF16), (F32, F32, BF16), (F32, BF16, BF16)
]  # fmt: skip
BLOCK = (128, 128)


class Case(NamedTuple):
    sizes: tuple[int, ...]
    activations: tuple[str | None, ...]
    rates: tuple[float, ...]
    bias: bool = True
    gated: bool = False


CASES = {
    **{str(act): Case((64, 256, 128), (act, None), (0.0, 0.5, 0.0)) for act in
       (None, "relu", "gelu", "gelu_tanh", "silu")},
    "gated": Case((64, 256, 128), ("silu", None), (0.0, 0.5, 0.0), gated=True),
    "gated by relu": Case((64, 256, 64), ("relu", None), (0.0, 0.5, 0.25), False, True),
    "gated and dropped before": Case((128, 128, 64), ("gelu", None), (0.5, 0.5, 0.5), gated=True),
    "dropped behind": Case((64, 256, 128), ("gelu", None), (0.0, 0.5, 0.25)),
    "no bias": Case((64, 256, 128), ("gelu", None), (0.0, 0.5, 0.25), False),
    "stack": Case((128, 256, 64, 136), ("relu", "relu", None), (0.5, 0.5, 0.5, 0.0)),
    "stack of gelu": Case((128, 256, 64, 136), ("gelu", "silu", None), (0.5, 0.5, 0.5, 0.0)),
    "last relu": Case((128, 64, 64), ("relu", "relu"), (0.5, 0.5, 0.0)),
    "last gelu": Case((128, 64, 64), (None, "gelu"), (0.5, 0.5, 0.0)),
    "one layer": Case((128, 64), (None,), (0.5, 0.0)),
    "five layers": Case((64,) * 6, ("gelu", "relu", None, "silu", "relu"), (0.25,) * 5 + (0.0,)),
}  # fmt: skip


def _layers(case, dtype):
    layers = []
    for i, (act, k, n) in enumerate(
        zip(case.activations, case.sizes, case.sizes[1:], strict=False)
    ):
        gated = case.gated and i == 0
        weight, gate = (0.2 * normal(n, k) for _ in range(2))
        bias, gate_bias = normal(n), normal(n)
        tensors = (
            weight, bias if case.bias else None, gate if gated else None,
            gate_bias if gated and case.bias else None,
        )  # fmt: skip
        weight, bias, gate, gate_bias = (
            None if t is None else t.to(dtype).requires_grad_() for t in tensors
        )
        layers.append(Layer(weight, bias, act, gate, gate_bias))
    return tuple(layers)


def _run(case, precision, sampler="bernoulli"):
    """Result and gradients, and the same by the reference under the masks that were drawn."""
    x_dtype, dtype, autocast = precision
    product = autocast or x_dtype
    x = normal(3, 64, case.sizes[0]).to(x_dtype).requires_grad_()
    layers, dropped = _layers(case, dtype), Dropped(case.rates, BLOCK, sampler)
    upstream = normal(3, 64, case.sizes[-1]).to(product)
    extension_stub.C.grids.clear()
    with select.override(path="kernel"), autocast_on_stub(autocast):
        out = functional.dropped_stack(x, layers, dropped, True)
    leaves = [x, *(p for p in parameters_of(layers) if p is not None)]
    grids = iter(extension_stub.C.grids)
    masks = {
        i: BlockMask.from_live(next(grids), (192, n), block_shape=BLOCK)
        for i, (n, p) in enumerate(zip(case.sizes, case.rates, strict=True))
        if p > 0
    }
    truth, exact_leaves = _reference(x, layers, masks, case.rates, product)
    return out, leaves, upstream, truth, exact_leaves


def _reference(x, layers, masks, rates, dtype):
    def exact(t):
        return None if t is None else t.detach().to(dtype).double().requires_grad_()

    x = exact(x)
    layers = tuple(Layer(exact(w), exact(b), act, exact(g), exact(c)) for w, b, act, g, c in layers)
    leaves = [x, *(p for p in parameters_of(layers) if p is not None)]
    return reference.stack(x, layers, masks, rates), leaves


@pytest.mark.parametrize("sampler", ["bernoulli", "balanced"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stack_is_the_reference(case, precision, sampler):
    out, leaves, upstream, truth, exact_leaves = _run(case, precision, sampler=sampler)
    assert type(out.grad_fn).__name__ == "_StackBackward"
    grads = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    exact = torch.autograd.grad(truth, exact_leaves, upstream.double())
    dtypes = [out.dtype, *(leaf.dtype for leaf in leaves)]
    for own, expected, dtype in zip((out, *grads), (truth, *exact), dtypes, strict=True):
        assert (own.dtype, own.shape) == (dtype, expected.shape)
        error, eps = (own.double() - expected).norm(), torch.finfo(out.dtype).eps
        # relu's slope jumps where its argument rounds to the other sign.
        tolerance = 8 * eps if "relu" not in case.activations else 2 * eps**0.5
        assert error <= tolerance * (1 + expected.norm())
    # Nothing that was kept has changed.
    again = torch.autograd.grad(out, leaves, upstream)
    assert all(map(torch.equal, grads, again))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_second_derivatives_are_those_of_the_reference(monkeypatch, case):
    out, leaves, _, truth, exact_leaves = _run(case, PRECISIONS[2])
    # The products of the backward pass are the CPU's own.
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: False))

    def twice(out, leaves):
        grads = torch.autograd.grad(out.double().square().mean(), leaves, create_graph=True)
        penalty = sum(g.double().square().sum() for g in grads)
        return torch.autograd.grad(penalty, leaves, allow_unused=True)

    for own, expected in zip(twice(out, leaves), twice(truth, exact_leaves), strict=True):
        if expected is not None:
            assert (own.double() - expected).norm() <= 0.05 * (1e-6 + expected.norm())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_gradients_of_whoever_watches_are_the_same(monkeypatch, case):
    out, leaves, upstream, _, _ = _run(case, PRECISIONS[2])
    usual = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: False))
    monkeypatch.setattr(stack_node, "is_watched", lambda *tensors: True)
    watched = torch.autograd.grad(out, leaves, upstream)
    for own, other in zip(watched, usual, strict=True):
        assert own.dtype == other.dtype
        assert (own.double() - other.double()).norm() <= 0.02 * (1e-6 + other.double().norm())


def test_only_wanted_gradients_are_made():
    for case in (CASES["gated"], CASES["stack"]):
        out, leaves, upstream, *_ = _run(case, PRECISIONS[2])
        every = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
        for leaf, grad in zip(leaves, every, strict=True):
            (alone,) = torch.autograd.grad(out, leaf, upstream, retain_graph=True)
            assert torch.equal(alone, grad)


def test_rounded_weights_are_shared_and_forgotten():
    case = CASES["gated"]
    x = normal(64, 64).to(BF16)
    layers, dropped = _layers(case, F32), Dropped(case.rates, BLOCK, "bernoulli")
    with select.override(path="kernel"), autocast_on_stub(BF16):
        first, second = (functional.dropped_stack(x, layers, dropped, True) for _ in range(2))
    assert len(copies._copies) == 3
    weights = [out.grad_fn.saved_tensors[2:5] for out in (first, second)]
    assert [w.data_ptr() for w in weights[0]] == [w.data_ptr() for w in weights[1]]
    del first, second, weights
    assert not copies._copies


def test_what_is_unusual_goes_the_long_way():
    case = CASES["gelu"]
    x = normal(64, 64).to(BF16)
    layers, dropped = _layers(case, BF16), Dropped(case.rates, BLOCK, "bernoulli")
    with select.override(path="kernel"):
        assert stack_node.stack_of(x, layers, dropped) is not None
        assert stack_node.stack_of(x.t(), layers, dropped) is None
        wide = (layers[0], layers[1]._replace(bias=layers[1].bias.detach().float()))
        assert stack_node.stack_of(x, wide, dropped) is None
        short = (layers[0], layers[1]._replace(bias=layers[1].bias[:-8].detach().clone()))
        assert stack_node.stack_of(x, short, dropped) is None
