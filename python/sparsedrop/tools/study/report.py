"""What a study found: one row a method and rate, over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from sparsedrop.tools.study.evaluation import Result
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.runs import Results
from sparsedrop.tools.study.timing import Times


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
    runs: list[Result]
    loss: Spread
    accuracy: Spread | None  # percent; None for a text
    test_loss: Spread | None  # None where the data have no test part
    test_accuracy: Spread | None
    step: Spread
    dropout_step: Spread | None
    """The first evaluated step with a validation loss that is no more than nn.Dropout's at its best
    rate, whose own are its best steps; None unless every seed has one."""
    times: Times | None

    @property
    def judged(self) -> Spread:
        """The loss that no choice has seen, where there is one."""
        return self.loss if self.test_loss is None else self.test_loss

    @property
    def judged_accuracy(self) -> Spread | None:
        """The accuracy there, in percent; None for a text."""
        return self.accuracy if self.test_accuracy is None else self.test_accuracy

    @property
    def speedup(self) -> float | None:
        """nn.Dropout's time of a step at the same rate over this one's, in eager mode."""
        if self.times is None or self.times.dropout_eager_ms is None:
            return None
        return self.times.dropout_eager_ms / self.times.eager_ms

    @property
    def graph_speedup(self) -> float | None:
        """The same in CUDA graphs."""
        if self.times is None or None in (self.times.graph_ms, self.times.dropout_graph_ms):
            return None
        assert self.times.dropout_graph_ms is not None
        assert self.times.graph_ms is not None
        return self.times.dropout_graph_ms / self.times.graph_ms

    def seconds(self, step: Spread | None, *, graph: bool = False) -> float | None:
        """What so many steps take on average, in eager mode or in CUDA graphs."""
        if step is None or self.times is None:
            return None
        ms = self.times.graph_ms if graph else self.times.eager_ms
        return None if ms is None else step.mean * ms / 1e3


def summarize(results: Results, times: dict[Method, Times]) -> list[Row]:
    """One row per method, in the order of `results`."""
    losses = {
        method: Spread.of(run.best.loss for run in runs).mean
        for method, runs in results.items()
        if method.word == "dropout"
    }
    known = {method: loss for method, loss in losses.items() if math.isfinite(loss)}
    target = min(known.items(), key=lambda each: each[1], default=None)
    return [_row(method, runs, target, times.get(method)) for method, runs in results.items()]


def best_rows(rows: list[Row]) -> list[Row]:
    """The row of each method whose mean validation loss is least, in the order of `rows`."""
    best: dict[str, Row] = {}
    for row in rows:
        name = row.method.name
        if name not in best or _rank(row) < _rank(best[name]):
            best[name] = row
    return list(best.values())


def _rank(row: Row) -> tuple[bool, float]:
    return math.isnan(row.loss.mean), row.loss.mean


def verdict(ours: Spread | None, theirs: Spread | None) -> str | None:
    """How one stands to another, by intervals of a standard deviation to either side.

    None where one of them has a single seed, or diverged.
    """
    if ours is None or theirs is None or ours.std is None or theirs.std is None:
        return None
    if ours.mean + ours.std < theirs.mean - theirs.std:
        return "lower"
    if ours.mean - ours.std > theirs.mean + theirs.std:
        return "higher"
    return "within the spread"


def _row(
    method: Method, runs: list[Result], target: tuple[Method, float] | None, times: Times | None
) -> Row:
    """target: nn.Dropout at its best rate, and its loss there."""
    best = [run.best for run in runs]
    reached: list[int | None] = []
    if target is not None:
        is_target = method == target[0]
        reached = [run.best.step if is_target else run.first_below(target[1]) for run in runs]
    steps = [step for step in reached if step is not None]
    return Row(
        method=method,
        runs=runs,
        loss=Spread.of(record.loss for record in best),
        accuracy=_spread([record.accuracy for record in best], 100),
        test_loss=_spread([record.test_loss for record in best]),
        test_accuracy=_spread([record.test_accuracy for record in best], 100),
        step=Spread.of(record.step for record in best),
        dropout_step=Spread.of(steps) if steps and len(steps) == len(runs) else None,
        times=times,
    )


def _spread(values: list[float | None], unit: float = 1) -> Spread | None:
    known = [unit * value for value in values if value is not None]
    return Spread.of(known) if known else None
