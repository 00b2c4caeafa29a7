"""sparsedrop.matmul and both gradients, for every mask combination, layout and dtype."""

import pytest
import torch

import sparsedrop
from cases import (
    CASES,
    EMPTY,
    WITH_DTYPES,
    Case,
    CountProducts,
    assert_accurate,
    build,
    matmul_and_grads,
    normal,
    oracle,
    poisoned,
    random_mask,
    signs,
    torchs_own,
)
from sparsedrop import BlockMask, select

EACH_CASE = pytest.mark.parametrize("case", CASES, ids=str)


@EACH_CASE
@WITH_DTYPES
def test_exact(case, device, dtype):
    problem = build(case, signs, dtype, device)
    for alpha in (1.0, 2.0):
        ours = matmul_and_grads(problem, alpha=alpha)
        for own, truth in zip(ours, oracle(problem, alpha=alpha), strict=True):
            assert own.dtype == dtype
            assert torch.equal(own.double(), truth)


@EACH_CASE
@WITH_DTYPES
def test_accurate(case, device, dtype):
    problem = build(case, normal, dtype, device)
    ours = matmul_and_grads(problem, alpha=1.7)
    assert_accurate(ours, oracle(problem, alpha=1.7), *torchs_own(problem, alpha=1.7))


@EACH_CASE
@WITH_DTYPES
def test_dropped_blocks_are_never_read(case, device, dtype):
    """Proves the skip: NaN in every dropped block of a, b and the upstream changes nothing."""
    problem = build(case, normal, dtype, device)
    clean = matmul_and_grads(problem)
    bad = problem._replace(
        a=poisoned(problem.a, problem.masks.get("a_mask")),
        b=poisoned(problem.b, problem.masks.get("b_mask")),
        upstream=poisoned(problem.upstream, problem.masks.get("out_mask")),
    )
    results = matmul_and_grads(bad)
    for name, expected, result in zip(("out", "a", "b"), clean, results, strict=True):
        assert torch.equal(result, expected)
        mask = problem.masks.get(f"{name}_mask")
        if mask is not None:
            assert not result[~mask.expand()].any()


@EACH_CASE
def test_dense_path(case, device):
    problem = build(case, signs, torch.float32, device)
    bad = problem._replace(
        a=poisoned(problem.a, problem.masks.get("a_mask")),
        b=poisoned(problem.b, problem.masks.get("b_mask")),
        upstream=poisoned(problem.upstream, problem.masks.get("out_mask")),
    )
    with select.override(path="dense"):
        for own, truth in zip(matmul_and_grads(bad), oracle(problem), strict=True):
            assert torch.equal(own.double(), truth)


@pytest.mark.parametrize("case", EMPTY, ids=str)
@WITH_DTYPES
def test_empty_matrices(case, device, dtype):
    problem = build(case, signs, dtype, device)
    for own, truth in zip(matmul_and_grads(problem), oracle(problem), strict=True):
        assert torch.equal(own.double(), truth)


@pytest.mark.parametrize("live", [True, False], ids=["all-live", "all-dropped"])
@pytest.mark.parametrize("side", ["a", "b", "out"])
@WITH_DTYPES
def test_uniform_masks(side, live, device, dtype):
    problem = build(Case(384, 256, 128), signs, dtype, device)
    shape = {"a": (384, 128), "b": (128, 256), "out": (384, 256)}[side]
    grid = torch.full((-(-shape[0] // 128), -(-shape[1] // 128)), live, device=device)
    problem.masks[f"{side}_mask"] = BlockMask.from_live(grid, shape)
    for own, truth in zip(matmul_and_grads(problem), oracle(problem), strict=True):
        assert torch.equal(own.double(), truth)


def _every_second(x):
    wide = x.new_empty(x.shape[0] * 2, x.shape[1] * 2)
    wide[::2, ::2] = x
    return wide[::2, ::2]


def _shifted(x):
    flat = x.new_empty(x.numel() + 1)
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


def _inside_a_wider_matrix(x):
    wide = x.new_full((x.shape[0], x.shape[1] + 24), float("nan"))
    wide[:, 8:-16] = x
    return wide[:, 8:-16]


@pytest.mark.parametrize("view", [_every_second, _shifted, _inside_a_wider_matrix])
@WITH_DTYPES
def test_strided_operands(view, device, dtype):
    problem = build(Case(256, 384, 128, (128, 64), None, (128, 128)), signs, dtype, device)
    strided = problem._replace(
        a=view(problem.a), b=view(problem.b), upstream=view(problem.upstream)
    )
    for own, truth in zip(matmul_and_grads(strided), oracle(problem), strict=True):
        assert torch.equal(own.double(), truth)


@WITH_DTYPES
def test_expanded_operands(device, dtype):
    """Strides of 0, as the gradient of a sum has them."""
    row = signs(1, 128).to(device, dtype)
    mask = random_mask((256, 128), (128, 64), device)
    problem = build(Case(256, 128, 128), signs, dtype, device)._replace(
        a=row.expand(256, 128), masks={"a_mask": mask}, upstream=row.new_ones(()).expand(256, 128)
    )
    for own, truth in zip(matmul_and_grads(problem), oracle(problem), strict=True):
        assert torch.equal(own.double(), truth)


def test_result_is_contiguous_and_gradients_lie_as_their_operands(device):
    problem = build(
        Case(256, 384, 128, (64, 64), None, None, "row", "col"), normal, torch.float32, device
    )
    out, grad_a, grad_b = matmul_and_grads(problem)
    assert out.is_contiguous()
    assert grad_a.stride() == problem.a.stride()
    assert grad_b.stride() == problem.b.stride()


def test_a_mask_known_to_drop_nothing_costs_nothing(device):
    problem = build(Case(100, 50, 70), normal, torch.float32, device)
    for sampler in (BlockMask.bernoulli, BlockMask.balanced):
        mask = sampler((100, 70), 0.0, block_shape=(7, 7), device=device)
        assert bool(mask.live.all())
        with CountProducts() as products:
            out = sparsedrop.matmul(problem.a, problem.b, a_mask=mask)
        assert products.masks == [0]
        assert torch.equal(out, problem.a @ problem.b)


def test_no_masks_is_the_plain_product(device):
    problem = build(Case(100, 50, 70), normal, torch.float32, device)
    out = sparsedrop.matmul(problem.a, problem.b)
    assert torch.equal(out, problem.a @ problem.b)
