"""Small networks drawn at random: converted, they compute what they did."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BLOCK, value_and_grads
from torch import Tensor, nn

import sparsedrop

# Networks of this size are a few blocks, and a layer says so when it is first run.
pytestmark = pytest.mark.filterwarnings("ignore:the (in|out)put of this layer")

WIDTHS = (8, 12, 16, 24)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Gate(nn.Module):
    """One layer's output times an activation of another's."""

    def __init__(self, width: int, to: int, drop: bool) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, to), nn.Linear(width, to)
        self.drop = nn.Dropout(0.5) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.sigmoid(self.gate(x)) * self.up(x))


class Twice(nn.Module):
    """A value that is used twice, and a dropped one that two layers read."""

    def __init__(self, width: int, to: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, to), nn.Linear(width, to)
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        return self.left(x) - self.right(x).tanh()


@st.composite
def parts(draw, depth=0) -> tuple[int, list[nn.Module]]:
    """Width of the input of a chain, and its modules, which leave the width as it was."""
    width = start = draw(st.sampled_from(WIDTHS))
    modules: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 6))):
        to = draw(st.sampled_from(WIDTHS))
        kind = draw(st.sampled_from(KINDS if depth == 0 else KINDS[:-1]))
        if kind in ("linear", "linear and relu", "gate", "gate and dropout", "twice"):
            modules.append(_wide(kind, width, to))
            width = to
        elif kind == "residual":
            inner_width, inner = draw(parts(depth=1))
            ends = nn.Linear(width, inner_width), nn.Linear(inner_width, width)
            modules.append(Residual(nn.Sequential(ends[0], *inner, ends[1])))
        else:
            modules.append(_narrow(kind, width))
    return start, [*modules, nn.Dropout(0.5), nn.Linear(width, start)]


def _wide(kind: str, width: int, to: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, to)
    if kind == "linear and relu":
        return nn.Sequential(nn.Linear(width, to), nn.ReLU(inplace=True))
    return Twice(width, to) if kind == "twice" else Gate(width, to, kind == "gate and dropout")


def _narrow(kind: str, width: int) -> nn.Module:
    return {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "dropout": lambda: nn.Dropout(0.5),
        "inplace dropout": lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.3, inplace=True)),
        "norm": lambda: nn.LayerNorm(width),
    }[kind]()


KINDS = (
    "linear", "relu", "dropout", "gelu", "linear and relu", "dropout", "gate", "gate and dropout",
    "twice", "norm", "inplace dropout", "residual",
)  # fmt: skip


@given(network=parts(), rows=st.sampled_from([5, 16]), dims=st.sampled_from([1, 2]))
@settings(max_examples=80, deadline=None)
def test_random_networks(network, rows, dims):
    width, modules = network
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), *modules).double()
    x = torch.randn(*[rows, 3][:dims], width, dtype=torch.float64)
    original = copy.deepcopy(model)
    expected = value_and_grads(copy.deepcopy(model).eval(), x)
    report = sparsedrop.convert(model, (x,), min_speedup=0, block_shape=None)
    assert report.converted
    counts = sum(type(m) is nn.Dropout for m in original.modules())
    assert len(report.converted) + len(report.skipped) >= counts
    for own, truth in zip(value_and_grads(copy.deepcopy(model).eval(), x), expected, strict=True):
        assert torch.equal(own, truth)
    # All live: what ours drop nothing of is the dense network, beside dropouts that stay.
    _switch_off_the_others(model)
    sparsedrop.set_rate(model, 1e-15)
    for own, truth in zip(value_and_grads(model, x), expected, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-9, atol=1e-9)
    sparsedrop.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]


def _switch_off_the_others(model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.eval()


@given(network=parts(), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_nothing_of_a_dropped_block_is_seen(network, seed):
    """A converted network is its own reference once every product runs densely."""
    width, modules = network
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), *modules).double()
    x = torch.randn(16, width, dtype=torch.float64)
    sparsedrop.convert(model, (x,), min_speedup=0, block_shape=BLOCK)
    _switch_off_the_others(model)
    results = []
    for path in ("dense", "cpu"):
        torch.manual_seed(seed)
        with sparsedrop.select.override(path=path):
            results.append(value_and_grads(model, x))
    for own, truth in zip(*results, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-9, atol=1e-9)
