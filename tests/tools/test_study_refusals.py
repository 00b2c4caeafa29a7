"""The sentences of `sparsedrop study` where it cannot do as asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sparsedrop.tools import cli
from sparsedrop.tools.study import idx, text
from study_cases import IDX_FILES, fails_with, write_mnist


def test_a_rate_that_no_pattern_gives(capsys):
    sentence = fails_with(capsys, "--methods", "row-pattern", "--rates", "0.9")
    assert "--methods row-pattern goes to a rate of 0.875, not 0.9" in sentence


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
    assert idx.SOURCES["mnist"].address in sentence
    assert not any(name in sentence for name in IDX_FILES[:3])


def test_idx_data_without_a_folder_names_all_files(capsys, monkeypatch):
    nowhere = idx.SOURCES["fashion-mnist"]._replace(folder=Path("/nowhere"))
    monkeypatch.setitem(idx.SOURCES, "fashion-mnist", nowhere)
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
        (b"short" * 20, "100 characters, 5 of them to validate on"),
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
        ("--task gpt --context 23252", "23252 of them to validate on"),
        ("--task vit --width 36", "a --width of 36 does not divide into --heads 8"),
        ("--heads 2", "--heads does not go with --task mlp: it is of vit and gpt"),
        ("--task vit --context 2", "--context does not go with --task vit: it is of gpt and lstm"),
        ("--task gpt --data digits", "--data digits does not go with --task gpt"),
        ("--task mlp --data ptb", "--data ptb does not go with --task mlp: it reads digits, mnist"),
        ("--task lstm --data mnist", "does not go with --task lstm: it reads ptb, kjv"),
        ("--task lstm --data kjv --data-file x", "--data-file and --data kjv are two texts"),
        ("--task lstm --data kjv --data-dir .", "--data-dir . is of ptb: name one with --data"),
        ("--task gpt --data-dir .", "--data-dir . is not of --task gpt"),
        ("--methods drop-path", "--methods drop-path does not go with --task mlp"),
        ("--task wide-resnet --methods sparsedrop", "give some of none dropout sliceout drop-path"),
        ("--task wide-resnet --layers 12", "--layers 12 does not go with --task wide-resnet: a"),
        ("--task wide-resnet --layers 4", "has 10, 16, 22, 28, ... layers, not 4"),
        ("--task wide-resnet --block-shapes 8x8", "--block-shapes does not go with --task wide-"),
        ("--task wide-resnet --sampler balanced", "it is of mlp, ard-mlp, vit, gpt and lstm"),
        ("--task lstm --methods sliceout", "give some of none dropout sparsedrop row-pattern"),
        ("--data-file x", "--data-file does not go with --task mlp"),
        ("--data-dir .", "--data-dir . is of mnist, fashion-mnist, cifar-10: name one with --data"),
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
        ["--block-shapes", "0x1"],
        ["--minutes", "nan"],
        ["--jobs", "0"],
    ],
)
def test_a_wrong_value_is_refused(capsys, option):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["study", *option])
    assert exit_info.value.code == 2
    assert option[0] in capsys.readouterr().err
