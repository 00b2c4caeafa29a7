"""Training steps in CUDA graphs."""

import gc

import pytest
import torch
from torch import nn

import sparsedrop
from sparsedrop.nn import RowPatternMLP, SliceOutMLP, SparseDropMLP, TilePatternLinear

BF16 = torch.bfloat16
pytestmark = pytest.mark.gpu

HIDDEN = 512  # eight starts of slices


def _stepper(model):
    """Leaves gradients behind."""

    def step(x):
        out = model(x)
        loss = out.float().square().mean()
        loss.backward()
        return loss.detach(), out.detach()

    return step


@pytest.mark.parametrize("kind", [SliceOutMLP, RowPatternMLP])
def test_each_graph_is_the_block_of_its_draw(kind):
    torch.manual_seed(0)
    block = kind(64, HIDDEN, p=0.5).to("cuda", BF16)
    x = torch.randn(32, 64, device="cuda", dtype=BF16)
    run = sparsedrop.capture(block, _stepper(block), x, draws=8)
    assert run.graphs == 8
    seen = {}
    for _ in range(16):
        loss, out = run(x)
        gradient = block.up.weight.grad
        live = gradient.float().abs().sum(1) != 0
        assert torch.equal(live, block.down.weight.grad.float().abs().sum(0) != 0)
        units = tuple(live.nonzero().flatten().tolist())
        hidden = nn.functional.gelu(block.up(x)) * live
        scale = HIDDEN / len(units) if kind is SliceOutMLP else 2.0
        exact = nn.functional.linear(hidden * scale, block.down.weight, block.down.bias)
        assert (out - exact).float().norm() <= 0.02 * exact.float().norm()
        assert loss.isfinite()
        seen.setdefault(units, []).append(loss.item())
    assert len(seen) == (8 if kind is SliceOutMLP else len(seen)) > 1
    # The same draw of the same batch is the same step.
    assert all(len(set(losses)) == 1 for losses in seen.values())
    if kind is SliceOutMLP:
        kept = torch.zeros(HIDDEN)
        for units in seen:
            kept[list(units)] += 1
        assert (kept == 4).all()


def test_what_is_drawn_on_the_gpu_takes_one_graph():
    block = SparseDropMLP(256, 1024, p=0.5).to("cuda", BF16)
    x = torch.randn(512, 256, device="cuda", dtype=BF16)
    run = sparsedrop.capture(block, _stepper(block), x)
    assert run.graphs == 1
    assert len({run(x)[0].item() for _ in range(4)}) == 4


@pytest.mark.parametrize("kind", [SliceOutMLP, RowPatternMLP, TilePatternLinear, SparseDropMLP])
def test_it_trains_as_eager_mode_does(kind):
    """A regression by captured steps, with the optimiser in them."""
    torch.manual_seed(1)
    block = (kind(128, 128, p=0.5) if kind is TilePatternLinear else kind(128, 512, p=0.5)).cuda()
    target = nn.Linear(128, 128).cuda()
    model = nn.Sequential(block, nn.Linear(128, 128).cuda())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True, fused=True)

    def step(x, y):
        optimizer.zero_grad()
        with torch.autocast("cuda", BF16):
            loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def batch():
        x = torch.randn(1024, 128, device="cuda")
        return x, target(x).detach()

    run = sparsedrop.capture(model, step, *batch(), draws=4)
    losses = [run(*batch()).item() for _ in range(200)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    model.eval()
    x, y = batch()
    assert nn.functional.mse_loss(model(x), y) < nn.functional.mse_loss(torch.zeros_like(y), y)


def test_gradients_that_are_left_behind_are_those_of_the_call():
    """For an optimiser outside of the step; also where it forgets them in between."""
    torch.manual_seed(2)
    block = SliceOutMLP(64, 256, p=0.5).to("cuda", BF16)
    x = torch.randn(32, 64, device="cuda", dtype=BF16)
    run = sparsedrop.capture(block, _stepper(block), x, draws=4)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.0)
    for _ in range(12):
        _, out = run(x)
        found = [p.grad.clone() for p in block.parameters()]
        live = found[0].float().abs().sum(1) != 0
        up, down = block.up, block.down
        leaves = [p.detach().clone().requires_grad_() for p in block.parameters()]
        hidden = nn.functional.gelu(nn.functional.linear(x, *leaves[:2])) * live
        exact = nn.functional.linear(hidden * (256 / int(live.sum())), *leaves[2:])
        assert (out - exact).float().norm() <= 0.02 * exact.float().norm()
        expected = torch.autograd.grad(exact.float().square().mean(), leaves)
        for own, truth in zip(found, expected, strict=True):
            assert (own - truth).float().norm() <= 0.03 * truth.float().norm()
        assert (up.weight.grad is not None, down.weight.grad is not None) == (True, True)
        optimizer.step()
        optimizer.zero_grad()


