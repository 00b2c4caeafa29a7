"""`sparsedrop bench --step`: layers under autocast."""

import json

import pytest
import torch

from sparsedrop.tools import cli
from sparsedrop.tools.bench import timing


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    budgets = {kind: timing.Budget(1.0, 1) for kind in timing.BUDGETS}
    monkeypatch.setattr(timing, "BUDGETS", budgets)


def _bench(device, *options):
    shape = ("--shapes", "128x128x128", "--rates", "0.5")
    return cli.main(["bench", "--device", device.type, "--step", "--amp", *shape, *options])


def test_amp_is_for_16_bits(capsys, device):
    assert _bench(device, "--dtype", "float32") == 2
    assert "--amp is for 16 bits, not float32" in capsys.readouterr().err


def test_amp_has_float32_weights(capsys, monkeypatch, tmp_path, device):
    seen = set()
    linear = torch.nn.functional.linear

    def watched(x, weight, bias):
        seen.add((x.dtype, weight.dtype))
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    assert _bench(device, "--dtype", "bfloat16", "--out", str(tmp_path)) == 0
    assert (torch.bfloat16, torch.float32) in seen
    assert "float32 weights under autocast" in capsys.readouterr().out
    saved = json.loads((tmp_path / "step.json").read_text())
    assert saved["arguments"]["amp"] is True
    assert all(layer["wall_ms"] > 0 for layer in saved["rows"][0]["layers"].values())
