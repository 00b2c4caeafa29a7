"""Training steps in CUDA graphs."""

import pytest
import torch
from torch import nn

import sparsedrop
from sparsedrop.capturing import CapturedStep, Replay
from sparsedrop.nn import RowPatternMLP, SliceOutMLP, SparseDropMLP, TilePatternLinear

BF16 = torch.bfloat16


def _stepper(model):
    """Leaves gradients behind."""

    def step(x):
        out = model(x)
        loss = out.float().square().mean()
        loss.backward()
        return loss.detach(), out.detach()

    return step


# ---- everywhere ---------------------------------------------------------------------------------


def test_on_a_cpu_calls_run_the_step():
    model, x = SliceOutMLP(16, 64), torch.randn(8, 16)
    calls = []

    def step(x):
        calls.append(x)
        return model(x).sum()

    run = sparsedrop.capture(model, step, x)
    assert isinstance(run, CapturedStep)
    assert (run.graphs, calls) == (0, [])
    assert run(x).grad_fn is not None
    assert calls == [x]


def test_a_batch_of_another_kind_is_refused():
    run = sparsedrop.capture(nn.Linear(4, 4), lambda x, y: None, torch.ones(2, 4), torch.ones(2))
    run(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"the batch is \[3, 4\] torch\.float32, \[2\] torch"):
        run(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"for \[2, 4\] torch\.float32, \[2\] torch\.float32"):
        run(torch.zeros(2, 4, dtype=BF16), torch.zeros(2))
    with pytest.raises(ValueError, match="the batch is nothing"):
        run()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draws": 0}, "draws must be a whole number of at least 1, not 0"),
        ({"draws": 1.5}, "draws must be a whole number of at least 1, not 1.5"),
        ({"warm_up": 0}, "warm_up must be a whole number of at least 1, not 0"),
        ({"draws": True}, "draws must be a whole number of at least 1, not True"),
    ],
)
def test_wrong_numbers(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        sparsedrop.capture(nn.Linear(4, 4), lambda: None, **options)


def test_examples_beside_the_model_are_refused():
    with pytest.raises(ValueError, match="on several devices: meta and cpu"):
        sparsedrop.capture(nn.Linear(4, 4), lambda x: None, torch.ones(2, 4, device="meta"))


def test_graphs_are_replayed_in_turn_in_random_orders():
    """With replays that only say which they are."""
    played, inputs = [], (torch.zeros(2),)
    weights, kept = [nn.Parameter(torch.ones(2)) for _ in range(2)], [torch.full((2,), 7.0)] * 2
    replays = [
        Replay(lambda i=i: played.append(i), f"result {i}", [True, i % 2 == 0]) for i in range(5)
    ]
    run = CapturedStep(lambda x: None, inputs, weights, replays, kept)
    results = [run(torch.full((2,), float(i))) for i in range(50)]
    assert results == [f"result {i}" for i in played]
    turns = [tuple(played[i : i + 5]) for i in range(0, 50, 5)]
    assert all(sorted(turn) == list(range(5)) for turn in turns)
    assert len(set(turns)) > 1
    assert torch.equal(inputs[0], torch.full((2,), 49.0))
    for _ in range(10):
        for weight in weights:
            weight.grad = None  # as an optimiser's zero_grad leaves it
        run(torch.zeros(2))
        assert weights[0].grad is kept[0]
        assert (weights[1].grad is None) == bool(played[-1] % 2)


def test_lazy_gradients_are_refused():
    model = nn.Sequential(SliceOutMLP(16, 64, gradients="lazy"))
    with pytest.raises(RuntimeError, match='0 has gradients="lazy", which cannot be captured'):
        sparsedrop.capture(model, lambda: None)


def test_a_call_starts_without_gradients():
    model, x = nn.Linear(4, 1), torch.ones(2, 4)
    run = sparsedrop.capture(model, lambda x: model(x).sum().backward(), x)
    for _ in range(3):
        run(x)
        assert torch.equal(model.weight.grad, torch.full((1, 4), 2.0))


# ---- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [SliceOutMLP, RowPatternMLP])
def test_each_graph_is_the_block_of_its_draw(kind):
    torch.manual_seed(0)
    block = kind(64, 256, p=0.5).to("cuda", BF16)
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
        scale = 256 / len(units) if kind is SliceOutMLP else 2.0
        exact = nn.functional.linear(hidden * scale, block.down.weight, block.down.bias)
        assert (out - exact).float().norm() <= 0.02 * exact.float().norm()
        assert loss.isfinite()
        seen.setdefault(units, []).append(loss.item())
    assert len(seen) == (8 if kind is SliceOutMLP else len(seen)) > 1
    # The same draw of the same batch is the same step.
    assert all(len(set(losses)) == 1 for losses in seen.values())
    if kind is SliceOutMLP:
        kept = torch.zeros(256)
        for units in seen:
            kept[list(units)] += 1
        assert (kept == 4).all()


@pytest.mark.gpu
def test_what_is_drawn_on_the_gpu_takes_one_graph():
    block = SparseDropMLP(256, 1024, p=0.5).to("cuda", BF16)
    x = torch.randn(512, 256, device="cuda", dtype=BF16)
    run = sparsedrop.capture(block, _stepper(block), x)
    assert run.graphs == 1
    assert len({run(x)[0].item() for _ in range(4)}) == 4


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_what_waits_for_the_gpu_is_refused_by_torch():
    model = nn.Linear(4, 4).cuda()
    with pytest.raises(RuntimeError):
        sparsedrop.capture(model, lambda x: model(x).sum().item(), torch.ones(2, 4, device="cuda"))
