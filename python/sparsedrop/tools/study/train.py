"""One training run of the study, and the loop over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparsedrop.nn import SparseDropLinear
from sparsedrop.tools.clock import Clock
from sparsedrop.tools.study.data import CLASSES, Dataset, Images

HIDDEN = 1024

DENSE, DROPOUT, SPARSEDROP = "no dropout", "nn.Dropout", "SparseDropLinear"


class Method(NamedTuple):
    name: str  # DENSE, DROPOUT or SPARSEDROP
    p: float


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    rates: tuple[float, ...]
    seeds: int
    epochs: int
    batch_size: int
    block_shape: tuple[int, int]
    sampler: str
    lr: float
    device: torch.device
    dtype: torch.dtype  # other than float32: that of autocast

    def methods(self) -> list[Method]:
        dropouts = [Method(name, p) for name in (DROPOUT, SPARSEDROP) for p in self.rates]
        return [Method(DENSE, 0.0), *dropouts]


class Result(NamedTuple):
    """One run: its epoch of least validation loss, and each epoch's median time of a step."""

    seed: int
    epoch: int
    accuracy: float
    loss: float
    step_ms: list[float]


def run_all(data: Dataset, settings: Settings) -> dict[Method, list[Result]]:
    """Trains every method once per seed, with a progress bar.

    The methods take turns epoch by epoch, so that times of the same epoch can be compared: a
    machine's speed changes within minutes, by half on virtual ones.
    """
    data = Dataset(*(Images(*(t.to(settings.device) for t in part)) for part in data))
    methods = settings.methods()
    results: dict[Method, list[Result]] = {method: [] for method in methods}
    with tqdm(total=settings.seeds * settings.epochs * len(methods), unit="epoch") as bar:
        for seed in range(settings.seeds):
            runs = [Run(method, data, settings, seed) for method in methods]
            for _ in range(settings.epochs):
                for run in runs:
                    text = f"seed {seed}, {run.method.name}, p = {run.method.p:g}"
                    bar.set_description(text, refresh=False)
                    run.train_epoch()
                    bar.update()
            for run in runs:
                results[run.method].append(run.result())
    return results


class Run:
    """The training of one network. The seed decides its weights, its batches and what it drops.

    The data must be on the settings' device.
    """

    def __init__(self, method: Method, data: Dataset, settings: Settings, seed: int) -> None:
        self.method = method
        self._data, self._settings, self._seed = data, settings, seed
        torch.manual_seed(seed)
        model = build_model(method, data.train.pixels.shape[1], settings)
        self._model = model.to(settings.device)
        # Fused, so that a step's time is the network's rather than the optimiser's.
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=settings.lr, fused=True)
        self._step_ms: list[float] = []
        self._epochs = 0
        self._best = (float("inf"), 0.0, 0)  # loss, accuracy, epoch

    def train_epoch(self) -> None:
        """One pass over the training images in random order, then the validation."""
        self._epochs += 1
        # An epoch draws the same whichever runs had their turns before it. It draws its batches
        # first, so that they are the same for every method.
        torch.manual_seed(self._seed * self._settings.epochs + self._epochs)
        self._model.train()
        clock = Clock(self._settings.device)
        for batch in _batches(self._data.train, self._settings.batch_size):
            with clock:
                self._optimizer.zero_grad()
                logits = _logits(self._model, batch.pixels, self._settings)
                _loss(logits, batch.labels).backward()
                self._optimizer.step()
        loss, accuracy = evaluate(self._model, self._data.validation, self._settings)
        self._best = min(self._best, (loss, accuracy, self._epochs))
        self._step_ms.append(clock.median_ms())

    def result(self) -> Result:
        loss, accuracy, epoch = self._best
        return Result(self._seed, epoch, accuracy, loss, self._step_ms)


def build_model(method: Method, features: int, settings: Settings) -> nn.Sequential:
    """The paper's MLP, with the method's dropout before its second and its last linear layer.

    All methods draw the same weights from torch's default generator.
    """

    def dropout_linear(inputs: int, outputs: int) -> list[nn.Module]:
        if method.name == SPARSEDROP:
            block_shape, sampler = settings.block_shape, settings.sampler
            return [
                SparseDropLinear(
                    inputs, outputs, p=method.p, block_shape=block_shape, sampler=sampler
                )
            ]
        dropout = [nn.Dropout(method.p)] if method.name == DROPOUT else []
        return [*dropout, nn.Linear(inputs, outputs)]

    return nn.Sequential(
        nn.Linear(features, HIDDEN),
        nn.ReLU(),
        *dropout_linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        *dropout_linear(HIDDEN, CLASSES),
    )


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, settings: Settings) -> tuple[float, float]:
    """Mean loss and accuracy on the images, in evaluation mode: nothing is dropped."""
    model.eval()
    logits = _logits(model, images.pixels, settings)
    correct = logits.argmax(1) == images.labels
    return _loss(logits, images.labels).item(), correct.double().mean().item()


def _batches(images: Images, size: int) -> Iterator[Images]:
    """Whole batches in random order. The rest of an epoch is left out, other images each time."""
    order = torch.randperm(len(images.labels)).to(images.labels.device)
    for batch in order.split(size):
        if len(batch) == size:
            yield Images(images.pixels[batch], images.labels[batch])


def _logits(model: nn.Module, pixels: Tensor, settings: Settings) -> Tensor:
    device, dtype = settings.device.type, settings.dtype
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return model(pixels)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), labels)
