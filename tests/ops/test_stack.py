"""A stack as one node on a GPU, against the reference."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cases import assert_accurate, normal, value_and_grads
from layer_cases import GPU, SAMPLERS, ops_of_compiled
from sparsedrop import functional, select
from sparsedrop.nn import SparseDropMLP
from sparsedrop.ops.spelling import spelled
from sparsedrop.ops.stack import Dropped
from sparsedrop.ops.stack.facts import layers_of as layers_from
from sparsedrop.ops.stack.facts import parameters_of
from stack_cases import BF16, BLOCK, CASES, F32, PRECISIONS, layers_of, reference_of
from ways import forced

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _memory_full_of_nan():
    """What is allocated next, and not written, is NaN."""
    torch.full((1 << 26,), float("nan"), device=GPU)


def _inputs(case, precision, rows=(3, 64)):
    x_dtype, dtype, autocast = precision
    x = normal(*rows, case.sizes[0]).to(GPU, x_dtype).requires_grad_()
    upstream = normal(*rows, case.sizes[-1]).to(GPU, autocast or x_dtype)
    return x, layers_of(case, dtype, GPU), upstream


def _run(x, layers, dropped, upstream, autocast):
    with torch.autocast("cuda", autocast, enabled=autocast is not None):
        out = functional.dropped_stack(x, layers, dropped, True)
    leaves = [x, *(p for p in parameters_of(layers) if p is not None)]
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def _masks(case, rows, sampler):
    return {
        i: SAMPLERS[sampler]((rows, n), p, block_shape=BLOCK, device=GPU)
        for i, (n, p) in enumerate(zip(case.sizes, case.rates, strict=True))
        if p > 0
    }


@pytest.mark.parametrize("path", [None, "kernel", "sm80", "dense"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stack_is_the_reference_under_the_masks_it_draws(case, precision, sampler, path):
    x_dtype, _, autocast = precision
    product = autocast or x_dtype
    x, layers, upstream = _inputs(case, precision)
    torch.manual_seed(5)
    with forced(path):
        ours = _run(x, layers, Dropped(case.rates, BLOCK, sampler), upstream, autocast)
    torch.manual_seed(5)
    masks = _masks(case, 192, sampler)
    results = []
    for dtype in (product, torch.float64):
        out, leaves = reference_of(x, layers, masks, case.rates, product, dtype)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))])
    if "relu" in case.activations:
        _assert_near(ours, results[1], results[0])
    else:
        assert_accurate(ours, results[1], results[0])
    params = [p for p in parameters_of(layers) if p is not None]
    assert [t.dtype for t in ours] == [product, x.dtype, *(p.dtype for p in params)]


def _assert_near(ours, exact, theirs):
    """relu's slope jumps where its argument rounds to the other sign: a few elements decide."""
    for own, truth, their in zip(ours, exact, theirs, strict=True):
        error, allowed = ((t.double() - truth).norm() for t in (own, their))
        assert error <= 2 * allowed + 0.02 * truth.norm()


@pytest.mark.parametrize("path", ["kernel", "sm80"])
@pytest.mark.parametrize("precision", [PRECISIONS[0], PRECISIONS[3]], ids=str)
@pytest.mark.parametrize("case", ["stack", "gated and dropped before"])
def test_dropped_blocks_are_never_read(case, precision, path):
    case = CASES[case]
    x, layers, upstream = _inputs(case, precision, (512,))
    dropped = Dropped(case.rates, BLOCK, "bernoulli")
    results = []
    with forced(path):
        for _ in range(2):
            torch.manual_seed(5)
            results.append(_run(x, layers, dropped, upstream, precision[2]))
            torch.manual_seed(5)
            live = _masks(case, 512, "bernoulli")[0].expand()
            x = x.detach().masked_fill(~live, float("nan")).requires_grad_()
    for own, other in zip(*results, strict=True):
        assert own.isfinite().all()
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("backend", "path"), [("aot_eager", "kernel"), ("inductor", "kernel"), ("inductor", "sm80")]
)
@pytest.mark.parametrize("precision", [PRECISIONS[i] for i in (0, 2, 3)], ids=str)
@pytest.mark.parametrize("case", ["gelu", "gated and dropped before", "stack", "last relu"])
def test_compiled_it_draws_the_same_masks(case, precision, backend, path):
    case, autocast = CASES[case], precision[2]
    x, layers, upstream = _inputs(case, precision)
    params = [p.detach() for p in parameters_of(layers)]
    dropped = Dropped(case.rates, BLOCK, "bernoulli")
    how = [layer.activation or "" for layer in layers], [layer.gate is not None for layer in layers]

    def run(x, *params):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            return functional.dropped_stack(x, layers_from(params, *how), dropped, True)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for seed in (1, 2):
        results = []
        for function in (run, compiled):
            torch.manual_seed(seed)
            with forced(path):
                results.append(value_and_grads(function, [x, *params], upstream))
        for own, truth in zip(*results, strict=True):
            assert own.dtype == truth.dtype
            assert (own.double() - truth.double()).norm() <= 0.01 * truth.double().norm()


