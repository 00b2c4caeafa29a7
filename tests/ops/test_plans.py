"""What the GPU path makes of a choice: which launch, on which addresses, with which copies."""

import dataclasses

import pytest
import torch

import extension_stub
import sparsedrop
from cases import TILES, random_mask
from sparsedrop import _native, select
from sparsedrop.ops import How, Product, cuda, plan
from sparsedrop.select import kernels


class Recorder:
    """Stands for `_C`: records what would be launched."""

    DTYPES = {"bfloat16": 0, "float16": 1, "float32": 2}  # noqa: RUF012 - as `_C` has them
    ARCHITECTURES = extension_stub.ARCHITECTURES
    ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "silu": 3, "gelu_tanh": 4}  # noqa: RUF012

    def __init__(self):
        self.calls = []

    def mask_words(self, *args):
        pass

    def Launch(self, **plan):  # noqa: N802 - the name of the class that it stands for
        return RecordedLaunch(plan, self.calls)


class RecordedLaunch:
    workspace_bytes = 64

    def __init__(self, plan, calls):
        self.plan, self.calls = plan, calls

    def __call__(self, *addresses):
        self.calls.append({**self.plan, **dict(zip(ADDRESSES, addresses, strict=True))})


ADDRESSES = [
    *("a", "b", "d", "pre_activation"),
    *("a_row_words", "a_col_words", "b_row_words", "b_col_words"),
    *("d_row_words", "d_col_words", "alpha", "bias", "workspace", "stream"),
]


@pytest.fixture
def launches(monkeypatch):
    """Runs the GPU path on CPU tensors against a recorder; returns the recorded launches."""
    recorder = Recorder()
    monkeypatch.setattr(_native, "C", recorder)
    monkeypatch.setattr(_native, "runs_on", lambda device: True)
    monkeypatch.setattr(_native, "current_stream", lambda index: 0)
    monkeypatch.setattr(_native, "launch_target", lambda device: (0, 0))
    facts = {"capability": (9, 0), "tiles": TILES}
    monkeypatch.setattr(kernels, "gpu_facts", lambda index: facts)
    plan.plan_for.cache_clear()
    yield recorder.calls
    plan.plan_for.cache_clear()


def _launch(launches, left, right, masks=(None, None, None), bias=None, activation=None):
    """`left` and `right`: matrices, or (matrix, whether it plays transposed)."""
    (a, a_turned), (b, b_turned) = (
        side if isinstance(side, tuple) else (side, False) for side in (left, right)
    )
    a_mask, b_mask, out_mask = masks
    with select.override(path="kernel"):
        how = How(a_mask, b_mask, out_mask, 2.0, activation, a_turned, b_turned)
        out = cuda.product(Product(a, b, bias, how))
    assert out.shape == (a.shape[a_turned], b.shape[not b_turned])
    assert out.is_contiguous()
    return launches.pop()


def test_rates_of_one_percent_share_a_plan(launches):
    a, b = _matrix(256, 128), _matrix(128, 384)
    for p, plans in ((0.3, 1), (0.301, 1), (0.31, 2)):
        mask = dataclasses.replace(random_mask((256, 128), (128, 64), "cpu"), keep=1 - p)
        product = Product(a, b, None, How(mask))
        assert cuda.request_for(product).a_keep == round(1 - p, 2)
        cuda.product(product)
        assert plan.plan_for.cache_info().currsize == plans


def test_what_goes_into_an_activation_is_stored_beside_the_result(launches):
    a, b, mask = _matrix(250, 120), _matrix(120, 380), random_mask((250, 380), (128, 128), "cpu")
    product = Product(a, b, None, How(out_mask=mask, alpha=2.0, activation="gelu"))
    with select.override(path="kernel"):
        kept = cuda.product_and_pre_activation(product)
        args = launches.pop()
        cuda.product(product)
    assert all(tensor.shape == (250, 380) and tensor.is_contiguous() for tensor in kept)
    assert args["n"] == args["d_ld"] == 384  # and so the columns behind 380 are cut off of both
    assert 0 != args["pre_activation"] != args["d"]
    assert args["pre_activation"] % 16 == 0
    assert launches.pop()["pre_activation"] == 0
    aligned = Product(a, _matrix(120, 384), None, How(alpha=2.0, activation="silu"))
    with select.override(path="kernel"):
        out, before = cuda.product_and_pre_activation(aligned)
    args = launches.pop()
    assert (args["d"], args["pre_activation"]) == (out.data_ptr(), before.data_ptr())


def test_what_goes_into_an_activation_on_the_dense_path(launches):
    a, b = torch.randn(64, 32), torch.randn(32, 48)
    mask = random_mask((64, 48), (16, 16), torch.device("cpu"))
    how = How(out_mask=mask, alpha=2.0, activation="gelu")
    out, before = cuda.product_and_pre_activation(Product(a, b, None, how))
    assert not launches
    assert torch.equal(before, sparsedrop.reference.matmul(a, b, out_mask=mask, alpha=2.0))
    assert torch.equal(out, torch.nn.functional.gelu(before))


def _matrix(rows, cols, order="row"):
    values = torch.randn(rows, cols).bfloat16()
    return values if order == "row" else values.t().contiguous().t()


