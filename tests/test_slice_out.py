"""The pieces of SliceOut: linear layers, convolutions and batch norms on slices."""

import itertools

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

import sparsedrop
from slice_cases import assert_equal_to, live_of, value_and_grads
from sparsedrop import Slice, reference, slice_out
from sparsedrop.masks.slices import slices

EVERY = slices(24, 0.5, align=4)
SIDES = [(None, True), (True, None), (True, True)]


def _kept(x, own, dim):
    return x if own is None else reference.keep_units(x, own.mask(), dim=dim)


def _pairs(sides):
    return itertools.product(*[EVERY if side else [None] for side in sides])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", SIDES, ids=["out", "in", "both"])
def test_a_linear_layer_is_the_masked_one(sides, bias):
    weight, vector = torch.randn(24, 24).double(), torch.randn(24).double() if bias else None
    x, upstream = (torch.randn(3, 5, 24).double() for _ in range(2))
    given = [weight.requires_grad_()] + ([vector.requires_grad_()] if bias else [])
    for ins, outs in _pairs(sides):
        how = {"in_slice": ins, "out_slice": outs}
        ours = value_and_grads(
            lambda x, how=how, ins=ins: slice_out.linear(
                live_of(x, ins, -1), weight, vector, **how
            ),
            x, given, live_of(upstream, outs, -1),
        )  # fmt: skip
        exact = value_and_grads(
            lambda x, ins=ins, outs=outs: _kept(
                F.linear(_kept(x, ins, -1), weight, vector), outs, -1
            ),
            x, given, upstream,
        )  # fmt: skip
        assert_equal_to(ours, [live_of(exact[0], outs, -1), *exact[1:]])
        if outs is not None:
            assert not ours[2][~outs.mask()].any()
        if ins is not None:
            assert not ours[2][:, ~ins.mask()].any()


def test_a_large_layer_with_both_slices():
    """Of whose gradient only the rest is zeroed."""
    weight = torch.randn(264, 264).double().requires_grad_()
    x, upstream = (torch.randn(3, 264).double() for _ in range(2))
    for ins, outs in itertools.product(slices(264, 0.5, align=66), repeat=2):
        how = {"in_slice": ins, "out_slice": outs}
        ours = value_and_grads(
            lambda x, how=how, ins=ins: slice_out.linear(live_of(x, ins, -1), weight, **how),
            x, [weight], live_of(upstream, outs, -1),
        )  # fmt: skip
        exact = value_and_grads(
            lambda x, ins=ins, outs=outs: _kept(F.linear(_kept(x, ins, -1), weight), outs, -1),
            x, [weight], upstream,
        )  # fmt: skip
        assert_equal_to(ours, [live_of(exact[0], outs, -1), *exact[1:]])


CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "padded and dilated": {"padding": (1, 2), "dilation": (1, 2)},
    "as wide as before": {"padding": "same"},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("sides", SIDES, ids=["out", "in", "both"])
def test_a_convolution_is_the_masked_one(sides, how, bias):
    weight, vector = torch.randn(24, 24, 3, 3).double(), torch.randn(24).double() if bias else None
    x = torch.randn(2, 24, 6, 7).double()
    given = [weight.requires_grad_()] + ([vector.requires_grad_()] if bias else [])
    upstream = torch.randn_like(F.conv2d(x, weight, **how))
    for ins, outs in list(_pairs(sides))[::5]:
        _compare_convolutions(x, given, upstream, {**how, "in_slice": ins, "out_slice": outs})


