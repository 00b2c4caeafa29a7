"""A study's rows as Markdown: quality, the best of each method, and time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sparsedrop.tools import markdown
from sparsedrop.tools.networks import DROPOUT
from sparsedrop.tools.study import block_table, papers
from sparsedrop.tools.study.report import Row, Spread, best_rows, verdict
from sparsedrop.tools.study.settings import Settings


class _Column(NamedTuple):
    header: str
    cells: list[str | None]  # None where a row has none


def as_markdown(rows: list[Row], settings: Settings) -> str:
    """The tables, one below the other, each behind a sentence that says what it shows."""
    seeds = settings.preset.seeds
    what = f"mean ± standard deviation over {seeds} seeds, each" if seeds > 1 else "one seed,"
    parts = [f"Each method and rate: {what} at its step of least validation loss.", ""]
    parts += [_quality(rows, settings)]
    best = best_rows(rows)
    if len(best) > 1:
        parts += ["", _best_sentence(best), "", _best(best, settings)]
    if any(row.times is not None for row in rows):
        parts += ["", _time_sentence(rows, settings), "", _time(rows, settings)]
    if len(settings.preset.block_shapes) > 1 and any(row.method.block for row in rows):
        parts += ["", block_table.as_markdown(rows)]
    return "\n".join(parts)


def _best_sentence(rows: list[Row]) -> str:
    what = "Each method at its rate of least validation loss"
    if not any(_verdicts(rows, lambda row: row.judged)):
        return f"{what}."
    judge = "validation" if rows[0].test_loss is None else "test"
    return (
        f"{what}, and its {judge} results against {DROPOUT}'s: lower or higher where the intervals "
        "of a standard deviation do not meet."
    )


def _time_sentence(rows: list[Row], settings: Settings) -> str:
    what = "Time of a training step, measured behind the training, methods in turns"
    to_best = "To best: steps to the least validation loss at that time"
    graph = "; graph: replayed as a CUDA graph" if settings.device.type == "cuda" else ""
    if not any(row.method.word == "dropout" for row in rows):
        return f"{what}{graph}. {to_best}."
    return (
        f"{what}: × is over {DROPOUT} at the same rate{graph}. {to_best}; to {DROPOUT}'s: to the "
        f"least validation loss of {DROPOUT} at its best rate, where every seed comes to it, and "
        "what share that is of the time that it took itself."
    )


def _quality(rows: list[Row], settings: Settings) -> str:
    columns = [
        *_names(rows, settings),
        _Column("seeds", _seeds(rows, settings)),
        _Column("val. loss", [row.loss.text(4) for row in rows]),
        _Column("val. accuracy (%)", [_text(row.accuracy, 2) for row in rows]),
        _Column("test loss", [_text(row.test_loss, 4) for row in rows]),
        _Column("test accuracy (%)", [_text(row.test_accuracy, 2) for row in rows]),
        _Column("best step", [f"{row.step.mean:.0f}" for row in rows]),
    ]
    return _table(columns)


def _best(rows: list[Row], settings: Settings) -> str:
    judge = "val." if rows[0].test_loss is None else "test"
    figures = papers.figures(settings)
    theirs = [figures.get(row.method.word) for row in rows]
    what = "val. accuracy, loss" if any(f and f.accuracy for f in theirs) else "val. loss"
    columns = [
        *_names(rows, settings),
        _Column("val. loss", [row.loss.text(4) for row in rows]),
        _Column("test loss", [_text(row.test_loss, 4) for row in rows]),
        _Column("test accuracy (%)", [_text(row.test_accuracy, 2) for row in rows]),
        _Column(f"{judge} loss against {DROPOUT}", _verdicts(rows, lambda row: row.judged)),
        _Column(
            f"{judge} accuracy against {DROPOUT}", _verdicts(rows, lambda row: row.judged_accuracy)
        ),
        _Column(
            f"the paper's {what}", [None if found is None else found.text() for found in theirs]
        ),
    ]
    return _table(columns)


def _verdicts(rows: list[Row], value: Callable[[Row], Spread | None]) -> list[str | None]:
    """How each row's value stands to nn.Dropout's; None for that itself, and without it."""
    dropout = next((row for row in rows if row.method.word == "dropout"), None)
    return [
        None if dropout is None or row is dropout else verdict(value(row), value(dropout))
        for row in rows
    ]


def _time(rows: list[Row], settings: Settings) -> str:
    times = [row.times for row in rows]
    graph_ms = [None if each is None else each.graph_ms for each in times]
    columns = [
        *_names(rows, settings),
        _Column("step (ms)", [_number(each and each.eager_ms, 3) for each in times]),
        _Column(f"× {DROPOUT}", [_number(row.speedup, 2) for row in rows]),
        _Column("graph (ms)", [_number(ms, 3) for ms in graph_ms]),
        _Column(f"graph × {DROPOUT}", [_number(row.graph_speedup, 2) for row in rows]),
        _Column("the paper's ×", [papers.speed(settings, row.method) for row in rows]),
        _Column("to best (s)", [_number(row.seconds(row.step), 2) for row in rows]),
        *_to_dropouts(rows, "", is_graph=False),
        *_to_dropouts(rows, "graph ", is_graph=True),
    ]
    return _table(columns)


def _to_dropouts(rows: list[Row], mode: str, *, is_graph: bool) -> list[_Column]:
    """Seconds to the least validation loss of nn.Dropout, and what share of its own they are."""
    seconds = [row.seconds(row.dropout_step, graph=is_graph) for row in rows]
    dropouts = [row for row in best_rows(rows) if row.method.word == "dropout"]
    base = dropouts[0].seconds(dropouts[0].dropout_step, graph=is_graph) if dropouts else None
    shares = [None if x is None or base is None else x / base for x in seconds]
    return [
        _Column(f"{mode}to {DROPOUT}'s (s)", [_number(x, 2) for x in seconds]),
        _Column(f"{mode}of its time", [_number(share, 2) for share in shares]),
    ]


def _names(rows: list[Row], settings: Settings) -> list[_Column]:
    """Methods and rates, and blocks where the study has several."""
    columns = [
        _Column("method", [row.method.name for row in rows]),
        _Column("p", [None if row.method.word == "none" else f"{row.method.p:g}" for row in rows]),
    ]
    if len(settings.preset.block_shapes) > 1:
        columns.append(_Column("block", [row.method.block_name for row in rows]))
    return columns


def _seeds(rows: list[Row], settings: Settings) -> list[str | None]:
    """How many there are, in a study that was stopped; else none of them say so."""
    counts = [len(row.runs) for row in rows]
    return [None if set(counts) == {settings.preset.seeds} else str(count) for count in counts]


def _table(columns: list[_Column]) -> str:
    """Aligned: names to the left, figures to the right; no column without a figure."""
    columns = [column for column in columns if any(cell is not None for cell in column.cells)]
    lines = zip(*([cell or "–" for cell in column.cells] for column in columns), strict=True)
    return markdown.table([column.header for column in columns], [list(line) for line in lines])


def _text(spread: Spread | None, digits: int) -> str | None:
    return None if spread is None else spread.text(digits)


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
