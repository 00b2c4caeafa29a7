"""Torch's transformer layers, and what is found without an example."""

import copy

import pytest
import torch
from networks import BLOCK, Feedforward, found
from torch import nn

import sparsedrop

MEMORY = torch.randn(6, 3, 32)

LAYERS = {
    "encoder": (
        lambda **kwargs: nn.TransformerEncoderLayer(32, 4, 64, **kwargs),
        (MEMORY,),
        [("", "mlp"), ("linear2", "output")],
        ["dropout1"],
    ),
    "decoder": (
        lambda **kwargs: nn.TransformerDecoderLayer(32, 4, 64, **kwargs),
        (MEMORY, MEMORY + 1),
        [("", "mlp"), ("linear2", "output")],
        ["dropout1", "dropout2"],
    ),
}

WITH_LAYERS = pytest.mark.parametrize(
    ("make", "inputs", "sites", "stay"), LAYERS.values(), ids=LAYERS
)


@WITH_LAYERS
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", nn.functional.silu])
@pytest.mark.parametrize("has_example", [True, False])
def test_transformer_layers(make, inputs, sites, stay, norm_first, activation, has_example):
    torch.manual_seed(0)
    model = make(norm_first=norm_first, activation=activation, dropout=0.5)
    original, keys = copy.deepcopy(model).eval(), list(model.state_dict())
    report = sparsedrop.convert(
        model, inputs if has_example else None, min_speedup=0, block_shape=BLOCK
    )
    assert found(report) == sites
    dropouts = [entry for entry in report.skipped if entry.kind == "dropout"]
    assert [entry.name for entry in dropouts] == stay
    assert all("no linear layer before it or behind it" in entry.reason for entry in dropouts)
    attention = [entry.name for entry in report.skipped if entry.kind == "attention"]
    names = ["self_attn", "multihead_attn"][: len(stay)]
    assert attention == (names if has_example else [])
    assert list(model.state_dict()) == keys
    with torch.no_grad():  # the fast path of the encoder, too
        assert torch.equal(model.eval()(*inputs), original(*inputs))
    assert torch.equal(model(*inputs), original(*inputs))
    out = model.train()(*inputs)
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert sparsedrop.revert(model) == 2


@pytest.mark.parametrize("has_example", [True, False])
def test_a_whole_encoder(has_example):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(3, 6, 32)
    original = copy.deepcopy(model).eval()
    report = sparsedrop.convert(model, (x,) if has_example else None, min_speedup=0)
    assert found(report) == [
        ("layers.0", "mlp"),
        ("layers.0.linear2", "output"),
        ("layers.1", "mlp"),
        ("layers.1.linear2", "output"),
    ]
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[:, 4:] = True
    with torch.no_grad():
        for mask in (None, padding):
            expected = original(x, src_key_padding_mask=mask)
            assert torch.equal(model.eval()(x, src_key_padding_mask=mask), expected)


def test_a_whole_transformer():
    model = nn.Transformer(32, 4, 1, 1, 64)
    report = sparsedrop.convert(model, (MEMORY, MEMORY), min_speedup=0)
    assert found(report) == [
        ("encoder.layers.0", "mlp"),
        ("encoder.layers.0.linear2", "output"),
        ("decoder.layers.0", "mlp"),
        ("decoder.layers.0.linear2", "output"),
    ]


SEQUENCES = {
    "input": ([nn.Dropout(), nn.Linear(32, 8)], [("1", "input")]),
    "output": ([nn.Linear(32, 8), nn.Dropout()], [("0", "output")]),
    "mlp": ([nn.Linear(32, 64), nn.GELU(), nn.Dropout(), nn.Linear(64, 8)], [("", "mlp")]),
    "nested": (
        [nn.Linear(32, 64), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Linear(64, 8)],
        [("", "mlp")],
    ),
    "nested, with others around": (
        [nn.Softmax(-1), nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Dropout()), nn.Softmax(-1)],
        [],
    ),
    "nested block": (
        [nn.Sequential(nn.Linear(32, 64), nn.Dropout(), nn.Linear(64, 32)), nn.ReLU()],
        [("0", "mlp")],
    ),
    "a norm between": (
        [nn.Linear(32, 64), nn.LayerNorm(64), nn.Dropout(), nn.Linear(64, 8)],
        [("3", "input")],
    ),
    "an activation behind": ([nn.Dropout(), nn.ReLU(), nn.Linear(32, 8)], []),
}


@pytest.mark.parametrize(("layers", "sites"), SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("has_example", [True, False])
def test_sequences(layers, sites, has_example):
    model = nn.Sequential(*copy.deepcopy(layers))
    example = (torch.randn(48, 32),) if has_example else None
    if not sites:
        with pytest.raises(ValueError, match="nothing to convert in Sequential"):
            sparsedrop.convert(model, example, min_speedup=0)
        return
    assert found(sparsedrop.convert(model, example, min_speedup=0)) == sites


def test_gains_without_an_example_are_those_of_the_operations():
    model = nn.Sequential(nn.Dropout(0.75), nn.Linear(1024, 1024))
    (entry,) = sparsedrop.convert(model).converted
    assert entry.expected_speedup == 4.0
    assert model[1].block_shape == (128, 128)


def test_an_unknown_module_needs_an_example():
    with pytest.raises(ValueError, match=r"it has 1 dropouts, .* give example_inputs"):
        sparsedrop.convert(Feedforward(32, 64))


def test_a_second_convert_without_an_example():
    model = nn.Sequential(nn.Dropout(), nn.Linear(32, 8))
    sparsedrop.convert(model, min_speedup=0)
    report = sparsedrop.convert(model)
    assert report.converted == ()
    assert report.skipped == (("1", "input", None, "already converted"),)


class Shared(nn.Module):
    """Calls a layer of a sequence by itself, too."""

    def __init__(self, name):
        super().__init__()
        self.seq = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 32))
        self.other = self.seq.get_submodule(name)

    def forward(self, x):
        return self.seq(x), self.other


@pytest.mark.parametrize("method", ["sparsedrop", "sliceout", "row-pattern"])
@pytest.mark.parametrize("name", ["0", "2", "3"])
def test_what_belongs_to_another_module_needs_an_example(name, method):
    model = Shared(name)
    report = sparsedrop.convert(model, min_speedup=0, method=method)
    if name == "0":  # the dropout and the layer behind it are not the other's
        assert found(report) == ([("seq.3", "input")] if method == "sparsedrop" else [])
    else:
        assert report.converted == ()
        assert report.skipped[0].reason == (
            f"seq.{name} belongs to Shared, too, which may call it: give example_inputs"
        )
    example = (torch.randn(48, 32),)
    report = sparsedrop.convert(Shared(name), example, min_speedup=0, method=method)
    assert found(report) == [("seq", "mlp")]