@pytest.mark.parametrize("autocast", [None, BF16], ids=str)
def test_compiled_a_block_is_one_op_each_way(autocast):
    mlp = SparseDropMLP(256, 1024, p=0.5, device=GPU, dtype=BF16 if autocast is None else F32)
    names, values = zip(*mlp.named_parameters(), strict=True)

    def run(x, *values):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            return torch.func.functional_call(mlp, dict(zip(names, values, strict=True)), x)

    inputs = [normal(512, 256).to(GPU, BF16), *(v.detach() for v in values)]
    upstream = normal(512, 256).to(GPU, BF16)
    assert ops_of_compiled(run, inputs, upstream) == [
        "sparsedrop.stack.default", "sparsedrop.stack_backward.default"
    ]  # fmt: skip


def test_opcheck():
    ops = torch.ops.sparsedrop
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    x, layers, _ = _inputs(CASES["gated"], PRECISIONS[3])
    params = [p.detach() for p in parameters_of(layers)]
    of_layers = [True, False], "silu", None
    drops = [0.0, 0.5, 0.0], *BLOCK
    args = x.detach(), params, *drops, spelled("bernoulli", BF16, *of_layers)
    torch.library.opcheck(ops.stack.default, args, test_utils=tests)
    out, pack, used_x, *rest = ops.stack(*args)
    weights, kept = rest[:3], rest[3:]
    for needs in ([True] * 7, [False, True] * 3 + [False]):
        how = spelled(F32, F32, [True] * 3, needs, *of_layers)
        args = torch.randn_like(out), used_x, weights, pack, kept, *drops, how
        torch.library.opcheck(ops.stack_backward.default, args)


MLPS = {
    "gelu": {"activation": "gelu", "out_p": 0.25},
    "gated": {"activation": "silu", "gated": True, "bias": False},
    "relu": {"activation": "relu"},
}


@pytest.mark.parametrize("kwargs", MLPS.values(), ids=MLPS)
def test_a_training_step_is_captured(kwargs):
    """Forward, backward and optimiser in one graph: every replay draws its own masks."""
    mlp = SparseDropMLP(256, 1024, 384, 0.5, **kwargs).to(GPU)
    optimizer = torch.optim.AdamW(mlp.parameters(), 1e-3, capturable=True)
    x = normal(512, 256).to(GPU, F32)
    target = normal(512, 384).to(GPU, F32)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", BF16):
            out = mlp(x)
        loss = nn.functional.mse_loss(out.float(), target)
        loss.backward()
        optimizer.step()
        return out, loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), select.override(path="kernel"):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), select.override(path="kernel"):
        out, loss = step()
    patterns, losses = [], []
    for _ in range(60):
        graph.replay()
        patterns.append((out == 0).cpu())
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    if mlp.out_p:
        assert not torch.equal(patterns[0], patterns[1])


def test_a_step_never_waits_for_the_gpu():
    mlp = SparseDropMLP(256, 1024, p=0.5, activation="gelu", out_p=0.25, device=GPU)
    x = torch.randn(512, 256, device=GPU)

    def step():
        with torch.autocast("cuda", BF16):
            mlp(x).sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_replays_the_masks(reentrant):
    mlp = SparseDropMLP(256, 1024, p=0.5, activation="gelu", out_p=0.25, device=GPU, dtype=BF16)
    x = torch.randn(512, 256, device=GPU, dtype=BF16, requires_grad=True)
    results = []
    for run in (mlp, lambda x: checkpoint(mlp, x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        mlp.zero_grad()
        x.grad = None
        with select.override(path="kernel"):
            out = run(x)
            out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in mlp.parameters())])
    assert all(map(torch.equal, *results))


def test_with_a_grad_scaler_in_float16():
    mlp = SparseDropMLP(256, 1024, 128, 0.5, activation="gelu", out_p=0.25, device=GPU)
    optimizer, scaler = torch.optim.SGD(mlp.parameters(), 0.1), torch.amp.GradScaler("cuda")
    x, target = torch.randn(512, 256, device=GPU), torch.randn(512, 128, device=GPU)
    losses = []
    for _ in range(60):
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.mse_loss(mlp(x), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(mlp.parameters(), 1.0, error_if_nonfinite=False)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_the_hidden_activation_is_stored_once():
    """Beside the parameters' gradients a step holds two hidden matrices at most."""
    rows, d, hidden = 8192, 512, 4096
    mlp = SparseDropMLP(d, hidden, p=0.5, activation="gelu", device=GPU, dtype=BF16)
    x = torch.randn(rows, d, device=GPU, dtype=BF16, requires_grad=True)
    with select.override(path="kernel"):
        mlp(x).sum().backward()
        mlp.zero_grad(set_to_none=True)
        x.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = mlp(x)
        kept = torch.cuda.memory_allocated() - before
        out.sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    one = 2 * rows * hidden
    assert kept < one + 2 * 2 * rows * d
    assert peak < 2 * one + 2 * (4 * rows * d + 2 * d * hidden)
