"""Linear layers between row patterns in one call each way, on a GPU: against the reference."""

import pytest

from row_linear_cases import CASES, Case, random_case, run_and_compare
from sparsedrop.ops.units.chain import _Chain
from stack_cases import PRECISIONS

pytestmark = pytest.mark.gpu

LARGE = {
    "many outputs": Case((3, 1), None, True, (1024, 256)),
    "many inputs": Case(None, (3, 1), True, (256, 1024)),
    "many of both": Case((3, 2), (5, 0), True, (1024, 2048)),
}


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE])
def test_a_layer_is_the_reference(case, precision):
    out = run_and_compare(case, precision, "cuda")
    assert isinstance(out.grad_fn, _Chain._backward_cls)


@pytest.mark.parametrize("seed", range(100, 140))
def test_random_layers(seed):
    run_and_compare(random_case(seed), PRECISIONS[seed % len(PRECISIONS)], "cuda")
