"""The networks of the SparseDrop paper (Lo 2024, section 4), with one kind of dropout each.

Dropout stands in front of all but the first of the MLP's linear layers, and in a transformer's
block in front of the attention's projection and between the two layers of the feed-forward block.
Not of that paper are an LSTM and wide residual networks (Zagoruyko and Komodakis 2016), which have
it between the two convolutions of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import sparsedrop
from sparsedrop.nn import (
    RowPatternLSTM,
    RowPatternMLP,
    SliceOutMLP,
    SparseDropLinear,
    SparseDropMLP,
    SparseDropStack,
    TilePatternLinear,
)
from sparsedrop.tools.drop_path import DropPath, Residual

NONE, DROPOUT, SPARSEDROP = "no dropout", "nn.Dropout", "sparsedrop"
SLICE_OUT, ROW_PATTERN, TILE_PATTERN = "SliceOut", "row pattern", "tile pattern"

METHODS = {
    "none": NONE, "dropout": DROPOUT, "sparsedrop": SPARSEDROP,
    "sliceout": SLICE_OUT, "row-pattern": ROW_PATTERN, "tile-pattern": TILE_PATTERN,
}  # fmt: skip
"""The kinds of dropout, by the words for them."""

DROP_PATH = "drop path"
RIVALS = {"drop-path": DROP_PATH}
"""What users have today where there are residual branches: it drops those."""

DRAWN_ON_THE_GPU = (NONE, DROPOUT, SPARSEDROP, DROP_PATH)
"""Kinds of which each replay of a CUDA graph drops anew; of the others it takes several graphs."""

DEFAULT_METHODS = ("none", "dropout", "sparsedrop")

_BY_UNITS = {SLICE_OUT: "sliceout", ROW_PATTERN: "row-pattern"}
"""What drops units between two layers; elsewhere nn.Dropout stands in networks of these kinds."""

_CONVERTED = {SPARSEDROP: "sparsedrop", **_BY_UNITS}
"""By which method layers that follow one another are converted."""


class Drop(NamedTuple):
    """Which dropout a network has; every kind draws the same weights."""

    kind: str  # a value of METHODS or RIVALS
    p: float
    block_shape: tuple[int, int] = (128, 128)
    sampler: str = "bernoulli"
    scale: str = "global"  # of what patterns keep

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """A linear layer behind that dropout."""
        if self.kind == SPARSEDROP:
            return SparseDropLinear(
                inputs, outputs, p=self.p, block_shape=self.block_shape, sampler=self.sampler
            )
        layers = self.layers(inputs, outputs)
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def layers(self, inputs: int, outputs: int) -> list[nn.Module]:
        """A linear layer and that dropout before it, for `between` where methods convert."""
        if self.kind == TILE_PATTERN:
            return [TilePatternLinear(inputs, outputs, p=self.p, scale=self.scale)]
        dropouts = [] if self.kind == NONE else [nn.Dropout(self.p)]
        return [*dropouts, nn.Linear(inputs, outputs)]

    def feed_forward(self, width: int, hidden: int) -> nn.Module:
        """A feed-forward block with GELU, and that dropout of its hidden activation."""
        if self.kind == SPARSEDROP:
            return SparseDropMLP(
                width, hidden, p=self.p, block_shape=self.block_shape, sampler=self.sampler
            )
        if self.kind == SLICE_OUT:
            return SliceOutMLP(width, hidden, p=self.p)
        if self.kind == ROW_PATTERN:
            return RowPatternMLP(width, hidden, p=self.p, scale=self.scale)
        block = FeedForward(width, hidden, self.p if self.kind == DROPOUT else 0.0)
        if self.kind == TILE_PATTERN:
            block.down = TilePatternLinear.from_linear(block.down, p=self.p, scale=self.scale)
        return block

    def residual(self) -> Residual:
        """What adds residual branches."""
        return DropPath(self.p) if self.kind == DROP_PATH else Residual()

    def lstm(self, width: int, layers: int) -> nn.LSTM:
        """An LSTM of as many features throughout, that dropout of what each layer but the first
        takes; of patterns of the first one's, too."""
        if self.kind == ROW_PATTERN:
            return RowPatternLSTM(
                width, width, layers, batch_first=True, p=self.p, scale=self.scale
            )
        p = 0.0 if self.kind == NONE else self.p
        return nn.LSTM(width, width, layers, batch_first=True, dropout=p)

    def between(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The model, its dropouts converted where a method does that."""
        return self._convert(model, example, _CONVERTED, 0.0)

    def converted(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The model, of which as much is converted as is expected to gain on its device."""
        return self._convert(model, example, {**_CONVERTED, TILE_PATTERN: "tile-pattern"}, 1.0)

    def _convert(
        self, model: nn.Module, example: Tensor, methods: dict[str, str], min_speedup: float
    ) -> nn.Module:
        if self.kind in methods and self.p > 0.0:
            sparsedrop.convert(
                model,
                example,
                method=methods[self.kind],
                min_speedup=min_speedup,
                block_shape=self.block_shape,
                sampler=self.sampler,
                scale=self.scale,
            )
        return model

    def between_convolutions(self) -> nn.Module:
        """A dropout of single elements, which `branches` has to convert where it is to be more."""
        return nn.Identity() if self.kind in (NONE, DROP_PATH) else nn.Dropout(self.p)

    def branches(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The model, for SliceOut converted to keep slices of channels between convolutions."""
        return self.between(model, example) if self.kind == SLICE_OUT else model

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
        model = nn.Sequential(*(module for pair in pairs for module in pair))
        return self.between(model, torch.zeros(1, width))


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
        modules += [*drop.layers(width, width), nn.ReLU()]
    model = nn.Sequential(*modules, *drop.layers(width, classes))
    return drop.between(model, torch.zeros(1, values))


class Block(nn.Module):
    """A transformer's block: normalised first, the hidden activation four times as wide."""

    def __init__(self, width: int, heads: int, causal: bool, drop: Drop) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), drop.linear(width, width)
        self.feed_forward = drop.feed_forward(width, 4 * width)
        self.add = drop.residual()

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, width] -> the same."""
        return self.add(self.add(x, self._attention), self._fed_forward)

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, width / heads]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def _fed_forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.feed_forward_norm(x))


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


class Lstm(nn.Module):
    """Words [batch, tokens] -> logits of the next ones [batch, tokens, words], by an LSTM.

    Dropout of the non-recurrent connections: in front of each layer, and of the last product.
    """

    def __init__(self, words: int, width: int, layers: int, drop: Drop) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(words, width), drop.lstm(width, layers)
        drops = drop.kind not in (NONE, ROW_PATTERN)
        self.dropout = nn.Dropout(drop.p) if drops else nn.Identity()
        self.head = drop.linear(width, words)

    def forward(self, text: Tensor) -> Tensor:
        found: Tensor = self.lstm(self.dropout(self.embed(text)))[0]
        return self.head(found)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy, in float32."""
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
