"""Whole networks under the clock: all kinds are the same network, and every mode runs."""

import argparse
import itertools
import json
import math

import pytest
import torch
from network_cases import KINDS, assert_same_in_evaluation
from torch import nn

from sparsedrop.tools import bench, cli
from sparsedrop.tools.bench import timing
from sparsedrop.tools.bench.network import Training
from sparsedrop.tools.bench.networks import NETWORKS
from sparsedrop.tools.bench.settings import resolve
from sparsedrop.tools.networks import (
    DROPOUT,
    METHODS,
    NONE,
    SPARSEDROP,
    Drop,
    Lstm,
    loss_of,
    mlp,
)

CPU = torch.device("cpu")
DROPS = {"mlp": 2, "vit": 4, "gpt": 8, "layers": 12}


def _piece(build):
    return NETWORKS["ffn"]._replace(
        build=build,
        inputs=lambda batch, device: torch.randn(batch, 128, device=device, requires_grad=True),
        targets=lambda batch, device: torch.randn(batch, 128, device=device),
    )


SMALL = {
    "mlp": NETWORKS["mlp"]._replace(build=lambda drop: mlp(28 * 28, 256, 2, 10, drop)),
    "ffn": _piece(lambda drop: drop.feed_forward(128, 256)),
    "stack": _piece(lambda drop: drop.stack(128, 3)),
}


@pytest.fixture
def small(monkeypatch):
    """Networks that a CPU without instructions for bfloat16 runs in time."""
    for name, network in SMALL.items():
        monkeypatch.setitem(NETWORKS, name, network)


def _build(name, kind, p=0.5):
    torch.manual_seed(0)
    return NETWORKS[name].build(Drop(kind, p))


def _block(kind, p=0.5):
    torch.manual_seed(0)
    return Drop(kind, p, (16, 8)).feed_forward(32, 64)


def _stack(kind, p=0.5):
    torch.manual_seed(0)
    return Drop(kind, p, (16, 8)).stack(32, 3)


@pytest.mark.parametrize("name", DROPS)
def test_all_kinds_are_one_network(name):
    models = {kind: _build(name, kind) for kind in KINDS}
    assert_same_in_evaluation(models, NETWORKS[name].inputs(2, CPU))
    for kind in (DROPOUT, SPARSEDROP):
        # A layer of this library has an nn.Dropout that holds its rate.
        rates = [module.p for module in models[kind].modules() if isinstance(module, nn.Dropout)]
        assert rates == [0.5] * DROPS[name]
    assert not any(type(module) is nn.Dropout for module in models[SPARSEDROP].modules())


@pytest.mark.parametrize("build", [_block, _stack])
def test_all_kinds_are_one_piece_of_a_network(build):
    assert_same_in_evaluation({kind: build(kind) for kind in KINDS}, torch.randn(48, 32))


@pytest.mark.parametrize("build", [_block, _stack])
def test_dropout_stands_at_the_same_places(build):
    """With p = 1 what is left of an output is its last bias, and nothing of the input."""
    inputs = torch.randn(48, 32, requires_grad=True)
    first, second = (build(kind, 1.0)(inputs) for kind in (DROPOUT, SPARSEDROP))
    assert torch.equal(first, second)
    assert (first == first[0]).all()
    (gradient,) = torch.autograd.grad(second, inputs, torch.randn(48, 32))
    assert not gradient.any()


def test_feed_forward_blocks_have_the_same_names():
    names = ["up.weight", "up.bias", "down.weight", "down.bias"]
    assert all(list(_block(kind).state_dict()) == names for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "batch", "weights"),
    [
        ("ffn", 8192, [(4096, 1024), (1024, 4096)]),
        ("ffn-wide", 16384, [(16384, 4096), (4096, 16384)]),
        ("stack", 8192, [(4096, 4096)] * 4),
    ],
)
def test_pieces_of_networks_have_their_sizes(name, batch, weights, kind):
    with torch.device("meta"):
        model = _build(name, kind)
    assert NETWORKS[name].batch == batch
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == weights
    inputs = NETWORKS[name].inputs(3, CPU)
    assert inputs.requires_grad
    assert inputs.shape == NETWORKS[name].targets(3, CPU).shape == (3, weights[0][1])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "amp"])
