"""The networks of the SparseDrop paper (Lo 2024, section 4), with one kind of dropout each.

Dropout stands in front of the MLP's second and last linear layer, and in a transformer's block in
front of the attention's projection and between the two layers of the feed-forward part. "layers" is
not of the paper: twelve linear layers of 1024 units behind a dropout each, little but launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop.nn import SparseDropLinear

NONE, DROPOUT, SPARSEDROP = "no dropout", "nn.Dropout", "sparsedrop"
KINDS = (NONE, DROPOUT, SPARSEDROP)


class Drop(NamedTuple):
    """Which dropout a network has."""

    kind: str  # one of KINDS
    p: float

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """A linear layer behind that dropout."""
        if self.kind == SPARSEDROP:
            return SparseDropLinear(inputs, outputs, p=self.p)
        if self.kind == DROPOUT:
            return nn.Sequential(nn.Dropout(self.p), nn.Linear(inputs, outputs))
        return nn.Linear(inputs, outputs)


class Block(nn.Module):
    """A transformer's block: normalised first, the feed-forward part four times as wide."""

    def __init__(self, width: int, heads: int, causal: bool, drop: Drop) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm, self.hidden_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), drop.linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), drop.linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, width] -> the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, width / heads]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.hidden_norm(x))))


class Vit(nn.Module):
    """Patches [batch, tokens, values] -> logits [batch, classes], by the mean of all tokens."""

    def __init__(self, values: int, tokens: int, width: int, layers: int, drop: Drop) -> None:
        super().__init__()
        self.embed = nn.Linear(values, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, HEADS, False, drop) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.blocks(self.embed(patches) + self.position)
        return self.head(self.norm(x).mean(1))


class Gpt(nn.Module):
    """Characters [batch, tokens] -> logits of the next ones [batch, tokens, characters]."""

    def __init__(self, characters: int, tokens: int, width: int, layers: int, drop: Drop) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(characters, width), nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(Block(width, HEADS, True, drop) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        return self.head(self.norm(self.blocks(self.embed(text) + self.position(places))))


PRECISIONS = ("amp", "bfloat16", "float32")
"""amp: float32 weights under bfloat16 autocast; else all is of that dtype."""

CLASSES, CHARACTERS = 10, 65
WIDTH, HEADS, HIDDEN = 1024, 8, 1024
PIXELS = 28 * 28
PATCHES, PATCH_VALUES = 256, 2 * 2 * 3  # of 2x2 pixels, in an image of 32x32
CONTEXT = 128


def _mlp(drop: Drop) -> nn.Module:
    return nn.Sequential(
        nn.Linear(PIXELS, HIDDEN),
        nn.ReLU(),
        drop.linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        drop.linear(HIDDEN, CLASSES),
    )


def _layers(drop: Drop) -> nn.Module:
    return nn.Sequential(*(drop.linear(WIDTH, WIDTH) for _ in range(12)))


class Network(NamedTuple):
    """A network, and what one batch of it is; `batch` samples by default."""

    build: Callable[[Drop], nn.Module]
    batch: int
    inputs: Callable[[int, torch.device], Tensor]
    targets: Callable[[int, torch.device], Tensor]


NETWORKS = {
    "mlp": Network(
        _mlp,
        1024,
        lambda batch, device: torch.randn(batch, PIXELS, device=device),
        lambda batch, device: torch.randint(CLASSES, (batch,), device=device),
    ),
    "vit": Network(
        lambda drop: Vit(PATCH_VALUES, PATCHES, WIDTH, 2, drop),
        64,
        lambda batch, device: torch.randn(batch, PATCHES, PATCH_VALUES, device=device),
        lambda batch, device: torch.randint(CLASSES, (batch,), device=device),
    ),
    "gpt": Network(
        lambda drop: Gpt(CHARACTERS, CONTEXT, WIDTH, 4, drop),
        64,
        lambda batch, device: torch.randint(CHARACTERS, (batch, CONTEXT), device=device),
        lambda batch, device: torch.randint(CHARACTERS, (batch, CONTEXT), device=device),
    ),
    "layers": Network(
        _layers,
        2048,
        lambda batch, device: torch.randn(batch, WIDTH, device=device),
        lambda batch, device: torch.randint(WIDTH, (batch,), device=device),
    ),
}


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy, in float32."""
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
