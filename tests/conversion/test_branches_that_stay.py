"""Dropouts between convolutions that SliceOut leaves, each with a sentence."""

import pytest
import torch
from convolutions import GatedConvolutions, Inverted, Wide, convert
from networks import Feedforward, found
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.nn.utils import prune

import sparsedrop


class Net(nn.Module):
    """Convolutions of 8 channels to 32 and back, and a forward of a test's own."""

    def __init__(self, forward, **modules) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 8, 1)
        self.other, self.norm = nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32)
        self.drop, self.second_drop = nn.Dropout(0.5), nn.Dropout(0.5)
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = [forward]

    def forward(self, x):
        return self.run[0](self, x)


def _se_of_views(m, x):
    h = m.one(x)
    n, c, _, _ = h.size()
    gate = m.up(m.down(h.mean((2, 3), keepdim=True).view(n, c))).view(n, c, 1, 1)
    return m.two(m.drop(h * gate.sigmoid()))


def _two_drops(m, x):
    return m.two(m.second_drop(m.norm(m.drop(m.one(x)))))


LAYERS = {"up": lambda: nn.Linear(4, 32), "down": lambda: nn.Linear(32, 4)}

LEFT = {
    "a residual sum of hidden channels": (
        lambda m, x: m.two(m.drop(m.norm(m.one(x)).relu() + m.other(x))), {},
        "its channels meet a residual sum (add), which has all of them",
    ),
    "a residual sum behind the dropout": (
        lambda m, x: m.other(x) + m.drop(m.one(x)), {},
        "its channels meet a residual sum (add), which has all of them",
    ),
    "a residual sum, in place": (
        lambda m, x: m.two(m.drop(m.one(x)).add_(m.other(x))), {},
        "its channels meet a residual sum (add_), which has all of them",
    ),
    "the channels of the input": (
        lambda m, x: m.one(m.drop(x.relu())), {},
        "its channels are those of an input of the model, or of a parameter",
    ),
    "the channels of the output": (
        lambda m, x: m.drop(m.norm(m.one(x))), {},
        "its channels are read by the caller, which takes all of them",
    ),
    "other readers": (
        lambda m, x: (lambda h: m.two(m.drop(h)).sum() + h.softmax(1).sum())(m.one(x)), {},
        "its channels are read by softmax, which takes all of them",
    ),
    "other makers": (
        lambda m, x: m.two(m.drop(torch.cat([m.one(x), x], 1)[:, :32])), {},
        "its channels are made by __getitem__, which makes all of them",
    ),
    "a reader before the dropout": (
        lambda m, x: (lambda h: m.two(m.drop(h)) + m.early(h))(m.one(x)),
        {"early": lambda: nn.Conv2d(32, 8, 1)},
        "early reads the channels before they are dropped",
    ),
    "no reader behind the dropout": (
        lambda m, x: (lambda h: (m.drop(h).relu(), m.two(h))[1])(m.one(x)), {},
        "two reads the channels before they are dropped",
    ),
    "channels that join behind the dropout": (
        lambda m, x: m.two(m.drop(m.one(x)) * m.other(x)), {},
        "the channels that other makes join behind it",
    ),
    "group norm": (
        lambda m, x: m.two(m.drop(m.norm(m.one(x)))), {"norm": lambda: nn.GroupNorm(4, 32)},
        "group_norm normalises over its channels: of norms a slice is for nn.BatchNorm2d",
    ),
    "layer norm": (
        lambda m, x: m.two(m.drop(F.layer_norm(m.one(x), (32, 6, 6)))), {},
        "layer_norm normalises over its channels: of norms a slice is for nn.BatchNorm2d",
    ),
    "a norm behind the dropout": (
        lambda m, x: m.two(m.norm(m.drop(m.one(x)))), {"norm": lambda: nn.InstanceNorm2d(32)},
        "instance_norm normalises over its channels: of norms a slice is for nn.BatchNorm2d",
    ),
    "a batch norm that counts": (
        lambda m, x: m.two(m.drop(m.norm(m.one(x)))),
        {"norm": lambda: nn.BatchNorm2d(32, momentum=None)},
        "norm has no momentum: it counts all batches, and of a slice each channel sees fewer",
    ),
    "a batch norm of another class": (
        lambda m, x: m.two(m.drop(m.norm(m.one(x)))), {"norm": lambda: _OwnNorm(32)},
        "a call of F.batch_norm cannot be swapped on an instance: make it a module",
    ),
    "groups that widen": (
        lambda m, x: m.out(m.drop(m.wide(m.one(x)))),
        {"wide": lambda: nn.Conv2d(32, 64, 3, groups=32), "out": lambda: nn.Conv2d(64, 8, 1)},
        "wide makes 64 channels of 32 in 32 groups, and a slice is of whole groups of as many "
        "channels on both sides",
    ),
    "groups of what is not sliced": (
        lambda m, x: x + m.out(m.drop(m.deep(x).relu())),
        {"deep": lambda: nn.Conv2d(8, 8, 1, groups=2), "out": lambda: nn.Conv2d(8, 8, 1)},
        "its channels are those of an input of the model, or of a parameter",
    ),
    "a functional convolution": (
        lambda m, x: F.conv2d(m.drop(m.one(x)), m.two.weight), {},
        "a call of F.conv2d cannot be swapped on an instance: make it a module",
    ),
    "a parametrized convolution": (
        lambda m, x: m.two(m.drop(m.one(x))),
        {"two": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 8, 1))},
        "a call of F.conv2d cannot be swapped on an instance: make it a module",
    ),
    "a weight that is no parameter": (
        lambda m, x: m.two(m.drop(m.one(x))), {"two": lambda: _pruned(nn.Conv2d(32, 8, 1))},
        "two: its weight is no parameter of its own",
    ),
    "other padding": (
        lambda m, x: m.two(m.drop(m.one(x))),
        {"one": lambda: nn.Conv2d(8, 32, 3, padding=1, padding_mode="circular")},
        "one pads by padding_mode='circular'",
    ),
    "two dropouts": (_two_drops, {}, "second_drop drops the same channels"),
    "a squeeze-excite of views": (
        _se_of_views, LAYERS,
        "its channels go through view, whose arguments may name how many there are: use flatten, "
        "unsqueeze, [..., None, None] or -1",
    ),
    "a flattened image": (
        lambda m, x: m.head(m.drop(m.one(x)).flatten(1)), {"head": lambda: nn.Linear(32 * 36, 2)},
        "its channels go through flatten, whose arguments may name how many there are: use "
        "flatten, unsqueeze, [..., None, None] or -1",
    ),
    "a linear layer along the width": (
        lambda m, x: m.head(m.drop(m.one(x)).relu() * 2.0), {"head": lambda: nn.Linear(6, 2)},
        "head is a linear layer along another extent than the channels",
    ),
    "a reduction of the channels": (
        lambda m, x: m.drop(m.one(x)).mean(1), {},
        "its channels are read by mean, which takes all of them",
    ),
    "too few channels": (
        lambda m, x: m.out(m.drop(m.few(x))),
        {"few": lambda: nn.Conv2d(8, 2, 1), "out": lambda: nn.Conv2d(2, 8, 1),
         "drop": lambda: nn.Dropout(0.2)},
        "of 2 channels a slice keeps all at p = 0.2",
    ),
    "few groups": (
        lambda m, x: m.two(m.drop(m.deep(m.one(x)))),
        {"deep": lambda: nn.Conv2d(32, 32, 3, groups=2), "drop": lambda: nn.Dropout(0.2)},
        "of 32 channels a slice of whole 16s keeps all at p = 0.2",
    ),
    "all channels": (
        lambda m, x: m.two(m.drop(m.one(x))), {"drop": lambda: nn.Dropout(1.0)},
        "p must be below 1: a slice keeps some units",
    ),
    "a rate of 0": (
        lambda m, x: m.two(m.drop(m.one(x))), {"drop": lambda: nn.Dropout(0.0)},
        "its rate is 0: give p",
    ),
}  # fmt: skip


