"""What a trained network is judged by."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsedrop.tools.networks import loss_of
from sparsedrop.tools.study.dataset import Dataset, Split
from sparsedrop.tools.study.trainer import Trainer

ROWS = 1 << 16
"""The most rows, those of all samples, that are evaluated at once."""

LOGITS = 1 << 26
"""The most logits that are made at once: some 256 MB."""


class Record(NamedTuple):
    """One evaluation. Accuracies are None for a text; so is the test where nothing is best yet."""

    step: int
    loss: float
    accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None


class Result(NamedTuple):
    """One run, with the evaluations of it."""

    seed: int
    records: list[Record]

    @property
    def best(self) -> Record:
        """The record of least validation loss, the first of equal ones; NaN is more than any."""
        return min(self.records, key=lambda record: (record.loss != record.loss, record.loss))

    def first_below(self, loss: float) -> int | None:
        """The first evaluated step whose validation loss is no more than that one."""
        return next((record.step for record in self.records if record.loss <= loss), None)


@torch.no_grad()
def evaluate(
    trainer: Trainer, data: Dataset, split: Split, *, is_text: bool
) -> tuple[float, float | None]:
    """Mean loss and, of images, accuracy in evaluation mode: nothing is dropped."""
    trainer.model.eval()
    loss, correct = 0.0, 0
    size = max(1, min(ROWS // data.rows, LOGITS // (data.rows * data.classes)))
    for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
        logits = trainer.logits(inputs)
        loss += loss_of(logits, targets).item() * len(targets)
        correct += int((logits.argmax(-1) == targets).sum())
    count = len(split.targets)
    return loss / count, None if is_text else correct / count
