"""What a study reports of its runs: rows, tables, and the papers' figures beside them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsedrop.tools.study import papers, report, tables, timing
from sparsedrop.tools.study.evaluation import Record, Result
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.tasks import GPT, LSTM
from sparsedrop.tools.study.timing import Times

NONE = Method("none", 0.0)
DROPOUT = Method("dropout", 0.5)
SPARSEDROP = Method("sparsedrop", 0.5, (128, 128))

SETTINGS = Settings(
    task="gpt",
    data="tinyshakespeare.txt",
    digest="",
    preset=replace(GPT.paper, seeds=2),
    steps=100,
    epoch_steps=100,
    eval_every=10,
    device=torch.device("cpu"),
    dtype=torch.float32,
    methods=(NONE, DROPOUT, SPARSEDROP),
)


def result(*losses: float, test: float | None = None, accuracy: float | None = None) -> Result:
    records = [Record(10 * i, x, accuracy, test, accuracy) for i, x in enumerate(losses, 1)]
    return Result(0, records)


def columns(text: str, place: int = 0) -> list[dict[str, str]]:
    """Of the table at that place, by header."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in blocks[place].splitlines()
    ]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_rows_have_means_and_spreads_over_seeds_at_their_best_steps():
    runs = [result(0.5, 0.2, 0.3, accuracy=0.9), result(0.4, 0.6, accuracy=0.92)]
    several, single = (report.summarize({NONE: seeds}, {})[0] for seeds in (runs, runs[:1]))
    assert several.accuracy.mean == pytest.approx(91)
    assert several.accuracy.std == pytest.approx(2**0.5)
    assert several.loss.text(2) == "0.30 ± 0.14"
    assert several.step.mean == 15
    assert single.loss.text(2) == "0.20"


def test_the_best_of_equal_losses_is_the_first_and_nan_is_more_than_any():
    assert result(0.5, math.nan, 0.2, 0.2).best.step == 30
    assert result(0.5, 0.3, 0.2).first_below(0.3) == 20
    assert result(0.5, math.nan).first_below(0.3) is None


def test_steps_to_dropouts_best_loss_are_those_of_its_best_rate_where_all_seeds_come_to_it():
    results = {
        NONE: [result(0.5, 0.25), result(0.5, 0.35)],
        Method("dropout", 0.1): [result(0.5, 0.4)] * 2,
        DROPOUT: [result(0.5, 0.4, 0.2), result(0.5, 0.4)],  # 0.3 in the mean
        SPARSEDROP: [result(0.3, 0.2), result(0.5, 0.1, 0.2)],
    }
    rows = report.summarize(results, {SPARSEDROP: Times(20.0, 10.0, 40.0, 15.0)})
    steps = [None if row.dropout_step is None else row.dropout_step.mean for row in rows]
    assert steps == [None, None, 25, 15], "its own are its best steps"
    row = rows[-1]
    assert (row.speedup, row.graph_speedup) == (2.0, 1.5)
    assert row.seconds(row.dropout_step) == pytest.approx(0.3)
    assert row.seconds(row.dropout_step, graph=True) == pytest.approx(0.15)
    assert rows[0].seconds(rows[0].step) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        ((1.0, 1.2), (1.5, 1.7), "lower"),
        ((1.5, 1.7), (1.0, 1.2), "higher"),
        ((1.0, 1.2), (1.1, 1.3), "within the spread"),
        ((1.0,), (1.5, 1.7), None),
        ((math.nan, 1.2), (1.5, 1.7), None),
    ],
)
def test_a_verdict_is_by_the_test_loss_and_needs_a_spread(ours, theirs, wanted):
    results = {
        DROPOUT: [result(0.1, test=test) for test in theirs],
        SPARSEDROP: [result(9.0, test=test) for test in ours],
    }
    dropout, sparsedrop = report.summarize(results, {})
    assert report.verdict(sparsedrop.judged, dropout.judged) == wanted


