"""The model of a GPU's times, against what was measured."""

import json
import math
import re
from pathlib import Path

import pytest

from architecture_stub import AMPERE, HOPPER
from cases import BIG, OUT, TILES, only
from sparsedrop import _native, select
from sparsedrop.select import Choice, choosing, gpu_costs, gpus, kernels

ROOT = Path(__file__).parents[2]
H200 = gpus.GPUS[gpus.TYPICAL].costs


def _us(request_, tile=0):
    return select.expected_us(request_, Choice("kernel", tile))


def test_expected_times_grow_with_the_work():
    whole = _us(BIG._replace(a_keep=1.0))
    assert _us(BIG) < whole < _us(BIG._replace(a_keep=1.0, k=8192))
    assert _us(OUT) < _us(OUT._replace(out_keep=1.0))
    # One tile more than a wave is a wave more, at most as long as the first.
    wave = BIG._replace(m=128 * 66, n=512, a_keep=1.0)
    assert _us(wave) < _us(wave._replace(m=128 * 67)) <= 2 * _us(wave)


def _measured():
    """Each row of the committed times of all tiles: its request, and microseconds by choice."""
    sizes = list(map(str, TILES))
    results = json.loads((ROOT / "bench/results/h200_tiles.json").read_text())
    for row in results["rows"]:
        m, n, k = map(int, row["shape"].split("x"))
        keep, block = 1 - row["p"], (128, 128)
        request_ = {
            "forward": BIG._replace(m=m, n=n, k=k, a_keep=keep),
            "dX": OUT._replace(m=m, n=k, k=n, out_keep=keep),
            "dW": only(b_block=block, b_keep=keep)._replace(m=n, n=k, k=m),
        }[row["product"]]
        names = (re.fullmatch(r"#\d (\S+)( swap)?(?: in (\d))?", name) for name in row["tiles_us"])
        ways = [
            (sizes.index(name[1]), name[2] is not None, int(name[3] or 1)) for name in names if name
        ]
        yield request_, dict(zip(ways, row["tiles_us"].values(), strict=True))


def test_every_tile_of_a_build_has_costs():
    built = () if _native.C is None else kernels.tiles_on(9, 0)
    assert set(H200) == {*HOPPER, gpus.CUBLAS}
    assert set(gpus.GPUS[gpus.TYPICAL].tf32) == {*AMPERE, gpus.CUBLAS}
    for position in range(len(built)):
        assert _us(BIG._replace(tiles=built), position) > 0.0


@pytest.mark.parametrize("extents", [(5632, 1536), (16896, 4608), (4096, 4096), (1024, 200)])
@pytest.mark.parametrize("block", [(128, 128), (128, 64)], ids=str)
def test_a_result_that_is_all_live_takes_no_more_tiles(extents, block):
    m, n = extents
    for tile in range(len(TILES)):
        masked = _us(OUT._replace(m=m, n=n, out_block=block, out_keep=1.0), tile)
        plain = _us(only()._replace(m=m, n=n), tile)
        assert plain <= masked < plain + 1.5 * gpu_costs.MASKED_RESULT_US


def test_rests_are_what_the_tiles_of_a_line_leave():
    assert gpu_costs._rests(2, 2, 7, 0.4) == (0.0, 0.0)
    assert gpu_costs._rests(2, 1, 1, 0.4) == pytest.approx((0.4, 0.4))
    # Of two blocks of two slots each: none live, one with 2 slots, or both with 3 + 1.
    assert gpu_costs._rests(3, 2, 2, 0.5) == pytest.approx((0.75, 0.5 * 2 + 0.25 * 1))
    assert gpu_costs._rests(3, 2, 3, 1.0) == (0.0, 0.0)


