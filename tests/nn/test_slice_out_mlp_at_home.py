"""SliceOutMLP in the ways that PyTorch runs modules."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from slice_cases import assert_equal_to, drawing, every_slice, masked, value_and_grads
from sparsedrop.nn import RowPatternMLP, SliceOutAttention, SliceOutMLP, TilePatternLinear


def _mlp(dtype=torch.float64, **kwargs):
    return SliceOutMLP(16, 48, **{"align": 8, **kwargs}).to(dtype)


def _seeded(run):
    torch.manual_seed(3)
    return run()


def test_copies_pickles_and_checkpoints():
    mlp = _mlp(gated=True)
    x = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)

    def grads(run):
        loss = _seeded(lambda: run(x).square().sum())
        torch.manual_seed(99)  # of the backward pass
        return torch.autograd.grad(loss, [x, *mlp.parameters()])

    plain = grads(mlp)
    again = grads(lambda x: checkpoint(mlp, x, use_reentrant=False))
    assert all(map(torch.equal, plain, again))
    buffer = io.BytesIO()
    torch.save(mlp, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(mlp), torch.load(buffer, weights_only=False)):
        assert torch.equal(_seeded(lambda other=other: other(x)), _seeded(lambda: mlp(x)))


def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    mlp = _mlp(gated=True)
    x = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    loss = mlp(x).square().sum()
    inputs = [x, *mlp.parameters()]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, inputs)))


@pytest.mark.parametrize("needed", ["x", "up.weight", "gate.bias", "down.weight", "down.bias"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gradients_of_some(needed, activation):
    mlp = _mlp(gated=True, activation=activation)
    x = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    inputs = {"x": x, **dict(mlp.named_parameters())}
    full = _seeded(lambda: torch.autograd.grad(mlp(x).square().sum(), list(inputs.values())))
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == needed)
    (one,) = _seeded(lambda: torch.autograd.grad(mlp(x).square().sum(), [inputs[needed]]))
    assert torch.equal(one, full[list(inputs).index(needed)])


class _Adapter(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.low = linear, nn.Linear(linear.in_features, linear.out_features)

    def forward(self, x):
        return self.linear(x) + self.low(x)


@pytest.mark.parametrize("kwargs", [{}, {"gated": True},
                                    {"starts": "all", "normalization": "probabilistic"},
                                    {"normalization": "none"}], ids=str)  # fmt: skip
def test_modules_that_are_not_plain_are_called(kwargs):
    mlp = _mlp(**kwargs)
    x = torch.randn(6, 16, dtype=torch.float64)
    before = _seeded(lambda: mlp(x))
    seen = []
    mlp.up.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    torch.testing.assert_close(_seeded(lambda: mlp(x)), before, rtol=1e-12, atol=1e-12)
    assert seen == [(6, 48)]
    mlp.up = _Adapter(mlp.up).double()
    after = _seeded(lambda: mlp(x))
    assert not torch.allclose(after, before)
    after.sum().backward()
    grad = mlp.up.low.weight.grad
    assert 0 < grad.any(1).sum() < 48


def test_autocast():
    """Values are within bfloat16's error, gradients of float32 parameters are float32."""
    mlp = _mlp(torch.float32, gated=True)
    x, upstream = torch.randn(64, 16), torch.randn(64, 16)
    for chosen in every_slice(mlp, 48):
        with drawing(chosen):
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                out = mlp(leaf)
            assert out.dtype == torch.bfloat16
            given = [leaf, *mlp.parameters()]
            ours = [out.float(), *torch.autograd.grad(out, given, upstream.bfloat16())]
        assert all(grad.dtype == torch.float32 for grad in ours)
        exact = value_and_grads(
            lambda x, chosen=chosen: masked(mlp, x, chosen), x, mlp.parameters(), upstream
        )
        for own, truth in zip(ours, exact, strict=True):
            assert (own - truth).norm() <= 0.02 * truth.norm()


