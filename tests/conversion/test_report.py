"""The report, and what decides by the expected gain."""

import pytest
import torch
from networks import Feedforward, Net, convert
from torch import nn

import sparsedrop
from sparsedrop import Report
from sparsedrop.conversion import Entry

REPORT = Report(
    (Entry("encoder.mlp", "mlp", 1.8234), Entry("", "gated", 2.0)),
    (
        Entry("head", "input", 0.5, "its rate is 0: give p"),
        Entry("", "functional", None, "a functional dropout"),
    ),
    "Net",
)


def test_a_report_is_a_table():
    assert str(REPORT) == (
        "layer        kind        expected\n"
        "encoder.mlp  mlp         1.82x     converted\n"
        "Net          gated       2.00x     converted\n"
        "head         input       0.50x     skipped: its rate is 0: give p\n"
        "Net          functional  -         skipped: a functional dropout\n"
        "2 of 4 places where Net drops: converted"
    )


def test_an_entry_has_a_reason_only_where_it_stays():
    entry = REPORT.converted[0]
    assert (entry.name, entry.kind, entry.expected_speedup) == ("encoder.mlp", "mlp", 1.8234)
    assert entry.reason is None
    assert REPORT.skipped[0].reason == "its rate is 0: give p"


def test_large_layers_gain_and_small_ones_stay():
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(2048, 2048), nn.LayerNorm(2048), nn.Dropout(0.5)
    )
    model.append(nn.Linear(2048, 1))
    x = torch.empty(1, 2048).expand(2048, 2048)
    report = sparsedrop.convert(model, x, min_speedup=1.3)
    assert [entry.name for entry in report.converted] == ["1", "4"]
    assert report.converted[0].expected_speedup == pytest.approx(1.9, abs=0.2)
    assert type(model[1]) is not nn.Linear


def test_where_nothing_gains_the_report_says_so():
    model = Feedforward(32, 64)
    report = sparsedrop.convert(model, torch.randn(48, 32))
    assert report.converted == ()
    (entry,) = report.skipped
    assert entry[:2] == ("", "mlp")
    assert entry.expected_speedup < 1
    assert entry.reason.startswith(
        f"expected to gain less than min_speedup=1: {entry.expected_speedup:.2f} times as fast, "
    )
    assert type(model.up) is nn.Linear
    assert convert(model).converted[0].expected_speedup == entry.expected_speedup


def test_the_last_line_counts():
    text = str(sparsedrop.convert(nn.Sequential(nn.Dropout(), nn.Linear(8, 8)), min_speedup=0))
    assert text.splitlines()[-1] == "1 of 1 place where Sequential drops: converted"


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda y: y.sum(), "and sum reads it"),
        (lambda y: y.sum() + y.mean(), "and sum and mean read it"),
        (lambda y: y.sum() + y.mean() + y.std(), "and sum, mean and std read it"),
        (lambda y: y.sum() + y.mean() + y.std() + y.amax(), "and sum, mean and 2 others read it"),
    ],
)
def test_readers_are_listed(read, says):
    report = convert(Net(lambda m, x: m.one(m.other_drop(x)) + read(m.drop(x.exp()))))
    (entry,) = report.skipped
    assert entry.reason == (
        f"no linear layer before it or behind it: it drops what exp makes, {says}"
    )


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("is_packed", [False, True], ids=["", "packed"])
def test_the_dropout_of_a_recurrent_layer_is_a_place(layer, is_packed):
    class Tagger(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.rnn = layer(32, 32, 2, dropout=p)
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(32, 8)

        def forward(self, x):
            given = nn.utils.rnn.pack_padded_sequence(x, [5] * x.shape[1]) if is_packed else x
            out = self.rnn(given)[0]
            return self.head(self.drop(out.data))

    x = torch.randn(5, 3, 32)
    report = sparsedrop.convert(Tagger(0.5), x, min_speedup=0)
    assert len(report.converted) == 1
    reason = f"it drops between the layers of nn.{layer.__name__}"
    assert report.skipped == (("rnn", "recurrent", None, reason),)
    assert sparsedrop.convert(Tagger(0.0), x, min_speedup=0).skipped == ()
