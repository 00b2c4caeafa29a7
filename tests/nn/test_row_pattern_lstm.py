"""RowPatternLSTM: what it computes, pattern by pattern."""

import copy
import itertools
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from row_cases import drawing, draws_of, every_pattern, scale_of
from sparsedrop import RowPattern, reference, set_rate
from sparsedrop.nn import RowPatternLSTM

LSTMS = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "batch first": {"num_layers": 2, "batch_first": True},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "proj_size": 3},
    "no bias": {"bias": False, "bidirectional": True, "proj_size": 2, "scale": "pattern"},
}
INPUTS = ["batch", "no batch", "packed"]


def _lstm(device="cpu", **kwargs):
    return RowPatternLSTM(11, 5, **kwargs).to(device, torch.float64)


def _input(lstm, kind, device="cpu"):
    torch.manual_seed(2)
    x = torch.randn(4, 3, 11, dtype=torch.float64, device=device, requires_grad=True)
    if kind == "batch":
        return x, x
    if kind == "no batch":
        return x, x[:, 0]
    return x, pack_sequence([x[:2, 0], x[:4, 1], x[:3, 2]], enforce_sorted=False)


def _tensors(result):
    out, (h, c) = result
    return [out.data if isinstance(out, PackedSequence) else out, h, c]


def _with_grads(function, lstm, x, given, *hx):
    outs = _tensors(function(given, *hx))
    inputs = [x, *lstm.parameters()]
    torch.manual_seed(4)
    upstream = [torch.randn_like(out) for out in outs]
    return [*outs, *torch.autograd.grad(outs, inputs, upstream, retain_graph=True)]


def _exact(lstm, drawn):
    scales = [scale_of(lstm.scale, lstm.p, rows) for rows in drawn]
    masks = [rows.mask(lstm.weight_hh_l0.device) for rows in drawn]
    return lambda given, *hx: reference.lstm(lstm, given, masks, scales, *hx)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("kwargs", LSTMS.values(), ids=LSTMS)
def test_every_pattern_is_the_masked_dense_lstm(kwargs, kind, device):
    lstm = _lstm(device, **kwargs)
    x, given = _input(lstm, kind, device)
    names = ["out", "h", "c", "x", *dict(lstm.named_parameters())]
    for rows in every_pattern(11, 8):
        width = (lstm.proj_size or 5) * (1 + lstm.bidirectional)
        second = RowPattern(width, rows.period % 3 + 1, 0)
        drawn = [rows, second][: lstm.num_layers]
        with drawing(*drawn):
            ours = _with_grads(lstm, lstm, x, given)
        exact = _with_grads(_exact(lstm, drawn), lstm, x, given)
        for name, own, truth in zip(names, ours, exact, strict=True):
            torch.testing.assert_close(own, truth, rtol=1e-12, atol=1e-12)
            if name.startswith("weight_ih_l"):
                mask = drawn[int(name[len("weight_ih_l")])].mask(device)
                assert not own[:, ~mask].any()
        assert not ours[3][..., ~rows.mask(device)].any()


def test_a_pattern_without_features_leaves_the_recurrence(device):
    lstm, rows = _lstm(device), RowPattern(11, 8, 7)
    lstm.patterns = 16
    none = RowPattern(11, 16, 15)
    how = {"dtype": torch.float64, "device": device}
    x = torch.full((4, 3, 11), float("inf"), **how, requires_grad=True)
    with drawing(none):
        out, _ = lstm(x)
    expected, _ = lstm.eval()(torch.zeros(4, 3, 11, **how))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    out.sum().backward()
    assert not x.grad.any()
    assert not lstm.weight_ih_l0.grad.any()
    assert lstm.weight_hh_l0.grad.any()
    assert rows.count == 1


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("kwargs", LSTMS.values(), ids=LSTMS)
@pytest.mark.parametrize("how", ["evaluation", "a rate of 0", "the child's switch"])
def test_without_dropout_it_is_torchs_and_draws_nothing(kwargs, how, kind, device):
    lstm = _lstm(device, **kwargs)
    own = {name: value for name, value in kwargs.items() if name != "scale"}
    dense = nn.LSTM(11, 5, **own).to(device, torch.float64)
    dense.load_state_dict(lstm.state_dict())
    lstm.load_state_dict(dense.state_dict())
    assert list(lstm.state_dict()) == list(dense.state_dict())
    if how == "evaluation":
        lstm.eval(), dense.eval()
    elif how == "a rate of 0":
        lstm.p = 0.0
    else:
        lstm.dropout.eval()
    x, given = _input(lstm, kind, device)
    state = torch.get_rng_state()
    ours, theirs = lstm(given), dense(given)
    assert torch.equal(torch.get_rng_state(), state)
    for mine, other in zip(_tensors(ours), _tensors(theirs), strict=True):
        assert torch.equal(mine, other)
    # States at the start, in the order of the batch.
    hx = tuple(torch.randn_like(each) for each in ours[1])
    for mine, other in zip(_tensors(lstm(given, hx)), _tensors(dense(given, hx)), strict=True):
        assert torch.equal(mine, other)
    assert x.requires_grad