class _OwnNorm(nn.BatchNorm2d):
    pass


def _pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(("forward", "modules", "reason"), LEFT.values(), ids=LEFT)
def test_left(forward, modules, reason):
    torch.manual_seed(0)
    model = Net(forward, **{name: make() for name, make in modules.items()})
    before = [(type(m), id(m)) for m in model.modules()]
    report = convert(model, torch.randn(3, 8, 6, 6), min_speedup=0)
    assert report.converted == ()
    assert report.skipped[0].reason == reason
    assert [(type(m), id(m)) for m in model.modules()] == before


def test_a_dropout_of_channels_is_another_thing():
    model = nn.Sequential(nn.Conv2d(8, 32, 1), nn.Dropout2d(0.5), nn.Conv2d(32, 8, 1), Wide())
    report = convert(model, torch.randn(3, 8, 6, 6))
    assert found(report) == [("3", "conv")]
    (entry,) = report.skipped
    assert entry.reason == "Dropout2d drops in a way of its own, not as nn.Dropout does"


def test_layers_at_several_places():
    class Shared(nn.Module):
        def __init__(self, forward):
            super().__init__()
            self.wide, self.run = Wide(), [forward]
            self.extra = nn.Conv2d(32, 8, 1)

        def forward(self, x):
            return self.run[0](self, x)

    x = torch.randn(3, 8, 6, 6)
    twice = Shared(lambda m, x: m.wide(m.wide(x)))
    assert found(convert(twice, x)) == [("wide", "conv")]
    torch.manual_seed(0)
    assert torch.isfinite(twice(x)).all()

    def elsewhere(m, x):
        return m.wide(x) + m.extra(m.wide.conv1(x))

    report = convert(Shared(elsewhere), x)
    assert [entry.reason for entry in report.skipped] == [
        "wide.conv1 is called at 2 places, and not at each of them in the same branch"
    ]

    def nested(m, x):
        first = m.wide.conv1(x)
        second = m.wide.conv1(x + 1)
        return m.wide.conv2(m.wide.drop(first)) + m.wide.conv2(m.wide.drop(second))

    report = convert(Shared(nested), x)
    assert {entry.reason for entry in report.skipped} == {
        "its layers are called again before they have all run"
    }


