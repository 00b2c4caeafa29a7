"""`sparsedrop bench`: its problems, its arithmetic, and small runs of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

import sparsedrop
from cases import random_mask
from sparsedrop.tools import bench, cli, machine
from sparsedrop.tools.bench import (
    measure,
    peers,
    products,
    sweep,
    timing,
)
from sparsedrop.tools.bench.measure import Case
from sparsedrop.tools.bench.products import PRODUCTS, Extents, Operands
from sparsedrop.tools.bench.settings import Settings, resolve

CPU = torch.device("cpu")
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    budgets = {kind: timing.Budget(1.0, 1) for kind in timing.BUDGETS}
    monkeypatch.setattr(timing, "BUDGETS", budgets)


def fails_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence with which `sparsedrop bench ARGV` ends, exit code 2."""
    assert cli.main(["bench", "--device", "cpu", *argv]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    return sentence


# The whole command


def run(out: Path, device: torch.device, *argv: str) -> None:
    common = ["bench", "--device", device.type, "--out", str(out), "--masks", "1"]
    assert cli.main([*common, "--shapes", "256x256x384", "--rates", "0.5", *argv]) == 0


def test_products_are_timed_reported_and_saved(capsys, tmp_path, device):
    names = list(PRODUCTS)
    run(tmp_path / "deep", device, "--products", *names, "--both-block", "128x128", "--peers")
    captured = capsys.readouterr()
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(names)
    assert captured.err.count(" of shrunk\n") == len(names)
    assert "Of shrunk" in captured.out
    assert (tmp_path / "deep" / "products.png").read_bytes().startswith(PNG)
    saved = json.loads((tmp_path / "deep" / "products.json").read_text())
    assert saved["machine"]["torch"] == torch.__version__
    assert saved["arguments"]["rates"] == [0.5]
    assert [found["product"] for found in saved["rows"]] == names
    for found in saved["rows"]:
        assert found["shape"] == "256x256x384"
        assert min(found["dense_us"], found["shrunk_us"], found["ours_us"]) > 0
        assert 0 <= found["live_share"] <= 1


@pytest.mark.gpu
def test_every_legal_tile_is_timed(tmp_path):
    run(tmp_path, torch.device("cuda"), "--tiles", "--dtype", "bfloat16", "float16")
    rows = json.loads((tmp_path / "products.json").read_text())["rows"]
    assert all(len(found["tiles_us"]) > 1 and found["regret"] is not None for found in rows)


def test_steps_are_timed_reported_and_saved(capsys, tmp_path, device):
    run(tmp_path, device, "--step")
    out = capsys.readouterr().out
    assert "Least speed-up of SparseDropLinear" in out
    assert (tmp_path / "step.png").read_bytes().startswith(PNG)
    saved = json.loads((tmp_path / "step.json").read_text())
    layers = saved["rows"][0]["layers"]
    assert list(layers) == ["Linear", "Dropout + Linear", "SparseDropLinear"]
    assert all(layer["wall_ms"] > 0 for layer in layers.values())
    on_gpu = device.type == "cuda"
    assert all((layer["gpu_ms"] is not None) == on_gpu for layer in layers.values())
    assert bool(saved["host"]) == on_gpu
    assert not saved["notes"]


def test_a_wrong_product_fails_the_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sparsedrop, "matmul", lambda a, b, **_: a @ b)
    argv = ["bench", "--device", "cpu", "--quick", "--rates", "0.5", "--out", str(tmp_path)]
    assert cli.main([*argv, "--shapes", "256x256x512"]) == 1
    sentence = capsys.readouterr().err
    assert "256x256x512, p = 0.5, forward, float32: differs" in sentence
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_no_picture(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(tmp_path, CPU, "--products", "forward")
    assert 'pip install "sparsedrop[bench]"' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["products.json"]


@pytest.mark.parametrize("option", [["--tune"], ["--tiles"], ["--against", "other.so"]], ids=str)
def test_what_is_about_the_kernels_needs_a_gpu(capsys, option):
    assert option[0] in fails_with(capsys, *option)


@pytest.mark.parametrize("option", ["--compile", "--amp"])
def test_what_is_about_the_step_needs_it(capsys, option):
    assert "--step" in fails_with(capsys, option)


def test_results_go_to_a_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails_with(capsys, "--out", str(tmp_path / "file"))


def test_cuda_without_a_gpu_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sparsedrop info" in fails_with(capsys, "--device", "cuda")


@pytest.mark.parametrize(
    "option",
    [
        ["--shapes", "4096x4096"],
        ["--shapes", "0x1x1"],
        ["--rates", "1"],
        ["--block", "128"],
        ["--both-block", "128x0"],
        ["--masks", "0"],
        ["--products", "backward"],
        ["--step", "--tune"],
        ["--tune", "--against", "other.so"],
    ],
)
def test_a_wrong_argument_is_refused(capsys, option):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["bench", *option])
    assert exit_info.value.code == 2
    assert option[0] in capsys.readouterr().err


# Problems


