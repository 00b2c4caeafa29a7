"""`sparsedrop bench --tune`: the constants of a GPU."""

import argparse
import json
from itertools import pairwise

import pytest
import torch

import extension_stub
from architecture_stub import AMPERE, HOPPER
from sparsedrop import _native, select
from sparsedrop.select import Tile, saved
from sparsedrop.select.gpus import CUBLAS, HALF, TF32
from sparsedrop.tools import bench, cli
from sparsedrop.tools.bench import measure, timing, tune
from sparsedrop.tools.bench.measure import WrongProductError
from sparsedrop.tools.bench.settings import resolve


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


def test_no_constant_is_below_0():
    """What noise makes of a launch that costs nothing."""
    cost = tune.Cost(launch_us=0.0, tile_us=3.0, k_tile_us=0.75)
    noisy = [s._replace(us=s.us * (0.98 if s.waves == 1 else 1.02)) for s in samples(cost)]
    found = tune.fit(noisy)
    assert found.launch_us == 0.0
    assert found == pytest.approx(cost, rel=0.05)


def test_two_that_share_an_sm_are_one_wave():
    cost = tune.Cost(launch_us=4.0, tile_us=1.5, k_tile_us=0.75)
    found = [s._replace(us=cost.us(max(s.waves // 2, 1), s.k_tiles)) for s in samples(cost)]
    assert tune.fit(found, 2) == pytest.approx(cost)
    assert tune.worst_residual(cost, found, 2) == pytest.approx(0.0)
    assert tune.worst_residual(tune.fit(found), found) > 0.1


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


def evaluated(entry):
    """What the Python of an entry makes, with dictionaries for what it calls."""
    as_given = {name: lambda **values: values for name in ("Gpu", "Cost")}
    return eval("{" + entry + "}", {**as_given, "Tile": Tile, "CUBLAS": CUBLAS})


def test_the_entry_names_the_gpu_and_each_tile():
    tile, cost = Tile(128, 256, 64, 128), tune.Cost(4.0, 1.5, 0.8)
    entry = tune.table_entry("Some GPU", 132, (9, 0), {HALF: {tile: cost, CUBLAS: cost}})
    assert entry.startswith('"Some GPU": Gpu(')
    parsed = evaluated(entry)["Some GPU"]
    assert parsed["sms"] == 132
    assert parsed["costs"][tile] == {"launch_us": 4.0, "tile_us": 1.5, "k_tile_us": 0.8}
    assert list(parsed["costs"]) == [tile, CUBLAS]


def timed(tiles, architectures=(), dtypes=(torch.bfloat16,)):
    return tune.to_time(tiles, architectures, dtypes)


@pytest.fixture
def both(monkeypatch):
    """A build with two architectures."""
    monkeypatch.setattr(_native, "C", extension_stub.C)


def test_every_architecture_of_the_gpu_is_measured(both):
    found = timed(HOPPER)
    assert [each.key for each in found] == [*HOPPER, CUBLAS]
    assert [each.position for each in found] == [*range(7), None]
    assert {each.precision for each in found} == {HALF}
    assert found[3].name == "sm90 #3 128x192x64"
    assert found[4].name == "sm80 #0 128x256x64"


def test_one_architecture_is_measured(both):
    found = timed(HOPPER, ["sm80"])
    assert [each.key for each in found] == [*AMPERE, CUBLAS]
    assert [each.position for each in found] == [4, 5, 6, None]


def test_each_precision_is_measured_once(both):
    found = timed(HOPPER, (), (torch.float16, torch.float32, torch.bfloat16))
    keys = [(each.precision, each.key) for each in found]
    assert keys == [
        *((HALF, key) for key in (*HOPPER, CUBLAS)),
        *((TF32, key) for key in (*AMPERE, CUBLAS)),
    ]
    assert {each.dtype for each in found} == {torch.float16, torch.float32}


@pytest.mark.parametrize(
    ("tiles", "architectures", "dtypes", "sentence"),
    [
        (AMPERE, ["sm90"], (torch.bfloat16,), "kernels that run on this GPU are those of sm80"),
        ((), ["sm80"], (torch.bfloat16,), "are those of no architecture"),
        (HOPPER, [], (torch.float64,), "not float64"),
    ],
    ids=str,
)
def test_what_has_no_kernels_cannot_be_tuned(both, tiles, architectures, dtypes, sentence):
    with pytest.raises(cli.UserError, match=sentence):
        tune.to_time(tiles, architectures, dtypes)


@pytest.fixture
def a_gpu(both, monkeypatch, tmp_path):
    """A Hopper GPU on which every product takes its time; the folder of the user's cache."""
    facts = {"capability": (9, 0), "gpu": "Some GPU", "sms": 100, "tiles": HOPPER}
    monkeypatch.setattr(select, "gpu_facts", lambda index: facts)
    monkeypatch.setattr(tune, "device_name", lambda device: "Some GPU")
    cost = tune.Cost(launch_us=4.0, tile_us=1.5, k_tile_us=0.75)
    monkeypatch.setattr(tune, "_samples", lambda timed, sms, device: samples(cost))
    monkeypatch.setenv(saved.VARIABLE, str(tmp_path))
    saved.saved_costs.cache_clear()
    return tmp_path


def settings(*argv):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return resolve(parser.parse_args(["--tune", *argv]), torch.device("cuda", 0))


def test_what_was_measured_is_saved_and_read(a_gpu):
    report = tune.run(settings("--save", "--dtype", "bfloat16", "float32"))
    path = a_gpu / "costs-some-gpu.json"
    assert report.sentences[-1].startswith(f"Kept in {path}")
    found = saved.saved_costs("Some GPU", 100, HOPPER).by_precision()
    assert list(found[HALF]) == [*HOPPER, CUBLAS]
    assert list(found[TF32]) == [*AMPERE, CUBLAS]
    assert found[TF32][AMPERE[0]] == pytest.approx((4.0, 1.5, 0.75))
    assert evaluated(report.results["entry"])["Some GPU"].keys() == {"sms", "costs", "tf32"}
    assert len(report.results["costs"]) == 12


def test_nothing_is_saved_unasked(a_gpu):
    tune.run(settings("--architecture", "sm80"))
    assert not list(a_gpu.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(a_gpu, monkeypatch):
    monkeypatch.setenv(saved.VARIABLE, str(a_gpu / "file"))
    (a_gpu / "file").write_text("no folder")
    with pytest.raises(cli.UserError, match="--save: "):
        tune.run(settings("--save"))


@pytest.mark.parametrize("option", [["--save"], ["--architecture", "sm80"]], ids=str)
def test_what_is_about_the_constants_needs_tune(capsys, option):
    assert cli.main(["bench", "--device", "cpu", *option]) == 2
    sentence = capsys.readouterr().err
    assert sentence.endswith(f"{option[0]} is about the constants of the kernels: add --tune\n")


@pytest.mark.parametrize(
    ("dtype", "error", "is_wrong"),
    [
        (torch.bfloat16, 0.004, False),
        (torch.bfloat16, 0.006, True),
        (torch.float32, 0.0015, False),
        (torch.float32, 0.0025, True),
        (torch.float32, float("nan"), True),
    ],
)
def test_a_wrong_product_is_not_measured(dtype, error, is_wrong):
    dense = torch.ones(8, 8, dtype=torch.float64)
    of = tune.Timed(AMPERE[0], 4, dtype, "sm80 #0")
    with measure.tf32_allowed():
        if not is_wrong:
            tune._check(of, dense * (1 + error), dense)
            return
        with pytest.raises(WrongProductError, match=r"sm80 #0 in \w+: differs from the dense"):
            tune._check(of, dense * (1 + error), dense)


def test_float32_may_be_tf32_where_that_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--tf32"]) == 2
    assert "--tf32 is about products of a GPU" in capsys.readouterr().err
    assert measure.tolerance(torch.float32) == measure.TOLERANCES[torch.float32]
    with measure.tf32_allowed():
        assert measure.tolerance(torch.float32) == measure.TF32_TOLERANCE
        assert measure.tolerance(torch.bfloat16) == measure.TOLERANCES[torch.bfloat16]


def test_tf32_is_allowed_inside_only():
    before = torch.backends.cuda.matmul.fp32_precision
    with measure.tf32_allowed():
        assert _native.allows_tf32()
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.gpu
def test_tune_writes_the_constants(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {"cuda": timing.Budget(1.0, 1)})
    monkeypatch.setenv(saved.VARIABLE, str(tmp_path / "cache"))
    saved.saved_costs.cache_clear()
    command = ["bench", "--tune", "--save", "--dtype", "bfloat16", "float32"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "tune.json").read_text())
    assert result["entry"] in capsys.readouterr().out
    facts = select.gpu_facts(0)
    tiles = facts["tiles"]
    names = [cost["name"] for cost in result["costs"] if cost["precision"] == HALF]
    assert len(names) == len(tiles) + 1
    assert names[-1] == CUBLAS
    found = saved.saved_costs(facts["gpu"], facts["sms"], tiles).by_precision()
    assert found.keys() == {HALF, TF32}
    assert list(found[HALF]) == [*tiles, CUBLAS]
    saved.saved_costs.cache_clear()