def test_the_best_of_each_method_stands_beside_the_papers_figures():
    results = {
        NONE: [result(1.6, test=1.7)] * 2,
        Method("dropout", 0.1): [result(1.6, test=1.0)] * 2,
        DROPOUT: [result(1.5, test=1.55)] * 2,
        SPARSEDROP: [result(1.4, test=1.45)] * 2,
    }
    best = columns(tables.as_markdown(report.summarize(results, {}), SETTINGS), 1)
    assert [row["method"] for row in best] == ["no dropout", "nn.Dropout", "sparsedrop"]
    assert [row["p"] for row in best] == ["–", "0.5", "0.5"], "by the validation loss"
    assert [row["test loss against nn.Dropout"] for row in best] == ["higher", "–", "lower"]
    theirs = [row["the paper's val. loss"] for row in best]
    assert theirs == ["1.643", "1.448 (p = 0.6)", "1.430 (p = 0.5)"]


def test_accuracies_are_compared_too():
    results = {
        DROPOUT: [result(1.0, test=1.0, accuracy=x) for x in (0.8, 0.82)],
        SPARSEDROP: [result(1.0, test=1.0, accuracy=x) for x in (0.9, 0.92)],
    }
    _, ours = columns(tables.as_markdown(report.summarize(results, {}), SETTINGS), 1)
    assert ours["test accuracy (%)"] == "91.00 ± 1.41"
    assert ours["test accuracy against nn.Dropout"] == "higher"
    assert ours["test loss against nn.Dropout"] == "within the spread"


def test_figures_of_another_size_or_data_are_not_compared():
    small = replace(SETTINGS, preset=GPT.small)
    assert papers.figures(SETTINGS)["none"].loss == 1.643
    assert papers.figures(small) == papers.figures(replace(SETTINGS, data="other.txt")) == {}
    assert papers.speed(SETTINGS, SPARSEDROP) == "1.39"
    assert papers.speed(small, SPARSEDROP) is None
    assert papers.speed(SETTINGS, SPARSEDROP._replace(p=0.3)) is None
    lstm = replace(SETTINGS, task="lstm", preset=LSTM.paper)
    assert papers.speed(lstm, Method("row-pattern", 0.7)) == "1.24–1.85"


def test_times_to_dropouts_best_loss_are_compared_with_its_own():
    results = {
        NONE: [result(0.5, 0.5)],
        DROPOUT: [result(0.5, 0.3, 0.4)],
        SPARSEDROP: [result(0.5, 0.4, 0.3)],
    }
    times = {
        NONE: Times(10.0, 4.0, None, None),
        DROPOUT: Times(20.0, 8.0, 20.0, 8.0),
        SPARSEDROP: Times(10.0, 6.0, 20.0, 8.0),
    }
    found = columns(tables.as_markdown(report.summarize(results, times), SETTINGS), 2)
    wanted = {
        "step (ms)": ["10.000", "20.000", "10.000"],
        "× nn.Dropout": ["–", "1.00", "2.00"],
        "graph × nn.Dropout": ["–", "1.00", "1.33"],
        "the paper's ×": ["–", "–", "1.39"],
        "to best (s)": ["0.10", "0.40", "0.30"],
        "to nn.Dropout's (s)": ["–", "0.40", "0.30"],
        "of its time": ["–", "1.00", "0.75"],
        "graph to nn.Dropout's (s)": ["–", "0.16", "0.18"],
        "graph of its time": ["–", "1.00", "1.12"],
    }
    assert {name: [row[name] for row in found] for name in wanted} == wanted


def test_blocks_are_a_column_where_there_are_several():
    other = SPARSEDROP._replace(block=(64, 128))
    results = {NONE: [result(1.0)], SPARSEDROP: [result(1.0)], other: [result(0.5)]}
    rows = report.summarize(results, {})
    preset = replace(GPT.paper, block_shapes=((128, 128), (64, 128)))
    text = tables.as_markdown(rows, replace(SETTINGS, preset=preset))
    assert [row["block"] for row in columns(text)] == ["–", "128x128", "64x128"]
    assert [row["block"] for row in columns(text, 1)] == ["–", "64x128"]
    assert "block" not in columns(tables.as_markdown(rows[:2], SETTINGS))[0]


