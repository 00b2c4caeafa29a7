"""`sparsedrop study`: the whole command."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

from sparsedrop.tools import cli, info
from sparsedrop.tools.study import text, timing
from sparsedrop.tools.study.method import NAMES
from sparsedrop.tools.study.tasks import TASKS
from study_cases import resolved, tiny, write_mnist

HEADER = ["method", "p", "val. loss", "val. accuracy (%)", "best step"]
TESTED = [*HEADER[:4], "test loss", "best step"]
TIMES = ["method", "p", "step (ms)", "× nn.Dropout", "to best (s)", "to nn.Dropout's (s)"]
TIMES += ["of its time"]


@pytest.fixture(autouse=True)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are timed in a few laps."""
    monkeypatch.setattr(timing, "LAPS", (1, 1))
    monkeypatch.setattr(timing, "STEPS", 1)


def tables_of(printed: str) -> list[list[list[str]]]:
    """The cells of each table."""
    tables = []
    for block in printed.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            assert len({len(line) for line in lines}) == 1, "not aligned"
            tables.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines])
    return tables


def study(capsys: pytest.CaptureFixture[str], argv: list[str]) -> tuple[list, dict]:
    """The printed tables, and the JSON."""
    assert cli.main(["study", *argv]) == 0
    out = Path(argv[argv.index("--out") + 1])
    printed = capsys.readouterr().out
    assert printed.partition("\nsaved ")[0].strip() == (
        (out / "study.md").read_text().replace("\n\n", "\n", 1).strip()
    )
    return tables_of(printed), json.loads((out / "study.json").read_text())


def columns_of(table: list[list[str]]) -> list[dict[str, str]]:
    header, _, *lines = table
    return [dict(zip(header, line, strict=True)) for line in lines]


# Whole studies


@pytest.mark.parametrize("task", ["mlp", "vit", "wide-resnet", "gpt"])
def test_each_task_prints_tables_that_follow_from_its_json(capsys, tmp_path, task):
    argv = tiny(task, tmp_path, "--seeds", "2", "--rates", "0.1", "0.5")
    (quality, best, times), saved = study(capsys, argv)
    header = [word for word in TESTED if "accuracy" not in word] if task == "gpt" else HEADER
    assert quality[0] == header
    names = [NAMES[word] for word in TASKS[task].default_methods]
    wanted = [(names[0], "–"), *((name, p) for name in names[1:] for p in ("0.1", "0.5"))]
    assert [tuple(line[:2]) for line in quality[2:]] == wanted
    assert times[0] == TIMES
    for column, time, row in zip(
        columns_of(quality), columns_of(times), saved["rows"], strict=True
    ):
        runs = [seed["records"] for seed in row["seeds"]]
        records = [min(each, key=lambda record: record["loss"]) for each in runs]
        assert [seed["best_step"] for seed in row["seeds"]] == [r["step"] for r in records]
        losses = [record["loss"] for record in records]
        mean, std = statistics.mean(losses), statistics.stdev(losses)
        assert column["val. loss"] == f"{mean:.4f} ± {std:.4f}"
        step = statistics.mean(record["step"] for record in records)
        assert column["best step"] == f"{step:.0f}"
        ms = row["times"]["eager_ms"]
        assert time["step (ms)"] == f"{ms:.3f}"
        assert time["to best (s)"] == f"{step * ms / 1e3:.2f}"
        if task != "gpt":
            accuracies = [100 * record["accuracy"] for record in records]
            mean, std = statistics.mean(accuracies), statistics.stdev(accuracies)
            assert column["val. accuracy (%)"] == f"{mean:.2f} ± {std:.2f}"
    if task != "mlp":
        assert [record["step"] for record in saved["rows"][0]["seeds"][0]["records"]] == [2, 4]
    least = {}
    for row in saved["rows"]:
        known = least.setdefault(row["method"], row)
        least[row["method"]] = min(known, row, key=lambda row: row["loss"]["mean"])
    assert [(line[0], line[1]) for line in best[2:]] == [
        (name, "–" if name == "no dropout" else f"{row['p']:g}") for name, row in least.items()
    ]


