"""Products of this build against those of another: what a change to the kernels costs, if anything.

The place of code in memory alone has cost 20 %, so a change whose machine code is not byte for byte
the same is timed before it lands.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sparsedrop import _native, select
from sparsedrop.ops import plan
from sparsedrop.tools import markdown
from sparsedrop.tools.bench import measure
from sparsedrop.tools.bench.measure import Case
from sparsedrop.tools.bench.products import Operands
from sparsedrop.tools.bench.report import Report
from sparsedrop.tools.bench.settings import Settings
from sparsedrop.tools.bench.sweep import cases
from sparsedrop.tools.bench.timing import Turns
from sparsedrop.tools.cli import UserError
from sparsedrop.tools.names import dtype_name

MAX_MEAN, MAX_SINGLE = 1.01, 1.03
"""By how much the products may take longer: in the geometric mean, and each of them."""

HEADER = ["product", "dtype", "M×N×K", "p", "other µs", "this µs", "this / other", "other again"]


class Row(NamedTuple):
    case: Case
    other_us: float
    this_us: float
    again_us: float  # the other build as a second candidate: how far equal code differs

    @property
    def ratio(self) -> float:
        """This build's time over the mean of the other's two."""
        return self.this_us / math.sqrt(self.other_us * self.again_us)


def load(path: Path) -> Any:
    """The extension module of another build.

    Raises:
        UserError: where this Python cannot load the file, or its tiles are not those of this build.
    """
    name = "sparsedrop_other._C"
    # A copy: a library that is loaded already would be the same one again.
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(path, folder)
        loader = importlib.machinery.ExtensionFileLoader(name, copy)
        spec = importlib.util.spec_from_file_location(name, copy, loader=loader)
        assert spec is not None
        try:
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
        except ImportError as error:
            raise UserError(f"--against {path} cannot be loaded: {error}") from error
    theirs, ours = _tiles(module), _tiles(_native.C)
    # This one may have more architectures.
    if not theirs or any(ours.get(name) != tiles for name, tiles in theirs.items()):
        raise UserError(f"--against {path} has the tiles {theirs}, and this build has {ours}")
    return module


def _tiles(extension: Any) -> dict[str, list[tuple[int, ...]]]:
    """By the name of their architecture; none where an older build lists them otherwise."""
    return {family.name: family.tiles for family in getattr(extension, "ARCHITECTURES", ())}


@contextmanager
def _using(extension: Any) -> Iterator[None]:
    """Plans and launches by that extension inside."""
    before = _native.C
    try:
        _native.C = extension
        plan.plan_for.cache_clear()
        yield
    finally:
        _native.C = before
        plan.plan_for.cache_clear()


def run(settings: Settings) -> Report:
    """Measures every product with both builds in turns, with a line of progress for each.

    Raises:
        WrongProductError: where a product of this build is not what its definition says.
    """
    assert settings.against is not None
    for dtype in settings.dtypes:
        if dtype not in select.KERNEL_DTYPES:
            raise UserError(f"--against is about the kernels, which have no {dtype_name(dtype)}")
    other = load(settings.against)
    rows: list[Row] = []
    for extents in settings.shapes:
        for dtype in settings.dtypes:
            steps = measure.operand_sets(extents, dtype, settings.device)
            for case in cases(settings, extents, dtype):
                rows.append(_measure(case, steps, settings, other))
                line = f"{len(rows)}  {case.label}: {rows[-1].ratio:.3f}"
                print(line, file=sys.stderr, flush=True)
    return _report(rows)


def _measure(case: Case, steps: list[Operands], settings: Settings, other: Any) -> Row:
    turns = Turns(settings.device)
    factors = [case.product.factors(step) for step in steps]
    draws = [measure.draw(case, settings.sampler, settings.device) for _ in range(settings.masks)]
    calls = [
        measure.ours(*factors[i % len(factors)], draws[i % len(draws)])
        for i in range(max(len(factors), len(draws)))
    ]
    with select.override(path="kernel"):
        for masks in draws:
            measure.check(case, factors[0], masks)
        candidates = {"this": turns.prepare(calls)}
        with _using(other):
            candidates["other"] = turns.prepare(calls)
            candidates["again"] = turns.prepare(calls)
    us = turns.medians_us(candidates)
    return Row(case, us["other"], us["this"], us["again"])


def _report(rows: list[Row]) -> Report:
    mean = math.exp(statistics.fmean(math.log(row.ratio) for row in rows))
    again = math.exp(statistics.fmean(math.log(row.again_us / row.other_us) for row in rows))
    worst = max(rows, key=lambda row: row.ratio)
    slow = [row for row in rows if row.ratio > MAX_SINGLE]
    sentences = [
        f"This build takes {mean:.4f} of the other's time in the geometric mean of {len(rows)} "
        f"products; the other build beside itself: {again:.4f}.",
        f"Worst: {worst.ratio:.3f} ({worst.case.label}).",
    ]
    if mean > MAX_MEAN:
        sentences.append(f"Too slow: the mean is above {MAX_MEAN}.")
    sentences += [f"Too slow: {row.case.label}, {row.ratio:.3f}." for row in slow]
    cells = [
        [
            row.case.name,
            dtype_name(row.case.dtype),
            str(row.case.extents),
            f"{row.case.p:g}",
            f"{row.other_us:.2f}",
            f"{row.this_us:.2f}",
            f"{row.ratio:.3f}",
            f"{row.again_us / row.other_us:.3f}",
        ]
        for row in sorted(rows, key=lambda row: -row.ratio)
    ]
    results = {
        "mean": mean,
        "too_slow": mean > MAX_MEAN or bool(slow),
        "rows": [dict(zip(HEADER, line, strict=True)) for line in cells],
    }
    return Report(markdown.table(HEADER, cells, left=4), sentences, [], results, [], "")
