"""What modules say of a GPU, without one: by the costs of an H200."""

import pytest
import torch

from sparsedrop import _native, select
from sparsedrop.nn import SparseDropLinear, SparseDropMLP, SparseDropStack

BF16, GPU = torch.bfloat16, {"device": "cuda:0", "dtype": torch.bfloat16}


@pytest.fixture(autouse=True)
def _named(stub_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(_native, "require_build_for", lambda device: None)


def _said(module, rows, **where):
    head, *lines = module.explain(rows, **{**GPU, **where}).splitlines()
    before, _, way = head.partition(": ")
    assert before == f"{rows} rows of bfloat16 on NVIDIA H200"
    return way, [line.strip() for line in lines]


def test_a_layer_of_kernels_names_their_tiles():
    way, lines = _said(SparseDropLinear(4096, 4096), 8192)
    assert way.startswith("one call each way, dropped blocks skipped; ")
    assert "measured on NVIDIA H200" in way
    assert [line.partition(": ")[0] for line in lines] == [
        f"weight [4096, 4096], {name}" for name in ("forward", "input gradient", "weight gradient")
    ]
    assert all(line.partition(": ")[2].startswith("sm90 tile ") for line in lines)


def test_a_layer_of_small_blocks_says_why_it_is_dense():
    way, lines = _said(SparseDropLinear(4096, 4096, side="output", block_shape=(32, 32)), 8192)
    assert way == "dense products of what is masked; no tile divides the blocks: out 32x32"
    assert lines == []


def test_a_layer_that_has_to_be_padded_says_what_each_product_is():
    way, lines = _said(SparseDropLinear(4097, 4096), 8192)
    assert way.startswith("product by product; operands have to be padded")
    assert len(lines) == 3


def test_a_block_is_one_call_with_a_gate():
    way, lines = _said(SparseDropMLP(1024, 4096, gated=True, out_p=0.1), 8192)
    assert way.startswith("one call each way")
    assert [line.split()[0] for line in lines] == ["gate"] * 3 + ["up"] * 3 + ["down"] * 3


def test_ten_outputs_are_dense_among_kernels():
    with select.override(path="kernel"):
        way, lines = _said(SparseDropStack([784, 1024, 1024, 1024, 10]), 1024)
    assert way.startswith("one call each way")
    assert [line.partition(": ")[2] for line in lines[-3:]] == ["a dense product"] * 3
    assert all("tile" in line for line in lines[:-3])


def test_odd_outputs_run_densely_among_kernels_if_nothing_is_applied_to_them():
    with select.override(path="kernel"):
        way, _ = _said(SparseDropStack([1024, 1024, 50257]), 8192)
        other, _ = _said(SparseDropStack([1024, 1024, 50257], last_activation="relu"), 8192)
    assert way.startswith("one call each way")
    assert other.startswith("product by product; a gate, or an activation of odd extents")
