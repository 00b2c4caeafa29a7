"""The networks of the SparseDrop paper (Lo 2024, section 4), with one kind of dropout each.

Dropout stands in front of all but the first of the MLP's linear layers, and in a transformer's
block in front of the attention's projection and between the two layers of the feed-forward block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop.nn import SparseDropLinear, SparseDropMLP, SparseDropStack

NONE, DROPOUT, SPARSEDROP = "no dropout", "nn.Dropout", "sparsedrop"
KINDS = (NONE, DROPOUT, SPARSEDROP)


class Drop(NamedTuple):
    """Which dropout a network has; every kind draws the same weights."""

    kind: str  # one of KINDS
    p: float
    block_shape: tuple[int, int] = (128, 128)
    sampler: str = "bernoulli"

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """A linear layer behind that dropout."""
        if self.kind == SPARSEDROP:
            return SparseDropLinear(
                inputs, outputs, p=self.p, block_shape=self.block_shape, sampler=self.sampler
            )
        if self.kind == DROPOUT:
            return nn.Sequential(nn.Dropout(self.p), nn.Linear(inputs, outputs))
        return nn.Linear(inputs, outputs)

    def feed_forward(self, width: int, hidden: int) -> nn.Module:
        """A feed-forward block with GELU, and that dropout of its hidden activation."""
        if self.kind == SPARSEDROP:
            return SparseDropMLP(
                width, hidden, p=self.p, block_shape=self.block_shape, sampler=self.sampler
            )
        return FeedForward(width, hidden, self.p if self.kind == DROPOUT else 0.0)

    def stack(self, width: int, layers: int) -> nn.Module:
        """So many linear layers with ReLU, each behind that dropout."""
        if self.kind == SPARSEDROP:
            return SparseDropStack(
                [width] * (layers + 1),
                p=self.p,
                last_activation="relu",
                block_shape=self.block_shape,
                sampler=self.sampler,
            )
        pairs = ((self.linear(width, width), nn.ReLU()) for _ in range(layers))
        return nn.Sequential(*(module for pair in pairs for module in pair))


class FeedForward(nn.Module):
    """The dense block of a SparseDropMLP's parameters, with nn.Dropout where p is not 0."""

    def __init__(self, width: int, hidden: int, p: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(p) if p else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same."""
        return self.down(self.dropout(nn.functional.gelu(self.up(x))))


class Size(NamedTuple):
    """How large a transformer is."""

    width: int
    layers: int
    heads: int


def mlp(values: int, width: int, layers: int, classes: int, drop: Drop) -> nn.Module:
    """[batch, values] -> logits [batch, classes], by so many hidden layers with ReLU."""
    modules = [nn.Linear(values, width), nn.ReLU()]
    for _ in range(layers - 1):
        modules += [drop.linear(width, width), nn.ReLU()]
    return nn.Sequential(*modules, drop.linear(width, classes))


class Block(nn.Module):
    """A transformer's block: normalised first, the hidden activation four times as wide."""

    def __init__(self, width: int, heads: int, causal: bool, drop: Drop) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), drop.linear(width, width)
        self.feed_forward = drop.feed_forward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, width] -> the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, width / heads]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.feed_forward(self.feed_forward_norm(x))


def _blocks(size: Size, causal: bool, drop: Drop) -> nn.Sequential:
    width, layers, heads = size
    return nn.Sequential(*(Block(width, heads, causal, drop) for _ in range(layers)))


class Vit(nn.Module):
    """Patches [batch, tokens, values] -> logits [batch, classes], by the mean of all tokens."""

    def __init__(self, values: int, tokens: int, classes: int, size: Size, drop: Drop) -> None:
        super().__init__()
        self.embed = nn.Linear(values, size.width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, size.width))
        self.blocks = _blocks(size, False, drop)
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, classes)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.blocks(self.embed(patches) + self.position)
        return self.head(self.norm(x).mean(1))


class Gpt(nn.Module):
    """Characters [batch, tokens] -> logits of the next ones [batch, tokens, characters]."""

    def __init__(self, characters: int, tokens: int, size: Size, drop: Drop) -> None:
        super().__init__()
        width = size.width
        self.embed, self.position = nn.Embedding(characters, width), nn.Embedding(tokens, width)
        self.blocks = _blocks(size, True, drop)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        return self.head(self.norm(self.blocks(self.embed(text) + self.position(places))))


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy, in float32."""
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
