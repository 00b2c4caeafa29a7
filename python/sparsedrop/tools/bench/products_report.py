"""What the products' run found: a table, a few sentences, JSON, diagrams."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sparsedrop.tools import markdown
from sparsedrop.tools.arguments import plural
from sparsedrop.tools.bench.measure import Row
from sparsedrop.tools.bench.products import Extents
from sparsedrop.tools.bench.report import Line, Panel, Report
from sparsedrop.tools.bench.settings import block_name
from sparsedrop.tools.names import dtype_name

HEADER = [
    "M×N×K", "dtype", "product", "p", "dense µs", "shrunk µs", "sparsedrop µs", "× dense",
    "of shrunk", "run as",
]  # fmt: skip

LARGE, FILLING = 2048**3, 4096**3
"""Multiplications from which a large GPU has tiles for all its SMs, and for several waves."""


def of_products(rows: Sequence[Row], notes: list[str]) -> Report:
    """The report of the products' run."""
    return Report(
        as_markdown(rows),
        sentences(rows),
        notes,
        {"rows": [_as_json(row) for row in rows]},
        _panels(rows),
        "speed-up over dense",
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """The table; with the best tile and the regret where tiles were timed, and with the peers."""
    peers = sorted({name for row in rows for name in row.peers_us})
    tiled = any(row.tiles_us for row in rows)
    header = [*HEADER, *(["best tile", "its µs", "regret"] if tiled else [])]
    header += [column for name in peers for column in (f"{name} µs", "+ packing µs")]
    return markdown.table(header, [_cells(row, tiled, peers) for row in rows], left=3)


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the rows come to."""
    return [
        *_of_shrunk(rows),
        *_break_evens(rows),
        *_two_sided(rows),
        *_regrets(rows),
    ]


def geometric_mean(values: Iterable[float]) -> float:
    """0 where a number is; ValueError where there are no numbers."""
    values = list(values)
    if min(values) == 0:
        return 0.0
    return math.exp(statistics.fmean(map(math.log, values)))


def break_even(points: Iterable[tuple[float, float]]) -> float | None:
    """The p at which a speed-up, given as (p, speed-up), comes to exceed 1 for good.

    Linear between the points. 0 where it does everywhere, None where it does not at the largest p.
    """
    points = sorted(points)
    if not points or points[-1][1] <= 1:
        return None
    for (low, before), (high, after) in zip(points[-2::-1], points[:0:-1], strict=True):
        if before <= 1:
            return low + (high - low) * (1 - before) / (after - before)
    return 0.0


def _of_shrunk(rows: Sequence[Row]) -> Iterator[str]:
    """Of the one-sided products in each dtype."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.case.product.two_sided:
            groups[dtype_name(row.case.dtype)].append(row)
    for dtype, one_sided in groups.items():
        mean = geometric_mean(row.of_shrunk for row in one_sided)
        yield (
            f"Of shrunk, {dtype}, masks on one side: geometric mean {mean:.3f} over "
            f"{plural(len(one_sided), 'product')}."
        )
        large = [row for row in one_sided if math.prod(row.case.extents) >= LARGE]
        small = [row for row in one_sided if math.prod(row.case.extents) < LARGE]
        for some, where in ((large, "from 2048x2048x2048 up"), (small, "below 2048x2048x2048")):
            if some:
                worst = min(some, key=lambda row: row.of_shrunk)
                yield f"Worst {where}: {worst.of_shrunk:.3f} ({worst.case.label})."


def _break_evens(rows: Sequence[Row]) -> Iterator[str]:
    """Of the one-sided products of each shape, taken together."""
    times: dict[tuple[Extents, str], dict[float, list[Row]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if not row.case.product.two_sided:
            case = row.case
            times[case.extents, dtype_name(case.dtype)][case.p].append(row)
    for (extents, dtype), by_rate in times.items():
        names = "+".join(row.case.product.name for row in next(iter(by_rate.values())))
        p = break_even(
            (p, sum(row.dense_us for row in some) / sum(row.ours_us for row in some))
            for p, some in by_rate.items()
        )
        if p is None:
            where = f"not reached at p = {max(by_rate):g}"
        elif p == 0.0:
            where = f"below p = {min(by_rate):g}, the least one measured"
        else:
            where = f"p = {p:.3f}"
        yield f"Break-even against the dense product, {extents} {dtype}, {names}: {where}."


def _two_sided(rows: Sequence[Row]) -> Iterator[str]:
    groups: dict[tuple[str, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.case.product.two_sided:
            groups[row.case.name, row.case.p, dtype_name(row.case.dtype)].append(row)
    for (name, p, dtype), some in groups.items():
        mean = geometric_mean(row.times_dense for row in some)
        filling = [row.times_dense for row in some if math.prod(row.case.extents) >= FILLING]
        least = f", at least {min(filling):.2f} from 4096x4096x4096 up" if filling else ""
        yield f"Masks on both sides, {name}, p = {p:g}, {dtype}: {mean:.2f} x dense{least}."


def _regrets(rows: Sequence[Row]) -> Iterator[str]:
    regrets = [(row.regret, row) for row in rows if row.regret is not None]
    if regrets:
        mean = geometric_mean(1 + regret for regret, _ in regrets) - 1
        worst, row = max(regrets, key=lambda pair: pair[0])
        yield (
            f"Regret of the selection: {mean:.1%} in the geometric mean, at most {worst:.1%} "
            f"({row.case.label}: {row.choice}, best {row.best_tile})."
        )


def _panels(rows: Sequence[Row]) -> list[Panel]:
    """A diagram a shape, dtype and number of masked sides."""
    groups: dict[tuple[str, bool], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        title = f"{row.case.extents}, {dtype_name(row.case.dtype)}"
        groups[title, row.case.product.two_sided][row.case.name].append(row)
    return [Panel(title, list(_lines(named))) for (title, _), named in groups.items()]


def _lines(by_product: dict[str, list[Row]]) -> Iterator[Line]:
    """Each product and its shrunk problem, under what the dropped FLOPs alone would allow."""
    rows = next(iter(by_product.values()))
    ideal = sorted((row.case.p, row.case.product.ideal(row.case.p)) for row in rows)
    yield Line("ideal: dense FLOPs / live FLOPs", "ideal", ideal)
    for name, rows in by_product.items():
        yield Line(name, "figure", sorted((row.case.p, row.times_dense) for row in rows))
        bound = sorted((row.case.p, row.dense_us / row.shrunk_us) for row in rows)
        yield Line(f"{name}, shrunk", "bound", bound)


def _cells(row: Row, tiled: bool, peers: Sequence[str]) -> list[str]:
    case = row.case
    cells = [
        str(case.extents),
        dtype_name(case.dtype),
        case.name,
        f"{case.p:g}",
        *(f"{us:.1f}" for us in (row.dense_us, row.shrunk_us, row.ours_us)),
        f"{row.times_dense:.2f}",
        f"{row.of_shrunk:.3f}",
        row.choice,
    ]
    if tiled and row.regret is not None and row.best_tile is not None:
        best = row.best_tile
        cells += [best, f"{row.tiles_us[best]:.1f}", f"{row.regret:.1%}"]
    elif tiled:
        cells += ["–", "–", "–"]
    for name in peers:
        found = name in row.peers_us
        cells += [
            f"{row.peers_us[name]:.1f}" if found else "–",
            f"{row.packing_us[name]:.1f}" if found else "–",
        ]
    return cells


def _as_json(row: Row) -> dict[str, Any]:
    case = row.case
    found = {name: value for name, value in row._asdict().items() if name != "case"}
    return {
        "shape": str(case.extents),
        "p": case.p,
        "dtype": dtype_name(case.dtype),
        "product": case.product.name,
        "block": block_name(case.block),
        "out_block": None if case.out_block is None else block_name(case.out_block),
        **found,
        "times_dense": row.times_dense,
        "regret": row.regret,
    }
