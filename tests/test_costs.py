"""The model of a GPU's times, against what was measured."""

import json
import math
import re
from pathlib import Path

from cases import BIG, OUT, TILES, only
from sparsedrop import _native, costs, select
from sparsedrop.select import Choice

ROOT = Path(__file__).parent.parent


def _us(request_, tile=0):
    return select.expected_us(request_, Choice("sm90", tile))


def test_expected_times_grow_with_the_work():
    whole = _us(BIG._replace(a_keep=1.0))
    assert _us(BIG) < whole < _us(BIG._replace(a_keep=1.0, k=8192))
    assert _us(OUT) < _us(OUT._replace(out_keep=1.0))
    # One tile more than a wave is a wave more, at most as long as the first.
    wave = BIG._replace(m=128 * 66, n=512, a_keep=1.0)
    assert _us(wave) < _us(wave._replace(m=128 * 67)) <= 2 * _us(wave)


def _measured():
    """Each row of the committed times of all tiles: its request, and microseconds by choice."""
    sizes = ["x".join(map(str, tile[:3])) for tile in TILES]
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
    built = TILES if _native.C is None else tuple(_native.C.TILES)
    assert built == TILES
    assert set(built) < set(costs.costs_of(costs.TYPICAL))


def test_the_choice_is_near_the_best_of_the_measured():
    """On the GPU whose costs are in the table."""
    regrets, errors = [], []
    for request_, times in _measured():
        choice = select.choose(request_)
        assert choice.path == "sm90"
        us = times[choice.tile, choice.swap, choice.parts]
        regrets.append(us / min(times.values()))
        errors.append(abs(math.log(select.expected_us(request_, choice) / us)))
    assert len(regrets) == 60
    assert math.prod(regrets) ** (1 / len(regrets)) < 1.015
    assert max(regrets) < 1.2
    assert sum(errors) / len(errors) < 0.2


def test_dense_times_are_near_the_measured_ones():
    results = json.loads((ROOT / "bench/results/h200_products.json").read_text())
    errors = []
    for row in results["rows"]:
        m, n, k = map(int, row["shape"].split("x"))
        extents = {"forward": (m, n, k), "dX": (m, k, n), "dW": (n, k, m)}[row["product"]]
        expected = costs.dense_us(*extents, costs.TYPICAL, 132)
        errors.append(abs(math.log(expected / row["dense_us"])))
    assert sum(errors) / len(errors) < 0.15
    assert max(errors) < 0.4


def test_large_blocks_of_a_result_are_no_more_work():
    """A block beyond the matrix is the matrix."""
    whole = _us(OUT._replace(n=1024, out_block=(128, 1024)))
    assert _us(OUT._replace(n=1024, out_block=(128, 65536))) == whole
    assert _us(OUT._replace(n=1000, m=1000, out_block=(8192, 8192))) <= 2 * whole


def test_an_unknown_gpu_has_costs_too():
    other = BIG._replace(gpu="NVIDIA H100 PCIe", sms=114)
    assert _us(other) > _us(BIG)
    assert select.choose(other).path == "sm90"
