"""The networks of convolutions that the tests convert, and the same with masks applied by hand."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

import sparsedrop
from sparsedrop import Report, Slice
from sparsedrop.conversion.channels import align_for
from sparsedrop.masks.slices import slices


class Wide(nn.Module):
    """The block of a wide residual network: BN-ReLU-conv-BN-ReLU-Dropout-conv, and a sum."""

    def __init__(self, channels=8, hidden=32, p=0.5, bias=False, stride=1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(hidden)
        self.conv1 = nn.Conv2d(channels, hidden, 3, stride, 1, bias=bias)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=bias)
        self.drop, self.relu = nn.Dropout(p), nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(channels, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv1(self.relu(self.norm1(x))))
        return self.shortcut(x) + self.conv2(self.drop(self.relu(h)))


class SqueezeExcite(nn.Module):
    """By 1x1 convolutions, or by linear layers, also between views."""

    def __init__(self, channels: int, squeezed: int, by_linear: bool | str) -> None:
        super().__init__()
        layer = nn.Linear if by_linear else lambda ins, outs: nn.Conv2d(ins, outs, 1)
        self.squeeze, self.excite = layer(channels, squeezed), layer(squeezed, channels)
        self.pool, self.by_linear = nn.AdaptiveAvgPool2d(1), by_linear

    def forward(self, x: Tensor) -> Tensor:
        if not self.by_linear:
            gate = self.excite(nn.functional.silu(self.squeeze(self.pool(x))))
            return x * gate.sigmoid()
        if self.by_linear == "views":
            gate = self.excite(self.squeeze(self.pool(x).view(len(x), -1)).relu())
            return x * gate.sigmoid().reshape((len(x), -1, 1, 1)).expand_as(x)
        gate = self.excite(nn.functional.silu(self.squeeze(x.mean((2, 3)))))
        return x * gate.sigmoid()[..., None, None]


class Inverted(nn.Module):
    """MBConv: expand, depthwise, squeeze-excite, project; the dropout is at one of three places."""

    def __init__(self, place="last", by_linear=False, group=1, p=0.5) -> None:
        super().__init__()
        hidden, self.place = 32, place
        self.expand, self.norm1 = nn.Conv2d(8, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.deep = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden // group)
        self.norm2, self.norm3 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(8)
        self.se, self.drop = SqueezeExcite(hidden, 4, by_linear), nn.Dropout(p)
        self.project = nn.Conv2d(hidden, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        act, at = nn.functional.silu, self.place
        h = act(self.norm1(self.expand(x)))
        h = act(self.norm2(self.deep(self.drop(h) if at == "first" else h)))
        h = self.se(self.drop(h) if at == "middle" else h)
        return x + self.norm3(self.project(self.drop(h) if at == "last" else h))


def _chain() -> nn.Module:
    """A layer in the middle reads one slice, and makes another."""
    return nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32, affine=False), nn.GELU(), nn.Dropout(0.5),
        nn.Conv2d(32, 32, 3, padding="same"), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Conv2d(32, 4, 1),
    )  # fmt: skip


def _head() -> nn.Module:
    """Of an EfficientNet: the dropout is behind the pool, and a linear layer reads it."""
    return nn.Sequential(
        nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1), nn.Dropout(0.5), nn.Linear(32, 5),
    )  # fmt: skip


class GatedConvolutions(nn.Module):
    """Two layers make the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3), nn.Dropout(0.4)
        self.out = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.one(x).sigmoid() * self.two(x)))


class Case(NamedTuple):
    """A network [N, 8, H, W] -> anything; of each site the layers that read channels, in the order
    in which slices are drawn, with the channels, the size of a group and the rate."""

    make: object
    sites: tuple[tuple[str, str], ...]
    reads: tuple[tuple[tuple[str, ...], int, int, float], ...]


def _inverted(**kwargs: object) -> Case:
    reads = ("se.squeeze", "project"), 32, kwargs.get("group", 1), 0.5
    return Case(lambda: Inverted(**kwargs), (("", "conv"),), (reads,))


CASES = {
    "wide": Case(Wide, (("", "conv"),), ((("conv2",), 32, 1, 0.5),)),
    "wide, with biases and a stride": Case(
        lambda: Wide(bias=True, stride=2), (("", "conv"),), ((("conv2",), 32, 1, 0.5),)
    ),
    "two": Case(
        lambda: nn.Sequential(Wide(8, 16, 0.3), Wide(8, 32, 0.5)), (("0", "conv"), ("1", "conv")),
        ((("0.conv2",), 16, 1, 0.3), (("1.conv2",), 32, 1, 0.5)),
    ),
    "inverted": _inverted(),
    "inverted, dropped before the squeeze": _inverted(place="middle", by_linear=True),
    "inverted, dropped before the depthwise convolution": _inverted(place="first"),
    "inverted, linear squeeze": _inverted(by_linear=True),
    "inverted, squeeze between views": _inverted(by_linear="views"),
    "inverted, in groups": _inverted(group=8),
    "chain": Case(
        _chain, (("", "conv"), ("", "conv")), ((("4",), 32, 1, 0.5), (("7",), 32, 1, 0.25))
    ),
    "head": Case(_head, (("", "conv"),), ((("6",), 32, 1, 0.5),)),
    "gated": Case(GatedConvolutions, (("", "conv"),), ((("out",), 16, 1, 0.4),)),
}  # fmt: skip


def convert(model: nn.Module, x: Tensor, **kwargs: object) -> Report:
    return sparsedrop.convert(model, (x,), method="sliceout", **kwargs)


def every(units: int, size: int, p: float) -> tuple[Slice, ...]:
    """All slices that a branch draws from."""
    return slices(units, p, align=align_for(units, size))


def drawn(case: Case) -> list[Slice]:
    """Those that a converted model draws from the state of now."""
    return [Slice.draw(units, p, align=align_for(units, size)) for _, units, size, p in case.reads]


def masked(model: nn.Module, case: Case, own: list[Slice]) -> nn.Module:
    """A copy of the original whose layers read these channels, scaled, and 0 for the others."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for (names, *_), kept in zip(case.reads, own, strict=True):
        for name in names:
            _mask(model.get_submodule(name), kept)
    return model


def _mask(layer: nn.Module, kept: Slice) -> None:
    def before(module, args):
        x = args[0]
        live = kept.mask(x.device).view(-1, *[1] * (x.dim() - 2))
        return torch.where(live, x * kept.scale, 0)

    layer.register_forward_pre_hook(before)


def run(model: nn.Module, x: Tensor, upstream: Tensor | None = None) -> list[Tensor]:
    """The output, the gradients of the input and of all parameters, and all buffers."""
    leaf = x.detach().clone().requires_grad_()
    out = model(leaf)
    if upstream is None:
        upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
        upstream = upstream.view(out.shape)
    grads = torch.autograd.grad(out, [leaf, *model.parameters()], upstream)
    return [out.detach(), *grads, *(buffer.clone() for buffer in model.buffers())]
