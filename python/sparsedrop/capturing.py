"""Training steps as CUDA graphs, also of methods whose draws are the host's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop._torch import foreach_copy
from sparsedrop.masks.strata import Strata


class Replay(NamedTuple):
    """A captured graph."""

    run: Callable[[], None]
    result: Any
    """What the step returned."""
    has_gradient: list[bool]
    """Which parameters it left a gradient for."""


class CapturedStep:
    """What `capture` returns: called with a batch, it runs a step of it.

    Attributes:
        graphs: how many were captured; 0 where there is no GPU, and the step itself is called.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        parameters: Sequence[Tensor],
        replays: Sequence[Replay] = (),
        gradients: Sequence[Tensor | None] = (),
    ) -> None:
        self.graphs = len(replays)
        self._step, self._inputs, self._parameters = step, inputs, parameters
        self._replays, self._gradients = replays, gradients
        self._order = list[int]()

    def __call__(self, *batch: Tensor) -> Any:
        """Runs the step of this batch, whose tensors have the shapes and dtypes of the examples.

        Returns what the step returned when it was captured: tensors there are overwritten by the
        next call. So are the gradients of the model's parameters: they are those of the call, and
        are not added to others.

        Raises:
            ValueError: for another number of tensors, other shapes or dtypes.
        """
        self._check(batch)
        if not self._replays:
            _forget_gradients(self._parameters)
            return self._step(*batch)
        with torch.no_grad():  # an example may be a leaf whose gradient is wanted
            for own, given in zip(self._inputs, batch, strict=True):
                # Memory of the host may be written to again before a copy of it has begun.
                own.copy_(given, non_blocking=given.is_cuda)
        if not self._order:
            self._order = torch.randperm(self.graphs, device="cpu").tolist()
        replay = self._replays[self._order.pop()]
        replay.run()
        for parameter, gradient, has_gradient in zip(
            self._parameters, self._gradients, replay.has_gradient, strict=True
        ):
            parameter.grad = gradient if has_gradient else None
        return replay.result

    def _check(self, batch: tuple[Tensor, ...]) -> None:
        found, expected = ([(tuple(t.shape), t.dtype) for t in of] for of in (batch, self._inputs))
        if found != expected:
            named = [
                ", ".join(f"{list(shape)} {dtype}" for shape, dtype in of) or "nothing"
                for of in (found, expected)
            ]
            raise ValueError(f"the batch is {named[0]}, but the step was captured for {named[1]}")


def _forget_gradients(tensors: Iterable[Tensor]) -> None:
    """As an optimiser's zero_grad."""
    for tensor in tensors:
        tensor.grad = None


def capture(
    model: nn.Module,
    step: Callable[..., Any],
    *examples: Tensor,
    draws: int = 16,
    warm_up: int = 3,
) -> CapturedStep:
    """Captures a training step in CUDA graphs, which take the host's time out of it.

        def step(x, y):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = sparsedrop.capture(model, step, x, y)
        for x, y in loader:
            loss = run(x, y)

    The masks of SparseDrop are drawn on the GPU, anew in each replay of one graph. Slices and row
    patterns are drawn by the host, and a graph repeats those of its capture: where a step has such
    draws, `draws` graphs are captured, and each call replays one of them, all of them in turn in a
    random order. Their draws are spread evenly: a unit is kept in as many of them as its
    probability says, to one graph of slices and a few of row patterns. So a small number of
    different slices is all that a training sees: (1 - p) * draws should be a whole number, and not
    a small one.

    The step is run `warm_up` times first, which are steps of training too. It must not wait for the
    GPU, an optimiser in it needs `capturable=True` (or to be SGD), and learning rates have to be
    tensors to change. It starts without gradients: to accumulate those of several batches, do so
    within it. Graphs share their memory. On a CPU nothing is captured: calls run the step.

    Args:
        model: whose gradients the step makes; where it leaves them behind, they may be read after
            a call. Several models are an nn.ModuleList.
        step: called with a batch; all that it reads and writes stays where it is.
        examples: tensors of a batch, on one device, of the shapes and dtypes of all of them.
        draws: how many graphs there are at most, at least 1.
        warm_up: steps before the capture, at least 1.

    Returns:
        A callable for batches.

    Raises:
        ValueError: for `draws` or `warm_up` below 1, and examples on several devices.
        RuntimeError: for a model with gradients="lazy", which are not where graphs would look for
            them; and from torch, where something in the step cannot be captured.
    """
    for name, value in (("draws", draws), ("warm_up", warm_up)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    for name, module in model.named_modules():
        if getattr(module, "gradients", "dense") == "lazy":
            raise RuntimeError(
                f'{name or "the model"} has gradients="lazy", which cannot be captured: use '
                'gradients="dense"'
            )
    device = _device_of(model, examples)
    parameters = [own for own in model.parameters() if own.requires_grad]
    if device is None or device.type != "cuda":
        return CapturedStep(step, examples, parameters)
    inputs = tuple(own.detach().clone().requires_grad_(own.requires_grad) for own in examples)
    with torch.cuda.device(device):
        return _captured(step, inputs, parameters, draws, warm_up)


def _device_of(model: nn.Module, examples: tuple[Tensor, ...]) -> torch.device | None:
    tensors = [*examples, *model.parameters()]
    devices = dict.fromkeys(tensor.device for tensor in tensors)
    if len(devices) > 1:
        named = " and ".join(map(str, devices))
        raise ValueError(f"the model and the examples are on several devices: {named}")
    return next(iter(devices), None)


def _captured(
    step: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    parameters: list[nn.Parameter],
    draws: int,
    warm_up: int,
) -> CapturedStep:
    leaves = (*parameters, *inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            _forget_gradients(leaves)
            step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    strata, pool = Strata(draws), torch.cuda.graph_pool_handle()
    replays, kept = list[Replay](), list[Tensor | None]([None] * len(parameters))
    while len(replays) < (draws if strata.is_used else 1):
        graph = torch.cuda.CUDAGraph()
        _forget_gradients(leaves)
        with torch.cuda.graph(graph, pool=pool), strata.step(len(replays)):
            result = step(*inputs)
            _keep_gradients(parameters, kept)
        has_gradient = [own.grad is not None for own in parameters]
        replays.append(Replay(graph.replay, result, has_gradient))
    _forget_gradients(parameters)
    return CapturedStep(step, inputs, parameters, replays, kept)


def _keep_gradients(parameters: Sequence[Tensor], kept: list[Tensor | None]) -> None:
    """All graphs leave a parameter's gradient where the first one does that has it."""
    pairs = []
    for i, own in enumerate(parameters):
        first = kept[i]
        if first is None:
            kept[i] = own.grad
        elif own.grad is not None:
            pairs.append((first, own.grad))
    if pairs:
        foreach_copy([first for first, _ in pairs], [own for _, own in pairs])
