"""What can run, decided in two languages: the kernels' own refusal agrees with that of `select`."""

import itertools
import random

import pytest
import torch

from sparsedrop import _native, select
from sparsedrop.select import kernels

EXTENTS = (8, 64, 120, 192, 1024, 4096, 16384)
BLOCKS = (None, *itertools.product((64, 128, 192, 256, 384, 576), repeat=2), (32, 128), (128, 48))


@pytest.mark.skipif(_native.C is None, reason="a CPU-only build")
def test_the_kernels_refuse_what_select_refuses():
    draw, tiles = random.Random(0), kernels.tiles_on(9, 0)
    refused = 0
    for _ in range(20_000):
        m, n, k = (draw.choice(EXTENTS) for _ in range(3))
        blocks = [draw.choice(BLOCKS) if draw.random() < 0.5 else None for _ in range(3)]
        activates = draw.random() < 0.2
        dtype = draw.choice((torch.bfloat16, torch.float16, torch.bfloat16, torch.float32))
        request = select.Request(
            "cuda", dtype, m, n, k, *blocks, activates=activates, capability=(9, 0), tiles=tiles,
        )  # fmt: skip
        choice = select.Choice(
            "kernel", draw.randrange(len(tiles)), draw.random() < 0.5, draw.choice((1, 1, 2, 8, 9))
        )
        launch = _native.C.Launch(
            dtype=_native.dtype_code(dtype),
            m=m, n=n, k=k, a_ld=k, a_k_major=True, b_ld=n, b_k_major=False, d_ld=n,
            a_block=blocks[0], b_block=blocks[1], d_block=blocks[2], activation=int(activates),
            architecture=tiles[choice.tile].architecture,
            tile=kernels.id_within(tiles, choice.tile), swap=choice.swap, split_k=choice.split_k,
            device=0,
        )  # fmt: skip
        ours = select.refusal(request, choice)
        assert (ours is None) == (launch.refusal is None), f"{ours} | {launch.refusal}, {request}"
        refused += ours is not None
    assert 2_000 < refused < 19_000