def test_a_study_saves_what_it_takes_to_repeat_it(capsys, tmp_path, device):
    out = tmp_path / "deep" / "results"
    argv = ["study", "--device", device.type, "--out", str(out), "--methods", "sparsedrop"]
    argv += ["--seeds", "2", "--epochs", "1", "--batch-size", "448", "--rates", "0.3"]
    assert cli.main(argv) == 0
    captured = capsys.readouterr()
    assert "4/4" in captured.err, "no progress bar"
    assert captured.out.startswith(
        "mlp (2 layers, width 1024) on digits: 898 training and 899 validation images\n"
        "2 steps of 448"
    )
    for name in ("study.png", "study-dark.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    saved = json.loads((out / "study.json").read_text())
    assert saved["machine"]["torch"] == torch.__version__
    assert saved["machine"]["gpu" if device.type == "cuda" else "cpu"] == info.device_name(device)
    arguments = saved["arguments"]
    wanted = {"task": "mlp", "data": "digits", "methods": ["sparsedrop"], "rates": [0.3]}
    wanted |= {"seeds": 2, "steps": 2, "eval_every": 2, "batch_size": 448, "width": 1024}
    assert {key: arguments[key] for key in wanted} == wanted
    assert arguments["device"] == device.type
    assert [row["speedup_over_dropout"] for row in saved["rows"]] == [None]


def test_the_test_part_of_mnist_is_reported(capsys, tmp_path):
    write_mnist(tmp_path)
    argv = ["--data", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    argv += ["--methods", "none", "--seeds", "1", "--epochs", "2", "--batch-size", "25"]
    tables, saved = study(capsys, [*argv, "--device", "cpu", "--width", "32"])
    (row,) = saved["rows"]
    best = min(row["seeds"][0]["records"], key=lambda record: record["loss"])
    assert row["test_loss"]["mean"] == best["test_loss"]
    (column,) = columns_of(tables[0])
    assert column["test loss"] == f"{best['test_loss']:.4f}", "one seed has no spread"
    assert column["test accuracy (%)"] == f"{100 * best['test_accuracy']:.2f}"


@pytest.mark.parametrize("task", TASKS)
def test_all_methods_are_trained_side_by_side(capsys, tmp_path, task):
    width = "2" if task == "wide-resnet" else "64"
    options = "--methods", "all", "--rates", "0.5", "--seeds", "1", "--width", width
    _, saved = study(capsys, tiny(task, tmp_path, *options))
    words = TASKS[task].methods
    assert [row["method"] for row in saved["rows"]] == [NAMES[word] for word in words]
    losses = [row["loss"]["mean"] for row in saved["rows"]]
    assert len(set(losses)) > 3


def test_a_run_that_diverges_is_reported_as_one(capsys, tmp_path):
    argv = tiny("mlp", tmp_path, "--methods", "none", "--seeds", "2", "--lr", "1e30")
    tables, saved = study(capsys, argv)
    assert columns_of(tables[0])[0]["val. loss"] == "nan"
    assert saved["rows"][0]["loss"] == {"mean": None, "std": None}
    assert "NaN" not in json.dumps(saved)


def test_without_a_file_a_text_that_python_brings_is_read(tmp_path):
    argv = tiny("gpt", tmp_path)
    at = argv.index("--data-file")
    settings, data = resolved(argv[:at] + argv[at + 2 :])
    assert settings.data == text.OWN_TEXT
    assert len(data.train.targets) > 300_000
    assert data.digest == resolved(argv[:at] + argv[at + 2 :])[1].digest


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (
            "--task mlp",
            {"width": 1024, "layers": 2, "batch_size": 128, "block_shapes": ((128, 32),)},
        ),
        ("--task vit", {"width": 64, "heads": 8, "batch_size": 64, "lr": 3e-3}),
        ("--task wide-resnet", {"width": 1, "layers": 10, "batch_size": 64, "block_shapes": ()}),
        ("--task wide-resnet --layers 16 --width 4", {"width": 4, "layers": 16, "lr": 0.05}),
        ("--task gpt", {"width": 128, "context": 64, "steps": 500}),
        ("--task gpt --width 64 --heads 2 --epochs 1", {"width": 64, "heads": 2, "epochs": 1}),
    ],
)
def test_small_defaults_are_the_tasks_and_options_change_them(argv, wanted):
    settings, _ = resolved([*argv.split(), "--device", "cpu"])
    assert {key: getattr(settings.preset, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ("mlp", {"width": 1024, "layers": 2, "batch_size": 1024, "lr": 1e-3}),
        ("vit", {"width": 1024, "layers": 2, "heads": 8, "batch_size": 64, "lr": 1e-4}),
        ("wide-resnet", {"width": 4, "layers": 16, "batch_size": 128, "weight_decay": 5e-4}),
    ],
)
def test_real_images_have_the_papers_settings(tmp_path, task, wanted):
    write_mnist(tmp_path, (1300, 10))
    settings, data = resolved(
        ["--task", task, "--data", "mnist", "--data-dir", str(tmp_path), "--device", "cpu"]
    )
    assert {key: getattr(settings.preset, key) for key in wanted} == wanted
    shapes = {"mlp": (784,), "vit": (256, 4), "wide-resnet": (1, 32, 32)}
    assert data.train.inputs.shape[1:] == shapes[task]
