"""Products of two builds beside each other: the gate for changes to the kernels."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsedrop import _native
from sparsedrop.ops import plan
from sparsedrop.tools import cli
from sparsedrop.tools.bench import against, timing
from sparsedrop.tools.bench.measure import Case
from sparsedrop.tools.bench.products import PRODUCTS, Extents
from sparsedrop.tools.cli import UserError

CASE = Case(PRODUCTS["dX"], Extents(512, 256, 128), 0.5, torch.bfloat16, (128, 128), None)


def _rows(*ratios):
    return [against.Row(CASE, 100.0, 100.0 * ratio, 100.0) for ratio in ratios]


@pytest.mark.parametrize(
    ("ratios", "too_slow"),
    [((1.0, 0.9), False), ((1.029, 0.99), False), ((1.031, 0.9), True), ((1.02, 1.02), True)],
)
def test_a_build_is_too_slow_in_the_mean_or_in_one_product(ratios, too_slow):
    report = against._report(_rows(*ratios))
    assert report.results["too_slow"] is too_slow
    assert any(sentence.startswith("Too slow") for sentence in report.sentences) is too_slow
    assert len(report.results["rows"]) == len(ratios)


def test_the_slowest_product_comes_first():
    first, *_, last = against._report(_rows(0.9, 1.02, 1.0)).results["rows"]
    assert (first["this / other"], last["this / other"]) == ("1.020", "0.900")


def test_a_file_that_is_no_extension_is_refused(tmp_path):
    path = tmp_path / "_C.so"
    path.write_text("no library")
    with pytest.raises(UserError, match=r"_C\.so cannot be loaded"):
        against.load(path)


def test_the_other_build_is_used_inside_only():
    before, other = _native.C, object()
    with against._using(other):
        assert _native.C is other
        assert plan.plan_for.cache_info().currsize == 0
    assert _native.C is before


@pytest.mark.skipif(_native.C is None, reason="a CPU-only build")
def test_a_build_is_loaded_beside_itself():
    other = against.load(Path(_native.C.__file__))
    assert other.Launch is not _native.C.Launch


@pytest.mark.skipif(_native.C is None, reason="a CPU-only build")
def test_a_build_with_other_tiles_is_refused(monkeypatch):
    family = SimpleNamespace(name="sm90", tiles=[(1, 2, 3, 4)])
    path = Path(_native.C.__file__)
    monkeypatch.setattr(_native, "C", SimpleNamespace(ARCHITECTURES=[family]))
    with pytest.raises(UserError, match=r"has the tiles .* and this build has .*\(1, 2, 3, 4\)"):
        against.load(path)


@pytest.mark.gpu
def test_a_build_beside_itself(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {"cuda": timing.Budget(1.0, 2)})
    shapes = ["--shapes", "1024x1024x1024", "--rates", "0.5", "--out", str(tmp_path)]
    code = cli.main(["bench", "--against", _native.C.__file__, *shapes])
    text = capsys.readouterr().out
    assert code == int("Too slow" in text)
    assert "in the geometric mean of 3 products" in text
    assert (tmp_path / "against.json").exists()
    assert _native.C.__name__ == "sparsedrop._C"
