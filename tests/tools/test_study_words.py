"""The words of `sparsedrop study --task lstm`."""

from __future__ import annotations

import gzip
import shutil
import sys

import pytest
import torch

from sparsedrop.tools.study import text, words
from study_cases import fails_with, resolved, tiny

CPU = torch.device("cpu")
PTB = {
    "ptb.train.txt": " the cat sat \n the <unk> sat on N mats \n" * 20,
    "ptb.valid.txt": " the dog sat \n" * 5,
    "ptb.test.txt": " on N \n" * 9,
}


@pytest.fixture
def ptb(tmp_path):
    for name, content in PTB.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_penn_treebank_has_its_own_parts_and_words(ptb):
    data = words.load("ptb", ptb, None, 4, CPU)
    assert data.summary == "220 training, 20 validation and 27 test words"
    # <unk>; by frequency, then by alphabet: <eos> sat the, N cat mats on
    assert data.classes == 8
    assert data.train.inputs[0].tolist() == [3, 5, 2, 1]
    assert data.train.targets[0].tolist() == [5, 2, 1, 3]
    assert data.train.inputs[4].tolist() == [3, 0, 2, 7]
    assert data.validation.inputs[0].tolist() == [3, 0, 2, 1], "a dog is not known"


@pytest.mark.parametrize("place", ["simple-examples/data", "."])
def test_penn_treebank_is_found_where_its_archive_has_it_and_gzipped(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in PTB.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert words.load("ptb", tmp_path, None, 4, CPU).epoch == 55


def test_missing_files_of_penn_treebank_are_named_with_their_address(capsys, ptb):
    (ptb / "ptb.valid.txt").unlink()
    argv = "--task", "lstm", "--data", "ptb"
    sentence = fails_with(capsys, *argv, "--data-dir", str(ptb))
    assert "ptb.valid.txt" in sentence
    assert "ptb.train.txt" not in sentence
    assert str(ptb) in sentence
    assert words.PENN_TREEBANK.address in sentence
    assert "the folder that --data-dir names" in fails_with(capsys, *argv)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (gzip.compress(PTB["ptb.train.txt"].encode(), mtime=0)[:-9], "damaged gzip"),
        (b"a\xff", "not text in UTF-8"),
    ],
)
def test_a_damaged_file_of_words_is_one_sentence(capsys, ptb, content, why):
    (ptb / "ptb.train.txt").write_bytes(content)
    sentence = fails_with(capsys, "--task", "lstm", "--data", "ptb", "--data-dir", str(ptb))
    assert str(ptb / "ptb.train.txt") in sentence
    assert why in sentence


def test_words_are_small_letters_and_signs_stand_alone(tmp_path):
    path = tmp_path / "text"
    path.write_text("And God said, Let's go:\n\nTwo-fold.\n" * 200)
    train, validation, test = words.held_out(path.read_text())
    assert train[:10] == ["and", "god", "said", ",", "let's", "go", ":", "<eos>", "two", "-"]
    assert len(train) == 18 * (len(validation) + len(test)) / 2
    assert len(validation) == len(test) == 20 * 13 / 2 * 2 / 2


def test_stretches_of_a_text_are_held_out_all_over_it():
    lines = [str(i) for i in range(4000)]
    train, validation, test = (
        [int(word) for word in part if word != "<eos>"] for part in words.held_out("\n".join(lines))
    )
    assert sorted(train + validation + test) == list(range(4000))
    assert validation == [i for i in range(4000) if i // 20 % 20 == 9]
    assert test == [i for i in range(4000) if i // 20 % 20 == 19]


def test_the_vocabulary_is_the_training_parts_most_frequent_words(monkeypatch):
    monkeypatch.setattr(words, "VOCABULARY", 3)
    parts = ["b", "a", "b", "c", "a", "<unk>"], ["c", "b"], ["d", "a"]
    assert [part.tolist() for part in words.encode(parts)] == [[2, 1, 2, 0, 1, 0], [0, 2], [0, 1]]


def test_the_kings_bible_is_what_its_program_prints(monkeypatch, tmp_path):
    script = 'for i in range(500): print("Ge1:%d In the beginning" % i)'
    monkeypatch.setattr(words, "BIBLE", (sys.executable, "-c", script))
    assert words.king_james().splitlines()[:2] == ["In the beginning"] * 2
    settings, data = resolved(["--task", "lstm", "--data", "kjv", "--device", "cpu"])
    assert settings.data == "kjv"
    assert data.classes == 5
    # So is the file that its output makes.
    (tmp_path / "kjv.txt").write_text("In the beginning\n" * 500)
    assert words.load(None, None, tmp_path / "kjv.txt", 16, CPU).digest == data.digest


@pytest.mark.parametrize(
    "program", [("no-such-program",), (sys.executable, "-c", "raise SystemExit(3)")]
)
def test_without_the_program_a_sentence_says_where_to_get_it(capsys, monkeypatch, program):
    monkeypatch.setattr(words, "BIBLE", program)
    sentence = fails_with(capsys, "--task", "lstm", "--data", "kjv")
    assert "apt install bible-kjv" in sentence
    assert program[0] in sentence


@pytest.mark.skipif(shutil.which("bible") is None, reason="bible-kjv is not installed")
def test_the_kings_bible_is_as_large_as_penn_treebank():
    data = words.load("kjv", None, None, 35, CPU)
    assert data.classes == words.VOCABULARY
    assert 800_000 < data.epoch * 35 < 900_000
    assert words.king_james().startswith("In the beginning God created the heaven and the earth.")


def test_without_a_file_the_words_of_pythons_reference_are_read(tmp_path):
    argv = tiny("lstm", tmp_path)
    at = argv.index("--data-file")
    settings, data = resolved(argv[:at] + argv[at + 2 :])
    assert settings.data == text.OWN_TEXT
    assert data.classes > 2000


def test_a_text_of_few_words_is_one_sentence(capsys, tmp_path):
    (tmp_path / "some.txt").write_text("a b c\n" * 19)
    sentence = fails_with(capsys, "--task", "lstm", "--data-file", str(tmp_path / "some.txt"))
    assert "has 76 words" in sentence
    assert "too few for windows of 16" in sentence
