"""What tests of `sparsedrop study` share: tiny data, tiny settings, and the command."""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path

import pytest
import torch

from sparsedrop.tools import cli, study
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.resolving import resolve
from sparsedrop.tools.study.settings import Settings

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# A few steps of each task, in seconds; transformers of one block.
TINY_TRANSFORMER = "--width 16 --layers 1 --heads 2 --batch-size 8 --block-shapes 16x8"
TINY = {
    "mlp": "--width 32 --batch-size 128 --block-shapes 32x16 --steps 14",
    "vit": f"{TINY_TRANSFORMER} --steps 4 --eval-every 2",
    "gpt": f"{TINY_TRANSFORMER} --context 16 --steps 4 --eval-every 2",
    "wide-resnet": "--width 1 --layers 10 --batch-size 16 --steps 4 --eval-every 2",
    "ard-mlp": "--width 32 --batch-size 128 --steps 14",
    "lstm": "--width 16 --layers 2 --batch-size 8 --context 8 --steps 4 --eval-every 2",
}

TEXTS = {
    "gpt": "".join(chr(97 + i * i % 23) for i in range(1000)),
    "lstm": "\n".join(f"line {i * i % 23} of {i % 7}, and no more." for i in range(400)),
}


def tiny(task: str, folder: Path, *options: str) -> list[str]:
    """The arguments of a tiny study; a text is written to the folder."""
    argv = ["--task", task, *TINY[task].split(), "--device", "cpu", "--out", str(folder / "out")]
    if task in TEXTS:
        text = folder / "text.txt"
        text.write_text(TEXTS[task])
        argv += ["--data-file", str(text)]
    return [*argv, *options]


def resolved(argv: list[str]) -> tuple[Settings, Dataset]:
    """What those arguments of `sparsedrop study` mean."""
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    return resolve(parser.parse_args(argv))


def fails_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence with which `sparsedrop study ARGV` ends, exit code 2."""
    assert cli.main(["study", "--device", "cpu", *argv]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    return sentence


def idx_bytes(array: torch.Tensor, kind: int = 8) -> bytes:
    header = struct.pack(f">BBBB{array.dim()}I", 0, 0, kind, array.dim(), *array.shape)
    return header + array.contiguous().numpy().tobytes()


def write_mnist(folder: Path, counts: tuple[int, int] = (60, 32)) -> dict[str, torch.Tensor]:
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
