"""The ops of row patterns, which compiled graphs call."""

import pytest
import torch

from sparsedrop.nn import RowPatternMLP, TilePatternLinear
from sparsedrop.ops.rows.op import BACKWARD, FORWARD, draw_tensor


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
def test_ops_keep_their_word(activation, scale, gated):
    """What they say of results' shapes, strides and operands is so."""
    block = RowPatternMLP(12, 27, 20, gated=gated).requires_grad_(False)
    gate = (block.gate.weight, block.gate.bias) if gated else (None, None)
    given = [block.up.weight, block.up.bias, *gate, block.down.weight, block.down.bias]
    x, pattern = torch.randn(5, 12), torch.tensor([3, 1])
    tests = {"test_utils": ("test_schema", "test_faketensor")}
    how = pattern, activation, scale
    torch.library.opcheck(FORWARD, (x, given, *how), **tests)
    out, *buffers = FORWARD(x, given, *how)
    needs = [True, True, True, gated, gated, True, True]
    grads = torch.randn_like(out), x, given, buffers, *how, needs
    torch.library.opcheck(BACKWARD, grads, **tests)


def test_the_draw_is_on_the_cpu_and_repeats_by_seed():
    torch.manual_seed(1)
    drawn = torch.stack([draw_tensor(27, 0.5, 8) for _ in range(500)])
    assert drawn.device.type == "cpu"
    assert set(drawn[:, 0].tolist()) == set(range(1, 9))
    assert (drawn[:, 1] < drawn[:, 0]).all()
    torch.manual_seed(1)
    assert all(torch.equal(draw_tensor(27, 0.5, 8), each) for each in drawn[:20])


def _run(function, model, x, seed):
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16):
        out = function(x)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), model.parameters())]


@pytest.mark.parametrize("scale", ["global", "pattern"])
@pytest.mark.parametrize(
    "make",
    [
        lambda scale: RowPatternMLP(32, 96, 24, gated=True, scale=scale),
        lambda scale: TilePatternLinear(32, 24, tile=8, scale=scale),
    ],
    ids=["rows", "tiles"],
)
def test_compiled_for_every_batch_and_rate_under_autocast(make, scale):
    model = make(scale)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, p in ((4, 0.5), (7, 0.3), (9, 0.6), (16, 0.5)):
        model.p = p
        x = torch.randn(rows, 32)
        ours, eager = (_run(f, model, x, rows) for f in (compiled, model))
        for own, other in zip(ours, eager, strict=True):
            assert own.dtype == other.dtype
            assert (own - other).norm() <= 0.01 * other.norm()


def test_compiled_without_gradients():
    block = RowPatternMLP(12, 27)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 12)
    with torch.no_grad():
        for seed in range(4):
            torch.manual_seed(seed)
            out = compiled(x)
            torch.manual_seed(seed)
            torch.testing.assert_close(out, block(x))


def test_draws_of_equal_blocks_are_kept_apart():
    model = torch.nn.Sequential(*(RowPatternMLP(12, 27) for _ in range(3))).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 12, dtype=torch.float64)
    for seed in range(4):
        torch.manual_seed(seed)
        out = compiled(x)
        torch.manual_seed(seed)
        torch.testing.assert_close(out, model(x), rtol=1e-12, atol=1e-12)
