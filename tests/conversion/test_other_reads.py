"""What reads or writes a tensor in ways that no function of torch is called for."""

import functools

import pytest
import torch
from networks import Net, X, convert, found
from torch import nn
from torch.func import vmap


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x)


def _of_a_closure(hidden):
    return vmap(lambda i: hidden * i)(torch.ones(1))[0]


UNSEEN = {"a script": scripted, "a transform": vmap(torch.sin), "a closure": _of_a_closure}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("read", UNSEEN.values(), ids=UNSEEN)
def test_what_reads_a_value_beside_the_functions_of_torch(read):
    """It would see the zeros of a hidden value, or a value that nobody has dropped."""

    def of_the_hidden_value(m, x):
        hidden = m.one(x)
        return m.two(m.drop(hidden)) + read(hidden)

    def of_the_dropped_value(m, x):
        dropped = m.drop(m.one(x))
        return m.two(dropped) + read(dropped)

    assert found(convert(Net(of_the_hidden_value))) == [("two", "input")]
    assert found(convert(Net(of_the_dropped_value))) == [("one", "output")]


def test_a_view_of_what_a_dropout_writes():
    def forward(m, x):
        value = x.tanh()
        view = value.view(-1)
        m.drop(value)
        return m.one(value) + view.sum()

    model = Net(forward)
    model.drop.inplace = True
    report = convert(model)
    assert report.converted == ()
    assert report.skipped[0].reason == (
        "what one reads is used elsewhere, too: by a view of the same memory"
    )


def test_buffers_that_grow_are_put_back():
    """As those of a quantization's observers, which the first pass sizes."""

    def forward(m, x):
        m.largest.resize_(32).copy_(x.amax(0))
        return m.two(m.drop(m.one(x)))

    model = Net(forward)
    model.register_buffer("largest", torch.empty(0))
    largest = model.largest
    assert found(convert(model)) == [("", "mlp")]
    assert model.largest is largest
    assert largest.shape == (0,)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_layers_that_run_on_nested_tensors_stay(layout):
    parts = [torch.randn(5, 32), torch.randn(7, 32)]
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 32))
    report = convert(model, torch.nested.nested_tensor(parts, layout=layout))
    assert report.converted == ()
    assert report.skipped == (
        ("3", "input", None, "3 runs on nested tensors, which have no blocks"),
    )


OPERANDS = {
    "a number that is computed": (
        lambda m, x: m.two(m.drop(m.one(x).relu() * torch.tensor(2.0).sqrt())),
        [("", "mlp")],
    ),
    "a number that is trained": (
        lambda m, x: m.two(m.drop(m.one(x).square() ** m.three.bias[0].exp())),
        [("two", "input")],
    ),
    "a number that a layer makes": (
        lambda m, x: m.two(m.drop(m.one(x).square() ** m.three(x).mean())),
        [("two", "input")],
    ),
    "other bits of the same size": (
        lambda m, x: m.two(m.drop(m.one(x).view(torch.int32).view(torch.float32))),
        [("two", "input")],
    ),
}


@pytest.mark.parametrize(("forward", "sites"), OPERANDS.values(), ids=OPERANDS)
def test_what_goes_into_a_hidden_value(forward, sites):
    assert found(convert(Net(forward))) == sites


def test_the_gradient_of_a_number_is_finite():
    """Of an exponent it is a sum that has the logarithm of 0 in it, where a block is dropped."""

    def forward(m, x):
        return m.two(m.drop(m.one(x).square() ** m.three.bias[0].exp()))

    model = Net(forward)
    convert(model)
    model(X).sum().backward()
    assert model.three.bias.grad[0].isfinite()
    assert model.three.bias.grad[0] != 0


def _of_a_shape(m, x):
    hidden = m.one(x)
    return m.two(m.drop(hidden * hidden.shape[-1] ** -0.5))


def _of_a_size(m, x):
    dropped = m.drop(m.one(x).relu())
    return m.two(dropped) / dropped.size(-1)


@pytest.mark.parametrize("forward", [_of_a_shape, _of_a_size])
def test_how_many_units_there_are_is_known_to_blocks_alone(forward):
    assert found(convert(Net(forward))) == [("", "mlp")]
    for method in ("sliceout", "row-pattern"):
        report = convert(Net(forward), method=method)
        assert report.converted == ()
        assert report.skipped[0].reason == (
            f"{method} makes fewer units, and the model asks for the extents of the hidden value"
        )


def test_how_many_channels_there_are_is_no_number_to_multiply_by():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 128, 3, padding=1), nn.Conv2d(128, 8, 1)
            self.drop, self.scale = nn.Dropout(0.5), scale

        def forward(self, x):
            hidden = self.one(x).relu()
            return self.two(self.drop(hidden * self.scale(hidden)))

    x = torch.randn(4, 8, 6, 6)
    report = convert(Scaled(lambda h: h.shape[1] ** -0.5), x, method="sliceout")
    assert report.converted == ()
    assert "the model asks for its extents" in report.skipped[0].reason
    assert found(convert(Scaled(lambda h: 0.5), x, method="sliceout")) == [("", "conv")]
    assert found(convert(Scaled(torch.sigmoid), x, method="sliceout")) == [("", "conv")]


class _Keeper:
    def __init__(self):
        self.kept = []

    def hook(self, module, args, out):
        self.kept.append(out)


def _keep(kept, module, args, out):
    kept.append(out)


@pytest.mark.parametrize("kind", ["closure", "method", "partial", "default"])
def test_what_a_hook_keeps_is_read_elsewhere(kind):
    kept = []
    hook = {
        "closure": lambda module, args, out: kept.append(out),
        "method": _Keeper().hook,
        "partial": functools.partial(_keep, kept),
        "default": lambda module, args, out, kept=kept: kept.append(out),
    }[kind]
    model = Net(lambda m, x: m.two(m.drop(m.one(x).relu())))
    model.one.register_forward_hook(hook)
    assert found(convert(model)) == [("two", "input")]


def test_a_dropout_whose_input_is_written_later_stays():
    """What it leaves is of its own memory; a stand-in's result would be its input."""

    def forward(m, x):
        x = m.three(x).relu()
        dropped = m.drop(x)
        x += 1.0
        return m.one(dropped) + x

    report = convert(Net(forward))
    assert report.converted == ()
    (entry,) = report.skipped
    assert entry.reason.startswith("what it drops is written in place later, by add_")


def test_what_a_dropout_leaves_may_be_written():
    def forward(m, x):
        out = m.drop(m.one(x))
        out += x
        return out

    assert found(convert(Net(forward))) == [("one", "output")]
