"""`sparsedrop study`: the whole command, and the sentences where it cannot do as asked."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

from sparsedrop.tools import cli, info
from sparsedrop.tools.networks import METHODS
from sparsedrop.tools.study import images, text
from study_cases import IDX_FILES, fails_with, resolved, tiny, write_mnist

WANTED = [
    ("no dropout", "–"),
    *((name, p) for name in ("nn.Dropout", "sparsedrop") for p in ("0.1", "0.5")),
]
HEADER = ["method", "p", "val. loss", "val. accuracy (%)", "best step"]
HEADER += ["time per step (ms)", "time to best (s)", "× nn.Dropout"]


def table_of(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "not aligned"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def study(capsys: pytest.CaptureFixture[str], argv: list[str]) -> tuple[list[list[str]], dict]:
    """The printed table, and the JSON."""
    assert cli.main(["study", *argv]) == 0
    saved = json.loads((Path(argv[argv.index("--out") + 1]) / "study.json").read_text())
    return table_of(capsys.readouterr().out), saved


# Whole studies


@pytest.mark.parametrize("task", ["mlp", "vit", "gpt"])
def test_each_task_prints_a_table_that_follows_from_its_json(capsys, tmp_path, task):
    argv = tiny(task, tmp_path, "--seeds", "2", "--rates", "0.1", "0.5")
    cells, saved = study(capsys, argv)
    header = HEADER if task != "gpt" else [word for word in HEADER if "accuracy" not in word]
    assert cells[0] == header
    assert [tuple(line[:2]) for line in cells[2:]] == WANTED
    for line, row in zip(cells[2:], saved["rows"], strict=True):
        column = dict(zip(header, line, strict=True))
        runs = [seed["records"] for seed in row["seeds"]]
        best = [min(records, key=lambda record: record["loss"]) for records in runs]
        assert [seed["best_step"] for seed in row["seeds"]] == [record["step"] for record in best]
        losses = [record["loss"] for record in best]
        mean, std = statistics.mean(losses), statistics.stdev(losses)
        assert column["val. loss"] == f"{mean:.4f} ± {std:.4f}"
        assert column["best step"] == f"{statistics.mean(r['step'] for r in best):.0f}"
        seconds = statistics.mean(r["step"] for r in best) * row["step_ms"] / 1e3
        assert column["time to best (s)"] == f"{seconds:.2f}"
        assert column["time per step (ms)"] == f"{row['step_ms']:.2f}"
        if task != "gpt":
            accuracies = [100 * record["accuracy"] for record in best]
            mean, std = statistics.mean(accuracies), statistics.stdev(accuracies)
            assert column["val. accuracy (%)"] == f"{mean:.2f} ± {std:.2f}"
        seconds = [record["seconds"] for record in runs[0]]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    if task != "mlp":
        assert [record["step"] for record in saved["rows"][0]["seeds"][0]["records"]] == [2, 4]


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
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
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
    cells, saved = study(capsys, [*argv, "--device", "cpu", "--width", "32"])
    (row,) = saved["rows"]
    best = min(row["seeds"][0]["records"], key=lambda record: record["loss"])
    assert row["test_loss"]["mean"] == best["test_loss"]
    column = dict(zip(cells[0], cells[2], strict=True))
    assert column["test loss"] == f"{best['test_loss']:.4f}", "one seed has no spread"
    assert column["test accuracy (%)"] == f"{100 * best['test_accuracy']:.2f}"


@pytest.mark.parametrize("task", ["mlp", "gpt"])
def test_all_methods_are_trained_side_by_side(capsys, tmp_path, task):
    options = "--methods", *METHODS, "--rates", "0.5", "--seeds", "1", "--width", "64"
    _, saved = study(capsys, tiny(task, tmp_path, *options))
    assert [row["method"] for row in saved["rows"]] == list(METHODS.values())
    losses = [row["loss"]["mean"] for row in saved["rows"]]
    assert len(set(losses)) > 3


def test_a_rate_that_no_pattern_gives(capsys):
    sentence = fails_with(capsys, "--methods", "row-pattern", "--rates", "0.9")
    assert "--methods row-pattern goes to a rate of 0.875, not 0.9" in sentence


def test_a_run_that_diverges_is_reported_as_one(capsys, tmp_path):
    argv = tiny("mlp", tmp_path, "--methods", "none", "--seeds", "2", "--lr", "1e30")
    cells, saved = study(capsys, argv)
    assert dict(zip(cells[0], cells[2], strict=True))["val. loss"] == "nan"
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
        ("--task mlp", {"width": 1024, "layers": 2, "batch_size": 128, "block_shape": (128, 32)}),
        ("--task vit", {"width": 64, "heads": 8, "batch_size": 64, "lr": 3e-3}),
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
    ],
)
def test_real_images_have_the_papers_settings(tmp_path, task, wanted):
    write_mnist(tmp_path, (1300, 10))
    settings, data = resolved(
        ["--task", task, "--data", "mnist", "--data-dir", str(tmp_path), "--device", "cpu"]
    )
    assert {key: getattr(settings.preset, key) for key in wanted} == wanted
    assert data.train.inputs.shape[1:] == {"mlp": (784,), "vit": (256, 4)}[task]


# What the user can put right


@pytest.mark.parametrize("name", ["sklearn", "matplotlib", "tqdm"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    sentence = fails_with(capsys)
    assert name in sentence
    assert 'pip install "sparsedrop[study]"' in sentence


def test_missing_data_is_named_with_its_address(capsys, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[3]).with_suffix(".gz").unlink()
    sentence = fails_with(capsys, "--data", "mnist", "--data-dir", str(tmp_path))
    assert IDX_FILES[3] in sentence
    assert str(tmp_path) in sentence
    assert images.IDX_SOURCES["mnist"].address in sentence
    assert not any(name in sentence for name in IDX_FILES[:3])


def test_idx_data_without_a_folder_names_all_files(capsys, monkeypatch):
    nowhere = images.IDX_SOURCES["fashion-mnist"]._replace(folder=Path("/nowhere"))
    monkeypatch.setitem(images.IDX_SOURCES, "fashion-mnist", nowhere)
    sentence = fails_with(capsys, "--data", "fashion-mnist")
    assert "--data-dir" in sentence
    assert all(name in sentence for name in IDX_FILES)
    assert nowhere.address in sentence
    assert "apt install dataset-fashion-mnist" in sentence


def test_a_damaged_file_is_one_sentence(capsys, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[0]).write_bytes(b"no images")
    sentence = fails_with(capsys, "--data", "mnist", "--data-dir", str(tmp_path))
    assert str(tmp_path / IDX_FILES[0]) in sentence


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        (b"", "0 characters"),
        (b"short" * 20, "100 characters, 10 of them to validate on"),
        ("ä".encode()[:1], "unexpected end of data at byte 0 of 1"),
        (b"a\xffb" * 1000, "invalid start byte at byte 1"),
    ],
)
def test_a_text_that_cannot_be_used_is_one_sentence(capsys, tmp_path, content, why):
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    sentence = fails_with(capsys, "--task", "gpt", "--data-file", str(path))
    assert str(path) in sentence
    assert why in sentence
    assert "--data-file" in sentence


def test_a_folder_in_the_place_of_a_text_is_one_sentence(capsys, tmp_path):
    sentence = fails_with(capsys, "--task", "gpt", "--data-file", str(tmp_path))
    assert f"cannot read --data-file {tmp_path}: is a directory" in sentence


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ("--batch-size 899", "a batch of 899 is more than all 898 training images of digits"),
        ("--task gpt --context 46505", "46505 of them to validate on"),
        ("--task vit --width 36", "a --width of 36 does not divide into --heads 8"),
        ("--heads 2", "--heads does not go with --task mlp: it is of vit and gpt"),
        ("--task vit --context 2", "--context does not go with --task vit: it is of gpt"),
        ("--task gpt --data digits", "--data does not go with --task gpt"),
        ("--task gpt --data-dir .", "--data-dir does not go with --task gpt"),
        ("--data-file x", "--data-file does not go with --task mlp"),
        ("--data-dir .", "--data-dir . is of mnist and fashion-mnist: name one with --data"),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, monkeypatch, argv, why):
    monkeypatch.setattr(text, "own_text", lambda: "ab" * 232_524)
    assert why in fails_with(capsys, *argv.split())


def test_a_results_folder_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "file").touch()
    sentence = fails_with(capsys, "--out", str(tmp_path / "file"))
    assert f"cannot make the folder --out {tmp_path / 'file'}: not a folder" in sentence
    sentence = fails_with(capsys, "--out", str(tmp_path / "file" / "results"))
    assert f"--out {tmp_path / 'file' / 'results'}: not a directory" in sentence


def test_cuda_without_a_gpu_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sparsedrop info" in fails_with(capsys, "--device", "cuda")


@pytest.mark.parametrize(
    "option",
    [
        ["--task", "cnn"],
        ["--methods", "none", "block"],
        ["--rates", "1"],
        ["--rates", "-0.1"],
        ["--rates", "nan"],
        ["--seeds", "0"],
        ["--eval-every", "0"],
        ["--lr", "-1"],
        ["--weight-decay", "inf"],
        ["--block-shape", "0", "1"],
    ],
)
def test_a_wrong_value_is_refused(capsys, option):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["study", *option])
    assert exit_info.value.code == 2
    assert option[0] in capsys.readouterr().err