def test_the_best_split_is_taken():
    for m, n, k in [(128, 128, 4096), (256, 256, 16384), (768, 768, 16384), (2048, 2048, 16384)]:
        request_ = only(b_block=(128, 128), b_keep=0.5)._replace(m=m, n=n, k=k)
        work, cost = choosing._work(request_, True), H200[TILES[1]]
        tiles = -(-m // 128) * -(-n // 128)
        best = gpu_costs.best_split(work, TILES[1], cost, 132)
        us = [gpu_costs.expected_us(work, TILES[1], cost, 132, split) for split in range(1, 9)]
        assert best == 1 or best * tiles <= 132
        assert us[best - 1] == min(us[: max(1, 132 // tiles)])
    assert gpu_costs.best_split(work, TILES[0], cost, 132) == 1


def test_the_choice_is_near_the_best_of_the_measured():
    """On the GPU whose costs are in the table."""
    regrets, errors = [], []
    for request_, times in _measured():
        choice = select.choose(request_)
        assert choice.path == "kernel"
        us = times[choice.tile, choice.swap, choice.split_k]
        regrets.append(us / min(times.values()))
        errors.append(abs(math.log(select.expected_us(request_, choice) / us)))
    assert len(regrets) == 60
    assert math.prod(regrets) ** (1 / len(regrets)) < 1.015
    assert max(regrets) < 1.2
    assert sum(errors) / len(errors) < 0.2


@pytest.mark.parametrize("name", ["h200_products", "h200_small_layers"])
def test_dense_times_are_near_the_measured_ones(name):
    results = json.loads((ROOT / f"bench/results/{name}.json").read_text())
    errors = []
    for row in results["rows"]:
        m, n, k = map(int, row["shape"].split("x"))
        extents = {"forward": (m, n, k), "dX": (m, k, n), "dW": (n, k, m)}[row["product"]]
        expected = gpu_costs.dense_us(*extents, H200[gpus.CUBLAS], 132)
        errors.append(abs(math.log(expected / row["dense_us"])))
    assert sum(errors) / len(errors) < 0.15
    assert max(errors) < 0.4


def test_idle_sms_shorten_the_longest_lines():
    """dW of a layer from 768 to 3072 features: 96 tiles of 128x192, and 36 SMs without one."""
    request_ = only(b_block=(128, 128), b_keep=0.5)._replace(m=3072, n=768, k=12608)
    tile = TILES.index(select.Tile(128, 192, 64, 64))
    work, cost = choosing._work(request_, True), H200[TILES[tile]]
    assert gpu_costs._narrow_lines(work, TILES[tile], 6, 48, 132) == 4
    assert gpu_costs._narrow_lines(work, TILES[tile], 6, 48, 96 + 7) == 0
    assert gpu_costs._narrow_lines(work._replace(has_a_mask=False), TILES[tile], 6, 48, 132) == 0
    assert (
        gpu_costs._narrow_lines(work, TILES[2], 6, 12, 132) == 0
    )  # slots that are multiplied at once
    for b_block_n, narrow in ((192, 0), (384, 4), (576, 0)):  # two slots are 128 columns
        both = work._replace(b_block_n=b_block_n)
        assert gpu_costs._narrow_lines(both, TILES[tile], 6, 48, 132) == narrow
    # As the kernels have it: tests/cpp/schedule/grid_test.cpp.
    for lines, slots, narrow in [
        *((8, 48, 0), (20, 48, 0), (2, 3, 2), (2, 1, 0)),
        *((15, 24, 0), (14, 24, 5)),
    ]:
        assert gpu_costs._narrow_lines(work, TILES[tile], lines, slots, 132) == narrow
    many, few = (gpu_costs.expected_us(work, TILES[tile], cost, sms) for sms in (132, 96))
    assert 0.75 * few < many < 0.95 * few


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("k_block", [128, 12608], ids="k{}".format)
@pytest.mark.parametrize(("tile", "m", "n"), [(0, 768, 3072), (3, 768, 3072), (3, 1536, 1728)])
def test_narrower_lines_never_take_longer_than_whole_ones(tile, m, n, k_block, keep):
    request_ = only(b_block=(k_block, 128), b_keep=keep)._replace(m=n, n=m, k=12608)
    work, cost = choosing._work(request_, True), H200[TILES[tile]]
    tile_m, tile_n, _, slot_n, _ = TILES[tile]
    lines, slots, tiles = m // tile_m, n // slot_n, m // tile_m * n // tile_n
    narrow = gpu_costs._narrow_lines(work, TILES[tile], lines, slots, 132)
    assert lines <= gpu_costs.NARROW_ONE_IN * narrow < gpu_costs.NARROW_ONE_IN * lines
    assert gpu_costs._narrow_lines(work, TILES[tile], lines, slots, tiles) == 0  # no SM is idle
    us = [gpu_costs.expected_us(work, TILES[tile], cost, sms) for sms in (132, tiles)]
    assert us[0] <= us[1]


def test_large_blocks_of_a_result_are_no_more_work():
    """A block beyond the matrix is the matrix."""
    whole = _us(OUT._replace(n=1024, out_block=(128, 1024)))
    assert _us(OUT._replace(n=1024, out_block=(128, 65536))) == whole
    assert _us(OUT._replace(n=1000, m=1000, out_block=(8192, 8192))) <= 2 * whole


def test_an_unknown_gpu_has_costs_too():
    other = BIG._replace(gpu="NVIDIA H100 PCIe", sms=114)
    assert _us(other) > _us(BIG)
    assert select.choose(other).path == "kernel"
