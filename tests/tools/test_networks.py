"""Whole networks under the clock: all kinds are the same network, and every mode runs."""

import json
import math

import pytest
import torch

from sparsedrop.nn import SparseDropLinear, SparseDropMLP, SparseDropStack
from sparsedrop.tools import cli
from sparsedrop.tools.bench import timing
from sparsedrop.tools.bench.networks import NETWORKS
from sparsedrop.tools.networks import DROPOUT, KINDS, NONE, SPARSEDROP, Drop, loss_of

CPU = torch.device("cpu")
DROPS = {"mlp": 2, "vit": 4, "gpt": 8, "layers": 12, "ffn": 1, "ffn-wide": 1, "stack": 4}
INNER = ("ffn", "ffn-wide", "stack")
SITES = {
    DROPOUT: torch.nn.Dropout,
    SPARSEDROP: (SparseDropLinear, SparseDropMLP, SparseDropStack),
}


def _build(name, kind, p=0.5):
    torch.manual_seed(0)
    return NETWORKS[name].build(Drop(kind, p))


@pytest.mark.parametrize("name", NETWORKS)
def test_all_kinds_are_one_network(name):
    """The same weights in the same order; in evaluation the same output."""
    inputs = NETWORKS[name].inputs(2, CPU)
    models = {kind: _build(name, kind).eval() for kind in KINDS}
    with torch.no_grad():
        expected = models[NONE](inputs)
        for kind in (DROPOUT, SPARSEDROP):
            assert torch.equal(models[kind](inputs), expected)
            pairs = zip(models[kind].parameters(), models[NONE].parameters(), strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
    for kind, types in SITES.items():
        sites = [module for module in models[kind].modules() if isinstance(module, types)]
        counts = [len(site.layers) if type(site) is SparseDropStack else 1 for site in sites]
        assert sum(counts) == DROPS[name]
        assert {site.p for site in sites} == {0.5}


def test_feed_forward_blocks_have_the_same_names():
    dense, sparse = (_build("ffn", kind).state_dict() for kind in (DROPOUT, SPARSEDROP))
    assert list(dense) == list(sparse) == ["up.weight", "up.bias", "down.weight", "down.bias"]


@pytest.mark.parametrize("name", INNER)
def test_dropout_stands_at_the_same_places(name, monkeypatch):
    """Where a mask of one block drops all, the outputs of both kinds are those of zeros."""
    inputs = NETWORKS[name].inputs(2, CPU)
    models = [_build(name, kind, 1.0).train() for kind in (DROPOUT, SPARSEDROP)]
    first, second = (model(inputs) for model in models)
    assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(second.sum(), inputs)
    assert not gradient.any()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in INNER])
def test_a_loss_is_that_of_untrained_guesses(name):
    network = NETWORKS[name]
    torch.manual_seed(0)
    logits = _build(name, SPARSEDROP).eval()(network.inputs(8, CPU))
    loss = loss_of(logits, network.targets(8, CPU)).item()
    assert loss == pytest.approx(math.log(logits.shape[-1]), rel=0.25)


def test_a_gpt_does_not_look_ahead():
    model = _build("gpt", NONE).eval()
    text = NETWORKS["gpt"].inputs(1, CPU)
    changed = text.clone()
    changed[0, 64:] = (changed[0, 64:] + 1) % 65
    with torch.no_grad():
        before, after = model(text), model(changed)
    torch.testing.assert_close(before[:, :64], after[:, :64])
    assert not torch.allclose(before[:, 64:], after[:, 64:])


@pytest.mark.parametrize(
    ("device", "modes"),
    [
        ("cpu", ["eager"]),
        pytest.param("cuda", ["eager", "graph", "reduce-overhead"], marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("whole", [[], ["--whole-step"]], ids=["", "whole"])
def test_networks_are_timed_reported_and_saved(device, modes, whole, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {device: timing.Budget(1.0, 1)})
    options = ["--device", device, "--modes", *modes, "--batch", "128", "--out", str(tmp_path)]
    assert cli.main(["bench", "--network", "mlp", *options, *whole]) == 0
    text = capsys.readouterr().out
    saved = json.loads((tmp_path / "network.json").read_text())
    assert [row["mode"] for row in saved["rows"]] == modes
    assert saved["arguments"]["whole_step"] is bool(whole)
    for row in saved["rows"]:
        assert row["p"] == 0.5
        assert set(row["figures"]) == set(KINDS)
        assert all(figures["wall_ms"] > 0 for figures in row["figures"].values())
        assert f"{row['speedup']:.2f}" in text


def test_a_captured_step_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--network", "mlp", "--modes", "graph"]) == 2
    assert "--modes graph needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--modes", "eager"], ["--batch", "8"], ["--whole-step"]])
def test_options_of_networks_need_one(capsys, option):
    assert cli.main(["bench", "--device", "cpu", *option]) == 2
    assert f"{option[0]} is about whole networks" in capsys.readouterr().err
