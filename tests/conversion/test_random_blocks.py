"""Feed-forward blocks drawn at random, converted: against the same with what is dropped masked."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BLOCK, value_and_grads
from torch import Tensor, nn

import sparsedrop
from sparsedrop import BlockMask, RowPattern, Slice, patterns

pytestmark = pytest.mark.filterwarnings("ignore:the (in|out)put of this layer")

WIDTH, ROWS = 12, 16
HIDDEN = {"sparsedrop": 24, "sliceout": 192, "row-pattern": 24}
COMBINED = {
    "times sigmoid": lambda a, b: a * torch.sigmoid(b),
    "silu times": lambda a, b: nn.functional.silu(a) * b,
    "plus": lambda a, b: a + b,
    "minus tanh": lambda a, b: a - b.tanh(),
    "in place": lambda a, b: (a * 1.0).mul_(b.sigmoid()),
    "relu times": lambda a, b: a.relu() * b,
}


class Block(nn.Module):
    """Layers that are called in any order, some on what others make; their results are joined in
    another order, dropped, and read by one layer."""

    def __init__(self, hidden: int, calls: list[int], reads: list[int], joins: list[str]) -> None:
        super().__init__()
        self.calls, self.reads, self.joins = calls, reads, joins
        self.makers = nn.ModuleList(
            nn.Linear(WIDTH if read < 0 else hidden, hidden) for read in reads
        )
        self.drop, self.down = nn.Dropout(0.5), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: dict[int, Tensor] = {}
        for i in self.calls:
            made[i] = self.makers[i](x if self.reads[i] < 0 else made[self.reads[i]])
        hidden = made[0]
        for i, join in enumerate(self.joins, 1):
            hidden = COMBINED[join](hidden, made[i])
        return self.down(self.drop(hidden))


@st.composite
def blocks(draw):
    """What a block has, but for its width."""
    count = draw(st.integers(1, 3))
    calls = draw(st.permutations(range(count)))
    reads = [-1] * count
    for at, i in enumerate(calls[1:], 1):
        if draw(st.integers(0, 3)) == 0:
            reads[i] = draw(st.sampled_from(calls[:at]))
    joins = [draw(st.sampled_from(sorted(COMBINED))) for _ in range(count - 1)]
    return calls, reads, joins


class _Masked(nn.Module):
    """Draws as the layers of a method do, and masks."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        if self.method == "sparsedrop":
            mask = BlockMask.bernoulli((ROWS, width), 0.5, block_shape=BLOCK)
            return torch.where(mask.expand(), x * 2.0, 0.0)
        if self.method == "sliceout":
            units = Slice.draw(width, 0.5)
            return torch.where(units.mask(), x * units.scale, 0.0)
        units = RowPattern.draw(width, patterns.search(0.5))
        return torch.where(units.mask(), x * 2.0, 0.0)


@pytest.mark.parametrize("method", HIDDEN)
@given(network=st.lists(blocks(), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_random_blocks(method, network, seed):
    torch.manual_seed(seed)
    original = nn.Sequential(*(Block(HIDDEN[method], *block) for block in network)).double()
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    model = copy.deepcopy(original)
    options = {"block_shape": BLOCK} if method == "sparsedrop" else {}
    try:
        sparsedrop.convert(model, (x,), method=method, min_speedup=0, **options)
    except ValueError as error:
        assert "nothing to convert" in str(error)  # noqa: PT017
        return
    for block, converted in zip(original, model, strict=True):
        if type(converted.drop) is not nn.Dropout:
            block.drop = _Masked(method)
    torch.manual_seed(seed)
    expected = value_and_grads(original, x)
    torch.manual_seed(seed)
    for own, truth in zip(value_and_grads(model, x), expected, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-9, atol=1e-9)