@pytest.mark.parametrize(("graph_ms", "mode"), [(None, "eager mode"), (5.0, "CUDA graphs")])
def test_blocks_have_a_table_a_rate_of_quality_and_speed(graph_ms, mode):
    losses = {(128, 128): 0.5, (64, 128): 0.25, (64, 64): 0.75}
    results, times = {}, {}
    for p in (0.3, 0.5):
        for block, loss in losses.items():
            method = Method("sparsedrop", p, block)
            results[method] = [result(loss + p, test=loss)]
            times[method] = Times(10.0, graph_ms, 20.0, None if graph_ms is None else 20.0)
    preset = replace(GPT.paper, block_shapes=tuple(losses))
    text = tables.as_markdown(report.summarize(results, times), replace(SETTINGS, preset=preset))
    assert f"sparsedrop at p = 0.5, by its blocks: test loss, and × nn.Dropout in {mode}." in text
    speed = "4.00 ×" if graph_ms else "2.00 ×"
    wanted = [
        {"rows": "64", "64 columns": f"0.7500, {speed}", "128 columns": f"0.2500, {speed}"},
        {"rows": "128", "64 columns": "–", "128 columns": f"0.5000, {speed}"},
    ]
    assert columns(text, 2) == columns(text, 3) == wanted


def test_a_table_of_a_stopped_study_counts_seeds():
    results = {NONE: [result(1.0)] * 2, DROPOUT: [result(1.0)]}
    found = columns(tables.as_markdown(report.summarize(results, {}), SETTINGS))
    assert [row["seeds"] for row in found] == ["2", "1"]
    results[DROPOUT] *= 2
    assert "seeds" not in columns(tables.as_markdown(report.summarize(results, {}), SETTINGS))[0]


def test_a_sentence_tells_only_of_columns_that_its_table_has():
    results = {NONE: [result(1.0)] * 2, SPARSEDROP: [result(1.0)] * 2}
    times = {method: Times(1.0, None, None, None) for method in results}
    assert "nn.Dropout" not in tables.as_markdown(report.summarize(results, times), SETTINGS)
    results[DROPOUT] = [result(1.0)]  # a single seed: no interval to compare by
    text = tables.as_markdown(report.summarize(results, times), SETTINGS)
    assert "lower or higher" not in text
    assert "to nn.Dropout's" in text
    results[DROPOUT] *= 2
    assert "lower or higher" in tables.as_markdown(report.summarize(results, times), SETTINGS)


def test_methods_of_one_rate_are_timed_in_turns(monkeypatch):
    """Times are ratios of the same lap: a machine that slows down slows all of them."""
    speeds = {"none": 1.0, "dropout": 2.0, "sparsedrop": 0.5}
    load = iter(range(1, 1000))

    class Fake:
        def __init__(self, method, *_, **__):
            self.method, self.model = method, torch.nn.Identity()

    monkeypatch.setattr(timing, "Trainer", Fake)
    monkeypatch.setattr(timing, "_step_of", lambda trainer, _: speeds[trainer.method.word])
    laps = timing.LAPS[1] * 3

    def wall_ms(speed, _, steps):
        turn = next(load) if steps == timing.STEPS else 0
        return steps * speed * (1 + turn // 3 % laps)

    monkeypatch.setattr(timing, "wall_ms", wall_ms)
    found = timing._eager([NONE, DROPOUT, SPARSEDROP], None, SETTINGS, None)
    assert found[DROPOUT] / found[NONE] == pytest.approx(2.0, rel=0.2)
    assert found[SPARSEDROP] / found[NONE] == pytest.approx(0.5, rel=0.2)


def test_no_dropout_is_timed_with_the_first_rate():
    methods = NONE, DROPOUT, Method("dropout", 0.1), SPARSEDROP
    assert timing._by_rate(methods) == {
        0.5: [NONE, DROPOUT, SPARSEDROP],
        0.1: [Method("dropout", 0.1)],
    }
    assert timing._by_rate((NONE,)) == {0.0: [NONE]}
