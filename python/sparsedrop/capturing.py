"""Training steps as CUDA graphs, also of methods whose draws are the host's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsedrop._torch import abandon_pool, foreach_copy
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
        model: nn.Module,
        replays: Sequence[Replay] = (),
        gradients: Sequence[Tensor | None] = (),
    ) -> None:
        self.graphs = len(replays)
        self._step, self._inputs, self._parameters = step, inputs, _trained(model)
        self._replays, self._gradients = replays, gradients
        self._order = list[int]()
        self._model = model
        self._dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        self._captured_rates = self._rates()

    def _rates(self) -> list[Any]:
        return [self._model.training, *((own.training, own.p) for own in self._dropouts)]

    def __repr__(self) -> str:
        how = f"{self.graphs} graphs" if self.graphs else "calls the step: there is no GPU"
        return f"CapturedStep({how}; {_described(self._inputs)})"

    def __call__(self, *batch: Tensor) -> Any:
        """Runs the step of this batch, whose tensors have the shapes and dtypes of the examples.

        Returns what the step returned when it was captured: tensors there are overwritten by the
        next call. So are the gradients of the model's parameters: they are those of the call, and
        are not added to others.

        Raises:
            TypeError: where a part of the batch is no tensor.
            ValueError: for another number of tensors, other shapes or dtypes.
            RuntimeError: where a rate, or whether the model is in training, is not what it was at
                the capture.
        """
        _check_tensors(batch)
        if [(t.shape, t.dtype) for t in batch] != [(t.shape, t.dtype) for t in self._inputs]:
            raise ValueError(
                f"the batch is {_described(batch)}, but the step was captured for "
                f"{_described(self._inputs)}"
            )
        if self._rates() != self._captured_rates:
            raise RuntimeError(
                "the drop probabilities or the training flags of the model are not those of the "
                "capture: capture the step again, and evaluate by calling the model"
            )
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


def _described(batch: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{list(own.shape)} {own.dtype}" for own in batch) or "no tensors"


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [own for own in model.parameters() if own.requires_grad]


def _check_tensors(batch: tuple[Any, ...]) -> None:
    for i, own in enumerate(batch):
        if not isinstance(own, Tensor):
            raise TypeError(
                f"a batch is tensors, but number {i} is of type {type(own).__name__}: pass the "
                "parts of a tuple or a dict, and a number as a tensor, of which a graph would keep "
                "the value"
            )


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
    """Captures a training step in CUDA graphs, so that the host only has to start them.

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
    patterns are drawn by the host, and a graph repeats those of its capture: for a step with such
    draws `draws` graphs are captured, and each call replays one of them, all of them in turn in a
    random order. The draws are spread evenly: a unit is kept in its share of the graphs, give or
    take one for slices and a few for row patterns. So training sees only a few different slices.

    The step is run `warm_up` times first, which trains on the examples; on a CPU it is not, nothing
    is captured, and calls run the step. Gradients are cleared before each call: to accumulate those
    of several parts of a batch, do so within the step. Graphs share their memory.

    Fixed at the capture are rates, the training flags and every number of Python. After `set_rate`
    capture again. Graphs remember where tensors lie: what the step uses has to be changed in place
    and not replaced, so that checkpoints are loaded before the capture. The step must not wait for
    the GPU (`.item()`, `print`, a GradScaler). An optimiser in it needs `capturable=True`, and SGD
    nothing; a learning rate that changes is a tensor on the GPU, with `fused=True` for SGD.

    Args:
        model: what the step trains; several models are an nn.ModuleList. Gradients that the step
            leaves behind may be read after a call.
        step: called with a batch. What it returns is overwritten by the next call.
        examples: a batch, or tensors of its shapes and dtypes, on the model's device. Of a batch
            that is a dict pass the values, and make the dict again in the step.
        draws: how many graphs there are at most, at least 1. A layer has no more different slices
            than its units over `align`.
        warm_up: steps before the capture, at least 1.

    Returns:
        A callable for batches, which may be on the CPU, too.

    Raises:
        TypeError: for a model, a step or examples that are something else.
        ValueError: for `draws` or `warm_up` below 1, and examples on another device.
        RuntimeError: for a model with gradients="lazy", which are not where graphs would look for
            them; and where something in the step cannot be captured.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be an nn.Module, not {type(model).__name__}: capture(model, step, "
            "*examples)"
        )
    if not callable(step) or isinstance(step, Tensor):
        raise TypeError(
            f"step must be a function of a batch, not {type(step).__name__}: pass step, and not "
            "step(x, y)"
        )
    _check_tensors(examples)
    for name, value in (("draws", draws), ("warm_up", warm_up)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    for name, module in model.named_modules():
        if getattr(module, "gradients", "dense") == "lazy":
            raise RuntimeError(
                f'{name or "the model"} has gradients="lazy", which cannot be captured: use '
                'gradients="dense"'
            )
    devices = dict.fromkeys(own.device for own in model.parameters())
    for i, own in enumerate(examples):
        if devices and own.device not in devices:
            named = " and ".join(map(str, devices))
            raise ValueError(f"the model is on {named}, but example {i} is on {own.device}")
        devices[own.device] = None
    device = next(iter(devices), None)
    if device is None or device.type != "cuda":
        return CapturedStep(step, examples, model)
    inputs = tuple(own.detach().clone().requires_grad_(own.requires_grad) for own in examples)
    with torch.cuda.device(device):
        return _captured(model, step, inputs, draws, warm_up)


def _captured(
    model: nn.Module,
    step: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    draws: int,
    warm_up: int,
) -> CapturedStep:
    parameters = _trained(model)
    leaves = (*parameters, *inputs)
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            _forget_gradients(leaves)
            step(*inputs)
    current.wait_stream(stream)
    strata, pool = Strata(draws), torch.cuda.graph_pool_handle()
    replays, kept = list[Replay](), list[Tensor | None]([None] * len(parameters))
    while len(replays) < (draws if strata.is_used else 1):
        graph = torch.cuda.CUDAGraph()
        _forget_gradients(leaves)
        try:
            with torch.cuda.graph(graph, pool=pool), strata.step(len(replays)):
                result = step(*inputs)
                _keep_gradients(parameters, kept)
        except RuntimeError as error:
            _leave_capture(current, pool)
            raise RuntimeError(
                "the step cannot be captured: it may wait for the GPU (.item(), print, a "
                "GradScaler), or have an optimiser without capturable=True"
            ) from error
        has_gradient = [own.grad is not None for own in parameters]
        replays.append(Replay(graph.replay, result, has_gradient))
    _forget_gradients(parameters)
    return CapturedStep(step, inputs, model, replays, kept)


def _leave_capture(stream: torch.cuda.Stream, pool: Any) -> None:
    """After one that failed torch stays on its stream, its allocator waits for the end, and its
    generator is within it: every draw that follows would raise. A capture that succeeds ends the
    last."""
    torch.cuda.set_stream(stream)
    abandon_pool(stream.device_index, pool)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")


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
