"""Tables that can be read in a terminal and pasted into a document."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The table, aligned: the first `left` columns to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(2, *map(len, column)) for column in zip(*lines, strict=True)]  # for the rule's -:
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(_justified(cells, widths, left)) + " |" for cells in (header, rule, *rows)
    )


def _justified(cells: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    pairs = enumerate(zip(cells, widths, strict=True))
    return [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in pairs]
