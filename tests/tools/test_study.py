"""`sparsedrop study`: its data, its runs, its report."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from pathlib import Path

import pytest
import torch

from sparsedrop.tools import cli, info
from sparsedrop.tools.study import data, report

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(array: torch.Tensor, kind: int = 8) -> bytes:
    header = struct.pack(f">BBBB{array.dim()}I", 0, 0, kind, array.dim(), *array.shape)
    return header + array.contiguous().numpy().tobytes()


def write_mnist(folder: Path, counts: tuple[int, int] = (64, 32)) -> dict[str, torch.Tensor]:
    """Four small files; the labels' are gzipped. Returns what is in them."""
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for part, count in zip(("train", "t10k"), counts, strict=True):
        size, top = (count, 28, 28), 256
        images = torch.randint(top, size, generator=generator, dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        arrays |= {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": labels}
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        packed = gzip.compress(idx_bytes(labels))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(packed)
    return arrays


def fails_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence with which `sparsedrop study ARGV` ends, exit code 2."""
    assert cli.main(["study", "--device", "cpu", *argv]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    return sentence


# The whole command


def test_study_prints_a_table_and_saves_it(capsys, tmp_path, device):
    out = tmp_path / "deep" / "results"
    argv = ["study", "--device", device.type, "--out", str(out)]
    argv += ["--seeds", "2", "--epochs", "1", "--batch-size", "448"]
    assert cli.main(argv) == 0
    captured = capsys.readouterr()
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1, "not aligned"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == report.HEADER
    wanted = [("no dropout", "–")]
    wanted += [
        (name, p) for name in ("nn.Dropout", "SparseDropLinear") for p in ("0.1", "0.3", "0.5")
    ]
    assert [tuple(line[:2]) for line in cells[2:]] == wanted
    assert all("±" in line[2] and "±" in line[3] for line in cells[2:])
    assert "14/14" in captured.err, "no progress bar"

    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((out / "study.json").read_text())
    assert saved["versions"]["torch"] == torch.__version__
    assert saved["device"] == info.device_name(device)
    assert saved["arguments"]["seeds"] == 2
    assert saved["arguments"]["device"] == device.type
    methods = [(row["method"], row["p"]) for row in saved["rows"]]
    assert methods == [("no dropout", 0.0), *((name, float(p)) for name, p in wanted[1:])]
    assert [len(row["seeds"]) for row in saved["rows"]] == [2] * 7
    assert all(row["step_ms"] > 0 for row in saved["rows"])


def test_study_reads_mnist(capsys, tmp_path):
    write_mnist(tmp_path)
    argv = ["study", "--data", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    argv += ["--rates", "0.3", "--seeds", "1", "--epochs", "1", "--batch-size", "32"]
    assert cli.main([*argv, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mnist: 64 training and 32 validation images")
    assert "±" not in out, "one seed has no spread"


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
    assert data.SOURCES["mnist"].address in sentence
    assert not any(name in sentence for name in IDX_FILES[:3])


def test_idx_data_without_a_folder_names_all_files(capsys):
    sentence = fails_with(capsys, "--data", "fashion-mnist")
    assert "--data-dir" in sentence
    assert all(name in sentence for name in IDX_FILES)
    assert data.SOURCES["fashion-mnist"].address in sentence


def test_a_damaged_file_is_one_sentence(capsys, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[0]).write_bytes(b"no images")
    sentence = fails_with(capsys, "--data", "mnist", "--data-dir", str(tmp_path))
    assert str(tmp_path / IDX_FILES[0]) in sentence


def test_a_batch_above_the_data_is_refused(capsys):
    assert "899" in fails_with(capsys, "--batch-size", "899")


def test_cuda_without_a_gpu_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sparsedrop info" in fails_with(capsys, "--device", "cuda")


@pytest.mark.parametrize(
    "option", [["--rates", "1"], ["--rates", "nan"], ["--seeds", "0"], ["--block-shape", "0", "1"]]
)
def test_a_wrong_number_is_refused(capsys, option):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["study", *option])
    assert exit_info.value.code == 2
    assert option[0] in capsys.readouterr().err


# Data


def test_the_digits_are_split_in_stratified_halves():
    images = data.load("digits", None)
    assert [tuple(part.pixels.shape) for part in images] == [(898, 64), (899, 64)]
    assert all(part.pixels.min() == 0 and part.pixels.max() == 1 for part in images)
    counts = [part.labels.bincount(minlength=10) for part in images]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_idx_images_are_the_files_contents(tmp_path):
    arrays = write_mnist(tmp_path)
    images = data.load("mnist", tmp_path)
    for part, prefix in zip(images, ("train", "t10k"), strict=True):
        pixels = arrays[f"{prefix}-images-idx3-ubyte"]
        torch.testing.assert_close(part.pixels, pixels.flatten(1) / 255, rtol=0, atol=0)
        assert torch.equal(part.labels, arrays[f"{prefix}-labels-idx1-ubyte"].long())


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx_takes_plain_and_gzipped_files(tmp_path, pack):
    array = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    path = tmp_path / "array"
    path.write_bytes(pack(idx_bytes(array)))
    assert torch.equal(data.read_idx(path, 3), array)


ARRAY = torch.zeros((2, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (idx_bytes(ARRAY, kind=13), "magic number"),
        (idx_bytes(ARRAY.flatten()), "magic number"),
        (b"", "magic number"),
        (idx_bytes(ARRAY)[:6], "announces"),
        (idx_bytes(ARRAY)[:-1], "announces"),
        (idx_bytes(ARRAY) + b"\0", "announces"),
        (gzip.compress(idx_bytes(ARRAY))[:-9], "damaged gzip"),
        (b"\x1f\x8bnothing", "damaged gzip"),
    ],
)
def test_read_idx_names_a_file_that_is_none(tmp_path, content, why):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as error:
        data.read_idx(path, 2)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("labels", [torch.arange(63) % 10, torch.arange(64) % 11])
def test_labels_that_cannot_be_the_images_are_refused(tmp_path, labels):
    write_mnist(tmp_path)
    path = tmp_path / f"{IDX_FILES[1]}.gz"
    path.write_bytes(idx_bytes(labels.to(torch.uint8)))
    with pytest.raises(ValueError, match=IDX_FILES[1]):
        data.load("mnist", tmp_path)