@pytest.mark.parametrize("a_order", ["row", "col"])
@pytest.mark.parametrize("b_order", ["row", "col"])
def test_aligned_operands_are_read_in_place(a_order, b_order, launches):
    a, b = _matrix(256, 128, a_order), _matrix(128, 384, b_order)
    mask = random_mask((256, 128), (128, 64), torch.device("cpu"))
    args = _launch(launches, a, b, (mask, None, None), _matrix(1, 384)[0], "silu")
    assert (args["m"], args["n"], args["k"]) == (256, 384, 128)
    assert (args["a"], args["b"]) == (a.data_ptr(), b.data_ptr())
    assert (args["a_k_major"], args["a_ld"]) == ((True, 128) if a_order == "row" else (False, 256))
    assert (args["b_k_major"], args["b_ld"]) == ((False, 384) if b_order == "row" else (True, 128))
    assert args["d_ld"] == 384
    assert args["a_block"] == (128, 64)
    assert (args["a_row_words"], args["a_col_words"]) == (
        mask.row_words.data_ptr(),
        mask.col_words.data_ptr(),
    )
    assert args["b_block"] is args["d_block"] is None
    assert args["b_row_words"] == args["d_col_words"] == 0
    assert (args["dtype"], args["alpha"], args["activation"]) == (0, 2.0, 3)


@pytest.mark.parametrize("order", ["row", "col"])
def test_a_turned_operand_is_the_transpose_with_its_mask(order, launches):
    a, b = _matrix(128, 256, order), _matrix(384, 128, order)
    a_mask = random_mask((128, 256), (64, 128), torch.device("cpu"))
    b_mask = random_mask((384, 128), (256, 64), torch.device("cpu"))
    out_mask = random_mask((256, 384), (128, 256), torch.device("cpu"))
    turned = _launch(launches, (a, True), (b, True), (a_mask, b_mask, out_mask))
    straight = _launch(launches, a.t(), b.t(), (a_mask.T, b_mask.T, out_mask))
    for name in turned.keys() - {"d", "workspace"}:
        assert turned[name] == straight[name], name


def test_a_plan_is_kept_for_its_shape_and_its_address_checked_each_time(launches):
    masks = [random_mask((256, 128), (128, 64), torch.device("cpu")) for _ in range(2)]
    b, values = _matrix(128, 384), torch.randn(256 * 128 + 8).bfloat16()
    a, shifted = values[:-8].view(256, 128), values[1:-7].view(256, 128)

    def product(a, mask):
        cuda.product(Product(a, b, None, How(mask)))
        return launches.pop() if launches else None

    first = product(a, masks[0])
    again = product(a.clone(), masks[1])
    assert plan.plan_for.cache_info().misses == 1
    assert all(again[name] == first[name] for name in first.keys() - set(ADDRESSES))
    assert again["a_row_words"] == masks[1].row_words.data_ptr() != first["a_row_words"]
    assert product(shifted, masks[0]) is None  # small and misaligned: the dense path
    with select.override(tile=1):
        assert product(a, masks[0])["tile"] == 1
    assert product(a, masks[0])["tile"] == first["tile"] != 1


def test_a_slice_of_a_wider_matrix_is_read_in_place(launches):
    wide = _matrix(256, 512)
    a = wide[:, 128:256]
    args = _launch(launches, a, _matrix(128, 64))
    assert (args["a"], args["a_ld"], args["a_k_major"]) == (a.data_ptr(), 512, True)


@pytest.mark.parametrize(
    "extents", [(75, 10, 65), (8, 16, 3), (3, 8, 16), (1, 1, 1), (16, 5, 8)], ids=str
)
@pytest.mark.parametrize("a_order", ["row", "col"])
@pytest.mark.parametrize("b_order", ["row", "col"])
def test_padding_makes_every_launch_legal(extents, a_order, b_order, launches):
    m, n, k = extents
    args = _launch(launches, _matrix(m, k, a_order), _matrix(k, n, b_order), bias=_matrix(1, n)[0])
    assert args["m"] >= m
    assert args["k"] >= k
    assert args["n"] % 8 == 0
    assert (args["k"] if args["a_k_major"] else args["m"]) % 8 == 0
    assert (args["k"] if args["b_k_major"] else args["n"]) % 8 == 0
    for pointer in ("a", "b", "d", "bias", "workspace"):
        assert args[pointer] % 16 == 0
    for stride in ("a_ld", "b_ld", "d_ld"):
        assert args[stride] % 8 == 0
    assert args["d_ld"] == args["n"]


@pytest.mark.parametrize(
    ("view", "row_major"),
    [
        (lambda: torch.randn(64, 129).bfloat16()[:, 1:], True),
        (lambda: torch.randn(128, 65).bfloat16()[:, 1:].t(), False),
        (lambda: torch.randn(64, 256).bfloat16()[:, ::2], True),
        (lambda: torch.ones(()).bfloat16().expand(64, 128), True),
        (lambda: torch.ones(128).bfloat16().expand(64, 128), True),
        (lambda: torch.randn(64 * 128 + 1).bfloat16()[1:].view(64, 128), True),
    ],
)
def test_what_cannot_be_read_in_place_is_copied(view, row_major, launches, monkeypatch):
    a, copies, fit = view(), [], cuda.fitted
    monkeypatch.setattr(cuda, "fitted", lambda *args: copies.append(fit(*args)) or copies[-1])
    args = _launch(launches, a, _matrix(a.shape[1], 64))
    matrix = copies[0]
    assert args["a"] == matrix.data_ptr() != a.data_ptr()
    assert args["a"] % 16 == 0
    assert args["a_k_major"] == row_major
    assert args["a_ld"] % 8 == 0
    assert torch.equal(matrix[: a.shape[0], : a.shape[1]], a)
    assert not matrix[:, a.shape[1] :].any()


def test_the_dense_path_is_the_reference(launches):
    a, b = torch.randn(64, 32), torch.randn(32, 48)
    mask = random_mask((64, 32), (16, 16), torch.device("cpu"))
    out = cuda.product(Product(a, b, None, How(mask, alpha=2.0, activation="relu")))
    assert not launches
    expected = sparsedrop.reference.matmul(a, b, a_mask=mask, alpha=2.0, activation="relu")
    assert torch.equal(out, expected)
