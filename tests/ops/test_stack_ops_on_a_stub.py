"""The ops that compiled graphs call for a stack, without a GPU: against its node."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cases import normal
from gpu_stub import autocast_on_stub
from sparsedrop import _native, functional, select
from sparsedrop.ops import copies
from sparsedrop.ops.spelling import spelled
from sparsedrop.ops.stack import Dropped, op
from sparsedrop.ops.stack.facts import Facts, facts_of, kind_of, parameters_of
from stack_cases import BLOCK, CASES, PRECISIONS, layers_of

pytestmark = pytest.mark.usefixtures("stub_gpu")


def _seed():
    _native.default_generator(torch.device("cpu")).set_offset(0)


class _Call:
    """A stack as the ops are told of it."""

    def __init__(self, case, precision):
        x_dtype, dtype, autocast = precision
        self.dtype = autocast or x_dtype
        self.x = normal(3, 64, case.sizes[0]).to(x_dtype)
        self.layers = layers_of(case, dtype)
        self.parameters = parameters_of(self.layers)
        self.dropped = Dropped(case.rates, BLOCK, "bernoulli")
        self.grad = normal(3, 64, case.sizes[-1]).to(self.dtype)
        gated = [layer.gate is not None for layer in self.layers]
        self.how = gated, *(layer.activation for layer in self.layers)
        self.weights = list(self.parameters[::2])
        self.biased = [p is not None for p in self.parameters[1::2]]
        kinds = tuple(map(kind_of, self.layers))
        self.dtypes = self.x.dtype, self.weights[0].dtype
        dtypes = *self.dtypes, self.dtype
        self.facts = Facts(*facts_of(0, self.x.shape, dtypes, kinds, self.dropped))

    def forward(self, function, to=lambda tensor: tensor):
        x, parameters = to(self.x), [None if p is None else to(p) for p in self.parameters]
        how = spelled("bernoulli", self.dtype, *self.how)
        return function(x, parameters, list(self.dropped.rates), *BLOCK, how)

    def backward(self, function, made, needs, to=lambda tensor: tensor):
        out, *rest = made
        given = to(self.x), [to(w) for w in self.weights]
        x, pack, weights, kept = op.from_list(rest, out, given, self.facts)
        args = x, list(weights), pack, list(kept), list(self.dropped.rates)
        how = spelled(*self.dtypes, self.biased, needs, *self.how)
        return function(to(self.grad), *args, *BLOCK, how)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_give_what_the_node_gives(case, precision):
    call = _Call(case, precision)
    leaves = [call.x.requires_grad_(), *(p for p in call.parameters if p is not None)]
    _seed()
    with select.override(path="kernel"), autocast_on_stub(precision[2]):
        out = functional.dropped_stack(call.x, call.layers, call.dropped, True)
    grads = iter(torch.autograd.grad(out, leaves, call.grad))
    with torch.no_grad():
        _seed()
        made = call.forward(op._forward)
        needs = [True, *(p is not None for p in call.parameters)]
        found = call.backward(op._backward, made, needs)
    assert torch.equal(made[0], out)
    for own, needed in zip(found, needs, strict=True):
        if needed:
            expected = next(grads)
            assert torch.equal(own.to(expected.dtype), expected)
        else:
            assert own.numel() == 0
    assert len({t.data_ptr() for t in made}) == len(made)
    assert not {t.data_ptr() for t in made} & {t.data_ptr() for t in leaves}


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fakes_are_like_what_ops_make(case, precision):
    call = _Call(case, precision)
    needs = [True, *(i % 3 > 0 and p is not None for i, p in enumerate(call.parameters))]
    with torch.no_grad():
        real = call.forward(op._forward)
        real_grads = call.backward(op._backward, real, needs)
        with FakeTensorMode() as mode:
            fake = call.forward(op._fake_forward, mode.from_tensor)
            fake_grads = call.backward(op._fake_backward, fake, needs, mode.from_tensor)
    for own, other in zip([*fake, *fake_grads], [*real, *real_grads], strict=True):
        assert (own.shape, own.dtype, own.stride()) == (other.shape, other.dtype, other.stride())


def test_operands_that_lie_badly_are_copied():
    call = _Call(CASES["gated"], PRECISIONS[2])
    results = []
    for turned in (False, True):

        def lying(tensor, turned=turned):
            return tensor.t().contiguous().t() if turned and tensor.dim() == 2 else tensor

        with torch.no_grad():
            _seed()
            made = call.forward(op._forward, lying)
            needs = [True, *(p is not None for p in call.parameters)]
            results.append([made[0], *call.backward(op._backward, made, needs, lying)])
    assert all(map(torch.equal, *results))
    assert not copies._copies
