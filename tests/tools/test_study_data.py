"""The images and texts of `sparsedrop study`."""

from __future__ import annotations

import gzip
import sys

import pytest
import torch

from sparsedrop.tools.study import characters, idx, images, text
from sparsedrop.tools.study.patches import patches, z_order
from study_cases import IDX_FILES, idx_bytes, write_mnist

CPU = torch.device("cpu")

# Images


def test_the_digits_are_split_in_stratified_halves():
    data = images.load("digits", None, images.rows)
    assert data.test is None
    parts = data.train, data.validation
    assert [tuple(part.inputs.shape) for part in parts] == [(898, 64), (899, 64)]
    assert all(part.inputs.min() == 0 and part.inputs.max() == 1 for part in parts)
    counts = [part.targets.bincount(minlength=10) for part in parts]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert (data.rows, data.epoch, data.classes) == (1, 898, 10)
    assert data.summary == "898 training and 899 validation images"


def test_idx_images_are_the_files_contents(tmp_path):
    arrays = write_mnist(tmp_path)
    data = images.load("mnist", tmp_path, images.rows)
    pixels = arrays[IDX_FILES[0]].flatten(1) / 255
    labels = arrays[IDX_FILES[1]].long()
    for part, wanted in ((data.train, slice(50)), (data.validation, slice(50, 60))):
        torch.testing.assert_close(part.inputs, pixels[wanted], rtol=0, atol=0)
        assert torch.equal(part.targets, labels[wanted])
    test = arrays[IDX_FILES[2]].flatten(1) / 255
    torch.testing.assert_close(data.test.inputs, test, rtol=0, atol=0)
    assert torch.equal(data.test.targets, arrays[IDX_FILES[3]].long())
    assert data.summary == "50 training, 10 validation and 32 test images"


def test_fashion_mnist_is_found_where_the_system_has_it(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    there = idx.SOURCES["fashion-mnist"]._replace(folder=tmp_path)
    monkeypatch.setitem(idx.SOURCES, "fashion-mnist", there)
    found = images.load("fashion-mnist", None, images.rows)
    assert found.digest == images.load("mnist", tmp_path, images.rows).digest


def test_other_data_have_another_digest(tmp_path):
    arrays = write_mnist(tmp_path)
    before = images.load("mnist", tmp_path, images.rows).digest
    arrays[IDX_FILES[0]][0, 0, 0] ^= 1
    (tmp_path / IDX_FILES[0]).write_bytes(idx_bytes(arrays[IDX_FILES[0]]))
    assert images.load("mnist", tmp_path, images.rows).digest != before


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx_takes_plain_and_gzipped_files(tmp_path, pack):
    array = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    path = tmp_path / "array"
    path.write_bytes(pack(idx_bytes(array)))
    assert torch.equal(idx.read(path, 3), array)


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
        (gzip.compress(idx_bytes(ARRAY), mtime=0)[:-9], "damaged gzip"),
        (b"\x1f\x8bnothing", "damaged gzip"),
    ],
)
def test_read_idx_names_a_file_that_is_not_one(tmp_path, content, why):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as error:
        idx.read(path, 2)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("labels", [torch.arange(59) % 10, torch.arange(60) % 11])
def test_labels_that_cannot_be_the_images_are_refused(tmp_path, labels):
    write_mnist(tmp_path)
    path = tmp_path / f"{IDX_FILES[1]}.gz"
    path.write_bytes(idx_bytes(labels.to(torch.uint8)))
    with pytest.raises(ValueError, match=IDX_FILES[1]):
        images.load("mnist", tmp_path, images.rows)


def test_images_that_are_not_square_are_refused(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[0]).write_bytes(idx_bytes(torch.zeros(60, 28, 14, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="28x14"):
        images.load("mnist", tmp_path, images.rows)


# Patches


@pytest.mark.parametrize("side", [1, 2, 4, 16])
def test_aligned_runs_of_rows_are_squares_of_the_grid(side):
    order = z_order(side)
    assert order.sort().values.tolist() == list(range(side * side))
    for square in (2**k for k in range(side.bit_length())):
        for places in order.split(square * square):
            rows, columns = places // side, places % side
            assert rows.max() - rows.min() == square - 1
            assert columns.max() - columns.min() == square - 1


def test_patches_are_pixels_of_their_squares():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    found = patches(image)
    assert found.shape == (1, 16, 4)
    assert found[0, 0].tolist() == [0, 1, 8, 9]
    assert found[0, 1].tolist() == [2, 3, 10, 11], "to the right"
    assert found[0, 2].tolist() == [16, 17, 24, 25], "then below"
    assert found[0, 4].tolist() == [4, 5, 12, 13], "then the next square of four"


def test_a_patch_has_all_colours_of_its_square():
    found = patches(torch.arange(48.0).view(1, 3, 4, 4))
    assert found.shape == (1, 4, 12)
    assert found[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23, 34, 35, 38, 39]


def test_the_side_of_an_image_becomes_a_power_of_two():
    found = patches(torch.ones(2, 1, 28, 28))
    assert found.shape == (2, 256, 4)
    assert found.sum() == 2 * 28 * 28
    assert found[0, 0].sum() == 0, "not zeros around it"


def test_convolutions_read_squares_with_zeros_around_them():
    pixels = torch.rand(2, 1, 28, 28)
    found = images.squares(pixels)
    assert found.shape == (2, 1, 32, 32)
    assert torch.equal(found[..., 2:30, 2:30], pixels)
    assert found.sum().item() == pytest.approx(pixels.sum().item())
    colours = images.squares(torch.rand(5, 3, 8, 8))
    assert colours.shape == (5, 3, 8, 8)
    batch = colours[torch.tensor([3, 1])]
    assert batch.is_contiguous(memory_format=torch.channels_last)


# Text


def test_a_text_is_split_by_position_into_windows(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(("abcdefghij" * 9 + "0123456789").encode() * 2)
    data = characters.load(path, 4, CPU)
    codes = characters.encode(path.read_text())
    assert data.classes == 20
    assert (data.rows, data.epoch) == (4, 45)
    assert data.train.inputs.shape == (176, 4), "a window at every place"
    for place in (0, 3, 175):
        assert data.train.inputs[place].tolist() == codes[place : place + 4].tolist()
        assert data.train.targets[place].tolist() == codes[place + 1 : place + 5].tolist()
    for part, first in ((data.validation, 180), (data.test, 190)):
        wanted = codes[first : first + 10].tolist()
        assert part.inputs.tolist() == [wanted[:4], wanted[4:8]]
        assert part.targets.tolist() == [wanted[1:5], wanted[5:9]]
    assert data.summary == "180 training, 10 validation and 10 test characters"


def test_characters_are_coded_by_code_point():
    assert characters.encode("bä\nb€a").tolist() == [2, 3, 0, 2, 4, 1]


def test_a_text_keeps_its_line_ends(tmp_path):
    (tmp_path / "text").write_bytes(b"a\r\nb")
    assert text.read(tmp_path / "text") == "a\r\nb"


def test_a_text_just_long_enough_is_read(tmp_path):
    path = tmp_path / "text"
    path.write_text("x" * 100)
    assert len(characters.load(path, 4, CPU).validation.targets) == 1
    with pytest.raises(ValueError, match="too few for windows of 5"):
        characters.load(path, 5, CPU)


def test_a_python_without_the_text_asks_for_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="--data-file"):
        text.own_text()
