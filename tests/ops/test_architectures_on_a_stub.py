"""Layers, stacks and products by a forced architecture, and in TF32, without a GPU."""

import itertools

import pytest
import torch

import extension_stub
import sparsedrop
from architecture_stub import AMPERE, HOPPER
from cases import normal, random_mask
from sparsedrop import BlockMask, functional, reference, select
from sparsedrop.ops import How, Product, plan
from sparsedrop.ops.layer import op
from sparsedrop.ops.layer.compiled import takes_kernels
from sparsedrop.ops.layer.dense import DenseLayer
from sparsedrop.ops.layer.facts import Facts
from sparsedrop.ops.layer.kernels import KernelLayer, keys_of
from sparsedrop.ops.spelling import spelled
from sparsedrop.ops.stack import Dropped, Layer
from sparsedrop.ops.stack.node import stack_of
from sparsedrop.select import kernels
from sparsedrop.select.gpus import CUBLAS, HALF, TF32, Cost
from sparsedrop.select.saved import Saved

BF16, F32 = torch.bfloat16, torch.float32
BLOCK = (64, 64)
FACTS = {"capability": (9, 0), "gpu": "NVIDIA H200", "sms": 132, "tiles": HOPPER}


@pytest.fixture(autouse=True)
def hopper(stub_gpu, monkeypatch):
    """A GPU that runs both architectures."""
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: FACTS)
    plan.plan_for.cache_clear()
    yield
    plan.plan_for.cache_clear()


@pytest.fixture(params=["fp32_precision", "allow_tf32", "set_float32_matmul_precision"])
def tf32(request):
    """TF32 is allowed, in each way that torch has for it."""
    settings = torch.backends.cuda.matmul
    if request.param == "fp32_precision":
        settings.fp32_precision = "tf32"
    elif request.param == "allow_tf32":
        settings.allow_tf32 = True
    else:
        torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def _run(dtype, side="input", bias=True, sampler="bernoulli"):
    """A layer's result and gradients, and the same by the reference."""
    x, weight, offset = (
        normal(*shape).to(dtype).requires_grad_() for shape in ((3, 64, 64), (136, 64), (136,))
    )
    leaves, upstream = [x, weight, offset][: 2 + bias], normal(3, 64, 136).to(dtype)
    out = sparsedrop.dropout_linear(*leaves, p=0.5, block_shape=BLOCK, side=side, sampler=sampler)
    grads = torch.autograd.grad(out, leaves, upstream)
    shape = 192, 136 if side == "output" else 64
    mask = BlockMask.from_live(extension_stub.C.grids[-1], shape, block_shape=BLOCK)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = reference.dropout_linear(*exact, *[None] * (not bias), mask, 0.5, side)
    return out, grads, truth, torch.autograd.grad(truth, exact, upstream.double())


def _assert_right(out, grads, truth, exact):
    for own, expected in zip((out, *grads), (truth, *exact), strict=True):
        assert own.dtype is out.dtype
        error = (own.double() - expected).norm()
        assert error <= 4 * torch.finfo(out.dtype).eps * (1 + expected.norm())


def _architectures(layer):
    """Those of a layer's launches, forward and both gradients."""
    return [launch.plan["architecture"] for launch in layer._launches(layer.facts)]


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_runs_in_tf32(side, bias, tf32):
    for sampler in ("bernoulli", "balanced"):
        with select.override(architecture="sm80"):
            results = _run(F32, side, bias, sampler)
        layer = results[0].grad_fn.layer
        assert type(layer) is KernelLayer
        assert _architectures(layer) == ["sm80"] * 3
        _assert_right(*results)


@pytest.mark.parametrize("architecture", ["sm80", "sm90"])
def test_a_layer_obeys_a_forced_architecture(architecture):
    with select.override(architecture=architecture):
        results = _run(BF16)
    assert _architectures(results[0].grad_fn.layer) == [architecture] * 3
    _assert_right(*results)


def test_a_layer_in_float32_is_dense_without_tf32():
    assert type(_run(F32)[0].grad_fn.layer) is DenseLayer
    with select.override(architecture="sm80"), pytest.raises(ValueError, match="as TF32 only"):
        _run(F32)


@pytest.mark.usefixtures("untested")
def test_a_layer_in_float32_is_dense_where_no_kernels_multiply_it(tf32, monkeypatch):
    assert type(_run(F32)[0].grad_fn.layer) is DenseLayer  # untested
    only = [tile for tile in HOPPER if tile.architecture == "sm90"]
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: {**FACTS, "tiles": tuple(only)})
    with select.override(path="kernel"), pytest.raises(ValueError, match="no kernels for torch"):
        _run(F32)


def test_a_gpu_without_kernels_refuses_forced_ones(monkeypatch):
    old = {**FACTS, "capability": (7, 5), "tiles": ()}
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: old)
    assert type(_run(BF16)[0].grad_fn.layer) is DenseLayer
    layers = (Layer(normal(64, 64).to(BF16), None),)
    for forced in ({"architecture": "sm80"}, {"path": "kernel"}):
        with select.override(**forced):
            with pytest.raises(ValueError, match=r"no kernels for compute capability 7\.5"):
                _run(BF16)
            x, dropped = normal(192, 64).to(BF16), Dropped((0.5, 0.0), BLOCK, "bernoulli")
            with pytest.raises(ValueError, match=r"no kernels for compute capability 7\.5"):
                functional.dropped_stack(x, layers, dropped, True)