@pytest.mark.parametrize(("groups", "per_group"), [(24, 1), (24, 2), (6, 4), (6, 8), (2, 12)])
def test_a_convolution_keeps_whole_groups(groups, per_group):
    """Depthwise, with one output a channel or more, and grouped."""
    outputs, size = groups * per_group, 24 // groups
    weight = torch.randn(outputs, size, 3, 3).double().requires_grad_()
    bias = torch.randn(outputs).double().requires_grad_()
    x = torch.randn(2, 24, 5, 5).double()
    how = {"padding": 1, "groups": groups}
    upstream = torch.randn_like(F.conv2d(x, weight, **how))
    for own in slices(groups, 0.5, align=max(1, groups // 6)):
        kept = {"in_slice": own.times(size), "out_slice": own.times(per_group)}
        _compare_convolutions(x, [weight, bias], upstream, {**how, **kept})


def _compare_convolutions(x, given, upstream, kwargs):
    how = {name: kwargs[name] for name in kwargs if not name.endswith("slice")}
    ins, outs = kwargs["in_slice"], kwargs["out_slice"]
    weight, bias = given[0], given[1] if len(given) > 1 else None
    ours = value_and_grads(
        lambda x: slice_out.conv2d(live_of(x, ins, 1), weight, bias, **kwargs),
        x, given, live_of(upstream, outs, 1),
    )  # fmt: skip
    exact = value_and_grads(
        lambda x: _kept(F.conv2d(_kept(x, ins, 1), weight, bias, **how), outs, 1),
        x, given, upstream,
    )  # fmt: skip
    assert_equal_to(ours, [live_of(exact[0], outs, 1), *exact[1:]])
    if outs is not None:
        assert not ours[2][~outs.mask()].any()


def test_second_derivatives():
    own = EVERY[4]
    assert len(own.pieces) == 2
    x, weight = torch.randn(2, 12).double(), torch.randn(24, 24).double()
    grads = (x.requires_grad_(), weight.requires_grad_())
    pair = {"in_slice": own, "out_slice": EVERY[1]}
    assert torch.autograd.gradgradcheck(lambda *a: slice_out.linear(*a, **pair).square(), grads)
    small = Slice(((2, 3), (0, 1)), 3)
    image, filters = torch.randn(1, 2, 3, 3).double(), torch.randn(2, 3, 2, 2).double()
    grads = (image.requires_grad_(), filters.requires_grad_())
    assert torch.autograd.gradgradcheck(
        lambda *a: slice_out.conv2d(*a, in_slice=small).square(), grads
    )


def test_batched_gradients_of_a_convolution():
    weight, x = torch.randn(6, 24, 3, 3).double(), torch.randn(2, 12, 4, 4).double()
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    out = slice_out.conv2d(*leaves, padding=1, in_slice=EVERY[4])
    batch = torch.randn(3, *out.shape).double()
    found = torch.autograd.grad(out, leaves, batch, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(out, leaves, one, retain_graph=True) for one in batch]
    for one, others in zip(found, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(others))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_with_a_slice_of_the_user(backend):
    weight = torch.randn(24, 24).double().requires_grad_()
    x, upstream = torch.randn(5, 24).double(), torch.randn(5, 12).double()
    torch._dynamo.reset()
    compiled = torch.compile(slice_out.linear, fullgraph=True, backend=backend)
    for own in EVERY[:5:2]:
        found = [
            value_and_grads(lambda x, f=f, own=own: f(x, weight, out_slice=own), x, [weight],
                            upstream)
            for f in (compiled, slice_out.linear)
        ]  # fmt: skip
        assert_equal_to(*found)


def test_autocast():
    own, weight = EVERY[4], torch.randn(24, 24, 3, 3).requires_grad_()
    x = torch.randn(2, 24, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = slice_out.conv2d(x, weight, out_slice=own)
        flat = slice_out.linear(x, weight[..., 0, 0][:, :5], out_slice=own)
    assert {out.dtype, flat.dtype} == {torch.bfloat16}
    out.float().square().sum().backward()
    assert (weight.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32)
    assert weight.grad[own.mask()].all()
    assert not weight.grad[~own.mask()].any()


OWN = Slice(((0, 12),), 24)
X, IMAGE = torch.randn(2, 24), torch.randn(2, 24, 5, 5)
WEIGHT, FILTERS = torch.randn(24, 24), torch.randn(24, 24, 3, 3)
GROUPED = torch.randn(24, 4, 3, 3)
WRONG = {
    r"in_slice is of 24 units, but weight is \[24, 20\]: it has 20 inputs": lambda: (
        slice_out.linear(X, WEIGHT[:, :20], in_slice=OWN)
    ),
    r"x is \[2, 24\], with 24 features, but in_slice keeps 12": lambda: slice_out.linear(
        X, WEIGHT, in_slice=OWN
    ),
    r"x is \[2, 12\], with 12 features, but there are 24": lambda: slice_out.linear(
        X[:, :12], WEIGHT, out_slice=OWN
    ),
    r"bias is \[2\] and weight is \[24, 24\]: outer extents differ": lambda: slice_out.linear(
        X, WEIGHT, torch.randn(2), out_slice=OWN
    ),
    r"x is torch.float64 and weight is torch.float32: dtypes differ": lambda: slice_out.linear(
        X.double(), WEIGHT, out_slice=OWN
    ),
    r"out_slice is None: a convolution with 6 groups keeps the same whole groups of both": lambda: (
        slice_out.conv2d(IMAGE[:, :12], GROUPED, groups=6, in_slice=OWN)
    ),
    r"out_slice keeps \(\(2, 14\),\) of 24 channels, and a group has 4: a convolution": lambda: (
        slice_out.conv2d(
            IMAGE[:, :12], GROUPED, groups=6, in_slice=OWN, out_slice=Slice(((2, 14),), 24)
        )
    ),
    r"in_slice keeps groups \(\(0, 3\),\) and out_slice \(\(1, 4\),\): a convolution": lambda: (
        slice_out.conv2d(
            IMAGE[:, :12], GROUPED, groups=6, in_slice=OWN, out_slice=Slice(((4, 16),), 24)
        )
    ),
    r"weight is \[12\], but out_slice is of 24 units": lambda: slice_out.batch_norm(
        X[:, :12], None, None, X[0, :12], out_slice=OWN
    ),
    r"x is \[2, 24\], but out_slice keeps 12 channels": lambda: slice_out.batch_norm(
        X, None, None, training=True, out_slice=OWN
    ),
}


@pytest.mark.parametrize(("sentence", "call"), WRONG.items(), ids=WRONG)
def test_wrong_operands(sentence, call):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call()


def test_what_is_no_slice():
    for call in (
        lambda: slice_out.linear(X, WEIGHT, out_slice=3),
        lambda: slice_out.conv2d(IMAGE, FILTERS, out_slice=3),
        lambda: slice_out.batch_norm(IMAGE, None, None, out_slice=3),
    ):
        with pytest.raises(TypeError, match=r"out_slice must be a Slice, not int"):
            call()


def test_without_slices_they_are_torchs():
    assert torch.equal(slice_out.linear(X, WEIGHT), F.linear(X, WEIGHT))
    assert torch.equal(
        slice_out.conv2d(IMAGE, GROUPED, None, 2, 1, 1, 6),
        F.conv2d(IMAGE, GROUPED, None, 2, 1, 1, 6),
    )
    assert sparsedrop.slice_out is slice_out
