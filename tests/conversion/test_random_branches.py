"""Branches of convolutions drawn at random: converted, they are the masked dense network."""

import copy

import torch
from convolutions import Case, SqueezeExcite, convert, drawn, masked, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparsedrop

C = 24

BETWEEN = {
    "norm": lambda: nn.BatchNorm2d(C),
    "frozen": lambda: nn.BatchNorm2d(C).eval(),
    "depthwise": lambda: nn.Conv2d(C, C, 3, padding=1, groups=C),
    "groups of 2": lambda: nn.Conv2d(C, C, 1, groups=C // 2, bias=False),
    "groups of 3": lambda: nn.Conv2d(C, C, 3, padding=1, groups=C // 3),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "max": lambda: nn.MaxPool2d(3, 1, 1),
    "mean": lambda: nn.AvgPool2d(3, 1, 1),
    "squeeze": lambda: SqueezeExcite(C, 3, False),
    "linear squeeze": lambda: SqueezeExcite(C, 3, True),
}


@st.composite
def branches(draw) -> tuple[nn.Module, tuple[tuple[str, ...], int, int, float]]:
    """A branch, and what `Case.reads` says of it."""
    names = draw(st.lists(st.sampled_from(sorted(BETWEEN)), max_size=5))
    p = draw(st.sampled_from((0.25, 0.5, 0.7)))
    place = draw(st.integers(0, len(names)))
    modules = [BETWEEN[name]() for name in names]
    modules.insert(place, nn.Dropout(p, inplace=draw(st.booleans())))
    model = nn.Sequential(nn.Conv2d(6, C, 1), *modules, nn.Conv2d(C, 5, 1))
    squeezes = [i + 1 for i, module in enumerate(modules) if isinstance(module, SqueezeExcite)]
    size = 1
    for name, factor in (("groups of 2", 2), ("groups of 3", 3)):
        size *= factor if name in names else 1
    reads = (*(f"{i}.squeeze" for i in squeezes), str(len(model) - 1))
    return model, (reads, C, size, p)


@given(branches(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_branch_is_the_masked_dense_network(branch, seed):
    original, reads = branch
    original, case = original.double(), Case(None, (("", "conv"),), (reads,))
    torch.manual_seed(seed)
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    model = copy.deepcopy(original)
    modes = [module.training for module in original.modules()]
    report = convert(model, x, min_speedup=0)
    assert [entry.kind for entry in report.converted] == ["conv"], str(report)
    assert [module.training for module in original.modules()] == modes
    torch.manual_seed(seed)
    expected = run(masked(original, case, drawn(case)), x)
    torch.manual_seed(seed)
    count = 2 + len(list(model.parameters()))
    for made, truth in zip(run(model, x)[:count], expected[:count], strict=True):
        assert (made - truth).norm() <= 1e-9 * (1 + truth.norm())
    assert sparsedrop.revert(model) > 0
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
