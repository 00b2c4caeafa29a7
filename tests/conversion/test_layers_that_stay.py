"""Linear layers and dropouts that are not just nn.Linear and nn.Dropout."""

import functools

import pytest
import torch
from networks import X, convert, found
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import sparsedrop
from sparsedrop.nn import SparseDropLinear


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class Named(nn.Linear):
    """An nn.Linear in all but its name."""

    def __init__(self) -> None:
        super().__init__(32, 32)


class Helpful(nn.Linear):
    def halve(self):
        self.weight.data /= 2


LINEARS = {
    "a forward of its own": (
        lambda: Own(32, 32),
        "Own is a linear layer with forward of its own",
    ),
    "a method of its own": (lambda: Helpful(32, 32), "Helpful is a linear layer with halve"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(32, 32)), "is made of"),
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Linear(32, 32)), "weight is made of"),
    "pruning": (lambda: prune.random_unstructured(nn.Linear(32, 32), "weight", 0.5), "is made of"),
    "ours": (lambda: SparseDropLinear(32, 32, p=0.0), "its linear layer is already converted"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("make", "reason"), LINEARS.values(), ids=LINEARS)
def test_layers_that_stay(make, reason):
    linear = make()
    model = nn.Sequential(nn.Tanh(), nn.Dropout(0.5), linear)
    kind = type(linear)
    report = convert(model)
    assert report.converted == ()
    assert type(model[2]) is kind
    entry = report.skipped[-1]
    assert entry[:2] == ("2", "input")
    assert reason in entry.reason


def test_a_parametrized_layer_keeps_its_parametrization():
    linear = parametrizations.spectral_norm(nn.Linear(32, 32))
    convert(nn.Sequential(nn.Dropout(0.5), linear, nn.Dropout(0.5), nn.Linear(32, 32)))
    assert parametrize.is_parametrized(linear)


def test_an_instance_whose_forward_was_wrapped_stays():
    """As accelerate does it."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 32))
    model[1].forward = functools.partial(nn.Linear.forward, model[1])
    report = convert(model)
    assert report.converted == ()
    assert report.skipped[0] == ("1", "input", None, "its forward was replaced on the instance")


def test_an_instance_with_a_forward_of_its_own_stays():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 32), nn.Dropout(0.5), nn.Linear(32, 32))
    model[1].forward = lambda x: x * 2
    report = convert(model)
    assert found(report) == [("3", "input")]
    assert torch.equal(model[1](X), X * 2)


def test_a_subclass_in_name_only_is_converted():
    model = nn.Sequential(nn.Dropout(0.5), Named())
    assert found(convert(model)) == [("1", "input")]
    assert sparsedrop.revert(model) == 1
    assert type(model[1]) is Named


@pytest.mark.parametrize("cousin", [nn.AlphaDropout, nn.Dropout1d, nn.FeatureAlphaDropout])
def test_other_dropouts_stay(cousin):
    report = convert(nn.Sequential(cousin(0.5), nn.Linear(32, 32)))
    assert report.converted == ()
    (entry,) = report.skipped
    assert entry[:2] == ("1", "input")
    assert f"{cousin.__name__} drops in a way of its own" in entry.reason


def test_dropouts_are_found_by_the_name_of_their_class():
    """As recipes look for those that are to stay on in evaluation."""
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.5), SparseDropLinear(32, 8))
    sparsedrop.convert(model, torch.randn(48, 32), method="sparsedrop", min_speedup=0)
    names = [n for n, m in model.named_modules() if type(m).__name__.startswith("Dropout")]
    assert names == ["2", "3.dropout"]
