"""The networks that the tests convert, and the same networks with masks applied by hand."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

import sparsedrop
from sparsedrop import BlockMask, Report

BLOCK = (8, 8)


class Feedforward(nn.Module):
    """down(dropout(act(up(x)))), its activation one of several tensor operations."""

    def __init__(self, d: int, hidden: int, activation=nn.functional.gelu, p: float = 0.5) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.activation, self.drop = activation, nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.activation(self.up(x))))


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.79788456 * (x + 0.044715 * torch.pow(x, 3.0))))


class Gated(nn.Module):
    def __init__(self, d: int, hidden: int, p: float = 0.5) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden)
        self.down, self.drop = nn.Linear(hidden, d), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(nn.functional.silu(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    """A residual block: the layer behind the hidden value has a dropout behind it, too."""

    def __init__(self, d: int, hidden: int, p: float = 0.5) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(d), Feedforward(d, hidden, nn.ReLU(inplace=True), p)
        self.resid_drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.resid_drop(self.mlp(self.norm(x)))


class Reshaped(nn.Module):
    """Views between the layers, and a dropout that changes its argument."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d, d), nn.Linear(d, d)
        self.drop, self.last = nn.Dropout(0.5, inplace=True), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).view(-1, x.shape[-1]).relu()
        out = self.second(self.drop(hidden).reshape(x.shape).contiguous())
        return self.last(out.flatten(0, 1)).unflatten(0, x.shape[:2]).tanh()


class Conv1D(nn.Module):
    """As Hugging Face has it: the weight is [in, out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.size()[:-1], self.nf)


class Conv1DBlock(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(hidden, d), Conv1D(d, hidden)
        self.drop, self.dropout = nn.Dropout(0.5), nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.c_proj(self.drop(new_gelu(self.c_fc(x)))))


class OneDropout(nn.Module):
    """The same dropout of a hidden value and of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nn.Linear(32, 40), nn.Linear(40, 32), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.two(self.drop(self.one(x).relu())))


