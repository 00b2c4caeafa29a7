"""What is found, what stays and why."""

import pytest
import torch
from networks import Feedforward, Net, X, convert, found
from torch import nn

import sparsedrop


def in_place(m, x):
    hidden = m.one(x)
    hidden.relu_()
    hidden *= 2
    return m.two(m.drop(hidden))


def two_of_one(m, x):
    hidden = m.one(x)
    return m.two(m.drop(torch.sigmoid(1.7 * hidden) * hidden + hidden.tanh() / 2))


def returned_in_a_dict(m, x):
    return {"logits": [m.one(m.drop(x)), None, 3]}


FOUND = {
    "in-place operations": (in_place, [("", "mlp")]),
    "several operations of one value": (two_of_one, [("", "mlp")]),
    "a number in a tensor": (
        lambda m, x: m.two(m.drop(m.one(x).relu() * torch.tensor(2.0))),
        [("", "mlp")],
    ),
    "an identity between": (lambda m, x: m.two(nn.Identity()(m.drop(m.one(x)))), [("", "mlp")]),
    "shapes are looked at": (
        lambda m, x: m.two(m.drop(m.one(x)).reshape(x.shape[0], x.size(-1)).contiguous()),
        [("", "mlp")],
    ),
    "a dropped copy beside the value": (
        lambda m, x: x + m.one(m.drop(x)),
        [("one", "input")],
    ),
    "a residual around an activation": (
        lambda m, x: m.two(m.drop(m.one(x).relu() + x)),
        [("two", "input")],
    ),
    "a norm before the dropout": (
        lambda m, x: m.two(m.drop(nn.functional.layer_norm(m.one(x), (32,)))),
        [("two", "input")],
    ),
    "softmax is not elementwise": (
        lambda m, x: m.two(m.drop(m.one(x).softmax(-1))),
        [("two", "input")],
    ),
    "a value of the block is returned": (
        lambda m, x: (lambda h: (m.two(m.drop(h)), h))(m.one(x).relu()),
        [("two", "input")],
    ),
    "the layer before is used elsewhere": (
        lambda m, x: (lambda h: m.two(m.drop(h.relu())) + h)(m.one(x)),
        [("two", "input")],
    ),
    "an output that goes everywhere": (
        lambda m, x: (lambda h: (h, h + 1, m.two(h)))(m.drop(m.one(x))),
        [("one", "output")],
    ),
    "a transposed value": (
        lambda m, x: m.two(m.drop(m.one(x[:32]).t())),
        [("two", "input")],
    ),
    "a transposed value before the layer": (
        lambda m, x: m.two(m.drop(m.three(x[:32]).relu()).t()),
        [("two", "input")],
    ),
    "another last extent": (
        lambda m, x: m.one(m.drop(x.tanh().view(-1, 2, 4, 4)).flatten(1)),
        [("one", "input")],
    ),
    "an alias that is written": (
        lambda m, x: (lambda h: (h.view(-1, 32).relu_(), m.two(m.drop(h)))[1])(m.one(x)),
        [("two", "input")],
    ),
    "a gate of the same layer": (
        lambda m, x: m.two(m.drop(m.one(x) * m.one(x + 1))),
        [("two", "input")],
    ),
    "a result in a dict": (returned_in_a_dict, [("one", "input")]),
    "a chain of sites": (
        lambda m, x: m.other_drop(m.two(m.drop(m.one(x).relu()))),
        [("", "mlp"), ("two", "output")],
    ),
}


@pytest.mark.parametrize(("forward", "sites"), FOUND.values(), ids=FOUND)
def test_found(forward, sites):
    model = Net(forward)
    assert found(convert(model)) == sites


SKIPPED = {
    "a dropped value that is used elsewhere": (
        lambda m, x: (lambda h: m.one(h) + h)(m.drop(x)),
        ("one", "input", "what one reads is used elsewhere, too: by add"),
    ),
    "a dropped value that two layers read": (
        lambda m, x: (lambda h: m.one(h) + m.two(h))(m.drop(x)),
        ("drop", "dropout", "what one reads is used elsewhere, too: by two"),
    ),
    "an output that is used elsewhere": (
        lambda m, x: (lambda h: m.drop(h) + h.tanh())(m.one(x)),
        ("one", "output", "the output of one is used elsewhere, too: by tanh"),
    ),
    "a functional dropout": (
        lambda m, x: m.one(nn.functional.dropout(x, 0.5, training=m.training)),
        ("", "functional", "a functional dropout cannot be switched off on an instance"),
    ),
    "a functional dropout of channels": (
        lambda m, x: m.one(nn.functional.dropout1d(x, 0.5)),
        ("", "functional", "a functional dropout cannot be switched off on an instance"),
    ),
    "attention probabilities": (
        lambda m, x: m.one(m.other_drop(m.drop((m.two(x) @ x.t()).softmax(-1)) @ x)),
        ("drop", "attention", "it drops attention probabilities", ("one", "input")),
    ),
    "attention probabilities, functionally": (
        lambda m, x: m.one(m.drop(nn.functional.dropout((m.two(x) @ x.t()).softmax(-1)) @ x)),
        ("", "attention", "it drops attention probabilities", ("one", "input")),
    ),
    "a functional linear layer": (
        lambda m, x: nn.functional.linear(m.drop(x.exp()), m.one.weight),
        ("drop", "dropout", "a call of F.linear cannot be swapped on an instance"),
    ),
    "the output of a functional linear layer": (
        lambda m, x: m.drop(nn.functional.linear(x, m.one.weight)),
        ("drop", "dropout", "a call of F.linear cannot be swapped on an instance"),
    ),
    "no linear layer": (
        lambda m, x: m.one(m.other_drop(x)) + m.drop(x.exp()).sum(),
        ("drop", "dropout", "it drops what exp makes, and sum reads it", ("one", "input")),
    ),
    "a dropout at two places": (
        lambda m, x: m.drop(m.one(m.drop(x)).softmax(-1)),
        ("one", "input", "its dropout is called at 2 places, of which not all can be converted"),
    ),
    "a layer at two places": (
        lambda m, x: m.one(m.one(m.drop(x)).relu()),
        ("one", "input", "one is called at 2 places, and not at each of them with the same"),
    ),
    "a layer with two dropouts": (
        lambda m, x: m.one(m.drop(x)) + m.one(m.other_drop(x)),
        ("one", "input", "one is called at 2 places, and not at each of them with the same"),
    ),
    "a weight that is read elsewhere": (
        lambda m, x: (
            nn.functional.linear(m.one(m.drop(x)), m.one.weight.t())
            + nn.functional.linear(x, m.one.weight)
        ),
        ("one", "input", "the weight of one is read by a call of F.linear, too"),
    ),
}


