"""What `sparsedrop bench` makes of its rows: a table, sentences, JSON and a picture."""

from __future__ import annotations

import json

import pytest
import torch

from sparsedrop.tools import markdown
from sparsedrop.tools.bench import plot, products_report
from sparsedrop.tools.bench.measure import Case, Row
from sparsedrop.tools.bench.products import PRODUCTS, Extents
from sparsedrop.tools.bench.report import Line, Panel

PNG = b"\x89PNG"


def row(product="forward", p=0.5, extents=(2048, 2048, 2048), **changes: object) -> Row:
    two_sided = PRODUCTS[product].two_sided
    block = (128, 256) if two_sided else None
    case = Case(PRODUCTS[product], Extents(*extents), p, torch.bfloat16, (128, 128), block)
    values = {
        "dense_us": 30.0,
        "shrunk_us": 16.0,
        "ours_us": 20.0,
        "live_share": 0.5,
        "of_shrunk": 0.8,
        "choice": "128x128x64",
        "tiles_us": {},
        "peers_us": {},
        "packing_us": {},
    }
    return Row(case, **(values | changes))


def test_geometric_mean():
    assert products_report.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert products_report.geometric_mean([0.0, 2.0]) == 0.0


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.1, 0.9), (0.3, 1.3)], 0.15),
        ([(0.3, 1.3), (0.1, 0.9)], 0.15),
        ([(0.1, 1.1), (0.3, 0.9), (0.5, 1.1)], 0.4),
        ([(0.1, 1.1), (0.3, 1.4)], 0.0),
        ([(0.5, 1.1)], 0.0),
        ([(0.1, 0.8), (0.3, 1.0)], None),
        ([], None),
    ],
)
def test_break_even(points, expected):
    assert products_report.break_even(points) == (
        None if expected is None else pytest.approx(expected)
    )


def test_the_table_is_aligned_and_names_what_was_asked_for():
    tiles = {"128x256x64": 19.0, "128x128x64 swap": 16.0}
    rows = [row(tiles_us=tiles), row("both", peers_us={"STK": 50.0}, packing_us={"STK": 99.0})]
    lines = products_report.as_markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:10] == products_report.HEADER
    assert cells[0][10:] == ["best tile", "its µs", "regret", "STK µs", "+ packing µs"]
    assert cells[2][2:] == [
        "forward", "0.5", "30.0", "16.0", "20.0", "1.50", "0.800", "128x128x64",
        "128x128x64 swap", "16.0", "25.0%", "–", "–",
    ]  # fmt: skip
    assert cells[3][2] == "both 128x256"
    assert cells[3][-2:] == ["50.0", "99.0"]


def test_the_sentences_name_means_worst_cases_and_break_even():
    rows = [
        row(p=0.1, dense_us=18.0, of_shrunk=0.9),
        row(p=0.3, dense_us=24.0, of_shrunk=0.4),
        row("dX", extents=(1024, 1024, 1024), of_shrunk=0.6, tiles_us={"128x64x64": 16.0}),
        row("both", extents=(4096, 4096, 4096), dense_us=70.0),
        row("both", dense_us=20.0),
    ]
    text = "\n".join(products_report.sentences(rows))
    assert "geometric mean 0.600 over 3 products" in text
    assert "from 2048x2048x2048 up: 0.400 (2048x2048x2048, p = 0.3, forward, bfloat16)" in text
    assert "below 2048x2048x2048: 0.600" in text
    assert "2048x2048x2048 bfloat16, forward: p = 0.167" in text
    assert "1024x1024x1024 bfloat16, dX: below p = 0.5" in text
    assert (
        "both 128x256, p = 0.5, bfloat16: 1.87 x dense, at least 3.50 from 4096x4096x4096 up"
        in text
    )
    assert "Regret of the selection: 25.0%" in text


def test_a_report_has_rows_as_json_and_panels_by_masked_sides():
    found = products_report.of_products(
        [row(), row("dX", p=0.3), row("dX"), row("both")], ["a note"]
    )
    json.dumps(found.results)
    assert found.results["rows"][0]["block"] == "128x128"
    assert [r["out_block"] for r in found.results["rows"]] == [None, None, None, "128x256"]
    one_sided, two_sided = found.panels
    assert [line.label for line in two_sided.lines[1:]] == [
        "both 128x256", "both 128x256, shrunk"
    ]  # fmt: skip
    assert one_sided.lines[3].points == [(0.3, 1.5), (0.5, 1.5)]
    assert one_sided.lines[0].points == [(0.5, 2.0)]


def test_a_picture_takes_any_number_of_panels(tmp_path):
    lines = [
        Line("ideal", "ideal", [(0.1, 1.1), (0.5, 2.0)]),
        Line("forward", "figure", [(0.1, 1.0), (0.5, 1.8)]),
        Line("forward, shrunk", "bound", [(0.1, 1.0), (0.5, 1.9)]),
    ]
    for count in (1, 7):
        plot.save([Panel("a shape", lines)] * count, "a title", "speed-up", tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_markdown_aligns_names_left_and_figures_right():
    assert markdown.table(["name", "µs"], [["a", "10.0"]]).splitlines() == [
        "| name |   µs |",
        "| ---- | ---: |",
        "| a    | 10.0 |",
    ]
    assert markdown.table(["a", "p"], [["b", "0"]]).splitlines()[1] == "| -- | -: |"
