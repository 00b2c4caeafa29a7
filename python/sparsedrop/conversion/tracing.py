"""Watches one forward pass, and leaves the model as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsedrop._torch import DispatchMode, version_of
from sparsedrop.conversion import kinds
from sparsedrop.conversion.flow import END, Call, Frame, Graph, Value
from sparsedrop.conversion.functions import has_numbers, keeps_channels, kind_of_call
from sparsedrop.conversion.preserving import preserved
from sparsedrop.conversion.values import Values
from sparsedrop.conversion.walking import tensors_in


def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """The flow of tensors through one forward pass in training mode, under no_grad.

    Args:
        model: anything; it, its buffers and flags and torch's generators are afterwards as before.
        example_inputs: a tuple of positional or a dict of keyword arguments, or one tensor.

    Raises:
        TypeError: for inputs that are none of these.
        RuntimeError: where the pass fails, from its exception.
    """
    args, kwargs = _arguments(example_inputs)
    tracer = Tracer(model)
    with preserved(model, (args, kwargs)):
        model.train()
        with tracer.watching(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            try:
                with tracer, Unseen(tracer):
                    out = model(*args, **kwargs)
            except Exception as error:
                given = (*args, *kwargs.values())
                is_shape = bool(given) and all(isinstance(own, int) for own in given)
                hint = ". They are tensors, not the extents of one" if is_shape else ""
                raise RuntimeError(
                    f"the pass over example_inputs failed in {tracer.place(error)}: "
                    f"{type(error).__name__}: {error}{hint}"
                ) from error
        tracer.finish(out)
    return tracer.graph


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(
        "example_inputs is a tuple of positional or a dict of keyword arguments of one forward "
        f"pass, or a tensor, not {type(example_inputs).__name__}"
    )


class Tracer(TorchFunctionMode):
    """Sees every function of torch, and through hooks which modules are running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = Graph()
        self._model = model
        self._stack: list[Frame] = []
        self._is_paused = False
        self._owners = {
            id(parameter): name
            for name, module in model.named_modules()
            if kinds.is_linear(module)
            for parameter in module.parameters(recurse=False)
        }
        # Linear layers, dropouts and blocks of ours that run: what goes on inside is their own.
        self._closed: list[tuple[list[Value], list[tuple[Tensor, int]]]] = []
        self._values = Values()
        # Arguments of the function or the closed module that runs.
        self._reading: frozenset[int] = frozenset()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every module: of all, the last before a forward, and the first behind it."""
        handles = []
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            before, after = self._hooks(name, module)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, prepend=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def place(self, error: BaseException) -> str:
        """The innermost module of the model that was running when the exception was raised."""
        names = {module: name for name, module in self._model.named_modules()}
        place, traceback = "", error.__traceback__
        while traceback is not None:
            module = traceback.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module) and names.get(module):
                place = f"{names[module]} ({type(module).__name__})"
            traceback = traceback.tb_next
        return place or type(self._model).__name__

    def _hooks(self, name: str, module: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any]]:
        kind = kinds.kind_of(module)

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._stack.append(Frame(module, name, self._frame()))
            if kind is not None:
                with self._paused():
                    read = [(t, version_of(t)) for t in tensors_in((args, kwargs))]
                    values = [self._value(tensor) for tensor, _ in read]
                if not self._closed:
                    self._reading = _ids(read)
                self._closed.append((values, read))

        def after(_: nn.Module, args: Any, out: Any) -> Any:
            while self._stack.pop().module is not module:
                pass
            if kind is None or not self._closed:
                return None
            values, read = self._closed.pop()
            if self._closed:
                return None
            self._reading = frozenset()
            if not isinstance(out, Tensor):
                return None
            with self._paused():
                # At a rate of 0 a dropout returns its argument, but is a place of its own.
                is_same = any(out is tensor and version_of(out) == v for tensor, v in read)
                result = out.view_as(out) if is_same else out
                self._enter_module(kind, module, name, values, result)
            return result

        return before, after

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """What the tracer itself asks of tensors is no part of the pass."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def _frame(self) -> Frame | None:
        return self._stack[-1] if self._stack else None

    def _enter_module(
        self, kind: str, module: nn.Module, name: str, inputs: list[Value], out: Tensor
    ) -> None:
        call = Call(kind, name or type(module).__name__, self._frame())
        call.module, call.name, call.inputs = module, name, inputs
        call.outputs = [self._values.new(out)]
        self.graph.connect(call)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or self._closed:
            return func(*args, **kwargs)
        read = [(tensor, version_of(tensor)) for tensor in tensors_in((args, kwargs))]
        only_looks = kinds.only_looks(func)
        inputs = [] if only_looks else [self._value(tensor) for tensor, _ in read]
        self._reading = _ids(read)
        try:
            out = func(*args, **kwargs)
        finally:
            self._reading = frozenset()
        if only_looks:
            self._note_measures(func, read)
            return out
        overwritten = [(t, before) for t, before in read if version_of(t) != before]
        written = [tensor for tensor, _ in overwritten]
        known = {id(tensor) for tensor, _ in read}
        results = list(tensors_in(out))
        made = [tensor for tensor in results if id(tensor) not in known]
        if results and not made and not written:
            return out  # its own argument, as contiguous() returns it
        call = self._call(func, args, kwargs, [tensor for tensor, _ in read], made + written)
        call.inputs = inputs
        if any(self._values.has_alias(tensor) for tensor in written):
            # Whatever else shares the memory is written, too.
            call.kind, call.keeps_channels = "other", False
        for tensor, before in overwritten:
            for value in self._values.held(tensor, before):
                value.overwritten_by = call
        call.outputs = [self._values.new(tensor) for tensor in made + written]
        self.graph.connect(call)
        return out

    def _note_measures(self, func: Any, read: list[tuple[Tensor, int]]) -> None:
        if kinds.name_of(func) in kinds.MEASURES:
            for tensor, _ in read:
                value = self._values.find(tensor)
                if value is not None:
                    value.is_measured = True

    def _call(
        self, func: Any, args: Any, kwargs: dict[str, Any], read: list[Tensor], out: list[Tensor]
    ) -> Call:
        name = kinds.name_of(func)
        how = name, args, kwargs, read, out
        call = Call(kind_of_call(*how), name, self._frame(), keeps_channels=keeps_channels(*how))
        call.has_numbers = has_numbers(args, kwargs, read)
        if call.kind == "functional linear":
            frame = call.frame
            if frame is not None and isinstance(frame.module, nn.Linear):
                call.module, call.name = frame.module, frame.name
            else:
                call.name = next((self._owners[id(t)] for t in read if id(t) in self._owners), "")
        return call

    def _value(self, tensor: Tensor) -> Value:
        """What the tensor holds now."""
        found = self._values.find(tensor)
        if found is not None:
            return found
        written = self._values.written_under(tensor)
        if written is not None:
            self._read_elsewhere("a view of the same memory", written)
        return self._values.new(tensor)

    def read_unseen(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Enters what an operation reads that is no argument of the function that runs."""
        if self._is_paused:
            return
        for tensor in tensors:
            value = None if id(tensor) in self._reading else self._values.find(tensor)
            if value is not None:
                self._read_elsewhere(name, value)

    def _read_elsewhere(self, what: str, value: Value) -> None:
        self.graph.connect(Call("other", what, self._frame(), [value]))

    def finish(self, out: Any) -> None:
        """What is returned or kept somewhere is read by somebody who is not seen."""
        self._keep("the caller", out)
        for name, module in self._model.named_modules():
            held = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers")}
            self._keep(f"{name or type(module).__name__}, which keeps it", held)

    def _keep(self, what: str, things: Any) -> None:
        found = map(self._values.find, tensors_in(things))
        inputs = [value for value in found if value is not None]
        if inputs:
            self.graph.connect(Call(END, what, None, inputs))


class Unseen(DispatchMode):
    """Tells a tracer what reads a tensor without a function of torch being called with it: scripts,
    transforms, extensions, and functions that find it elsewhere than among their arguments."""

    supports_higher_order_operators = True

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._tracer.read_unseen(kinds.name_of(func), tensors_in((args, kwargs)))
        return func(*args, **kwargs)


def _ids(read: list[tuple[Tensor, int]]) -> frozenset[int]:
    return frozenset(id(tensor) for tensor, _ in read)