def test_gradients_are_those_of_each_call_where_some_steps_make_none():
    """The host skips a layer in every other step; gradients of the batch are new, too."""
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)).cuda()
    block, calls = SliceOutMLP(8, 64, p=0.5, align=8).cuda(), []

    def step(x):
        calls.append(None)
        out = block(layers[0](x))
        if len(calls) % 2:
            out = layers[1](out)
        out.sum().backward()
        return x.grad

    x = torch.randn(4, 8, device="cuda", requires_grad=True)
    run = sparsedrop.capture(nn.ModuleList([layers, block]), step, x, draws=4)
    made = set()
    for _ in range(8):
        given = torch.randn(4, 8, device="cuda")
        of_x = run(given)
        last = layers[1].weight.grad
        made.add(last is None)
        # That of x follows from that of the first layer's result, a row for each sample.
        assert torch.allclose(of_x.sum(0), layers[0].bias.grad @ layers[0].weight, atol=1e-3)
        assert last is None or torch.equal(layers[1].bias.grad, torch.full_like(last[0], 4.0))
    assert made == {True, False}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_learning_rate_in_a_tensor_is_scheduled(kind):
    model, x = SliceOutMLP(64, 256, p=0.5).cuda(), torch.randn(32, 64, device="cuda")
    rate = torch.tensor(0.1, device="cuda")
    options = {} if kind is torch.optim.SGD else {"capturable": True}
    optimizer = kind(model.parameters(), lr=rate, weight_decay=0.0, fused=True, **options)

    def step(x):
        model(x).square().mean().backward()
        optimizer.step()

    run = sparsedrop.capture(model, step, x, draws=2)
    before = [own.clone() for own in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"].fill_(0.0)
    run(x), run(x)
    assert all(map(torch.equal, before, model.parameters()))
    for group in optimizer.param_groups:
        group["lr"].fill_(0.1)
    run(x), run(x)
    assert not any(map(torch.equal, before, model.parameters()))


def test_graphs_share_their_memory():
    block = SliceOutMLP(512, 2048, p=0.5).to("cuda", BF16)
    x = torch.randn(8192, 512, device="cuda", dtype=BF16)
    reserved = []
    for draws in (1, 8):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        run = sparsedrop.capture(block, _stepper(block), x, draws=draws)
        assert run.graphs == draws
        reserved.append(torch.cuda.memory_reserved() - before)
        del run
    assert reserved[1] < 2 * reserved[0]


def test_what_waits_for_the_gpu_is_refused():
    model = nn.Linear(4, 4).cuda()
    with pytest.raises(RuntimeError, match="the step cannot be captured: it may wait for the GPU"):
        sparsedrop.capture(model, lambda x: model(x).sum().item(), torch.ones(2, 4, device="cuda"))


def test_a_refusal_gives_its_memory_back():
    model = nn.Linear(1024, 1024).cuda()
    x = torch.ones(4096, 1024, device="cuda")
    reserved = []
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the step cannot be captured"):
            sparsedrop.capture(model, lambda x: model(x).relu().sum().item(), x)
        model.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] == reserved[0]


def test_after_a_refusal_torch_draws_and_captures_as_before():
    """Also a step that was captured earlier follows the seed."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).cuda()
    x = torch.ones(32, 64, device="cuda")
    earlier = sparsedrop.capture(model, _stepper(model), x)

    def seeded(draw):
        torch.cuda.manual_seed(3)
        return [draw().clone() for _ in range(2)]

    def drawn():
        return torch.rand(64, device="cuda")

    cases = [drawn, lambda: model(x), lambda: earlier(x)[1]]
    before = [seeded(case) for case in cases]
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="the step cannot be captured"):
        sparsedrop.capture(model, lambda x: model(x).sum().item(), x)
    assert torch.cuda.current_stream() == stream
    later = sparsedrop.capture(model, _stepper(model), x)
    cases.append(lambda: later(x)[1])
    before.append(before[2])
    for case, old in zip(cases, before, strict=True):
        new = seeded(case)
        assert all(map(torch.equal, old, new))
        assert not torch.equal(new[0], new[1])
