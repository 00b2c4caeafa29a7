"""Live parts of parameters in one call each way, without a GPU: against pieces that are cut out."""

import pytest
import torch

from cases import normal
from slice_cases import live_of
from sparsedrop.masks import Slice
from sparsedrop.ops.slices import parts
from sparsedrop.slice_out import batch_norm, conv2d

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SLICES = [Slice.at(8, 16, 32), Slice.at(24, 16, 32), Slice.at(29, 5, 32)]
SHAPES = {
    "vector": (32,), "weight": (32, 12), "weight by columns": (12, 32), "kernel": (32, 6, 3, 3),
    "kernel by columns": (6, 32, 3, 3), "point": (32, 6, 1, 1), "point by columns": (6, 32, 1, 1),
    "depthwise": (32, 1, 3, 3),
}  # fmt: skip
LAST = torch.channels_last
pytestmark = pytest.mark.usefixtures("poisoned_gpu")


def _normal(*shape):
    return normal(*shape).to(F32)


def _whole(like, compact, dim, own, rest=0.0):
    found = torch.full_like(like, rest)
    index = torch.cat([torch.arange(a, b) for a, b in own.pieces])
    return found.index_copy_(dim, index, compact.to(found.dtype))


def _tensors(name, is_last, dtype):
    dim = int("columns" in name)
    found = [_normal(*SHAPES[name]).to(dtype) for _ in range(2)]
    if is_last:
        found = [own.contiguous(memory_format=LAST) for own in found]
    return found, dim


CASES = [(name, is_last) for name, shape in SHAPES.items() for is_last in (False, len(shape) == 4)]


@pytest.mark.parametrize("own", SLICES, ids=lambda own: str(own.pieces))
@pytest.mark.parametrize("dtypes", [(F32, BF16), (F32, F32), (F16, F16), (BF16, F32)], ids=str)
@pytest.mark.parametrize(("name", "is_last"), dict.fromkeys(CASES))
def test_parts_are_those_that_are_cut_out(name, is_last, dtypes, own, launches):
    whole, compact = dtypes
    tensors, dim = _tensors(name, is_last, whole)
    if whole in (F32, compact):
        found = parts.gathered(tensors, dim, own.pieces, compact, 0.5)
        for copy, tensor in zip(found, tensors, strict=True):
            assert torch.equal(copy, (live_of(tensor, own, dim) * 0.5).to(compact))
            if is_last:
                assert copy.is_contiguous(memory_format=LAST)
        assert launches == [1]
    launches.clear()
    values = [live_of(tensor, own, dim).to(compact) for tensor in tensors]
    found = parts.spread(tensors, values, dim, own.pieces, 0.25)
    for full, tensor, value in zip(found, tensors, values, strict=True):
        assert torch.equal(full, _whole(tensor, value.float() * 0.25, dim, own))
        assert full.stride() == tensor.stride()
    assert launches == [1]


@pytest.mark.parametrize("own", SLICES, ids=lambda own: str(own.pieces))
def test_vectors_are_put_back(own, launches):
    vectors = [_normal(32), _normal(32)]
    values = [_normal(own.width), _normal(own.width)]
    expected = [_whole(v, x, 0, own) for v, x in zip(vectors, values, strict=True)]
    for vector, full in zip(vectors, expected, strict=True):
        rest = torch.ones(32, dtype=torch.bool)
        rest[torch.cat([torch.arange(a, b) for a, b in own.pieces])] = False
        full[rest] = vector[rest]
    parts.put(vectors, values, own.pieces)
    assert all(map(torch.equal, vectors, expected))
    assert launches == [1]


def test_what_is_a_view_is_not_copied(launches):
    own, tensors = SLICES[0], [_normal(32), _normal(32, 6, 3, 3)]
    found = parts.gathered(tensors, 0, own.pieces)
    assert [a.data_ptr() for a in found] == [t[8:].data_ptr() for t in tensors]
    parts.put(tensors[:1], found[:1], own.pieces)
    assert launches == []


def test_what_one_launch_does_not_copy_goes_piece_by_piece(launches):
    own = SLICES[1]
    gapped = _normal(32, 24)[:, ::2]
    of_kernel = _normal(6, 32, 3, 3)
    for tensors, dim, dtype in (
        ([_normal(32).to(F64)], 0, None),
        ([gapped], 0, F32),
        ([_normal(32), _normal(32).to(BF16)], 0, None),
        ([_normal(32).to(BF16)], 0, F16),
        ([of_kernel, _normal(6, 32)], 1, F32),  # units of nine columns, and of one
        ([_normal(32, 0)], 0, F32),
    ):
        found = parts.gathered(tensors, dim, own.pieces, dtype)
        for copy, tensor in zip(found, tensors, strict=True):
            assert torch.equal(copy, live_of(tensor, own, dim).to(dtype or tensor.dtype))
        full = parts.spread(tensors, found, dim, own.pieces)
        for value, copy, tensor in zip(full, found, tensors, strict=True):
            assert torch.equal(value, _whole(tensor, copy, dim, own))
    assert launches == []


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("side", ["in_slice", "out_slice"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_is_one_call_each_way(side, bias, is_last, launches):
    own = SLICES[1]
    shape = (24, 32, 3, 3) if side == "in_slice" else (32, 24, 3, 3)
    weight = _normal(*shape)
    weight = (weight.contiguous(memory_format=LAST) if is_last else weight).requires_grad_()
    vector = _normal(shape[0]).requires_grad_() if bias else None
    x = _normal(2, 16 if side == "in_slice" else 24, 6, 6).requires_grad_()
    leaves = [x, weight] + ([vector] if bias else [])
    out = conv2d(x, weight, vector, padding=1, **{side: own})
    upstream = _normal(*out.shape)
    found = torch.autograd.grad(out, leaves, upstream)
    assert launches == [1, 1]
    dim = int(side == "in_slice")
    of_bias = None if vector is None else (live_of(vector, own, 0) if dim == 0 else vector)
    exact = torch.nn.functional.conv2d(x, live_of(weight, own, dim), of_bias, padding=1)
    torch.testing.assert_close(out, exact)
    for one, other in zip(found, torch.autograd.grad(exact, leaves, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("training", "tracks"), [(True, True), (True, False), (False, True)], ids=str
)
def test_a_batch_norm_is_a_call_for_its_vectors(training, tracks, affine, launches):
    own = SLICES[1]
    x = _normal(5, 16, 4, 4).requires_grad_()
    weight, bias = (_normal(32).requires_grad_() if affine else None for _ in range(2))
    mean, var = _normal(32), _normal(32).square()
    running = [v.clone() if tracks else None for v in (mean, var)]
    exact = [live_of(v, own, 0) if tracks else None for v in (mean, var)]
    out = batch_norm(x, *running, weight, bias, training, out_slice=own)
    leaves = [x] + ([weight, bias] if affine else [])
    upstream = _normal(*out.shape)
    found = torch.autograd.grad(out, leaves, upstream)
    # Vectors are read, statistics written, and gradients put in their places.
    assert launches == [1] * ((affine or tracks) + (training and tracks) + affine)
    vectors = [None if v is None else live_of(v, own, 0) for v in (weight, bias)]
    truth = torch.nn.functional.batch_norm(x, *exact, *vectors, training)
    torch.testing.assert_close(out, truth)
    for one, other in zip(found, torch.autograd.grad(truth, leaves, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for new, old, compact in zip(running, (mean, var), exact, strict=True):
        if new is not None:
            index = torch.cat([torch.arange(a, b) for a, b in own.pieces])
            torch.testing.assert_close(new, old.index_copy(0, index, compact))