@pytest.mark.parametrize(
    ("extent", "share", "expected"),
    [(4096, 0.5, 2048), (1024, 0.3, 256), (1024, 0.01, 128), (12608, 0.5, 6272), (12608, 1, 12608)],
)
def test_shrunk_extents_are_multiples_of_128(extent, share, expected):
    assert products.shrunk_extent(extent, share) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward", (1024, 2048, 2048)),
        ("dX", (1024, 2048, 2048)),
        ("dW", (512, 2048, 4096)),
        ("both", (1024, 1024, 2048)),
        ("both-dX", (1024, 1024, 2048)),
        ("both-dW", (256, 2048, 4096)),
    ],
)
def test_shrunk_problems(name, expected):
    product = PRODUCTS[name]
    assert product.shrunk(Extents(1024, 2048, 4096), 0.5) == expected
    assert product.ideal(0.5) == (4 if product.two_sided else 2)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_live_share_counts_multiplications(name):
    extents = Extents(200, 168, 130)  # ragged last blocks
    m, n, k = extents
    x_mask, y_mask = random_mask((m, k), (32, 64), CPU), random_mask((m, n), (64, 48), CPU)
    masks = PRODUCTS[name].masks(x_mask, y_mask)
    a, b = PRODUCTS[name].factors(Operands.random(extents, torch.double, CPU))
    counts = sparsedrop.reference.matmul(
        torch.ones_like(a), torch.ones_like(b),
        a_mask=masks[0], b_mask=masks[1], out_mask=masks[2],
    )  # fmt: skip
    share = products.live_share(masks, a.shape[0], b.shape[1], a.shape[1])
    assert share == pytest.approx(counts.sum().item() / (m * n * k))


def test_extents_are_read_as_they_are_written():
    extents = Extents.parse("16384x4096x1024")
    assert extents == (16384, 4096, 1024)
    assert str(extents) == "16384x4096x1024"


def test_a_corner_is_contiguous():
    few = Operands.random(Extents(4, 6, 8), torch.float32, CPU).corner(Extents(2, 6, 4))
    assert [tuple(matrix.shape) for matrix in few] == [(2, 4), (6, 4), (2, 6)]
    assert all(matrix.is_contiguous() for matrix in few)


# Timing


def test_short_calls_are_repeated_within_a_lap():
    calls = []
    turns = timing.Turns(CPU)
    candidate = turns.prepare([lambda: calls.append(0), lambda: calls.append(1)])
    assert candidate.calls > 2
    calls.clear()
    candidate.launch()
    assert calls == [0, 1] * (candidate.calls // 2)
    assert 0 < turns.medians_us({"it": candidate})["it"] < 1e5


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "BUDGETS", {"cpu": timing.Budget(0.0, 3)})
    order: list[str] = []
    turns = timing.Turns(CPU)
    candidates = {
        name: timing.Candidate(lambda name=name: order.append(name), 1, 1.0, ()) for name in "ab"
    }
    turns.medians_us(candidates)
    assert order == list("ababbaab"), "a warm-up and three rounds, to and fro"


# The machine


def test_the_machine_is_named(device):
    facts = machine.facts(device)
    json.dumps(facts)
    title = machine.title(facts)
    assert torch.__version__ in title
    assert facts["gpu" if device.type == "cuda" else "cpu"] in title


# Peers


def factors_and_masks(extent: int) -> tuple[list, tuple]:
    a, b = torch.randn(extent, 64), torch.randn(64, 32)
    return [(a, b)], (random_mask((extent, 64), (16, 16), CPU), None, None)


def test_a_peer_is_timed_with_and_without_packing():
    factors, masks = factors_and_masks(64)
    bsr = peers.prepare(peers.PEERS[0], factors, masks, timing.Turns(CPU))
    assert bsr.name == "torch BSR"
    assert bsr.packing_us > 0
    assert bsr.product.calls > 0
    assert bsr.product.lap_us > 0


def test_a_failing_peer_is_a_sentence(monkeypatch):
    wrong = peers.Peer("Wrong", lambda a, mask: a, torch.mm)
    broken = peers.Peer("Broken", lambda a, mask: 1 / 0, torch.mm)
    monkeypatch.setattr(peers, "PEERS", (wrong, broken, *peers.PEERS))
    monkeypatch.setitem(sys.modules, "stk", None)
    prepared, sentences = peers.prepare_all(*factors_and_masks(64), timing.Turns(CPU))
    assert [peer.name for peer in prepared] == ["torch BSR"]
    assert [sentence.partition(" left out: ")[0] for sentence in sentences] == [
        "Wrong", "Broken", "STK"
    ]  # fmt: skip
    assert "wrong by" in sentences[0]


# Measuring


def test_a_wrong_product_is_named(monkeypatch):
    case = Case(PRODUCTS["forward"], Extents(64, 64, 64), 0.5, torch.float32, (16, 16), None)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    mask = random_mask((64, 64), (16, 16), CPU)
    measure.check(case, (a, b), (mask, None, None))
    monkeypatch.setattr(sparsedrop, "matmul", lambda a, b, **masks: a @ b)  # without its mask
    with pytest.raises(measure.WrongProductError, match="forward, float32: differs"):
        measure.check(case, (a, b), (mask, None, None))
    assert measure.relative_error(a, a) == 0
    assert measure.relative_error(2 * a, a) == pytest.approx(1.0)


def test_every_two_sided_product_comes_with_every_block():
    settings = cli_settings("--products", "dX", "both", "--rates", "0.3", "0.5")
    found = list(sweep.cases(settings, Extents(64, 64, 64), torch.float32))
    assert [(case.name, case.p) for case in found] == [
        (name, p) for name in ("dX", "both 128x128", "both 128x256") for p in (0.3, 0.5)
    ]


def cli_settings(*argv: str) -> Settings:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return resolve(parser.parse_args([*argv]), CPU)
