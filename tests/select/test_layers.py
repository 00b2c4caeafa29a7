"""How a layer's three products are run together: on any build."""

import pytest
import torch

from cases import TILES
from sparsedrop import select
from sparsedrop.ops.layer.facts import Facts
from sparsedrop.ops.layer.kernels import keys_of
from sparsedrop.ops.plan import request_of
from sparsedrop.select import kernels


def _facts(m, n, k, dtype=torch.bfloat16, keep=50, block=(128, 128), weight=None, side="input"):
    weight = weight or dtype
    return Facts(
        0, torch.Size((m, k)), dtype, torch.Size((n, k)), weight, torch.Size((n,)), weight, dtype,
        weight is not dtype, keep, block, side, False,
    )  # fmt: skip


@pytest.fixture
def decide(monkeypatch):
    """Of a layer's facts, on an H200."""
    gpu = {"capability": (9, 0), "gpu": "NVIDIA H200", "sms": 132, "tiles": TILES}
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: gpu)

    def of(*args, **kwargs):
        return select.decide_layer(tuple(map(request_of, keys_of(_facts(*args, **kwargs)))))

    return of


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(
    ("facts", "path"),
    [
        ((4096, 4096, 4096), "kernel"),
        ((1024, 1024, 1024), "kernel"),
        ((16384, 1024, 4096), "kernel"),
        ((1024, 10, 1024), "dense"),
        ((1024, 1024, 65), "dense"),
        ((4096, 4096, 4096, torch.float32), "dense"),
        ((4096, 4096, 4096, torch.bfloat16, 50, (32, 32)), "dense"),
        ((4096, 4096, 4096, torch.bfloat16, 50, (7, 13)), "dense"),
        # Padded, each product for itself, and the host would take longer than all dense ones.
        ((16384, 65, 1024), "dense"),
        ((8192, 1001, 4096), "dense"),
        # As large as this, the kernels gain more than padding costs.
        ((16384, 4095, 4096), "products"),
    ],
    ids=str,
)
def test_the_way_of_a_layer(facts, path, side, decide):
    assert decide(*facts, side=side).path == path


@pytest.mark.parametrize("extents", [(0, 1024, 1024), (512, 0, 1024)], ids=str)
def test_a_layer_without_work_has_a_way(extents, decide):
    assert decide(*extents).path == "dense"


def test_the_kernels_are_those_that_each_product_would_take_first(decide):
    choice = decide(4096, 4096, 4096)
    requests = map(request_of, keys_of(_facts(4096, 4096, 4096)))
    own = [select.choose(request) for request in requests]
    assert [c._replace(reason="") for c in choice.products] == [c._replace(reason="") for c in own]
    assert "us expected, dense" in choice.reason


def test_a_forced_path_is_the_layers(decide):
    with select.override(path="dense"):
        assert decide(4096, 4096, 4096).path == "dense"
    with select.override(path="kernel"):
        assert decide(128, 128, 128).path == "kernel"
        assert decide(128, 10, 128).path == "products"
        assert decide(4096, 4096, 4096, torch.float32).path == "products"


def test_what_is_forced_of_a_product_is_for_each_to_obey(decide):
    """A pass obeys what is forced when it runs, and the gradients come later."""
    for forced in ({"tile": 0}, {"swap": True}, {"split_k": 2}, {"path": "kernel", "tile": 1}):
        with select.override(**forced):
            assert decide(4096, 4096, 4096).path == "products"


@pytest.mark.parametrize(
    ("changed", "is_legal"),
    [
        ({}, True),
        ({"weight_dtype": torch.float32}, False),
        ({"weight_dtype": torch.float32, "bias_dtype": torch.float32, "casts": True}, True),
        ({"dtype": torch.int64, "x_dtype": torch.int64}, False),
        ({"weight_shape": torch.Size((512, 128))}, False),
        ({"bias_shape": torch.Size((256,))}, False),
        ({"x_shape": torch.Size(())}, False),
        ({"x_shape": torch.Size((0, 256))}, False),
        ({"bias_shape": None, "bias_dtype": None}, True),
        ({"x_dtype": torch.float16, "casts": True}, False),
    ],
    ids=str,
)
def test_only_what_a_layer_takes_is_legal(changed, is_legal):
    facts = _facts(512, 512, 256)
    assert facts._replace(**changed).are_legal() == is_legal
