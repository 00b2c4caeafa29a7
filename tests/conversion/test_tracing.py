"""The pass over the example leaves no trace, and what fails in it is said."""

import random
from dataclasses import dataclass

import pytest
import torch
from networks import Feedforward, Net, X, convert, found
from torch import Tensor, nn

import sparsedrop
from sparsedrop.nn import SparseDropLinear


def test_generators_are_put_back():
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(
        SparseDropLinear(32, 32, p=0.5, block_shape=(8, 8), generator=generator),
        Feedforward(32, 64),
    )
    states = torch.get_rng_state(), generator.get_state()
    convert(model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(generator.get_state(), states[1])


def test_buffers_are_put_back():
    model = nn.Sequential(nn.BatchNorm1d(32), Feedforward(32, 64), nn.BatchNorm1d(32))
    model.register_buffer("history", torch.zeros(3))
    buffers = dict(model.named_buffers())
    values = {name: buffer.clone() for name, buffer in buffers.items()}
    assert found(convert(model)) == [("1", "mlp")]
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, values[name])
    model(X)
    assert model[0].num_batches_tracked == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_parts_are_not_looked_into():
    script = torch.jit.script(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.5)))
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 32), script).eval()
    values = [buffer.clone() for buffer in script.buffers()]
    assert found(convert(model)) == [("1", "input")]
    assert len(values) == 3
    for buffer, value in zip(script.buffers(), values, strict=True):
        assert torch.equal(buffer, value)
    assert not any(module.training for module in model.modules())


def test_buffers_and_attributes_that_are_replaced_are_put_back():
    def forward(m, x):
        m.count += 1
        m.total = m.total + x.mean()
        m.last = x
        return m.two(m.drop(m.one(x)))

    model = Net(forward)
    model.count = 3
    model.register_buffer("total", torch.zeros(()))
    total = model.total
    convert(model)
    assert model.count == 3
    assert model.total is total
    assert not hasattr(model, "last")


@pytest.mark.parametrize("training", [True, False])
def test_flags_and_hooks_are_put_back(training):
    model = Feedforward(32, 64).train(training)
    model.drop.train(not training)
    flags = {m: m.training for m in model.modules()}
    convert(model)
    assert {m: m.training for m in flags} == flags
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_always_called
        assert not module._forward_pre_hooks_with_kwargs


def test_the_pass_runs_in_training_without_gradients():
    seen = []

    def forward(m, x):
        seen.append((m.training, m.drop.training, torch.is_grad_enabled()))
        return m.one(m.drop(x))

    convert(Net(forward).eval())
    assert seen == [(True, True, False)]
    assert torch.is_grad_enabled()


def test_a_pass_that_fails_leaves_the_model_alone():
    def forward(m, x):
        m.two(m.drop(m.one(x)))
        random.sample([], 1)

    inner = Net(forward).eval()
    model = nn.Sequential(nn.BatchNorm1d(32), inner).eval()
    state, before = torch.get_rng_state(), repr(model)
    mean = model[0].running_mean.clone()
    with pytest.raises(RuntimeError, match=r"failed in 1 \(Net\): ValueError: Sample larger"):
        convert(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].running_mean, mean)
    assert repr(model) == before
    assert not any(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_inputs_of_the_wrong_shape_are_named():
    with pytest.raises(RuntimeError, match=r"failed in up \(Linear\): RuntimeError: mat1 and mat2"):
        convert(Feedforward(32, 64), torch.randn(4, 31))


def test_an_exception_that_the_model_handles_is_its_own_affair():
    def forward(m, x):
        try:
            m.one(m.drop(x[:, :5]))
        except RuntimeError:
            return m.two(m.other_drop(x))

    model = Net(forward)
    report = convert(model)
    assert found(report) == [("two", "input")]


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Feedforward(32, 64)

    def forward(self, x, *, scale, mask=None):
        return {"out": self.net(x * scale), "mask": mask}


def test_keyword_arguments():
    model = Keywords()
    report = sparsedrop.convert(model, {"x": X, "scale": 2.0}, min_speedup=0)
    assert found(report) == [("net", "mlp")]


@pytest.mark.parametrize("inputs", [X, (X,), [X]], ids=["tensor", "tuple", "list"])
def test_positional_arguments(inputs):
    report = sparsedrop.convert(Feedforward(32, 64), inputs, min_speedup=0)
    assert found(report) == [("", "mlp")]


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Plain:
    def __init__(self, value) -> None:
        self.value = value


RETURNED = {
    "tuple": lambda out, hidden: (out, (hidden,)),
    "dict": lambda out, hidden: {"out": out, "hidden": [hidden]},
    "dataclass": lambda out, hidden: Output(out, (hidden,)),
    "object": lambda out, hidden: Plain([out, hidden]),
}


@pytest.mark.parametrize("pack", RETURNED.values(), ids=RETURNED)
def test_what_the_caller_gets_is_read(pack):
    def forward(m, x):
        hidden = m.one(x).relu()
        return pack(m.two(m.drop(hidden)), hidden)

    assert found(convert(Net(forward))) == [("two", "input")]


def test_what_a_module_keeps_is_read():
    def forward(m, x):
        m.kept = [m.one(x)]
        return m.two(m.drop(m.kept[0].relu()))

    assert found(convert(Net(forward))) == [("two", "input")]


@pytest.mark.parametrize(
    "look",
    [
        lambda h: (h.shape, h.size(), h.dim(), h.dtype, h.device, h.requires_grad, len(h)),
        lambda h: (h.is_cuda, h.numel(), h.stride(), h.is_contiguous(), h.is_floating_point()),
        torch.zeros_like,
        lambda h: h.new_ones(3),
    ],
)
def test_a_look_at_a_tensor_is_no_use_of_it(look):
    def forward(m, x):
        hidden = m.one(x)
        look(hidden)
        return m.two(m.drop(hidden.relu()))

    assert found(convert(Net(forward))) == [("", "mlp")]


@pytest.mark.parametrize(
    "read",
    [
        lambda h: h.data,
        lambda h: h.sum().item(),
        lambda h: torch.cat([h, h]),
        lambda h: h.numpy(),
        lambda h: h.tolist(),
        lambda h: h[0],
        lambda h: h.detach(),
        lambda h: torch.stack(list(h.chunk(2))),
    ],
)
def test_whatever_else_reads_a_value(read):
    def forward(m, x):
        hidden = m.one(x).relu()
        read(hidden)
        return m.two(m.drop(hidden))

    assert found(convert(Net(forward))) == [("two", "input")]


def test_a_model_on_the_meta_device():
    model = Feedforward(32, 64).to("meta")
    report = convert(model, torch.empty(48, 32, device="meta"), p=0.75)
    assert found(report) == [("", "mlp")]
    assert report.converted[0].expected_speedup == 4.0
    assert model(torch.empty(48, 32, device="meta")).shape == (48, 32)


def test_a_compiled_model_runs_eagerly():
    model = torch.compile(Feedforward(32, 64), backend="eager")
    assert found(convert(model)) == [("_orig_mod", "mlp")]
