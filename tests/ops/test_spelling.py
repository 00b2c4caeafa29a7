"""Constants of a graph, as the ops that a graph calls are told of them."""

import pytest
import torch

from sparsedrop.ops.spelling import read, spelled


@pytest.mark.parametrize(
    "constants",
    [
        ("bernoulli", "input", torch.bfloat16),
        ("output", torch.float32, torch.float16, None, (True, False, True)),
        (torch.float64, (), (False,), "gelu_tanh", None),
        (None,),
    ],
    ids=str,
)
def test_what_is_spelled_can_be_read(constants):
    assert read(spelled(*constants)) == constants


def test_a_list_is_read_as_a_tuple():
    assert read(spelled([True, False])) == ((True, False),)


def test_a_compiled_function_spells_constants():
    @torch.compile(fullgraph=True, backend="eager")
    def scaled(x):
        how = spelled("balanced", x.dtype, [x.shape[0] > 2, False], None)
        return x * len(how), how

    x = torch.zeros(3)
    assert scaled(x)[1] == spelled("balanced", torch.float32, [True, False], None)