def _measured(precision):
    """Costs of sm80 by which its kernels are worth their while."""
    tiles = dict.fromkeys(AMPERE, Cost(1.0, 0.1, 0.05))
    costs = {**tiles, CUBLAS: Cost(5.0, 5.0, 2.0)}
    return Saved("costs.json", tuple((precision, tile, cost) for tile, cost in costs.items()))


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    ("precision", "is_allowed", "path"),
    [(TF32, True, "kernel"), (TF32, False, "dense"), (HALF, True, "dense")],
)
def test_measured_costs_let_a_layer_run_in_tf32(precision, is_allowed, path, monkeypatch):
    facts = {**FACTS, "saved": _measured(precision)}
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: facts)
    shapes = torch.Size((4096, 4096)), F32, torch.Size((4096, 4096)), F32
    of = Facts(0, *shapes, None, None, F32, False, 50, (128, 128), "input", False, is_allowed)
    requests = tuple(map(plan.request_of, keys_of(of)))
    assert [request.tf32 for request in requests] == [is_allowed] * 3
    choice = select.decide_layer(requests)
    assert choice.path == path
    assert all(HOPPER[c.tile].architecture == "sm80" for c in choice.products)


def test_a_products_plan_depends_on_tf32(tf32):
    a, b, mask = torch.randn(256, 128), torch.randn(128, 384), random_mask((256, 128), BLOCK, "cpu")
    key = plan.key_of(Product(a, b, None, How(mask)))
    assert plan.Key(*key).tf32
    with select.override(architecture="sm80"):
        made = plan.make_plan(key)
    assert made.launch.plan["architecture"] == "sm80"
    assert made.launch.plan["dtype"] == extension_stub.DTYPES["float32"]
    assert made.workspace * 4 >= made.launch.workspace_bytes > (made.workspace - 1) * 4
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert not plan.Key(*plan.key_of(Product(a, b, None, How(mask)))).tf32
    # In 16 bits it makes no difference.
    half = Product(a.bfloat16(), b.bfloat16(), None, How(mask))
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert not plan.Key(*plan.key_of(half)).tf32


def test_a_stack_in_float32_runs_product_by_product(tf32):
    """What stands between its products has kernels in 16 bits only."""
    dropped = Dropped((0.0, 0.5, 0.0), (128, 128), "bernoulli")
    for dtype, is_whole in ((BF16, True), (F32, False)):
        x = normal(256, 128).to(dtype)
        weights = normal(256, 128).to(dtype), normal(128, 256).to(dtype)
        layers = Layer(weights[0], None, "gelu"), Layer(weights[1], None)
        with select.override(architecture="sm80"):
            stack = stack_of(x, layers, dropped)
        assert (stack is not None) == is_whole


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("side", ["input", "output"])
def test_the_op_of_a_layer_obeys_a_forced_architecture(dtype, side, tf32, monkeypatch):
    x, weight, bias = (normal(*s).to(dtype) for s in ((192, 64), (136, 64), (136,)))
    made = []
    monkeypatch.setattr(op, "kernel_layer_for", _recorded(op.kernel_layer_for, made))
    with select.override(architecture="sm80"):
        args = x, weight, bias, 0.5, *BLOCK, spelled("bernoulli", side, dtype)
        out, pack = op._forward(*args)
        _, fake_pack = op._fake_forward(*args)
        grad = normal(192, 136).to(dtype)
        how = spelled(side, dtype, dtype, dtype, [True] * 3)
        grads = op._backward(grad, x, weight, pack, 0.5, 64, *BLOCK, how)
    assert pack.shape == fake_pack.shape
    assert [layer.facts.tf32 for layer in made] == [dtype is F32] * 2
    assert made[0] is made[1]
    assert _architectures(made[0]) == ["sm80"] * 3
    shape = 192, 136 if side == "output" else 64
    mask = BlockMask.from_live(extension_stub.C.grids[-1], shape, block_shape=BLOCK)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    truth = reference.dropout_linear(*exact, mask, 0.5, side)
    _assert_right(out, grads, truth, torch.autograd.grad(truth, exact, grad.double()))


def _of_op(dtype):
    """What the op of a layer runs by now."""
    operands = torch.Size((192, 64)), dtype, torch.Size((136, 64)), dtype, None, None
    called = 0.5, BLOCK, spelled("bernoulli", "input", dtype)
    return op._forward_for(0, operands, called, op._state(dtype))[0]


def test_the_op_of_a_layer_looks_anew_where_an_architecture_is_forced():
    for architecture in ("sm80", "sm90", "sm80"):
        with select.override(architecture=architecture):
            assert _architectures(_of_op(BF16)) == [architecture] * 3


def test_the_op_of_a_layer_looks_anew_where_tf32_is_allowed(tf32):
    with select.override(architecture="sm80"):
        assert _of_op(F32).facts.tf32
        torch.set_float32_matmul_precision("highest")
        assert _of_op(F32) is None
        torch.set_float32_matmul_precision("high")
        assert _of_op(F32).facts.tf32


def _recorded(function, made):
    def wrapper(*args):
        made.append(function(*args))
        return made[-1]

    return wrapper


@pytest.mark.usefixtures("untested")
def test_a_compiler_takes_kernels_where_the_selection_may(monkeypatch):
    cases = itertools.product((HOPPER, AMPERE), (BF16, F32))
    found = []
    for tiles, dtype in cases:
        monkeypatch.setattr(kernels, "gpu_facts", lambda index, t=tiles: {**FACTS, "tiles": t})
        with select.override(architecture="sm80"):
            found.append((takes_kernels(0, dtype), takes_kernels(0, torch.float64)))
        found.append(takes_kernels(0, dtype))
    assert found == [
        *((True, False), True), *((False, False), False),  # on Hopper, float32 without TF32
        *((True, False), False), *((False, False), False),
    ]  # fmt: skip