def test_a_shared_dropout_is_converted_for_all_or_none():
    x = torch.randn(3, 8, 6, 6)
    model = nn.Sequential(Wide(), Wide())
    model[1].drop = model[0].drop
    assert found(convert(model, x)) == [("0", "conv"), ("1", "conv")]
    assert model[0].conv1.out_dropout is model[1].conv2.dropout is model[0].drop
    assert sparsedrop.revert(model) == 4
    report = convert(model, x, filter=lambda name, module: name != "1")
    assert [entry[:2] + entry[3:] for entry in report.skipped] == [
        ("0", "conv", "its dropout also serves 1, which stays"), ("1", "conv", "excluded by filter")
    ]  # fmt: skip
    model[1].conv2.padding_mode = "reflect"
    report = convert(model, x)
    assert [entry.reason for entry in report.skipped] == [
        "0.drop is called at 2 places, and not at each of them in the same branch",
        "1.conv2 pads by padding_mode='reflect'",
    ]


def test_a_block_of_linear_layers_keeps_its_layers():
    class Both(nn.Module):
        """The layer that reads channels makes the units of a block."""

        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.pool = (
                nn.Conv2d(8, 32, 1), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)
            )  # fmt: skip
            self.mlp = Feedforward(32, 128)

        def forward(self, x):
            return self.mlp(self.drop(self.pool(self.conv(x)).flatten(1)))

    report = convert(Both(), torch.randn(3, 8, 6, 6))
    assert found(report) == [("mlp", "mlp")]
    assert [entry.reason for entry in report.skipped] == [
        "mlp.up is in a block that drops units of its own"
    ]


@pytest.mark.parametrize("method", ["sparsedrop", "row-pattern", "tile-pattern"])
def test_other_methods_find_nothing_between_convolutions(method):
    model = nn.Sequential(Wide(), Inverted(), GatedConvolutions())
    with pytest.raises(ValueError, match="nothing to convert in Sequential: 3 dropouts and 0"):
        sparsedrop.convert(model, torch.randn(3, 8, 6, 6), method=method)


def test_without_an_example_nothing_is_known_of_channels():
    model = nn.Sequential(nn.Conv2d(8, 32, 1), nn.Dropout(0.5), nn.Conv2d(32, 8, 1))
    report = sparsedrop.convert(model, method="sliceout")
    assert report.converted == ()
    assert [entry.reason for entry in report.skipped] == [
        "give example_inputs: which layers share channels is known from a forward pass alone"
    ]


def test_images_that_are_in_no_batch():
    model = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Dropout(0.5), nn.Conv2d(6, 8, 1))
    report = convert(model, torch.randn(8, 6, 6))
    assert [entry.reason for entry in report.skipped] == ["0 takes images that are in no batch"]
