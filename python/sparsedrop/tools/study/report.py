"""What a study found: rows of a table, as Markdown and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from sparsedrop.tools import markdown
from sparsedrop.tools.networks import DROPOUT, NONE
from sparsedrop.tools.study.settings import Method, Settings
from sparsedrop.tools.study.train import Result


class Spread(NamedTuple):
    """Mean and sample standard deviation over the seeds; the latter is None for a single seed."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        if not all(map(math.isfinite, values)):  # of a run that diverged
            return cls(math.nan, None)
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits: int) -> str:
        spread = "" if self.std is None else f" ± {self.std:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


class Row(NamedTuple):
    """One method at one rate, over its seeds, each at its step of least validation loss."""

    method: Method
    loss: Spread
    accuracy: Spread | None  # percent; None for a text
    test_loss: Spread | None  # None where the data have no test part
    test_accuracy: Spread | None
    step: Spread
    seconds: Spread  # of training up to that step, at step_ms a step
    step_ms: float
    speedup: float | None  # over nn.Dropout at the same rate; None where there is no such run
    runs: list[Result]


def summarize(results: dict[Method, list[Result]]) -> list[Row]:
    """One row per method, in the order of `results`."""
    step_ms = _step_times(results)
    return [_row(method, runs, step_ms) for method, runs in results.items()]


def _row(method: Method, runs: list[Result], step_ms: dict[Method, float]) -> Row:
    best = [run.best for run in runs]
    dropout_ms = None if method.name == NONE else step_ms.get(Method("dropout", method.p))
    return Row(
        method=method,
        loss=Spread.of(record.loss for record in best),
        accuracy=_spread([record.accuracy for record in best], 100),
        test_loss=_spread([record.test_loss for record in best]),
        test_accuracy=_spread([record.test_accuracy for record in best], 100),
        step=Spread.of(record.step for record in best),
        seconds=Spread.of(record.step * step_ms[method] / 1e3 for record in best),
        step_ms=step_ms[method],
        speedup=None if dropout_ms is None else dropout_ms / step_ms[method],
        runs=runs,
    )


def _spread(values: list[float | None], unit: float = 1) -> Spread | None:
    known = [unit * value for value in values if value is not None]
    return Spread.of(known) if known else None


def _step_times(results: dict[Method, list[Result]]) -> dict[Method, float]:
    """Each method's time of a step in ms, each run's first evaluation left out as the warm-up.

    It is the median, over evaluations, of the ratio to the first method's time at the same one,
    times the median of the latter. Medians of the times alone would catch two methods in a slow and
    in a fast minute of the machine, although they took turns.
    """
    times = {
        method: [record.step_ms for run in runs for record in run.records[1:] or run.records]
        for method, runs in results.items()
    }
    base = next(iter(times.values()))
    return {
        method: statistics.median(ms / other for ms, other in zip(own, base, strict=True))
        * statistics.median(base)
        for method, own in times.items()
    }


class _Column(NamedTuple):
    header: str
    cells: list[str | None]  # None where a row has none


def as_markdown(rows: list[Row]) -> str:
    """The table, aligned: names to the left, figures to the right; no column without a figure."""
    columns = [
        _Column("method", [row.method.name for row in rows]),
        _Column("p", [None if row.method.name == NONE else f"{row.method.p:g}" for row in rows]),
        _Column("val. loss", [row.loss.text(4) for row in rows]),
        _Column("val. accuracy (%)", [_text(row.accuracy, 2) for row in rows]),
        _Column("test loss", [_text(row.test_loss, 4) for row in rows]),
        _Column("test accuracy (%)", [_text(row.test_accuracy, 2) for row in rows]),
        _Column("best step", [f"{row.step.mean:.0f}" for row in rows]),
        _Column("time per step (ms)", [f"{row.step_ms:.2f}" for row in rows]),
        _Column("time to best (s)", [f"{row.seconds.mean:.2f}" for row in rows]),
        _Column(f"× {DROPOUT}", [_ratio(row.speedup) for row in rows]),
    ]
    columns = [column for column in columns if any(cell is not None for cell in column.cells)]
    lines = zip(*([cell or "–" for cell in column.cells] for column in columns), strict=True)
    return markdown.table([column.header for column in columns], [list(line) for line in lines])


def _ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _text(spread: Spread | None, digits: int) -> str | None:
    return None if spread is None else spread.text(digits)


def as_json(rows: list[Row], settings: Settings, facts: dict[str, Any]) -> dict[str, Any]:
    """All it takes to repeat the study on that machine, and every evaluation; JSON values."""
    return {
        "machine": facts,
        "arguments": {
            **settings.as_json(),
            "methods": list(dict.fromkeys(method.word for method in settings.methods)),
            "rates": list(dict.fromkeys(m.p for m in settings.methods if m.word != "none")),
            "seeds": settings.preset.seeds,
        },
        "rows": [
            {
                "method": row.method.name,
                "p": row.method.p,
                "loss": _json(row.loss),
                "accuracy_percent": _json(row.accuracy),
                "test_loss": _json(row.test_loss),
                "test_accuracy_percent": _json(row.test_accuracy),
                "step": _json(row.step),
                "seconds": _json(row.seconds),
                "step_ms": row.step_ms,
                "speedup_over_dropout": row.speedup,
                "seeds": [_seed(run) for run in row.runs],
            }
            for row in rows
        ],
    }


def _json(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else _finite(spread._asdict())


def _finite(values: dict[str, float | None]) -> dict[str, float | None]:
    """With None for what JSON has no number for."""
    return {key: v if v is None or math.isfinite(v) else None for key, v in values.items()}


def _seed(run: Result) -> dict[str, Any]:
    records = [_finite(record._asdict()) for record in run.records]
    return {"seed": run.seed, "best_step": run.best.step, "records": records}
