"""CIFAR-10 in both of the forms that its authors give out."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsedrop.tools.study import cifar, images
from sparsedrop.tools.study.patches import patches
from study_cases import fails_with

COUNT = 4


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pixels [4, 3072] and labels [4] of the six files."""
    generator = torch.Generator().manual_seed(0)
    size = (COUNT, cifar.VALUES)
    return [
        (torch.randint(256, size, generator=generator, dtype=torch.uint8), torch.arange(COUNT) + i)
        for i in range(6)
    ]


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in zip(cifar.BATCHES, batches(), strict=True):
        records = torch.cat([labels[:, None].to(torch.uint8), pixels], 1)
        (folder / f"{name}.bin").write_bytes(records.numpy().tobytes())


def write_pickled(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in zip(cifar.BATCHES, batches(), strict=True):
        content = {b"data": pixels.numpy(), b"labels": labels.tolist(), b"batch_label": b"one"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


WRITE = {"cifar-10-batches-bin": write_binary, "cifar-10-batches-py": write_pickled}


@pytest.mark.parametrize("form", WRITE)
@pytest.mark.parametrize("is_inner", [False, True])
def test_images_are_the_files_contents(tmp_path, form, is_inner):
    WRITE[form](tmp_path / form if is_inner else tmp_path)
    data = images.load("cifar-10", tmp_path, images.rows)
    given = batches()
    pixels = torch.cat([pixels for pixels, _ in given]).float() / 255
    labels = torch.cat([labels for _, labels in given])
    parts = {"train": slice(16), "validation": slice(16, 20), "test": slice(20, 24)}
    for name, part in parts.items():
        found = getattr(data, name)
        torch.testing.assert_close(found.inputs, pixels[part], rtol=0, atol=0)
        assert torch.equal(found.targets, labels[part])
    assert data.summary == "16 training, 4 validation and 4 test images"


def test_a_vision_transformer_reads_patches_of_all_colours(tmp_path):
    write_binary(tmp_path)
    data = images.load("cifar-10", tmp_path, patches)
    assert data.train.inputs.shape == (16, 256, 12)
    first = batches()[0][0][0].view(3, 32, 32)[:, :2, :2].flatten().float() / 255
    torch.testing.assert_close(data.train.inputs[0, 0], first, rtol=0, atol=0)


def test_a_pickle_of_anything_but_arrays_is_not_run(tmp_path):
    class Program:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "made"),)

    write_pickled(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Program()}))
    with pytest.raises(ValueError, match=r"asks for posix\.mkdir"):
        cifar.load(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no whole records"),
        (bytes(3072), "no whole records"),
        (bytes(3073 * 3), "3 images"),
        (b"\x0a" + bytes(3072), "label 10"),
    ],
)
def test_a_damaged_binary_file_is_one_sentence(capsys, tmp_path, content, why):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(content)
    sentence = fails_with(capsys, "--data", "cifar-10", "--data-dir", str(tmp_path))
    assert str(path) in sentence
    assert why in sentence


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]})[:-99],
    ],
)
def test_a_damaged_pickled_file_is_one_sentence(capsys, tmp_path, content):
    write_pickled(tmp_path)
    path = tmp_path / "data_batch_3"
    path.write_bytes(content)
    sentence = fails_with(capsys, "--data", "cifar-10", "--data-dir", str(tmp_path))
    assert str(path) in sentence


def test_missing_files_are_named_with_their_address(capsys, tmp_path):
    write_pickled(tmp_path)
    (tmp_path / "data_batch_2").unlink()
    sentence = fails_with(capsys, "--data", "cifar-10", "--data-dir", str(tmp_path))
    assert "reads data_batch_2 (plain or .gz)" in sentence
    assert cifar.ADDRESS in sentence
    assert "data_batch_1.bin" in fails_with(capsys, "--data", "cifar-10")