@pytest.mark.parametrize(("forward", "entry"), SKIPPED.values(), ids=SKIPPED)
def test_skipped(forward, entry):
    name, kind, reason, *converted = entry
    report = convert(Net(forward))
    assert found(report) == converted
    assert report.skipped[0][:2] == (name, kind)
    assert reason in report.skipped[0].reason


def test_a_shared_dropout_is_converted_for_all_or_none():
    def forward(m, x):
        return m.three(m.drop(m.two(m.drop(m.one(m.drop(x)).softmax(-1))).softmax(-1)))

    model = Net(forward)
    assert found(convert(model)) == [("one", "input"), ("two", "input"), ("three", "input")]
    assert model.one.dropout is model.two.dropout is model.three.dropout is model.drop
    sparsedrop.revert(model)
    report = convert(model, filter=lambda name, module: name != "two")
    assert report.converted == ()
    reasons = {entry.name: entry.reason for entry in report.skipped}
    assert reasons == {
        "one": "its dropout also serves two, which stays",
        "two": "excluded by filter",
        "three": "its dropout also serves two, which stays",
    }


def test_a_block_that_is_called_in_a_loop_is_one_site():
    model = nn.Sequential(Feedforward(32, 64))
    model.append(model[0])
    assert found(convert(model)) == [("0", "mlp")]
    assert torch.isfinite(model(X)).all()


def test_two_hidden_values_at_once_do_not_share_a_mask():
    def forward(m, x):
        one, other = m.one(x), m.one(x + 1)
        return m.two(m.drop(one)) + m.two(m.drop(other))

    model = Net(forward)
    report = convert(model)
    assert found(report) == [("two", "input")]


def test_tied_weights():
    """Two modules with one parameter go on sharing it."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 32), nn.Dropout(0.5), nn.Linear(32, 32))
    model[3].weight = model[1].weight
    assert found(convert(model)) == [("1", "input"), ("", "mlp")]
    assert model[3].weight is model[1].weight
    sparsedrop.revert(model)
    assert model[3].weight is model[1].weight


def test_a_layer_under_two_names_is_one_layer():
    model = Net(lambda m, x: m.three(m.drop(x)))
    model.three = model.one
    report = convert(model)
    assert found(report) == [("one", "input")]
    assert report.skipped == ()
    assert model.three is model.one
    assert sparsedrop.revert(model) == 1


class LanguageModel(nn.Module):
    """Its last layer has the weight of the embedding, as that of GPT-2 has."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.drop, self.lm_head = (
            nn.Embedding(50, 32), nn.Dropout(0.5), nn.Linear(32, 50, bias=False),
        )  # fmt: skip
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        return self.lm_head(self.drop(self.wte(ids)))


def test_a_weight_tied_to_an_embedding():
    """Both keep it, and its gradient is the sum of what either makes."""
    model, ids = LanguageModel(), torch.arange(48)
    weight, keys = model.wte.weight, list(model.state_dict())
    assert found(convert(model, ids, block_shape=(8, 8))) == [("lm_head", "input")]
    assert model.lm_head.weight is model.wte.weight is weight
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == ["wte.weight"]
    torch.manual_seed(1)
    model(ids).square().sum().backward()
    torch.manual_seed(1)
    live = sparsedrop.BlockMask.bernoulli((48, 32), 0.5, block_shape=(8, 8)).expand()
    other = weight.detach().clone().requires_grad_()
    dropped = torch.where(live, 2 * nn.functional.embedding(ids, other), 0.0)
    nn.functional.linear(dropped, other).square().sum().backward()
    torch.testing.assert_close(weight.grad, other.grad)
    assert sparsedrop.revert(model) == 1
    assert model.lm_head.weight is model.wte.weight is weight


def test_multihead_attention():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(32, 4, dropout=0.1)
            self.drop, self.out = nn.Dropout(0.1), nn.Linear(32, 32)

        def forward(self, x):
            return self.out(self.drop(self.attend(x, x, x)[0]))

    report = convert(Attention(), torch.randn(6, 3, 32))
    assert found(report) == [("out", "input")]
    (entry,) = report.skipped
    assert entry[:2] == ("attend", "attention")
    assert "attention probabilities" in entry.reason


def test_scaled_dot_product_attention():
    model = Net(
        lambda m, x: m.one(
            m.drop(nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1))
        )
    )
    report = convert(model)
    assert [entry[:2] for entry in report.skipped] == [("", "attention")]
    assert found(report) == [("one", "input")]


def test_layers_on_several_devices_do_not_share_a_mask():
    model = Net(lambda m, x: m.two(m.drop(m.one(x).to("meta").relu())))
    model.two.to("meta")
    report = convert(model)
    assert found(report) == [("two", "input")]
