"""How a layer or a stack would run, in words, without running it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsedrop import _native, select
from sparsedrop.ops.layer import facts as of_layers
from sparsedrop.ops.layer.facts import Options
from sparsedrop.ops.layer.kernels import keys_of as keys_of_layer
from sparsedrop.ops.layer.node import decide
from sparsedrop.ops.plan import Key, request_of, request_on
from sparsedrop.ops.stack import facts as of_stacks
from sparsedrop.ops.stack.facts import Dropped, Layer
from sparsedrop.ops.stack.kernels import are_legal
from sparsedrop.ops.stack.kernels import keys_of as keys_of_stack

PRODUCTS = "forward", "input gradient", "weight gradient"

DTYPES = torch.bfloat16, torch.float16, torch.float32, torch.float64

ONE_BY_ONE = "its modules are called one by one, since one of them was replaced or has hooks"

DENSE = "nothing is dropped, so that it is the dense module"

Keys = Sequence[tuple[Key, Key, Key]]

Choices = Sequence[tuple[select.Choice, ...]]
"""Of the kernels; empty where a product is dense."""


class Where(NamedTuple):
    """What is multiplied, and where: so many rows, in products of that dtype."""

    rows: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        kind = self.device.type
        name = {"cpu": "a CPU"}.get(kind, f"a device of kind {kind}")
        name = torch.cuda.get_device_name(self.device) if kind == "cuda" else name
        return f"{self.rows} rows of {str(self.dtype).partition('.')[2]} on {name}"


def where(
    rows: int, weight: Tensor, dtype: torch.dtype | None, device: torch.device | str | None
) -> Where:
    """What is not given is the weight's own; the dtype is that of autocast, where it is on.

    Raises:
        TypeError, ValueError: where rows are no number above 0.
        RuntimeError: for a GPU that is not there, or that this build has no code for.
    """
    if isinstance(rows, bool) or not hasattr(rows, "__index__"):
        raise TypeError(f"rows must be a whole number, not {rows!r}")
    rows = operator.index(rows)
    if not 1 <= rows <= select.MAX_EXTENT:
        raise ValueError(f"rows must be 1 to {select.MAX_EXTENT}, not {rows}")
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype!r}")
    found = weight.device if device is None else torch.device(device)
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"there is no GPU here, so nothing can be said of {found}")
        _native.require_build_for(found)
        found = torch.device(
            "cuda", torch.cuda.current_device() if found.index is None else found.index
        )
    if dtype is None:
        casts = weight.dtype is not torch.float64 and found.type in ("cuda", "cpu")
        casts = casts and torch.is_autocast_enabled(found.type)
        dtype = torch.get_autocast_dtype(found.type) if casts else weight.dtype
    return Where(rows, dtype, found)


def explain_layer(at: Where, weight: Tensor, bias: Tensor | None, options: Options) -> str:
    """How a training step of a layer would run."""
    if not options.p or 0 in weight.shape:
        return f"{at}: {DENSE}"
    casts = at.dtype is not weight.dtype
    of_bias = (None, None) if bias is None else (bias.shape, bias.dtype)
    x = torch.empty(at.rows, weight.shape[1], dtype=at.dtype, device="meta")
    of_weight = weight.shape, weight.dtype
    facts = of_layers.Facts(*of_layers.facts_of(x, options, (at.dtype, casts), of_weight, of_bias))
    facts = facts._replace(device=at.device.index or 0)
    keys = [keys_of_layer(facts)]
    if at.device.type != "cuda":
        return _one_by_one(at, ["weight"], keys)
    path, choices, reason = decide(facts)
    return _on_gpu(f"{at}: {_way(path)}; {reason}", ["weight"], keys, path, [choices])


def explain_stack(
    at: Where, layers: tuple[Layer, ...], dropped: Dropped, names: Sequence[str]
) -> str:
    """Likewise of a stack, whose weights have these names, a gate's before its layer's."""
    if not any(dropped.rates) or any(0 in layer.weight.shape for layer in layers):
        return f"{at}: {DENSE}"
    weight = layers[0].weight
    x = torch.empty(at.rows, weight.shape[1], dtype=at.dtype, device="meta")
    dtypes = at.dtype, weight.dtype, at.dtype
    kinds = tuple(map(of_stacks.kind_of, layers))
    facts = of_stacks.Facts(*of_stacks.facts_of(x.get_device(), x.shape, dtypes, kinds, dropped))
    facts = facts._replace(device=at.device.index or 0)
    by_branch = keys_of_stack(facts)
    keys = list(by_branch.values())
    if at.device.type != "cuda":
        return _one_by_one(at, names, keys)
    features = zip(facts.features, facts.keeps, strict=True)
    widths = tuple(n for n, keep in features if keep is not None)
    path, choices, reason = select.decide_stack(tuple(_requests(keys)), widths)
    if path == "kernel" and not are_legal(facts, dict(zip(by_branch, choices, strict=True))):
        path = "products"
        reason = "a gate, or an activation of odd extents, cannot run densely among kernels"
    return _on_gpu(f"{at}: {_way(path)}; {reason}", names, keys, path, choices)


def _way(path: str) -> str:
    return {
        "kernel": "one call each way, dropped blocks skipped",
        "dense": "dense products of what is masked",
        "products": "product by product",
    }[path]


def _requests(keys: Keys) -> list[tuple[select.Request, ...]]:
    return [tuple(map(request_of, three)) for three in keys]


def _on_gpu(head: str, names: Sequence[str], keys: Keys, path: str, choices: Choices) -> str:
    if path == "dense":
        return head
    requests, ways = _requests(keys), []
    for i, three in enumerate(requests):
        if path == "products":
            ways += [_said(select.decide(request)) for request in three]
        elif choices[i]:
            ways += map(select.describe, three, choices[i])
        else:
            ways += ["a dense product"] * len(PRODUCTS)
    return _listed(head, names, requests, ways)


def _one_by_one(at: Where, names: Sequence[str], keys: Keys) -> str:
    requests = [tuple(request_on(at.device.type, key) for key in three) for three in keys]
    ways = [_said(select.decide(request)) for three in requests for request in three]
    return _listed(f"{at}: {_way('products')}", names, requests, ways)


def _said(choice: select.Choice) -> str:
    path = "live parts" if choice.path in ("kernel", "cpu") else choice.path
    return f"{path}, {choice.reason}" if choice.reason else path


def _listed(
    head: str,
    names: Sequence[str],
    requests: Sequence[tuple[select.Request, ...]],
    ways: Sequence[str],
) -> str:
    lines = [head]
    rest = iter(ways)
    for name, (forward, *_) in zip(names, requests, strict=True):
        what = f"{name} [{forward.n}, {forward.k}]"
        lines += [f"  {what}, {product}: {next(rest)}" for product in PRODUCTS]
    return "\n".join(lines)