def test_a_step_of_a_piece_has_the_gradient_of_its_output(precision, tmp_path):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    argv = ["--network", "ffn", "--batch", "16", "--out", str(tmp_path)]
    settings = resolve(parser.parse_args(argv), CPU)
    training = Training("ffn", Drop(NONE, 0.0), precision, "eager", settings)
    for _ in range(2):
        training.step()
    found = training.inputs.grad
    inputs = training.inputs.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp"):
        output = training.model(inputs)
    assert output.dtype == (torch.float32 if precision == "float32" else torch.bfloat16)
    (wanted,) = torch.autograd.grad(output, inputs, training.targets)
    assert torch.equal(found, wanted)
    assert wanted.any()


@pytest.mark.parametrize("name", DROPS)
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
@pytest.mark.usefixtures("small")
def test_networks_are_timed_reported_and_saved(device, modes, whole, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {device: timing.Budget(1.0, 1)})
    options = ["--device", device, "--modes", *modes, "--batch", "128", "--out", str(tmp_path)]
    options += ["--precision", "bfloat16", "amp"]
    assert cli.main(["bench", "--network", "mlp", "ffn", *options, *whole]) == 0
    text = capsys.readouterr().out
    saved = json.loads((tmp_path / "network.json").read_text())
    names = ("network", "precision", "mode")
    rows = [tuple(row[name] for name in names) for row in saved["rows"]]
    assert rows == list(itertools.product(("mlp", "ffn"), ("bfloat16", "amp"), modes))
    assert saved["arguments"]["whole_step"] is bool(whole)
    for row in saved["rows"]:
        assert row["p"] == 0.5
        assert list(row["figures"]) == list(KINDS[:3])
        assert all(figures["wall_ms"] > 0 for figures in row["figures"].values())
        assert list(row["speedups"]) == [SPARSEDROP]
        assert f"{row['speedups'][SPARSEDROP]:.2f}" in text
        peaks = [row["figures"][kind]["peak_mb"] for kind in KINDS[:3]]
        if (device, row["mode"]) == ("cuda", "eager"):
            assert all(f"{peak:.0f}" in text for peak in peaks)
        else:
            assert peaks == [None] * 3
    assert ("peak MB" in text) is (device == "cuda")


@pytest.mark.usefixtures("small")
def test_methods_are_timed_side_by_side(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {"cpu": timing.Budget(1.0, 1)})
    options = ["--device", "cpu", "--batch", "64", "--out", str(tmp_path), "--methods", *METHODS]
    assert cli.main(["bench", "--network", "mlp", "ffn", "stack", *options]) == 0
    text, saved = capsys.readouterr().out, json.loads((tmp_path / "network.json").read_text())
    assert saved["arguments"]["methods"] == list(METHODS)
    for row in saved["rows"]:
        assert list(row["figures"]) == list(KINDS)
        assert list(row["speedups"]) == list(KINDS[2:])
        assert all(f"{kind} × nn.Dropout" in text for kind in KINDS[2:])


@pytest.mark.usefixtures("small")
def test_a_method_alone_is_compared_with_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {"cpu": timing.Budget(1.0, 1)})
    options = ["--device", "cpu", "--batch", "64", "--out", str(tmp_path)]
    assert cli.main(["bench", "--network", "mlp", *options, "--methods", "sliceout"]) == 0
    rows = json.loads((tmp_path / "network.json").read_text())["rows"]
    assert all(row["speedups"] == {} for row in rows)
    assert "× nn.Dropout" not in capsys.readouterr().out.split("Wall time")[0]


def test_language_models_of_all_kinds_are_one():
    models = {}
    for kind in KINDS:
        torch.manual_seed(0)
        models[kind] = Lstm(50, 32, 2, Drop(kind, 0.5, (16, 8)))
    text = torch.randint(50, (4, 7))
    assert_same_in_evaluation(models, text)
    for kind, model in models.items():
        model.train()
        assert torch.equal(model(text), model(text)) is (kind == NONE)
        model(text).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_units_are_dropped_between_layers():
    model = Drop("SliceOut", 0.5).stack(256, 3)
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    model(torch.randn(8, 256))
    assert seen == [128, 128, 256]


def test_a_captured_step_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--network", "mlp", "--modes", "graph"]) == 2
    assert "--modes graph needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--modes", "eager"], ["--batch", "8"], ["--whole-step"]])
def test_options_of_networks_need_one(capsys, option):
    assert cli.main(["bench", "--device", "cpu", *option]) == 2
    assert f"{option[0]} is about whole networks" in capsys.readouterr().err
