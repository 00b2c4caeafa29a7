"""Quality and speed against the shape of a block, as Markdown."""

from __future__ import annotations

from sparsedrop.tools import markdown
from sparsedrop.tools.networks import DROPOUT
from sparsedrop.tools.study.method import Block
from sparsedrop.tools.study.report import Row


def as_markdown(rows: list[Row]) -> str:
    """One table a rate behind its sentence: blocks' rows downwards, their columns to the right."""
    shaped = [row for row in rows if row.method.block is not None]
    rates = dict.fromkeys(row.method.p for row in shaped)
    return "\n\n".join(_of_rate(p, [row for row in shaped if row.method.p == p]) for p in rates)


def _of_rate(p: float, rows: list[Row]) -> str:
    by_block: dict[Block, Row] = {row.method.block: row for row in rows if row.method.block}
    heights = sorted({height for height, _ in by_block})
    widths = sorted({width for _, width in by_block})
    lines = [
        [str(height), *(_cell(by_block.get((height, width))) for width in widths)]
        for height in heights
    ]
    judge = "validation" if rows[0].test_loss is None else "test"
    times = rows[0].times
    speed = ""
    if times is not None and times.dropout_eager_ms is not None:
        mode = "in eager mode" if times.graph_ms is None else "in CUDA graphs"
        speed = f", and × {DROPOUT} {mode}"
    table = markdown.table(["rows", *(f"{width} columns" for width in widths)], lines)
    return f"{rows[0].method.name} at p = {p:g}, by its blocks: {judge} loss{speed}.\n\n{table}"


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    speedup = row.speedup if row.graph_speedup is None else row.graph_speedup
    return row.judged.text(4) + ("" if speedup is None else f", {speedup:.2f} ×")
