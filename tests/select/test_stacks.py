"""How the products of a stack are run together: on any build."""

import pytest
import torch

from cases import TILES
from sparsedrop import select
from sparsedrop.ops.plan import request_of
from sparsedrop.ops.stack.facts import Facts, Kind
from sparsedrop.ops.stack.kernels import keys_of
from sparsedrop.select import kernels
from sparsedrop.select.choosing import copy_us, product_us

BF16 = torch.bfloat16


@pytest.fixture
def decide(monkeypatch):
    """Of a stack of these sizes and live shares, on an H200; and its requests."""
    gpu = {"capability": (9, 0), "gpu": "NVIDIA H200", "sms": 132, "tiles": TILES}
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: gpu)

    def of(rows, sizes, keeps, dtype=BF16, block=(128, 128), gate=None):
        kinds = [Kind(n, "silu", True, gate if i == 0 else None) for i, n in enumerate(sizes[1:])]
        shape = torch.Size((rows, sizes[0]))
        facts = Facts(0, shape, dtype, dtype, dtype, tuple(kinds), keeps, block)
        requests = tuple(tuple(map(request_of, keys)) for keys in keys_of(facts).values())
        dropped = tuple(n for n, keep in zip(sizes, keeps, strict=True) if keep is not None)
        return select.decide_stack(requests, dropped), requests

    return of


@pytest.mark.parametrize(
    ("stack", "path"),
    [
        ((8192, (1024, 4096, 1024), (None, 50, None)), "kernel"),
        ((8192, (4096, 4096, 4096), (50, 50, None)), "kernel"),
        ((8192, (1024, 4096, 1024), (None, 50, None), torch.float32), "dense"),
        ((8192, (1024, 4096, 1024), (None, 50, None), BF16, (32, 32)), "dense"),
        # One of its layers has nothing to skip: each goes its own way.
        ((8192, (4096, 4096, 4096), (50, None, None)), "products"),
    ],
    ids=str,
)
def test_the_way_of_a_stack(stack, path, decide):
    assert decide(*stack)[0].path == path


@pytest.mark.parametrize("gate", [None, True])
@pytest.mark.parametrize("keeps", [(None, 50, None), (50, 50, 90)], ids=str)
def test_dense_products_mask_what_is_dropped_once_each_way(gate, keeps, decide):
    """Also where a gate's product and its layer's have the same result dropped."""
    sizes = 1024, 4096, 2048
    choice, requests = decide(8192, sizes, keeps, gate=gate)
    assert len(requests) == (2 if gate is None else 3)
    dense = sum(product_us(request) for products in requests for request in products)
    dense += sum(
        2 * copy_us(8192 * n, requests[0][0])
        for n, keep in zip(sizes, keeps, strict=True)
        if keep is not None
    )
    assert f"us expected, dense {dense:.0f}, by costs measured on NVIDIA H200" in choice.reason


def test_a_forced_path_is_the_stacks(decide):
    small = 128, (128, 128, 128), (None, 50, None)
    with select.override(path="kernel"):
        assert decide(*small)[0].path == "kernel"
        assert decide(*small, dtype=torch.float32)[0].path == "products"
    with select.override(path="dense"):
        assert decide(8192, (1024, 4096, 1024), (None, 50, None))[0].path == "dense"
    with select.override(tile=0):
        assert decide(*small)[0].path == "products"
