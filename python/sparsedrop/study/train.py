"""One training run of the study, and the loop over all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparsedrop.nn import SparseDropLinear
from sparsedrop.study.data import CLASSES, Dataset, Images

HIDDEN = 1024
WARMUP_STEPS = 5

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
    """One run: its epoch of least validation loss, and the median time of its steps."""

    seed: int
    epoch: int
    accuracy: float
    loss: float
    step_ms: float


def run_all(data: Dataset, settings: Settings) -> dict[Method, list[Result]]:
    """Trains every method once per seed, with a progress bar.

    Seeds are the outer loop, so that a slow minute of the machine falls on every method alike.
    """
    data = Dataset(*(Images(*(t.to(settings.device) for t in part)) for part in data))
    methods = settings.methods()
    results: dict[Method, list[Result]] = {method: [] for method in methods}
    with tqdm(total=settings.seeds * len(methods) * settings.epochs, unit="epoch") as bar:
        for seed in range(settings.seeds):
            for method in methods:
                bar.set_description(f"seed {seed}, {method.name}, p = {method.p:g}")
                results[method].append(train(method, data, settings, seed, bar.update))
    return results


def train(
    method: Method,
    data: Dataset,
    settings: Settings,
    seed: int,
    after_epoch: Callable[[], object] = lambda: None,
) -> Result:
    """Trains one network. The seed decides its weights, its batches and what it drops."""
    torch.manual_seed(seed)
    model = build_model(method, data.train.pixels.shape[1], settings).to(settings.device)
    # Fused, so that a step's time is the network's rather than the optimiser's.
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    # A generator of its own: what a method draws for its masks must not reorder the batches.
    order = torch.Generator().manual_seed(seed)
    clock = StepClock(settings.device)
    best = (float("inf"), 0.0, 0)
    for epoch in range(1, settings.epochs + 1):
        model.train()
        for batch in _batches(data.train, settings.batch_size, order):
            with clock:
                optimizer.zero_grad()
                _loss(_logits(model, batch.pixels, settings), batch.labels).backward()
                optimizer.step()
        best = min(best, (*evaluate(model, data.validation, settings), epoch))
        after_epoch()
    loss, accuracy, epoch = best
    return Result(seed, epoch, accuracy, loss, clock.median_ms())


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


class StepClock:
    """Times the steps it is entered for, in ms: wall clock on a CPU, events on a GPU.

    Nothing waits for a GPU before the median is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._walls: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._start = 0.0

    def __enter__(self) -> None:
        if self._on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events.append((start, end))
            start.record()
        else:
            self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._walls.append(1e3 * (time.perf_counter() - self._start))

    def median_ms(self) -> float:
        """Median over the steps after the warm-up; where there are no others, over all."""
        if self._on_gpu:
            torch.cuda.synchronize()
        times = self._walls or [start.elapsed_time(end) for start, end in self._events]
        return statistics.median(times[WARMUP_STEPS:] or times)


def _batches(images: Images, size: int, generator: torch.Generator) -> Iterator[Images]:
    """Whole batches in random order. The rest of an epoch is left out, other images each time."""
    order = torch.randperm(len(images.labels), generator=generator).to(images.labels.device)
    for batch in order.split(size):
        if len(batch) == size:
            yield Images(images.pixels[batch], images.labels[batch])


def _logits(model: nn.Module, pixels: Tensor, settings: Settings) -> Tensor:
    device, dtype = settings.device.type, settings.dtype
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return model(pixels)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), labels)
