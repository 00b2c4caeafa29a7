"""The products' run: every shape, dtype, rate and product, one after the other."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator

import torch

from sparsedrop.tools.arguments import plural
from sparsedrop.tools.bench import products_report
from sparsedrop.tools.bench.measure import Case, Row, measure, operand_sets
from sparsedrop.tools.bench.products import Extents
from sparsedrop.tools.bench.report import Report, kept_when_stopped
from sparsedrop.tools.bench.settings import Settings


def run(settings: Settings) -> Report:
    """Measures, with a line of progress to stderr for each row that is done.

    Raises:
        WrongProductError: where a product differs from its definition by more than rounding.
    """
    rows: list[Row] = []
    notes: list[str] = []
    per_operands = len(list(cases(settings, settings.shapes[0], settings.dtypes[0])))
    total = per_operands * len(settings.shapes) * len(settings.dtypes)
    stops: list[str] = []
    with kept_when_stopped(rows, stops):
        for extents, dtype in itertools.product(settings.shapes, settings.dtypes):
            steps = operand_sets(extents, dtype, settings.device)
            for case in cases(settings, extents, dtype):
                rows.append(measure(case, steps, settings, notes))
                print(f"{len(rows)}/{total}  {_progress(rows[-1])}", file=sys.stderr, flush=True)
    reasons = [f"{note} ({plural(n, 'product')})" for note, n in Counter(notes).items()]
    return products_report.of_products(rows, reasons + stops)


def cases(settings: Settings, extents: Extents, dtype: torch.dtype) -> Iterator[Case]:
    """The rows of one shape and dtype, in the order of the table."""
    for product in settings.products:
        for out_block in settings.both_blocks if product.two_sided else (None,):
            for p in settings.rates:
                yield Case(product, extents, p, dtype, settings.block, out_block)


def _progress(row: Row) -> str:
    return (
        f"{row.case.label}: dense {row.dense_us:.1f} µs, shrunk {row.shrunk_us:.1f}, "
        f"sparsedrop {row.ours_us:.1f}; {row.times_dense:.2f} x dense, "
        f"{row.of_shrunk:.3f} of shrunk"
    )
