"""Modules of ours in a model that is converted: they stay, and the report has them."""

import copy

import pytest
import torch
from networks import BLOCK, X, convert, found
from torch import nn

import sparsedrop
from sparsedrop.nn import SparseDropLinear, SparseDropMLP, SparseDropStack

OURS = {
    "input": (lambda: SparseDropLinear(32, 32, block_shape=BLOCK), [("1", "input")]),
    "output": (
        lambda: SparseDropLinear(32, 32, side="output", block_shape=BLOCK),
        [("1", "output")],
    ),
    "mlp": (lambda: SparseDropMLP(32, 64, block_shape=BLOCK), [("1", "mlp")]),
    "gated": (
        lambda: SparseDropMLP(32, 64, gated=True, out_p=0.25, block_shape=BLOCK),
        [("1", "gated"), ("1.down", "output")],
    ),
    "stack": (
        lambda: SparseDropStack([32, 64, 48, 32], block_shape=BLOCK),
        [("1.layers.0", "input"), ("1", "mlp"), ("1", "mlp")],
    ),
}

WITH_OURS = pytest.mark.parametrize(("make", "places"), OURS.values(), ids=OURS)


def _classes(module):
    return [(name, type(m)) for name, m in module.named_modules()]


@WITH_OURS
@pytest.mark.parametrize("has_example", [True, False])
def test_they_stay_beside_what_is_converted(make, places, has_example):
    ours = make()
    model = nn.Sequential(nn.Softmax(-1), ours, nn.Softmax(-1), nn.Dropout(0.5), nn.Linear(32, 8))
    before = _classes(ours)
    report = sparsedrop.convert(model, (X,) if has_example else None, min_speedup=0)
    assert found(report) == [("4", "input")]
    assert [entry[:2] for entry in report.skipped] == places
    assert {entry.reason for entry in report.skipped} == {"already converted"}
    assert _classes(ours) == before
    assert sparsedrop.revert(model) == 1
    assert _classes(ours) == before


@WITH_OURS
@pytest.mark.parametrize("has_example", [True, False])
def test_dropouts_around_them_stay(make, places, has_example):
    ours = make()
    model = nn.Sequential(nn.Dropout(0.5), ours, nn.Dropout(0.5))
    before = _classes(model)
    report = sparsedrop.convert(model, (X,) if has_example else None, min_speedup=0)
    assert report.converted == ()
    around = report.skipped[len(places) :]
    if isinstance(ours, SparseDropLinear):
        reason = "its linear layer is already converted"
        assert [entry[:2] for entry in around] == [("1", "input"), ("1", "output")]
    else:
        reason = "1 is next to it, which is already converted"
        assert [entry[:2] for entry in around] == [("0", "dropout"), ("2", "dropout")]
    assert {entry.reason for entry in around} == {reason}
    assert _classes(model) == before


@WITH_OURS
def test_one_is_the_whole_model(make, places):
    ours = make()
    expected = [(name.removeprefix("1").removeprefix("."), kind) for name, kind in places]
    assert [entry[:2] for entry in convert(ours).skipped] == expected


def test_what_is_put_inside_stays_too():
    block = SparseDropMLP(32, 64, block_shape=BLOCK)
    block.down = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 32))
    for example in ((X,), None):
        report = sparsedrop.convert(nn.Sequential(block), example, min_speedup=0)
        assert [entry[:2] for entry in report.skipped] == [("0", "mlp")]
        assert report.converted == ()


RATED = {
    "mlp": lambda: SparseDropMLP(32, 64, out_p=0.25, block_shape=BLOCK),
    "gated": lambda: SparseDropMLP(32, 64, gated=True, block_shape=BLOCK),
    "stack": lambda: SparseDropStack([32, 64, 48, 32], block_shape=BLOCK),
}


@pytest.mark.parametrize("make", RATED.values(), ids=RATED)
def test_set_rate(make):
    """A block counts once, and its output keeps a rate of its own."""
    model = nn.Sequential(make(), make(), nn.Dropout(0.75))
    out_rates = [getattr(block, "out_p", None) for block in model[:2]]
    assert sparsedrop.set_rate(model, 0.125) == 2
    assert [block.p for block in model[:2]] == [0.125, 0.125]
    assert [getattr(block, "out_p", None) for block in model[:2]] == out_rates
    assert model[2].p == 0.75


@pytest.mark.parametrize("name", ["gated", "stack"])
def test_a_rate_that_is_set_is_applied(name):
    block = RATED[name]()
    assert sparsedrop.set_rate(block, 0.0) == 1
    assert torch.equal(block(X), copy.deepcopy(block).eval()(X))
    sparsedrop.set_rate(block, 1.0)
    last = block.down if name == "gated" else block.layers[-1]
    assert torch.equal(block(X), last.bias.expand(len(X), 32))
