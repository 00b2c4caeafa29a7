"""The tables of trained networks."""

from __future__ import annotations

from rows import Row, markdown, read, shape_of

LOSSES, TIMES = ("loss", "test_loss"), ("eager_ms", "graph_ms")


def digits() -> str:
    head = ["method", "p", "validation loss", "validation accuracy (%)", "time per step (ms)"]
    head += ["time to best (s)", "× nn.Dropout"]
    lines = []
    for row in read("study_digits"):
        loss, accuracy, speedup = row["loss"], row["accuracy_percent"], row["speedup_over_dropout"]
        lines.append(
            [
                row["method"],
                "–" if speedup is None else f"{row['p']:g}",
                _mean(loss, 4),
                _mean(accuracy, 2),
                f"{row['step_ms']:.2f}",
                f"{row['seconds']['mean']:.2f}",
                "–" if speedup is None else f"{speedup:.2f}",
            ]
        )
    return markdown(head, lines)


def gpt() -> str:
    """Every rate with two seeds, the best with three, and SliceOut, whose steps were not timed."""
    head = ["method", "p", "seeds", "validation loss", "test loss", "step: eager ms", "graph ms"]
    head += ["to nn.Dropout's best loss: eager, of its time", "graph, of its time"]
    lines = []
    for name in ("study_gpt", "study_gpt_rates", "study_gpt_slice_out"):
        rows = read(name)
        dropouts = (row for row in rows if row["method"] == "nn.Dropout")
        dropout = min(dropouts, key=lambda row: row["loss"]["mean"], default=None)
        for row in rows:
            times = [f"{row['times'][key]:.2f}" if row["times"] else "–" for key in TIMES]
            shares = [_share_of_time(row, dropout, key) for key in TIMES]
            seeds = str(len(row["seeds"]))
            lines.append([row["method"], _rate(row), seeds, *_losses(row), *times, *shares])
    return markdown(head, lines)


def _rate(row: Row) -> str:
    return f"{row['p']:g}" if row["p"] else "–"


def _losses(row: Row) -> list[str]:
    return [_mean(row[key], 4) for key in LOSSES]


def _mean(found: Row, digits: int) -> str:
    deviation = "" if found["std"] is None else f" ± {found['std']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{deviation}"


def mlp() -> str:
    """At three of the five rates: all methods, then what was changed of one at a time."""
    rows = [(row["method"], row) for row in read("study_mlp")]
    for row in read("study_mlp_balanced"):
        rows.append((f"{row['method']}, balanced", row))
    for row in read("study_mlp_blocks"):
        if row["block"] not in (None, "128x128"):
            rows.append((f"{row['method']}, {shape_of(row['block'])}", row))
    return _of_images(rows + _by_period("study_mlp_by_period"))


def ard_mlp() -> str:
    rows = [(row["method"], row) for row in read("study_ard_mlp")]
    return _of_images(rows + _by_period("study_ard_mlp_by_period"))


def vit() -> str:
    return _of_images([(row["method"], row) for row in read("study_vit")])


def wide_resnet() -> str:
    return _of_images([(row["method"], row) for row in read("study_wide_resnet")])


def _by_period(name: str) -> list[tuple[str, Row]]:
    """The rows of patterns, beside which the others are those of the global scale's file."""
    rows = (row for row in read(name) if "pattern" in row["method"])
    return [(f"{row['method']}, by period", row) for row in rows]


def _of_images(rows: list[tuple[str, Row]]) -> str:
    """Of methods by their names."""
    head = ["method", "p", "seeds", "validation loss", "test loss", "test accuracy (%)"]
    lines = []
    for name, row in rows:
        if row["p"] not in (0.2, 0.4) or len(row["seeds"]) == 1:
            accuracy = _mean(row["test_accuracy_percent"], 2)
            lines.append([name, _rate(row), str(len(row["seeds"])), *_losses(row), accuracy])
    return markdown(head, lines)


def _share_of_time(row: Row, dropout: Row | None, key: str) -> str:
    """Of the time in which nn.Dropout came to its best loss, that in which this row did."""
    steps = row["step_at_dropouts_best_loss"]
    if steps is None or dropout is None or row["method"] == "nn.Dropout":
        return "–"
    own, theirs = (each["times"][key] for each in (row, dropout))
    of_dropout = dropout["step_at_dropouts_best_loss"]["mean"]
    return f"{steps['mean'] * own / (of_dropout * theirs):.2f}"