def test_second_derivatives_under_autocast():
    mlp = _mlp(torch.float32)
    x = torch.randn(8, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = _seeded(lambda: mlp(x).float().square().sum())
    (grad,) = torch.autograd.grad(loss, [x], create_graph=True)
    rough = torch.autograd.grad(grad.square().sum(), [x])[0]
    loss = _seeded(lambda: mlp(x).square().sum())
    (grad,) = torch.autograd.grad(loss, [x], create_graph=True)
    exact = torch.autograd.grad(grad.square().sum(), [x])[0]
    assert (rough - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize("kwargs", [{}, {"gated": True, "bias": False},
                                    {"starts": "all", "normalization": "probabilistic"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_program_draws_at_each_run(kwargs, backend):
    mlp = _mlp(**kwargs)
    torch._dynamo.reset()
    compiled = torch.compile(mlp, fullgraph=True, backend=backend)
    x, upstream = (torch.randn(6, 16, dtype=torch.float64) for _ in range(2))
    parameters, outs = list(mlp.parameters()), []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(6):
            found = []
            for run in (compiled, mlp):
                torch.manual_seed(step)
                found.append(value_and_grads(run, x, parameters, upstream))
            assert_equal_to(*found)
            outs.append(found[0][0])
    assert len({out.sum().item() for out in outs}) > 1
    mlp.eval()
    torch.testing.assert_close(compiled(x), mlp(x))


def test_two_blocks_of_a_compiled_program_draw_apart():
    mlp = _mlp()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.stack([mlp(x) for _ in range(8)]), backend="aot_eager")
    outs = compiled(torch.randn(6, 16, dtype=torch.float64))
    assert len({out.sum().item() for out in outs}) > 1


def test_an_exported_program_draws_at_each_run():
    mlp = _mlp()
    x = torch.randn(6, 16, dtype=torch.float64)
    program = torch.export.export(mlp, (x,)).module()
    for step in range(4):
        outs = []
        for run in (program, mlp):
            torch.manual_seed(step)
            outs.append(run(x))
        torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


def test_flops_are_those_of_the_slice():
    mlp = _mlp(torch.float32, gated=True, p=0.25)
    x = torch.randn(6, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        mlp(x).sum().backward()
    rows, features, kept = 6, 16, 40
    assert counter.get_total_flops() == 3 * 3 * 2 * rows * features * kept


def test_transforms():
    mlp = _mlp()
    parameters = {name: p.detach() for name, p in mlp.named_parameters()}
    x = torch.randn(6, 16, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(mlp, parameters, (x,)).square().sum()

    made = _seeded(lambda: torch.func.grad(loss)(parameters, x))
    expected = _seeded(lambda: torch.autograd.grad(loss(dict(mlp.named_parameters()), x),
                                                   list(mlp.parameters())))  # fmt: skip
    assert_equal_to(list(made.values()), expected)
    _, tangent = _seeded(
        lambda: torch.func.jvp(lambda x: loss(parameters, x), (x,), (torch.ones_like(x),))
    )
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(_seeded(lambda: loss(parameters, leaf)), [leaf])
    torch.testing.assert_close(tangent, grad.sum())


@pytest.mark.parametrize("lead", [(0,), (3, 0), (), (2, 1, 3)], ids=str)
def test_batches_of_any_shape(lead):
    x = torch.randn(*lead, 16, dtype=torch.float64, requires_grad=True)
    mlp = _mlp(gated=True)
    out = mlp(x)
    assert out.shape == (*lead, 16)
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mlp.parameters())
    if not x.numel():
        assert not any(p.grad.any() for p in mlp.parameters())


def test_inputs_that_are_not_contiguous():
    mlp, x = _mlp(), torch.randn(16, 6, dtype=torch.float64).t()
    upstream = torch.randn(16, 6, dtype=torch.float64).t()
    ours = _seeded(lambda: value_and_grads(mlp, x, list(mlp.parameters()), upstream))
    plain = _seeded(lambda: value_and_grads(mlp, x.contiguous(), list(mlp.parameters()),
                                            upstream.contiguous()))  # fmt: skip
    assert_equal_to(ours, plain)


def test_a_default_device_does_not_take_the_draws():
    mlp = _mlp()
    x = torch.randn(6, 16, dtype=torch.float64)
    expected = _seeded(lambda: mlp(x))
    with torch.device("meta"):
        found = _seeded(lambda: mlp(x))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SliceOutMLP(16, 48, align=8),
        lambda: SliceOutAttention(16, 4),
        lambda: RowPatternMLP(16, 48),
        lambda: TilePatternLinear(16, 16, tile=4),
    ],
)
def test_fake_tensors(make):
    with FakeTensorMode():
        module = make()
        out = module(torch.randn(2, 6, 16))
        out.sum().backward()
    assert out.shape == (2, 6, 16)
    assert all(p.grad.shape == p.shape for p in module.parameters())


def test_nothing_fake_is_left_in_a_module():
    module, x = TilePatternLinear(16, 16, tile=4), torch.randn(3, 16)
    mode = FakeTensorMode()
    fakes = {name: mode.from_tensor(own) for name, own in module.named_parameters()}
    with mode:
        torch.func.functional_call(module, fakes, (mode.from_tensor(x),))
    module.p = 0.0625  # of which most draws have the period of the fake step
    torch.manual_seed(0)
    for _ in range(8):
        assert type(module(x).detach()) is torch.Tensor


def test_training_lowers_the_loss():
    mlp, x = _mlp(torch.float32), torch.randn(256, 16)
    target = torch.randn(256, 16)
    optimizer = torch.optim.AdamW(mlp.parameters(), 1e-2)
    first = nn.functional.mse_loss(mlp.eval()(x), target).item()
    mlp.train()
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(mlp(x), target).backward()
        optimizer.step()
    assert nn.functional.mse_loss(mlp.eval()(x), target).item() < 0.9 * first


@pytest.mark.parametrize(
    "make",
    [
        _mlp,
        lambda: RowPatternMLP(16, 48).double(),
        lambda: TilePatternLinear(16, 8, tile=4).double(),
    ],
    ids=["slices", "rows", "tiles"],
)
def test_vmap_draws_once_for_all_examples(make):
    module, x = make(), torch.randn(3, 5, 16).double()
    own = _seeded(lambda: torch.vmap(module, randomness="same")(x))
    each = [_seeded(lambda x=x: module(x)) for x in x]
    torch.testing.assert_close(own, torch.stack(each))
    with pytest.raises(RuntimeError, match="the same for all examples of torch"):
        torch.vmap(module, randomness="different")(x)