class Net(nn.Module):
    """Layers of 32 features, and a forward of a test's own."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(32, 32) for _ in range(3))
        self.drop, self.other_drop = nn.Dropout(0.5), nn.Dropout(0.25)
        self.run = [forward]

    def forward(self, x):
        return self.run[0](self, x)


X = torch.randn(48, 32)


def convert(model: nn.Module, x: Tensor = X, **kwargs: object) -> Report:
    """All that can be, whatever it gains."""
    return sparsedrop.convert(model, (x,), **{"min_speedup": 0, **kwargs})


def found(report: Report) -> list[tuple[str, str]]:
    """Names and kinds of what was converted."""
    return [entry[:2] for entry in report.converted]


class Case(NamedTuple):
    """A network [.., 32] -> anything, its sites, and its dropouts with their widths in the order
    in which their masks are drawn."""

    make: object
    shape: tuple[int, ...]
    sites: tuple[tuple[str, str], ...]
    dropouts: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> int:
        return torch.Size(self.shape[:-1]).numel()


CASES = {
    "input": Case(
        lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 40)),
        (48, 32), (("2", "input"),), (("1", 32),),
    ),
    "input, no bias": Case(
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 40, bias=False)),
        (48, 32), (("1", "input"),), (("0", 32),),
    ),
    "input, flattened": Case(
        lambda: nn.Sequential(
            nn.Unflatten(-1, (2, 16)), nn.Dropout(0.5), nn.Flatten(-2), nn.Linear(32, 40)
        ),
        (48, 32), (("3", "input"),), (("1", 32),),
    ),
    "output": Case(
        lambda: nn.Sequential(nn.Linear(32, 40), nn.Dropout(0.5), nn.LayerNorm(40)),
        (48, 32), (("0", "output"),), (("1", 40),),
    ),
    "output, three dimensions": Case(
        lambda: nn.Sequential(nn.Linear(32, 40, bias=False), nn.Dropout(0.25)),
        (3, 16, 32), (("0", "output"),), (("1", 40),),
    ),
    "both sides": Case(
        lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 40), nn.Dropout(0.25)),
        (48, 32), (("2", "input"), ("2", "output")), (("1", 32), ("3", 40)),
    ),
    "mlp": Case(
        lambda: nn.Sequential(Feedforward(32, 64), nn.Tanh()),
        (3, 16, 32), (("0", "mlp"),), (("0.drop", 64),),
    ),
    "mlp without activation": Case(
        lambda: nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 10)),
        (48, 32), (("", "mlp"),), (("1", 64),),
    ),
    "mlp of operations": Case(
        lambda: Feedforward(32, 64, new_gelu), (3, 16, 32), (("", "mlp"),), (("drop", 64),)
    ),
    "mlp, squared relu": Case(
        lambda: Feedforward(32, 64, lambda x: x.relu().square()),
        (48, 32), (("", "mlp"),), (("drop", 64),),
    ),
    "gated": Case(lambda: Gated(32, 64), (3, 16, 32), (("", "gated"),), (("drop", 64),)),
    "mlp with a dropout behind it": Case(
        lambda: nn.Sequential(Block(32, 64), Block(32, 64)),
        (3, 16, 32),
        (("0.mlp", "mlp"), ("0.mlp.down", "output"), ("1.mlp", "mlp"), ("1.mlp.down", "output")),
        (("0.mlp.drop", 64), ("0.resid_drop", 32), ("1.mlp.drop", 64), ("1.resid_drop", 32)),
    ),
    "stack": Case(
        lambda: nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(64, 48), nn.Tanh(), nn.Dropout(0.25), nn.Linear(48, 10),
        ),
        (48, 32), (("", "mlp"), ("", "mlp")), (("2", 64), ("5", 48)),
    ),
    "views and in-place operations": Case(
        lambda: Reshaped(32),
        (3, 16, 32), (("", "mlp"), ("second", "output")), (("drop", 32), ("last", 32)),
    ),
    "one dropout at two places": Case(
        OneDropout,
        (3, 16, 32), (("", "mlp"), ("two", "output")), (("drop", 40), ("drop", 32)),
    ),
    "Conv1D": Case(
        lambda: Conv1DBlock(32, 64),
        (3, 16, 32), (("", "mlp"), ("c_proj", "output")), (("drop", 64), ("dropout", 32)),
    ),
    "odd extents": Case(
        lambda: nn.Sequential(nn.Linear(32, 37), nn.ELU(), nn.Dropout(0.5), nn.Linear(37, 5)),
        (51, 32), (("", "mlp"),), (("2", 37),),
    ),
}  # fmt: skip


class ByHand(nn.Module):
    """A dropout whose masks are given, one for each call of a forward pass."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.masks = p, []

    def forward(self, x: Tensor) -> Tensor:
        live = self.masks.pop(0)
        self.masks.append(live)
        return torch.where(live.view(x.shape), x / (1.0 - self.p), 0.0)


def by_hand(model: nn.Module, case: Case, sampler: str = "bernoulli") -> nn.Module:
    """A copy of the original that drops what the converted model drops from the state of now."""
    model = copy.deepcopy(model)
    for name, width in case.dropouts:
        dropout = model.get_submodule(name)
        if not isinstance(dropout, ByHand):
            dropout = ByHand(dropout.p)
            model.set_submodule(name, dropout)
        draw = getattr(BlockMask, sampler)
        mask = draw((case.rows, width), dropout.p, block_shape=BLOCK)
        dropout.masks.append(mask.expand())
    return model


def assert_handed_over(model, up, down, x):
    """What the layer before a hidden value draws reaches the one behind it, too, where each is a
    program of its own."""
    torch._dynamo.reset()
    expected = []
    for seed in range(3):
        torch.manual_seed(seed)
        expected.append(value_and_grads(model, x))
    for layer in (up, down):
        layer.compile(backend="aot_eager")
    for seed, truths in enumerate(expected):
        torch.manual_seed(seed)
        for own, truth in zip(value_and_grads(model, x), truths, strict=True):
            torch.testing.assert_close(own, truth, rtol=1e-5, atol=1e-5)


def value_and_grads(model: nn.Module, x: Tensor, upstream: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients of the input and of all parameters."""
    leaf = x.detach().clone().requires_grad_()
    out = model(leaf)
    if upstream is None:
        torch.manual_seed(7)
        upstream = torch.randn_like(out)
    return [out.detach(), *torch.autograd.grad(out, [leaf, *model.parameters()], upstream)]
