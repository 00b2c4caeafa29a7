"""`sparsedrop plot`: pictures of studies and of networks' speed-ups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sparsedrop.tools import cli
from sparsedrop.tools.networks import METHODS, RIVALS
from sparsedrop.tools.plot import speedups, study, theme


def records(*losses: float | None) -> list[dict]:
    return [{"step": 10 * i, "loss": loss} for i, loss in enumerate(losses, 1)]


def row(method: str, p: float, loss: float | None, graph_ms: float | None = None) -> dict:
    spread = {"mean": loss, "std": 0.1}
    return {
        "method": method,
        "p": p,
        "block": None,
        "loss": spread,
        "test_loss": spread,
        "step": {"mean": 15.0, "std": 1.0},
        "times": {"eager_ms": 2.0, "graph_ms": graph_ms},
        "seeds": [{"records": records(3.0, loss)}, {"records": records(2.0, loss, loss)}],
    }


STUDY = {
    "rows": [
        row("no dropout", 0.0, 0.9, 1.0),
        row("nn.Dropout", 0.1, 0.8, 1.5),
        row("nn.Dropout", 0.5, 0.7, 1.5),
        row("SliceOut", 0.5, 0.6),
        row("row pattern", 0.5, None),
    ]
}

NETWORKS = {
    "rows": [
        {"network": name, "p": p, "mode": mode, "speedups": {"sparsedrop": 1 + p, "SliceOut": 1.1}}
        for name in ("mlp", "vit")
        for p in (0.5, 0.1)
        for mode in ("eager", "graph")
    ]
}


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *args, **options):
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def plot(tmp_path: Path, found: object, *options: str) -> list[Path]:
    """The pictures of a file with that JSON."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    assert cli.main(["plot", str(path), *options]) == 0
    return sorted(tmp_path.glob("*.png"))


def lines(axes) -> dict[str, tuple[list, list]]:
    """What is drawn of each label."""
    handles, labels = axes.get_legend_handles_labels()
    return {
        label: (list(handle.get_xdata()), list(handle.get_ydata()))
        for handle, label in zip(handles, labels, strict=True)
    }


def test_a_study_is_drawn_for_a_light_and_a_dark_page(tmp_path, drawn):
    paths = plot(tmp_path, STUDY)
    assert [path.name for path in paths] == ["found-dark.png", "found.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    light, dark = drawn
    left = light.axes[0]
    assert lines(left) == {
        "no dropout": ([0.02, 0.04], [2.5, 0.9]),
        "nn.Dropout, p = 0.5": ([0.02, 0.04], [2.5, 0.7]),
        "SliceOut, p = 0.5": ([0.02, 0.04], [2.5, 0.6]),
    }, "means at the best rate, in seconds, while all seeds train"
    assert left.get_xlabel() == "seconds of training"
    assert light.axes[1].get_ylabel() == "test loss"
    assert (light.get_facecolor(), dark.get_facecolor()) != (dark.get_facecolor(),) * 2
    for each in light, dark:
        names = [line.get_label().split(",")[0] for line in each.axes[0].lines[::2]]
        assert names == ["no dropout", "nn.Dropout", "SliceOut"]


def test_seconds_of_graphs_leave_out_what_has_none(tmp_path, drawn):
    plot(tmp_path, STUDY, "--mode", "graph")
    assert lines(drawn[0].axes[0]) == {
        "no dropout": ([0.01, 0.02], [2.5, 0.9]),
        "nn.Dropout, p = 0.5": ([0.015, 0.03], [2.5, 0.7]),
    }


def test_without_times_there_are_steps(tmp_path, drawn):
    rows = [{**row("no dropout", 0.0, 0.9), "times": None, "test_loss": None}]
    plot(tmp_path, {"rows": rows})
    left, right = drawn[0].axes[:2]
    assert lines(left) == {"no dropout": ([10, 20], [2.5, 0.9])}
    assert left.get_xlabel() == right.get_xlabel() == "steps"
    assert right.get_ylabel() == "validation loss"


def test_blocks_are_named_where_there_are_several(tmp_path, drawn):
    rows = [{**row("sparsedrop", 0.3, 0.9), "block": block} for block in ("64x64", "128x128")]
    plot(tmp_path, {"rows": rows})
    plot(tmp_path, {"rows": rows[:1]})
    names = [[text.get_text() for text in figure.axes[1].texts] for figure in drawn]
    assert names == [["64x64", "128x128"]] * 2 + [[]] * 2


def test_speedups_are_a_panel_a_network_and_a_line_a_method_and_mode(tmp_path, drawn):
    plot(tmp_path, NETWORKS)
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["MLP", "ViT"]
    for axes in panels:
        low, high = axes.get_ylim()
        assert low < 1 < 1.5 < high, "a line leaves the panel"
    assert lines(panels[0]) == {
        "sparsedrop, eager": ([0.1, 0.5], [1.1, 1.5]),
        "sparsedrop, CUDA graph": ([0.1, 0.5], [1.1, 1.5]),
        "SliceOut, eager": ([0.1, 0.5], [1.1, 1.1]),
    }, "SliceOut would drop the same in each replay"


def test_speedups_of_several_graphs_are_drawn(tmp_path, drawn):
    graphs = {"figures": {"SliceOut": {"graphs": 16}}}
    plot(tmp_path, {"rows": [{**row, **graphs} for row in NETWORKS["rows"]]})
    assert lines(drawn[0].axes[0])["SliceOut, CUDA graph"] == ([0.1, 0.5], [1.1, 1.1])


def test_files_of_networks_are_one_picture(tmp_path):
    for name, network in (("one", "mlp"), ("two", "gpt")):
        rows = [{**row, "network": network} for row in NETWORKS["rows"]]
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    files = [str(tmp_path / f"{name}.json") for name in ("one", "two")]
    assert cli.main(["plot", *files, "--out", str(tmp_path / "all.png")]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["all-dark.png", "all.png"]


def test_each_method_has_a_colour_of_its_own_on_both_pages():
    names = [*METHODS.values(), *RIVALS.values()]
    for each in (theme.LIGHT, theme.DARK):
        assert len({each.color(name) for name in names}) == len(names)
        assert each.color("a new one") == each.ink
    assert set(speedups.STYLES) == set(speedups.NAMES)
    assert study.SIZE[0] == 9


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        ("{", "is not JSON, or is cut off"),
        ("[1]", "neither of `sparsedrop study` nor of"),
        ('{"rows": []}', "neither of"),
        ('{"rows": [{"p": 1}]}', "neither of"),
        ('{"rows": [{"speedups": {}}]}', "compares nothing with nn.Dropout"),
    ],
)
def test_a_file_that_cannot_be_drawn_is_one_sentence(capsys, tmp_path, content, why):
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["plot", str(path)]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert str(path) in sentence
    assert why in sentence


def test_a_study_is_drawn_alone_and_into_a_folder_that_is_there(capsys, tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(STUDY))
    assert cli.main(["plot", str(path), str(path)]) == 2
    assert f"{path} is a study: draw it alone" in capsys.readouterr().err
    assert cli.main(["plot", str(path), "--out", str(tmp_path / "no" / "x.png")]) == 2
    assert "cannot write" in capsys.readouterr().err
