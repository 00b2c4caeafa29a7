"""The words of a text: Penn Treebank, the King James Bible, or any file."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparsedrop.tools.study import text
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.sources import Source, unpacked

NAMES = ("ptb", "kjv")
"""Corpora by name; all other texts are files."""

VOCABULARY = 10_000
"""The most frequent words that are told apart, as in Penn Treebank; the others are UNKNOWN."""

UNKNOWN, END = "<unk>", "<eos>"

PENN_TREEBANK = Source(
    ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
    "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz",
    "simple-examples/data",
)

# One verse a line, after where it stands.
BIBLE = ("bible", "-f", "gen1:1-rev22:21")

STRETCHES = 200
"""A text without parts of its own is cut into so many; two of each twenty are held out."""

_WORD = re.compile(r"<unk>|\w+(?:['’]\w+)*|[^\w\s]")

Parts = tuple[list[str], list[str], list[str]]
"""Words to train on, to validate on and to test."""


def load(
    name: str | None, folder: Path | None, path: Path | None, context: int, device: torch.device
) -> Dataset:
    """The corpus of that name in NAMES, or the text of a file, or OWN_TEXT.

    Raises:
        ValueError: naming a file or program that is missing, or a text that is too short.
    """
    if name == "ptb":
        parts = penn_treebank(folder)
    elif name == "kjv":
        parts = held_out(king_james())
    else:
        parts = held_out(text.own_text() if path is None else text.read(path))
    label = name or (text.OWN_TEXT if path is None else str(path))
    return text.as_dataset(label, encode(parts), context, "words", device)


def penn_treebank(folder: Path | None) -> Parts:
    """Its own parts, whose words stand between spaces and whose sentences are lines."""
    train, validation, test = (
        _of_lines(_decoded(path).splitlines(), str.split)
        for path in PENN_TREEBANK.find("ptb", folder)
    )
    return train, validation, test


def king_james() -> str:
    """One verse a line, as the program `bible` prints them, without where they stand.

    Raises:
        ValueError: where the program is missing or fails.
    """
    try:
        done = subprocess.run(BIBLE, capture_output=True, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"--data kjv reads what the program `{' '.join(BIBLE)}` prints, which cannot be run "
            f"({error}): apt install bible-kjv, or give a text with --data-file"
        ) from error
    verses = done.stdout.decode("latin-1").splitlines()
    return "\n".join(verse.partition(" ")[2] for verse in verses)


def held_out(content: str) -> Parts:
    """The sentences, which are lines, split by stretches of STRETCHES neighbouring ones.

    Of twenty stretches the tenth validates and the last tests. The end of the text alone would be
    about something else, as the last book of a Bible is.
    """
    lines = [line for line in content.splitlines() if line.strip()]
    kept: tuple[list[str], list[str], list[str]] = ([], [], [])
    for i, line in enumerate(lines):
        turn = i * STRETCHES // len(lines) % 20
        kept[1 if turn == 9 else 2 if turn == 19 else 0].append(line)
    train, validation, test = (_of_lines(part, _split) for part in kept)
    return train, validation, test


def encode(parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """The rank of each word among the training part's, the most frequent first: int64 [words]."""
    counts = Counter(parts[0])
    del counts[UNKNOWN]
    # Equally frequent ones in the order of the alphabet, so that no hash decides.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 1]
    places = {word: i for i, word in enumerate([UNKNOWN, *ranked])}
    train, validation, test = (
        torch.tensor([places.get(word, 0) for word in part], dtype=torch.int64) for part in parts
    )
    return train, validation, test


def _of_lines(lines: list[str], split: Callable[[str], list[str]]) -> list[str]:
    return [word for line in lines for word in (*split(line), END)]


def _split(line: str) -> list[str]:
    """Words and signs, in small letters."""
    return _WORD.findall(line.lower())


def _decoded(path: Path) -> str:
    try:
        return unpacked(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8, or is cut off: fetch it again") from error
