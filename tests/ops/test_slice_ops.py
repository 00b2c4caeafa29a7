"""The registered ops of slices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsedrop import Slice
from sparsedrop.ops.slices.products import rest_of

SCHEMA_AND_FAKE = ("test_schema", "test_faketensor")
HOW = ("gelu", 0.5, 4, "all", "probabilistic")


@pytest.mark.parametrize("gated", [True, False])
def test_ops_of_a_block_are_what_a_compiler_takes_them_for(gated):
    x, grad = torch.randn(2, 3, 8), torch.randn(2, 3, 6)
    first = [torch.randn(24, 8), torch.randn(24)] * (2 if gated else 1)
    parameters = [*first, torch.randn(6, 24), None]
    ops = torch.ops.sparsedrop
    for draws in (ops.slice_start, ops.slice_numbers):
        where = {"device": torch.device("cpu")}
        torch.library.opcheck(draws, (24, *HOW[1:4]), where, test_utils=SCHEMA_AND_FAKE)
    how = (24, *HOW[1:4], torch.float64, torch.device("cpu"))
    torch.library.opcheck(ops.slice_factors, how, test_utils=SCHEMA_AND_FAKE)
    torch.library.opcheck(ops.slice_out_mlp, (x, parameters, *HOW), test_utils=SCHEMA_AND_FAKE)
    _, start, *kept = ops.slice_out_mlp(x, parameters, *HOW)
    needs = [True] * (len(parameters) + 1)
    args = grad, x, parameters, start, kept, *HOW, needs
    torch.library.opcheck(ops.slice_out_mlp_backward, args, test_utils=SCHEMA_AND_FAKE)


@pytest.mark.parametrize("on_rows", [True, False])
def test_ops_of_a_projection(on_rows):
    weight = torch.randn(24, 5) if on_rows else torch.randn(5, 24)
    x, grad = (torch.randn(2, n) for n in ((5, 12) if on_rows else (12, 5)))
    bias, start = torch.randn(weight.shape[0]), torch.tensor(4)
    how = start, on_rows, 6, 3, 4, 2.0
    ops = torch.ops.sparsedrop
    torch.library.opcheck(ops.slice_out_linear, (x, weight, bias, *how), test_utils=SCHEMA_AND_FAKE)
    args = grad, x, weight, bias, *how, [True, True, True]
    torch.library.opcheck(ops.slice_out_linear_backward, args, test_utils=SCHEMA_AND_FAKE)


def _flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_flops_of_the_ops_are_those_of_the_slice():
    ops = torch.ops.sparsedrop
    x, grad = torch.randn(2, 3, 8), torch.randn(2, 3, 6)
    first = [torch.randn(24, 8), torch.randn(24)] * 2
    parameters = [*first, torch.randn(6, 24), None]
    rows, up, down = 6, 8 * 12, 6 * 12
    assert _flops(lambda: ops.slice_out_mlp(x, parameters, *HOW)) == 2 * rows * (2 * up + down)
    _, start, *kept = ops.slice_out_mlp(x, parameters, *HOW)
    for needs, products in (
        ([True] * 7, 4 * up + 2 * down),
        ([False] + [True] * 6, 2 * up + 2 * down),
        ([False, True] + [False] * 5, up + down),
        ([False] * 5 + [True, False], down),
    ):
        args = grad, x, parameters, start, kept, *HOW, needs
        found = _flops(lambda args=args: ops.slice_out_mlp_backward(*args))
        assert found == 2 * rows * products
    how = torch.tensor(4), True, 6, 3, 4, 2.0
    out = ops.slice_out_linear(x, *first[:2], *how)
    assert _flops(lambda: ops.slice_out_linear(x, *first[:2], *how)) == 2 * rows * up
    args = out, x, *first[:2], *how, [True, True, True]
    assert _flops(lambda: ops.slice_out_linear_backward(*args)) == 4 * rows * up


@pytest.mark.parametrize(
    ("pieces", "rest"),
    [
        (((0, 4),), ((4, 8),)),
        (((4, 8),), ((0, 4),)),
        (((2, 6),), ((0, 2), (6, 8))),
        (((6, 8), (0, 2)), ((2, 6),)),
        (((0, 8),), ()),
    ],
    ids=str,
)
def test_the_rest_of_a_slice(pieces, rest):
    assert rest_of(pieces, 8) == rest


def test_slices_of_features_and_from_a_start():
    own = Slice.at(4, 3, 6)
    assert own == Slice(((4, 6), (0, 1)), 6)
    assert own.times(4) == Slice(((16, 24), (0, 4)), 24)
    assert (own.times(4).width, own.times(4).scale) == (12, 2.0)
