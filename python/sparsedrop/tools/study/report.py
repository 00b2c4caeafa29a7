"""What a study found: rows of a table, as Markdown and as JSON."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

import sparsedrop
from sparsedrop.tools import markdown
from sparsedrop.tools.names import device_name, dtype_name
from sparsedrop.tools.study.train import DENSE, DROPOUT, Method, Result, Settings

HEADER = ["method", "p", "val. accuracy (%)", "val. loss", "time per step (ms)", "× nn.Dropout"]


class Spread(NamedTuple):
    """Mean and sample standard deviation over the seeds; the latter is None for a single seed."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits: int) -> str:
        spread = "" if self.std is None else f" ± {self.std:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


class Row(NamedTuple):
    """One method at one rate, over its seeds."""

    method: Method
    accuracy: Spread  # percent
    loss: Spread
    step_ms: float
    speedup: float | None  # over nn.Dropout at the same rate; None where there is no such rate
    runs: list[Result]

    @property
    def label(self) -> str:
        name, p = self.method
        return name if name == DENSE else f"{name}, p = {p:g}"


def summarize(results: dict[Method, list[Result]]) -> list[Row]:
    """One row per method, in the order of `results`; "no dropout" must be one of them."""
    step_ms = _step_times(results)
    rows = []
    for method, runs in results.items():
        dropout_ms = None if method.name == DENSE else step_ms[Method(DROPOUT, method.p)]
        rows.append(
            Row(
                method,
                Spread.of(100 * run.accuracy for run in runs),
                Spread.of(run.loss for run in runs),
                step_ms[method],
                None if dropout_ms is None else dropout_ms / step_ms[method],
                runs,
            )
        )
    return rows


def _step_times(results: dict[Method, list[Result]]) -> dict[Method, float]:
    """Each method's time of a step in ms, its first epoch left out as the warm-up.

    It is the median, over epochs, of the ratio to the dense network's time in the same epoch, times
    the median of the latter. Medians of the times alone would catch two methods in a slow and in a
    fast minute of the machine, although they took turns.
    """
    epochs = {
        method: [ms for run in runs for ms in run.step_ms[1:] or run.step_ms]
        for method, runs in results.items()
    }
    dense = epochs[Method(DENSE, 0.0)]
    return {
        method: statistics.median(ms / base for ms, base in zip(times, dense, strict=True))
        * statistics.median(dense)
        for method, times in epochs.items()
    }


def as_markdown(rows: list[Row]) -> str:
    """The table, aligned: names to the left, figures to the right."""
    return markdown.table(HEADER, [_cells(row) for row in rows])


def as_json(rows: list[Row], settings: Settings, source: str) -> dict[str, Any]:
    """All it takes to repeat the study of the images of that name, and every run; JSON values."""
    return {
        "versions": {
            "sparsedrop": sparsedrop.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": device_name(settings.device),
        "cpu_threads": torch.get_num_threads(),
        "arguments": {
            "data": source,
            **asdict(settings),
            "device": settings.device.type,
            "dtype": dtype_name(settings.dtype),
        },
        "rows": [
            {
                "method": row.method.name,
                "p": row.method.p,
                "accuracy_percent": row.accuracy._asdict(),
                "loss": row.loss._asdict(),
                "step_ms": row.step_ms,
                "speedup_over_dropout": row.speedup,
                "seeds": [run._asdict() for run in row.runs],
            }
            for row in rows
        ],
    }


def _cells(row: Row) -> list[str]:
    return [
        row.method.name,
        "–" if row.method.name == DENSE else f"{row.method.p:g}",
        row.accuracy.text(2),
        row.loss.text(4),
        f"{row.step_ms:.2f}",
        "–" if row.speedup is None else f"{row.speedup:.2f}",
    ]
