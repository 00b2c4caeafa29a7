"""What modules say of how they would run."""

import numpy as np
import pytest
import torch

from sparsedrop.nn import SparseDropLinear, SparseDropMLP, SparseDropStack


def test_products_on_a_cpu_are_listed_with_their_figures():
    said = SparseDropLinear(4096, 1024).explain(8192)
    head, *lines = said.splitlines()
    assert head == "8192 rows of float32 on a CPU: product by product"
    # Half of 2 * 8192 * 4096 * 1024 operations is left.
    assert lines[0] == (
        "  weight [1024, 4096], forward: live parts, 560 calls for 3.4e+10 of 6.9e+10 "
        "floating-point operations"
    )
    assert [line.split(", ")[2].partition(":")[0] for line in lines] == [
        "forward", "input gradient", "weight gradient"
    ]  # fmt: skip


def test_weights_have_their_names():
    said = SparseDropMLP(64, 256, gated=True).explain(512)
    assert [line.split()[0] for line in said.splitlines()[1::3]] == ["gate", "up", "down"]
    said = SparseDropStack([64, 256, 10]).explain(512)
    assert [line.split()[0] for line in said.splitlines()[1::3]] == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    "module", [SparseDropLinear(8, 8, p=0), SparseDropMLP(8, 8, p=0), SparseDropStack([8, 8], 0)]
)
def test_without_a_rate_it_is_the_dense_module(module):
    assert module.explain(64).endswith("nothing is dropped, so that it is the dense module")


def test_the_dtype_is_autocasts_where_that_is_on():
    layer = SparseDropLinear(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.explain(64).startswith("64 rows of bfloat16 on a CPU")
        assert layer.explain(64, dtype=torch.float64).startswith("64 rows of float64")
        assert layer.double().explain(64).startswith("64 rows of float64")


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (0, ValueError, "rows must be 1 to 2147483383, not 0"),
        (2**70, ValueError, "rows must be 1 to 2147483383, not 1180591620717411303424"),
        (2.5, TypeError, "rows must be a whole number, not 2.5"),
        (True, TypeError, "rows must be a whole number, not True"),
    ],
)
def test_rows_are_checked(rows, error, words):
    with pytest.raises(error, match=words):
        SparseDropLinear(8, 8).explain(rows)


def test_dtypes_are_checked():
    for dtype in ("bfloat16", torch.int8):
        with pytest.raises(TypeError, match=r"dtype must be one of torch.bfloat16, .* not "):
            SparseDropLinear(8, 8).explain(64, dtype=dtype)


def test_replaced_layers_run_one_by_one():
    said = "its modules are called one by one, since one of them was replaced or has hooks"
    stack, block = SparseDropStack([8, 8, 8]), SparseDropMLP(8, 8)
    stack.layers[1] = torch.nn.Identity()
    block.down.register_forward_hook(lambda *_: None)
    assert stack.explain(64) == block.explain(64) == said
    del stack.layers[:]
    with pytest.raises(ValueError, match="a stack has a layer at least"):
        stack.explain(64)


def test_a_layer_without_features_has_nothing_to_drop():
    assert SparseDropLinear(0, 64).explain(64).endswith("it is the dense module")


def test_rows_of_another_library_are_numbers():
    assert SparseDropLinear(8, 8).explain(np.int64(64)).startswith("64 rows")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(RuntimeError, match="there is no GPU here, so nothing can be said of cuda"):
        SparseDropLinear(8, 8).explain(64, device="cuda")


@pytest.mark.gpu
def test_a_gpu_is_named_and_so_are_its_tiles():
    layer = SparseDropLinear(4096, 4096)
    said = layer.explain(8192, device="cuda", dtype=torch.bfloat16)
    head, *lines = said.splitlines()
    assert torch.cuda.get_device_name() in head
    if "one call each way" in head:
        assert all("tile" in line for line in lines)
        assert len(lines) == 3
    else:
        assert torch.cuda.get_device_capability() != (9, 0)
