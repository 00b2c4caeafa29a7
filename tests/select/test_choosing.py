"""The selection: pure, legal, printable, and overridable."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

import sparsedrop
from cases import BIG, OUT, TILES, only, random_mask
from sparsedrop import select
from sparsedrop.select import Choice, Request, choosing, overriding

CPU = Request("cpu", torch.float32, 2048, 2048, 2048, a_block=(128, 128), a_keep=0.5)


LARGE, MEDIUM, SMALL, THREE_SLOTS = (Choice("kernel", tile) for tile in range(4))
TURNED, SMALL_TURNED = LARGE._replace(swap=True), SMALL._replace(swap=True)
# Weight gradients of 12608 rows by layers of 768 -> 3072, and of 16384 by 768 -> 768
WEIGHTS = only(b_block=(128, 128), b_keep=0.5)._replace(m=3072, n=768, k=12608)
FEW = WEIGHTS._replace(m=768, k=16384)
DENSE, LIVE_PARTS = Choice("dense"), Choice("cpu")
CHOICES = [
    ("many tiles: the largest", BIG, LARGE),
    ("b masked: it plays a", only(b_block=(128, 128)), TURNED),
    ("slots pair up in either line", OUT, LARGE),
    ("the longer line has fewer unpaired slots", OUT._replace(m=8192, n=1024), TURNED),
    ("a large result passes through the cache", OUT._replace(m=16384, k=1024), LARGE),
    ("but b should stay in the cache", OUT._replace(m=16384), LARGE),
    ("a and b masked: tile_n divides b's blocks", BIG._replace(b_block=(128, 128)), MEDIUM),
    ("wider blocks of b", BIG._replace(b_block=(128, 256)), LARGE),
    ("a and out", BIG._replace(m=8192, out_block=(128, 256), out_keep=0.5), LARGE),
    (
        "a and out: b stays without a mask, and no list is made",
        BIG._replace(m=16384, k=1024, out_block=(128, 128), out_keep=0.3, a_keep=0.3),
        LARGE,
    ),
    ("few tiles: a smaller one", BIG._replace(m=2048, n=2048), MEDIUM),
    ("very few tiles: the smallest", BIG._replace(m=1024, n=1024, k=1024), SMALL),
    ("dropped outputs count for nothing", OUT._replace(m=2048, n=2048, out_keep=0.3), MEDIUM),
    ("the same with all of them live", OUT._replace(m=2048, n=2048, out_keep=1.0), LARGE),
    ("a wave of tiles of three slots", WEIGHTS, THREE_SLOTS._replace(swap=True)),
    ("few tiles, a long k: split", FEW, MEDIUM._replace(swap=True, split_k=3)),
    (
        "but not where the result is activated",
        FEW._replace(activates=True),
        MEDIUM._replace(swap=True),
    ),
    ("nor where it has a mask", FEW._replace(out_block=(128, 128)), MEDIUM._replace(swap=True)),
    ("nor where k is short", FEW._replace(k=1024), SMALL_TURNED),
    ("blocks of 64: the tile of 64 rows", BIG._replace(a_block=(64, 64)), SMALL),
    ("columns of 64: transposed", only(b_block=(64, 64), b_keep=0.5), SMALL_TURNED),
    ("a result in blocks of 64", OUT._replace(out_block=(64, 64)), SMALL),
    ("two operands in blocks of 64", BIG._replace(a_block=(64, 64), b_block=(64, 64)), DENSE),
    ("blocks that no tile divides", BIG._replace(a_block=(128, 32)), DENSE),
    ("float32", BIG._replace(dtype=torch.float32), DENSE),
    ("no kernels", BIG._replace(capability=(8, 0), tiles=()), DENSE),
    ("no mask", only(), DENSE),
    ("nothing to multiply", BIG._replace(k=0), DENSE),
    ("misaligned and large", BIG._replace(k=4097, aligned=False), LARGE),
    ("misaligned and small", BIG._replace(m=128, n=128, k=65, aligned=False), DENSE),
    ("extents beyond 32 bits", BIG._replace(m=2**31), DENSE),
    ("the first extent too large for whole tiles", BIG._replace(m=2**31 - 264), DENSE),
    ("the last extent that is not", BIG._replace(m=2**31 - 265), LARGE),
    ("blocks beyond 32 bits", BIG._replace(a_block=(2**31, 128)), DENSE),
    ("CPU: large blocks", CPU, LIVE_PARTS),
    ("CPU: blocks too small", CPU._replace(a_block=(2, 2)), DENSE),
    ("CPU: hardly anything dropped", CPU._replace(a_keep=0.999, a_block=(1, 64)), DENSE),
    ("CPU: no mask", CPU._replace(a_block=None), DENSE),
    ("CPU: no BLAS for half", CPU._replace(dtype=torch.float16, a_block=(2, 2)), LIVE_PARTS),
]


@pytest.mark.parametrize(("why", "request_", "expected"), CHOICES, ids=[c[0] for c in CHOICES])
def test_choices(why, request_, expected):
    choice = select.choose(request_)
    assert choice[:4] == expected[:4], choice.reason
    assert choice.reason
    assert "reason=" in str(choice)


def test_every_choice_is_legal():
    blocks = [None, (64, 64), (128, 64), (128, 128), (256, 128), (128, 256), (192, 64), (96, 96)]
    for a, b, out in itertools.product(blocks, repeat=3):
        request = BIG._replace(a_block=a, b_block=b, out_block=out)
        choice = select.choose(request)
        if choice.path == "kernel":
            assert select.refusal(request, choice) is None
        elif (a, b, out) != (None, None, None):
            for tile, swap in itertools.product(range(len(TILES)), (False, True)):
                assert select.refusal(request, Choice("kernel", tile, swap)) is not None


def test_swapping_is_transposing():
    """A tile is legal for the swapped problem where it is for the transposed one."""
    blocks = [None, (64, 64), (128, 64), (64, 256), (256, 128)]
    for a, b, out in itertools.product(blocks, repeat=3):
        request = BIG._replace(a_block=a, b_block=b, out_block=out)
        turned = request._replace(
            a_block=b and b[::-1], b_block=a and a[::-1], out_block=out and out[::-1]
        )
        for tile in range(len(TILES)):
            swapped = select.refusal(request, Choice("kernel", tile, True))
            straight = select.refusal(turned, Choice("kernel", tile, False))
            assert (swapped is None) == (straight is None)


def test_override_forces_what_it_names():
    with select.override(tile=1):
        assert select.decide(BIG)[:3] == ("kernel", 1, False)
        assert select.decide(only())[:3] == ("kernel", 1, False)
        with select.override(swap=True, tile=2):
            assert select.decide(BIG)[:3] == ("kernel", 2, True)
        assert select.decide(BIG).tile == 1
    with select.override(path="dense"):
        assert select.decide(BIG).path == "dense"
    with select.override(path="kernel"):
        assert select.decide(BIG._replace(m=128, n=128, k=65, aligned=False)).path == "kernel"
    with select.override():
        assert select.decide(BIG) == select.choose(BIG)
    assert select.decide(BIG) == select.choose(BIG)


@pytest.mark.parametrize(
    ("forced", "request_", "sentence"),
    [
        ({"tile": 0}, BIG._replace(b_block=(128, 128)), "no multiple of 64x256"),
        ({"tile": 7}, BIG, "there are tiles 0 to 3"),
        ({"split_k": 9}, BIG, "a tile is split into 1 to 8 along k, not 9"),
        ({"split_k": 2}, OUT, "where the result has no mask and no activation, and up to 128"),
        (
            {"tile": 1, "split_k": 8},
            BIG._replace(m=16384),
            "65536 slots of all splits are more than 8192",
        ),
        ({"tile": 0, "split_k": 2}, BIG, "up to 128 columns wide"),
        ({"split_k": 2}, BIG._replace(activates=True), "no activation"),
        (
            {"tile": 0, "swap": True},
            BIG,
            "transposed: blocks of b of the transposed problem are 128x128",
        ),
        ({"path": "kernel"}, BIG._replace(dtype=torch.float32), "no kernels for torch.float32"),
        ({"path": "kernel"}, BIG._replace(tiles=(), capability=(8, 0)), "compute capability 8.0"),
        ({"path": "cpu"}, BIG, "the operands are on a GPU"),
        ({"path": "kernel"}, BIG._replace(device="cpu"), "on the cpu, which has no tiles"),
        ({"swap": True}, BIG._replace(device="cpu"), "on the cpu, which has no tiles"),
        ({"split_k": 2}, BIG._replace(device="cpu"), "on the cpu, which has no tiles"),
    ],
    ids=str,
)
def test_an_override_that_cannot_run_raises(forced, request_, sentence):
    with select.override(**forced), pytest.raises(ValueError, match=sentence):
        select.decide(request_)


def test_an_override_to_an_unknown_path_raises():
    sentence = "path is one of 'kernel', 'cpu', 'dense', not 'fast'"
    with pytest.raises(ValueError, match=sentence), select.override(path="fast"):
        pass


@pytest.mark.parametrize("path", ["cpu", "dense"])
def test_override_on_the_cpu(path):
    a, b = torch.randn(64, 32), torch.randn(32, 48)
    mask = random_mask((64, 32), (16, 16), torch.device("cpu"))
    with select.override(path=path):
        out = sparsedrop.matmul(a, b, a_mask=mask)
    torch.testing.assert_close(out, sparsedrop.reference.matmul(a, b, a_mask=mask))


def test_the_environment_forces_a_way(monkeypatch):
    assert select.override_from("") is None
    forced = select.override_from("path=kernel, tile=1,swap=0")
    assert forced == select.Override("kernel", 1, False)
    monkeypatch.setattr(overriding, "_forced", forced)
    assert select.decide(BIG)[:3] == ("kernel", 1, False)
    for text in ("path=gpu", "tile=-1", "swap=yes", "tile", "split_k=two", "stages=3"):
        with pytest.raises(ValueError, match=f"SPARSEDROP_SELECT .* not '{text}'"):
            select.override_from(text)


def test_the_environment_is_read():
    code = "from sparsedrop.select import overriding; print(overriding._forced)"
    environment = {**os.environ, "SPARSEDROP_SELECT": "path=dense"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(select.Override(path="dense"))


def test_an_override_leaves_the_rest_to_the_model():
    small = BIG._replace(m=1024, n=1024, k=1024)
    with select.override(path="kernel"):
        assert select.decide(small)[:3] == select.choose(small)[:3]


def test_dense_where_it_is_faster(monkeypatch):
    monkeypatch.setattr(
        choosing, "dense_us", lambda request: select.expected_us(request, LARGE) - 1.0
    )
    choice = select.choose.__wrapped__(BIG)
    assert choice.path == "dense"
    assert "expected" in choice.reason
