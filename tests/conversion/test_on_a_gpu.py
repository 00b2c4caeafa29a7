"""Converted models on a GPU: values, precisions, graphs, the compiler."""

import copy

import pytest
import torch
from networks import ByHand, Conv1D, Conv1DBlock, Feedforward, Gated
from torch import nn

import sparsedrop
from cases import assert_accurate, value_and_grads
from layer_cases import ops_of_compiled
from sparsedrop import BlockMask, select

pytestmark = pytest.mark.gpu

GPU, ROWS, WIDTH, HIDDEN = torch.device("cuda", 0), 512, 256, 512
BLOCK = (128, 128)


def _ten_classes():
    return nn.Sequential(
        nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Dropout(0.5),
        nn.Linear(HIDDEN, WIDTH), nn.SiLU(), nn.Dropout(0.5),
        nn.Linear(WIDTH, 10),
    )  # fmt: skip


# Of each its dropouts, in the order in which masks are drawn, and their widths.
MODELS = {
    "mlp": (lambda: Feedforward(WIDTH, HIDDEN), (("drop", HIDDEN),)),
    "gated": (lambda: Gated(WIDTH, HIDDEN), (("drop", HIDDEN),)),
    "stack": (_ten_classes, (("2", HIDDEN), ("5", WIDTH))),
    "Conv1D": (lambda: Conv1DBlock(WIDTH, HIDDEN), (("drop", HIDDEN), ("dropout", WIDTH))),
    "Conv1D, output": (lambda: nn.Sequential(Conv1D(384, WIDTH), nn.Dropout(0.5)), (("1", 384),)),
    "input": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 384)), (("0", WIDTH),)),
    "output": (lambda: nn.Sequential(nn.Linear(WIDTH, 384), nn.Dropout(0.5)), (("1", 384),)),
}


def _by_hand(model, dropouts):
    model = copy.deepcopy(model)
    for name, width in dropouts:
        dropout = ByHand(model.get_submodule(name).p)
        mask = BlockMask.bernoulli((ROWS, width), dropout.p, block_shape=BLOCK, device=GPU)
        dropout.masks.append(mask.expand())
        model.set_submodule(name, dropout)
    return model


def _of(model):
    """A model as a function of its parameters, too."""
    names = [name for name, _ in model.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    return run


@pytest.mark.parametrize("path", [None, "dense", "kernel"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(name, autocast, path):
    make, dropouts = MODELS[name]
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    original = make().to(GPU, dtype)
    model, x = copy.deepcopy(original), torch.randn(2, ROWS // 2, WIDTH, device=GPU, dtype=dtype)
    sparsedrop.convert(model, (x,), min_speedup=0, block_shape=BLOCK)
    values = [p.detach() for p in original.parameters()]
    torch.manual_seed(1)
    masked = _by_hand(original, dropouts)
    torch.manual_seed(1)
    with torch.autocast("cuda", autocast, enabled=autocast is not None):
        with select.override(path=path):
            out = _of(model)(x, *values)
            upstream = torch.randn_like(out)
            torch.manual_seed(1)
            ours = value_and_grads(_of(model), [x, *values], upstream)
        torchs = value_and_grads(_of(masked), [x, *values], upstream)
    exact = value_and_grads(
        _of(masked.double()), [t.double() for t in (x, *values)], upstream.double()
    )
    assert_accurate(ours, exact, torchs)
    assert [t.dtype for t in ours] == [t.dtype for t in torchs]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_a_sequential_is_one_op_each_way(autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    model, x = _ten_classes().to(GPU, dtype), torch.randn(ROWS, WIDTH, device=GPU, dtype=dtype)
    sparsedrop.convert(model, x, min_speedup=0, block_shape=BLOCK)
    run = _of(model)

    def cast(*inputs):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            return run(*inputs)

    values = [p.detach() for p in model.parameters()]
    upstream = torch.randn(ROWS, 10, device=GPU, dtype=torch.bfloat16)
    with select.override(path="kernel"), torch.no_grad():
        assert cast(x, *values).shape == (ROWS, 10)
    with select.override(path="kernel"):
        out = cast(x.requires_grad_(), *values)
    assert type(out.grad_fn).__name__ == "_StackBackward"
    assert ops_of_compiled(cast, [x.detach(), *values], upstream) == [
        "sparsedrop.stack.default", "sparsedrop.stack_backward.default"
    ]  # fmt: skip


def _encoder(**kwargs):
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.25, batch_first=True, **kwargs)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_evaluation_is_the_original_bit_for_bit():
    model, x = _encoder().to(GPU), torch.randn(4, 128, 256, device=GPU)
    expected = copy.deepcopy(model).eval()(x)
    sparsedrop.convert(model, (x,), min_speedup=0)
    assert torch.equal(model.eval()(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_converted_model_trains_in_a_graph_and_with_a_scaler(dtype):
    model, x = _encoder(norm_first=True).to(GPU), torch.randn(4, 128, 256, device=GPU)
    report = sparsedrop.convert(model, (x,), min_speedup=0)
    assert [entry.kind for entry in report.converted].count("mlp") == 2
    target = torch.randn(4, 128, 256, device=GPU)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, capturable=True)

    def loss_of_a_step():
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype), select.override(path="kernel"):
            loss = nn.functional.mse_loss(model(x).float(), target)
            scaler.scale(loss).backward()
        return loss

    losses = []
    if dtype == torch.float16:  # its scaler looks at the gradients: it is not captured
        for _ in range(40):
            losses.append(loss_of_a_step().item())
            scaler.step(optimizer)
            scaler.update()
    else:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            loss_of_a_step()
            optimizer.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = loss_of_a_step()
            optimizer.step()
        for _ in range(40):
            graph.replay()
            losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("name", ["mlp", "Conv1D", "output"])
def test_compiled_it_draws_the_same_masks(name):
    make, _ = MODELS[name]
    model, x = make().to(GPU), torch.randn(ROWS, WIDTH, device=GPU)
    sparsedrop.convert(model, (x,), min_speedup=0, block_shape=BLOCK)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    upstream = torch.randn_like(model(x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2):
            results = []
            for each in (model, compiled):
                model.zero_grad()
                torch.manual_seed(seed)
                with torch.autocast("cuda", torch.bfloat16):
                    out = each(x)
                out.backward(upstream.to(out.dtype))
                results.append([out.detach(), *(p.grad for p in model.parameters())])
            for own, truth in zip(*results, strict=True):
                error = (own.double() - truth.double()).norm()
                assert error <= 0.01 * truth.double().norm()


def test_a_step_never_waits_for_the_gpu():
    model, x = _encoder().to(GPU), torch.randn(4, 128, 256, device=GPU)
    sparsedrop.convert(model, (x,), min_speedup=0)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            model(x).sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
