"""A study as JSON: all it takes to repeat it on that machine, and every evaluation."""

from __future__ import annotations

import math
from typing import Any

from sparsedrop.tools.study.evaluation import Result
from sparsedrop.tools.study.report import Row, Spread
from sparsedrop.tools.study.settings import Settings


def as_json(rows: list[Row], settings: Settings, facts: dict[str, Any]) -> dict[str, Any]:
    """JSON values."""
    methods = settings.methods
    blocks = dict.fromkeys(method.block_name for method in methods if method.block is not None)
    return {
        "machine": facts,
        "arguments": {
            **settings.as_json(),
            "methods": list(dict.fromkeys(method.word for method in methods)),
            "rates": list(dict.fromkeys(m.p for m in methods if m.word != "none")),
            "block_shapes": list(blocks),
            "seeds": settings.preset.seeds,
        },
        "rows": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "method": row.method.name,
        "p": row.method.p,
        "block": row.method.block_name,
        "loss": _spread(row.loss),
        "accuracy_percent": _spread(row.accuracy),
        "test_loss": _spread(row.test_loss),
        "test_accuracy_percent": _spread(row.test_accuracy),
        "step": _spread(row.step),
        "step_at_dropouts_best_loss": _spread(row.dropout_step),
        "times": None if row.times is None else row.times._asdict(),
        "speedup_over_dropout": row.speedup,
        "graph_speedup_over_dropout": row.graph_speedup,
        "seeds": [_seed(run) for run in row.runs],
    }


def _spread(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else _finite(spread._asdict())


def _finite(values: dict[str, float | None]) -> dict[str, float | None]:
    """With None for what JSON has no number for."""
    return {key: v if v is None or math.isfinite(v) else None for key, v in values.items()}


def _seed(run: Result) -> dict[str, Any]:
    records = [_finite(record._asdict()) for record in run.records]
    return {"seed": run.seed, "best_step": run.best.step, "records": records}