@pytest.mark.parametrize("kind", INPUTS)
def test_states_at_the_start(kind):
    lstm = _lstm(num_layers=2)
    x, given = _input(lstm, kind)
    shape = (2, 5) if kind == "no batch" else (2, 3, 5)
    hx = tuple(torch.randn(*shape, dtype=torch.float64) for _ in range(2))
    drawn = [RowPattern(11, 2, 1), RowPattern(5, 3, 0)]
    with drawing(*drawn):
        ours = _with_grads(lstm, lstm, x, given, hx)
    for own, truth in zip(ours, _with_grads(_exact(lstm, drawn), lstm, x, given, hx), strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-12, atol=1e-12)


def test_draws_follow_the_rate_one_a_layer_and_repeat_by_seed():
    lstm, x = RowPatternLSTM(6, 6, 2, p=0.3), torch.randn(1, 1, 6)
    masks = draws_of(lambda: lstm(x), 4000, 6)
    assert len(masks) == 8000
    for of_layer in (masks[::2], masks[1::2]):
        shares = of_layer.double().mean(0)
        assert ((shares - 0.7).abs() < 5 * (0.21 / 4000) ** 0.5).all()
    assert any((a != b).any() for a, b in itertools.pairwise(masks[:20]))
    torch.manual_seed(1)
    first = [lstm(x)[0] for _ in range(5)]
    torch.manual_seed(1)
    assert all(torch.equal(lstm(x)[0], out) for out in first)


def test_checkpointed_gradients_are_the_plain_ones():
    lstm = _lstm(num_layers=2)
    x, given = _input(lstm, "batch")
    for seed in range(4):
        torch.manual_seed(seed)
        plain = torch.autograd.grad(lstm(given)[0].square().sum(), [x, *lstm.parameters()])
        torch.manual_seed(seed)
        out, _ = checkpoint(lstm, given, use_reentrant=False)
        again = torch.autograd.grad(out.square().sum(), [x, *lstm.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_compiled_it_draws_anew():
    torch._dynamo.reset()
    lstm = _lstm(num_layers=2)
    x, given = _input(lstm, "batch")

    def run(given):
        return lstm(given)[0].square()

    for allow_rnn in (False, True):
        with torch._dynamo.config.patch(allow_rnn=allow_rnn):
            torch._dynamo.reset()
            compiled = torch.compile(run, fullgraph=allow_rnn, backend="aot_eager")
            for seed in range(6):
                torch.manual_seed(seed)
                out = compiled(given)
                torch.manual_seed(seed)
                torch.testing.assert_close(out, run(given), rtol=1e-12, atol=1e-12)
    assert x.requires_grad


def test_the_rate_is_that_of_a_child_that_tools_find():
    lstm = RowPatternLSTM(11, 5, p=0.25)
    assert isinstance(lstm.dropout, nn.Dropout)
    assert set_rate(lstm, 0.4) == 1
    assert (lstm.p, lstm.dropout.p) == (0.4, 0.4)
    other = copy.deepcopy(lstm)
    assert (other.p, other.patterns, other.scale) == (0.4, 8, "global")
    assert repr(RowPatternLSTM(11, 5, 2, bias=False)).startswith(
        "RowPatternLSTM(\n  11, 5, num_layers=2, bias=False, patterns=8, scale='global'"
    )


WRONG = {
    "dropout = 0.3 would drop between the layers what p = 0.5 drops there: pass p alone": {
        "dropout": 0.3
    },
    "p = 0.9 is more than 8 periods give: at most (n - 1) / n = 0.875; take a larger n": {"p": 0.9},
    "scale is one of 'global', 'pattern', not None": {"scale": None},
}


@pytest.mark.parametrize(("sentence", "kwargs"), WRONG.items(), ids=WRONG)
def test_wrong_arguments(sentence, kwargs):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        RowPatternLSTM(11, 5, **kwargs)


def test_wrong_operands():
    lstm = _lstm()
    with pytest.raises(ValueError, match="the input of an LSTM has 2 or 3 extents, not 1"):
        lstm(torch.randn(11).double())
    states = torch.zeros(1, 5).double(), torch.zeros(1, 5).double()
    with pytest.raises(ValueError, match="the states of this input have 3 extents, not 2 and 2"):
        lstm(torch.randn(4, 3, 11).double(), states)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        lstm(torch.randn(4, 3, 12).double())
