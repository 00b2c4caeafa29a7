"""`sparsedrop bench --tune`: the constants of a GPU."""

import json
from itertools import pairwise

import pytest

from sparsedrop.select import Tile
from sparsedrop.tools import cli
from sparsedrop.tools.bench import timing, tune


def samples(cost: tune.Cost, noise: float = 0.0) -> list[tune.Sample]:
    found = []
    for i, (waves, k_tiles) in enumerate((w, k) for w in tune.WAVES for k in tune.K_TILES):
        us = cost.us(waves, k_tiles) * (1 + noise * (-1) ** i)
        found.append(tune.Sample(waves, k_tiles, us))
    return found


def test_a_fit_recovers_the_constants():
    cost = tune.Cost(launch_us=4.0, tile_us=1.5, k_tile_us=0.75)
    assert tune.fit(samples(cost)) == pytest.approx(cost)
    assert tune.worst_residual(cost, samples(cost)) == pytest.approx(0.0)


def test_a_fit_bears_noise():
    cost = tune.Cost(launch_us=4.0, tile_us=1.5, k_tile_us=0.75)
    noisy = samples(cost, noise=0.02)
    assert tune.fit(noisy).k_tile_us == pytest.approx(cost.k_tile_us, rel=0.05)
    assert tune.worst_residual(tune.fit(noisy), noisy) < 0.05


@pytest.mark.parametrize("used", [0, 2, 4])
def test_a_fit_needs_samples_that_differ(used):
    with pytest.raises(ValueError, match="tell launch"):
        tune.fit(samples(tune.Cost(4.0, 1.5, 0.75))[:used])  # of one wave only


def test_the_rate_is_that_of_all_sms():
    # 2 * 128 * 256 * 64 FLOPs in 0.8 us on each of 132 SMs
    assert tune.Cost(4.0, 1.5, 0.8).tflops((128, 256, 64, 128), 132) == pytest.approx(692.06, 1e-4)


def test_well_filled_problems_have_whole_tiles_for_every_sm():
    tile = Tile(128, 256, 64, 128)
    sizes = [tune.well_filled(tile, waves, 8, 132) for waves in tune.WAVES]
    for waves, (m, n, k) in zip(tune.WAVES, sizes, strict=True):
        assert (m // 128) * (n // 256) == 132 * waves
        assert (m % 128, n % 256, k) == (0, 0, 512)
        assert 1 / 3 < m / n < 3
    assert all(low.m * low.n < high.m * high.n for low, high in pairwise(sizes))


def test_the_entry_names_the_gpu_and_each_tile():
    tile = Tile(128, 256, 64, 128)
    costs = {name: tune.Cost(4.0, 1.5, 0.8) for name in ("big", "cublas")}
    entry = tune.table_entry("Some GPU", 132, {"big": tile, "cublas": tile}, costs)
    assert entry.startswith('"Some GPU": Gpu(')
    as_given = {name: lambda **values: values for name in ("Gpu", "Cost")}
    names = {**as_given, "Tile": Tile, "CUBLAS": "cublas"}
    parsed = eval("{" + entry + "}", names)["Some GPU"]
    assert parsed["sms"] == 132
    assert parsed["costs"][tile] == {"launch_us": 4.0, "tile_us": 1.5, "k_tile_us": 0.8}
    assert list(parsed["costs"]) == [tile, "cublas"]


@pytest.mark.gpu
def test_tune_writes_the_constants(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {"cuda": timing.Budget(1.0, 1)})
    assert cli.main(["bench", "--tune", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "tune.json").read_text())
    assert saved["entry"] in capsys.readouterr().out
    assert "cublas" in saved["costs"]
    assert len(saved["costs"]) > 1
