"""What convert is asked for: rates, filters, blocks, and what is wrong."""

import pytest
import torch
from networks import Feedforward, Gated, Net, X, convert, found
from torch import nn

import sparsedrop


def test_rates():
    model = nn.Sequential(nn.Dropout(0.0), nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.3))
    model.append(nn.Linear(32, 32))
    report = convert(model)
    assert found(report) == [("", "mlp")]
    assert report.skipped[0][:2] == ("1", "input")
    assert report.skipped[0].reason == "its rate is 0: give p"
    sparsedrop.revert(model)
    assert found(convert(model, p=0.4)) == [("1", "input"), ("", "mlp")]
    assert (model[0].p, model[3].p, model[1].p, model[4].p) == (0.4, 0.4, 0.4, 0.4)


def test_revert_leaves_rates_as_they_were_set():
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, 32), nn.Softmax(-1), nn.Dropout(0.1))
    convert(model, p=0.4)
    sparsedrop.set_rate(model, 0.2)
    sparsedrop.revert(model)
    assert type(model[0]) is nn.Dropout
    assert (model[0].p, model[3].p) == (0.2, 0.1)


def test_rate_zero_is_followed_through_a_residual():
    """A dropout that does nothing returns its argument, which is read elsewhere, too."""
    model = Net(lambda m, x: x + m.two(m.drop(x)))
    model.drop.p = 0.0
    assert found(convert(model, p=0.5)) == [("two", "input")]


def test_filter_is_asked_for_each_site():
    asked = []

    def only_blocks(name, module):
        asked.append((name, module))
        return name.startswith("0")

    model = nn.Sequential(Feedforward(32, 64), nn.LayerNorm(32), nn.Dropout(0.5), nn.Linear(32, 8))
    report = convert(model, filter=only_blocks)
    assert asked == [("0", model[0].down), ("3", model[3])]
    assert found(report) == [("0", "mlp")]
    assert report.skipped[0].reason == "excluded by filter"
    assert type(model[3]) is nn.Linear
    assert type(model[2]) is nn.Dropout


def test_blocks_wider_than_a_value_are_refused_where_they_are_given():
    model = Feedforward(32, 64)
    report = convert(model, block_shape=(8, 128))
    assert report.converted == ()
    assert report.skipped[0].reason == "blocks of 8x128 are wider than its 64 features"


@pytest.mark.parametrize(
    ("rows", "width", "p", "block"),
    [
        (4096, 1024, 0.5, (128, 128)),
        (4096, 384, 0.5, (128, 128)),
        (64, 1024, 0.5, (16, 128)),
        (4096, 64, 0.5, (128, 16)),
        (256, 256, 0.5, (64, 64)),  # 4 blocks of 128x128: all would be dropped in 6 % of the steps
        (256, 256, 0.2, (128, 128)),
        (4, 8, 0.5, (8, 8)),
    ],
)
def test_blocks_fit_the_example(rows, width, p, block):
    model = nn.Sequential(nn.Dropout(p), nn.Linear(width, 8))
    convert(model, torch.randn(rows, width))
    assert model[1].block_shape == block


NOTHING = {
    "no dropout": (nn.Sequential(nn.Linear(32, 8)), "0 dropouts and 1 linear layers ran"),
    "no linear layer": (nn.Sequential(nn.Dropout(), nn.ReLU()), "1 dropouts and 0 linear layers"),
    "not next to each other": (
        nn.Sequential(nn.Dropout(), nn.LayerNorm(32), nn.Linear(32, 8)),
        "1 dropouts and 1 linear layers ran, none of them next to each other",
    ),
}


@pytest.mark.parametrize(("model", "says"), NOTHING.values(), ids=NOTHING)
def test_nothing_to_convert(model, says):
    with pytest.raises(ValueError, match=says):
        convert(model)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        (
            {"method": "magic"},
            ValueError,
            "method is one of 'sparsedrop', 'sliceout', 'row-pattern', 'tile-pattern', not 'magic'",
        ),
        ({"p": 1.5}, ValueError, r"p is a probability in \[0, 1\], not 1.5"),
        ({"sampler": "fair"}, ValueError, "sampler is one of"),
        ({"scale": "local"}, ValueError, "scale is one of 'global', 'pattern', not 'local'"),
        ({"block_shape": (0, 8)}, ValueError, "block_shape must be positive"),
        ({"min_speedup": -1}, ValueError, "min_speedup must be a number of at least 0, not -1"),
        ({"min_speedup": "1"}, ValueError, "min_speedup must be a number of at least 0, not '1'"),
        ({"filter": "mlp"}, TypeError, "filter must be a function of a name and a module"),
        (
            {"example_inputs": (8, 256)},
            RuntimeError,
            r"failed in .*\. They are tensors, not the extents of one$",
        ),
        ({"example_inputs": 3}, TypeError, "example_inputs is a tuple of positional or a dict"),
    ],
)
def test_what_is_wrong_is_said(kwargs, error, says):
    model = Gated(32, 64)
    with pytest.raises(error, match=says):
        sparsedrop.convert(model, **{"example_inputs": (X,), **kwargs})
    assert type(model.down) is nn.Linear


@pytest.mark.parametrize(
    "call",
    [
        lambda model: sparsedrop.convert(model, (X,)),
        lambda model: sparsedrop.set_rate(model, 0.5),
        sparsedrop.revert,
    ],
    ids=["convert", "set_rate", "revert"],
)
def test_a_model_is_a_module(call):
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, not function"):
        call(lambda x: x)


def test_lazy_modules_are_run_first():
    model = nn.Sequential(nn.Dropout(), nn.LazyLinear(8))
    with pytest.raises(ValueError, match=r"1\.weight has no values yet: run the model once"):
        convert(model)
    model(X)
    assert found(convert(model)) == [("1", "input")]
