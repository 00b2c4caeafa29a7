"""The tasks of a study, as data: the papers' networks, and how each one is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparsedrop.tools.networks import Drop, Gpt, Lstm, Size, Vit, mlp
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.images import Shape, rows, squares
from sparsedrop.tools.study.patches import patches
from sparsedrop.tools.study.preset import Preset
from sparsedrop.tools.wide_resnet import blocks_of_a_group, wide_resnet

OF_LAYERS = ("none", "dropout", "sparsedrop", "sliceout", "row-pattern", "tile-pattern")
OF_TRANSFORMERS = (*OF_LAYERS, "drop-path")
# Between an LSTM and what reads it there are no hidden units that a slice could keep.
OF_LSTMS = ("none", "dropout", "sparsedrop", "row-pattern", "tile-pattern")
# Between two convolutions there are channels, which slices keep, and no linear layer.
OF_CONVOLUTIONS = ("none", "dropout", "sliceout", "drop-path")

IMAGES, CHARACTERS, WORDS = "images", "characters", "words"


@dataclass(frozen=True)
class Task:
    optimizer: type[torch.optim.Optimizer]
    build: Callable[[Dataset, Preset, Drop], nn.Module]
    reads: str  # IMAGES, CHARACTERS or WORDS
    methods: tuple[str, ...]  # that it has a place for
    small: Preset  # for the digits, and for a text on a CPU
    paper: Preset  # for real images, and for a text on a GPU
    shape: Shape = rows  # of images
    options: dict[str, Any] = field(default_factory=dict)  # of the optimiser
    default_methods: tuple[str, ...] = ("none", "dropout", "sparsedrop")
    is_captured: bool = True  # whether a step is timed as a CUDA graph, too
    is_mixed: bool = True  # whether it trains in bfloat16 on a GPU, by autocast, unless told else
    check_layers: Callable[[int], object] | None = None  # raises ValueError for a wrong number

    @property
    def reads_text(self) -> bool:
        return self.reads != IMAGES

    def preset(self, data: str, device: torch.device) -> Preset:
        """The one for images of that name, or for a text."""
        is_small = device.type == "cpu" if self.reads_text else data == "digits"
        return self.small if is_small else self.paper


def _mlp(data: Dataset, preset: Preset, drop: Drop) -> nn.Module:
    return mlp(data.train.inputs.shape[1], preset.width, preset.layers, data.classes, drop)


def _vit(data: Dataset, preset: Preset, drop: Drop) -> nn.Module:
    tokens, values = data.train.inputs.shape[1:]
    return Vit(values, tokens, data.classes, _size(preset), drop)


def _gpt(data: Dataset, preset: Preset, drop: Drop) -> nn.Module:
    return Gpt(data.classes, data.rows, _size(preset), drop)


def _lstm(data: Dataset, preset: Preset, drop: Drop) -> nn.Module:
    return Lstm(data.classes, preset.width, preset.layers, drop)


def _wide_resnet(data: Dataset, preset: Preset, drop: Drop) -> nn.Module:
    colours = data.train.inputs.shape[1]
    return wide_resnet(preset.layers, preset.width, colours, data.classes, drop)


def _size(preset: Preset) -> Size:
    assert preset.heads is not None
    return Size(preset.width, preset.layers, preset.heads)


# The paper's MLP has a batch of 1024, which would leave the digits one step an epoch; theirs is
# smaller, and one block high, since lower blocks were slower and no more accurate. In a single
# block row the share that "bernoulli" keeps swings from step to step, while the scale does not: at
# p = 0.3 its loss was 0.083, that of "balanced" 0.080 (10 seeds). Blocks of 64 units lost 0.1 % of
# accuracy to those of 32; those of 16 gained nothing.
MLP = Task(
    optimizer=torch.optim.Adam,
    build=_mlp,
    reads=IMAGES,
    methods=OF_LAYERS,
    small=Preset(
        width=1024,
        layers=2,
        batch_size=128,
        lr=1e-3,
        block_shapes=((128, 32),),
        sampler="balanced",
        epochs=50,
    ),
    paper=Preset(width=1024, layers=2, batch_size=1024, lr=1e-3, epochs=100, patience=10),
)

# Of Approximate Random Dropout's paper.
ARD_MLP = Task(
    optimizer=torch.optim.SGD,
    options={"momentum": 0.9},
    build=_mlp,
    reads=IMAGES,
    methods=OF_LAYERS,
    default_methods=("none", "dropout", "row-pattern", "tile-pattern"),
    small=Preset(
        width=2048,
        layers=2,
        batch_size=128,
        lr=1e-2,
        block_shapes=((128, 32),),
        sampler="balanced",
        epochs=50,
    ),
    paper=Preset(width=2048, layers=2, batch_size=128, lr=1e-2, epochs=60, patience=8),
)

# A digit is 16 patches: a block of 64 rows is four images. There a width of 128 with half the
# epochs took as long, and ended at twice the loss.
VIT = Task(
    optimizer=torch.optim.Adam,
    build=_vit,
    reads=IMAGES,
    shape=patches,
    methods=OF_TRANSFORMERS,
    small=Preset(
        width=64,
        layers=2,
        batch_size=64,
        lr=3e-3,
        block_shapes=((64, 32),),
        heads=8,
        epochs=40,
    ),
    paper=Preset(
        width=1024,
        layers=2,
        batch_size=64,
        lr=1e-4,
        heads=8,
        epochs=20,
        eval_every=390,
        patience=6,
    ),
)

# A block is as high as a window is long: characters of one window lose the same units together.
GPT = Task(
    optimizer=torch.optim.AdamW,
    build=_gpt,
    reads=CHARACTERS,
    methods=OF_TRANSFORMERS,
    small=Preset(
        width=128,
        layers=2,
        batch_size=16,
        lr=3e-3,
        block_shapes=((64, 32),),
        seeds=1,
        heads=4,
        context=64,
        weight_decay=0.1,
        steps=500,
        eval_every=50,
    ),
    paper=Preset(
        width=1024,
        layers=4,
        batch_size=64,
        lr=3e-4,
        heads=8,
        context=128,
        weight_decay=0.1,
        steps=5000,
        eval_every=125,
        patience=6,
    ),
)

# Of Approximate Random Dropout's paper. Each window begins with states of zero. Under autocast
# cuDNN runs an LSTM in float16, in which small gradients vanish.
LSTM = Task(
    optimizer=torch.optim.Adam,
    build=_lstm,
    reads=WORDS,
    methods=OF_LSTMS,
    default_methods=("none", "dropout", "row-pattern"),
    is_captured=False,
    is_mixed=False,
    small=Preset(
        width=128,
        layers=2,
        batch_size=16,
        lr=3e-3,
        block_shapes=((64, 32),),
        seeds=1,
        context=16,
        clip=1.0,
        steps=500,
        eval_every=50,
    ),
    paper=Preset(
        width=1500,
        layers=2,
        batch_size=64,
        lr=1e-3,
        context=35,
        clip=1.0,
        epochs=30,
        patience=3,
    ),
)

# The network of SliceOut's paper, its layers and its widening factor: 16 and 4 are WideResNet-16-4.
# The learning rate is constant, and so less than the 0.1 from which schedules come down.
WIDE_RESNET = Task(
    optimizer=torch.optim.SGD,
    options={"momentum": 0.9, "nesterov": True},
    build=_wide_resnet,
    reads=IMAGES,
    shape=squares,
    methods=OF_CONVOLUTIONS,
    default_methods=("none", "dropout", "sliceout"),
    check_layers=blocks_of_a_group,
    small=Preset(
        width=1,
        layers=10,
        batch_size=64,
        lr=0.05,
        weight_decay=5e-4,
        block_shapes=(),
        sampler=None,
        scale=None,
        epochs=20,
    ),
    paper=Preset(
        width=4,
        layers=16,
        batch_size=128,
        lr=0.02,
        weight_decay=5e-4,
        block_shapes=(),
        sampler=None,
        scale=None,
        epochs=20,
        eval_every=195,
        patience=8,
    ),
)

TASKS = {
    "mlp": MLP,
    "ard-mlp": ARD_MLP,
    "vit": VIT,
    "wide-resnet": WIDE_RESNET,
    "gpt": GPT,
    "lstm": LSTM,
}
