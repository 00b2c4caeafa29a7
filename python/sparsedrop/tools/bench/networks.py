"""What `sparsedrop bench --network` times: the paper's networks, and what one batch of each is.

Of Approximate Random Dropout's paper are "ard-mlp", the MLP of 2048 hidden units, and "lstm", the
language model of two layers of 1500 units; "ard-mlp-wide" is the former four times as wide.

Of no paper: "gpt-12", twelve layers of a context of 1024 characters; "layers", twelve linear layers
of 1024 units behind a dropout each, little but launches; "linear", one of 4096; "ffn" and
"ffn-wide", a feed-forward block; "stack", four linear layers with ReLU, each behind a dropout. The
last four stand in the middle of a network: there is a gradient of the input, and in the place of a
loss a gradient of the output. "gpt2", "bert" and "vit-b-16" are Hugging Face's, whole models that
`sparsedrop.convert` converts where they run, and as it judges by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop.tools.bench import hugging_face
from sparsedrop.tools.networks import Drop, Gpt, Lstm, Size, Vit, mlp
from sparsedrop.tools.wide_resnet import wide_resnet

PRECISIONS = ("amp", "bfloat16", "float32")
"""amp: float32 weights under bfloat16 autocast; else all is of that dtype."""

CLASSES, CHARACTERS = 10, 65
WIDTH, HEADS, HIDDEN = 1024, 8, 1024
PIXELS = 28 * 28
COLOURS = 3
PATCHES, PATCH_VALUES = 256, 2 * 2 * COLOURS  # of 2x2 pixels, in an image of 32x32
CONTEXT = 128
WORDS, STEPS = 10000, 35  # of Penn Treebank


def _layers(drop: Drop) -> nn.Module:
    return nn.Sequential(*(drop.linear(WIDTH, WIDTH) for _ in range(12)))


class Network(NamedTuple):
    """A network, and what one batch of it is; `batch` samples by default, `cpu_batch` on a CPU.

    Targets are int64 answers of which there is a loss, or the gradient of the output. `p` is the
    drop probability by default.
    """

    build: Callable[[Drop], nn.Module]
    batch: int
    inputs: Callable[[int, torch.device], Tensor]
    targets: Callable[[int, torch.device], Tensor]
    p: float = 0.5
    cpu_batch: int | None = None
    is_converted: bool = False  # as a whole, where it runs

    def batch_on(self, device: torch.device) -> int:
        """Samples by default."""
        return self.cpu_batch if device.type == "cpu" and self.cpu_batch else self.batch


def _inner(build: Callable[[Drop], nn.Module], batch: int, width: int) -> Network:
    """A piece of a network, of as many features at either end; its samples are tokens."""
    return Network(
        build,
        batch,
        lambda batch, device: torch.randn(batch, width, device=device, requires_grad=True),
        lambda batch, device: torch.randn(batch, width, device=device),
    )


def _wide_resnet(depth: int, widen: int, cpu_batch: int) -> Network:
    def images(batch: int, device: torch.device) -> Tensor:
        return torch.randn(batch, COLOURS, 32, 32, device=device).to(
            memory_format=torch.channels_last
        )

    return Network(
        lambda drop: wide_resnet(depth, widen, COLOURS, CLASSES, drop),
        128,
        images,
        lambda batch, device: torch.randint(CLASSES, (batch,), device=device),
        p=0.3,
        cpu_batch=cpu_batch,
    )


def _of_words(build: Callable[[Drop], nn.Module], words: int, batch: int, length: int) -> Network:
    def text(batch: int, device: torch.device) -> Tensor:
        return torch.randint(words, (batch, length), device=device)

    return Network(build, batch, text, text, p=0.1, cpu_batch=1, is_converted=True)


def _mlp(hidden: int, batch: int, p: float) -> Network:
    return Network(
        lambda drop: mlp(PIXELS, hidden, 2, CLASSES, drop),
        batch,
        lambda batch, device: torch.randn(batch, PIXELS, device=device),
        lambda batch, device: torch.randint(CLASSES, (batch,), device=device),
        p=p,
    )


NETWORKS = {
    "mlp": _mlp(HIDDEN, 1024, 0.5),
    "ard-mlp": _mlp(2048, 2048, 0.7),
    "ard-mlp-wide": _mlp(8192, 2048, 0.7),
    "vit": Network(
        lambda drop: Vit(PATCH_VALUES, PATCHES, CLASSES, Size(WIDTH, 2, HEADS), drop),
        64,
        lambda batch, device: torch.randn(batch, PATCHES, PATCH_VALUES, device=device),
        lambda batch, device: torch.randint(CLASSES, (batch,), device=device),
    ),
    "gpt": Network(
        lambda drop: Gpt(CHARACTERS, CONTEXT, Size(WIDTH, 4, HEADS), drop),
        64,
        lambda batch, device: torch.randint(CHARACTERS, (batch, CONTEXT), device=device),
        lambda batch, device: torch.randint(CHARACTERS, (batch, CONTEXT), device=device),
    ),
    "gpt-12": Network(
        lambda drop: Gpt(CHARACTERS, 1024, Size(WIDTH, 12, 16), drop),
        16,
        lambda batch, device: torch.randint(CHARACTERS, (batch, 1024), device=device),
        lambda batch, device: torch.randint(CHARACTERS, (batch, 1024), device=device),
    ),
    "lstm": Network(
        lambda drop: Lstm(WORDS, 1500, 2, drop),
        64,
        lambda batch, device: torch.randint(WORDS, (batch, STEPS), device=device),
        lambda batch, device: torch.randint(WORDS, (batch, STEPS), device=device),
    ),
    "layers": Network(
        _layers,
        2048,
        lambda batch, device: torch.randn(batch, WIDTH, device=device),
        lambda batch, device: torch.randint(WIDTH, (batch,), device=device),
    ),
    "wide-resnet-28-10": _wide_resnet(28, 10, 4),
    "wide-resnet-small": _wide_resnet(16, 4, 32),
    "gpt2": _of_words(hugging_face.gpt2, hugging_face.GPT2_WORDS, 8, 1024),
    "bert": _of_words(hugging_face.bert, hugging_face.BERT_WORDS, 32, 512),
    "vit-b-16": Network(
        hugging_face.vit,
        64,
        lambda batch, device: torch.randn(batch, 3, 224, 224, device=device),
        lambda batch, device: torch.randint(hugging_face.CLASSES, (batch,), device=device),
        p=0.1,
        cpu_batch=1,
        is_converted=True,
    ),
    "linear": _inner(lambda drop: drop.linear(4096, 4096), 8192, 4096),
    "ffn": _inner(lambda drop: drop.feed_forward(1024, 4096), 8192, 1024),
    "ffn-wide": _inner(lambda drop: drop.feed_forward(4096, 16384), 16384, 4096),
    "stack": _inner(lambda drop: drop.stack(4096, 4), 8192, 4096),
}
