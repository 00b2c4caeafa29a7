"""Every private name of torch that the package uses, and what a release that moves one changes.

The public ways round them cost the host more per call than a launch does, or do not exist. They are
looked up when the package is imported, unless that would import torch's compiler: a torch that has
renamed one fails there, with its name, and not within a training step. `pyproject.toml` has the
oldest torch that was tested.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

_C: Any = torch._C

Function = TypeVar("Function", bound=Callable[..., Any])


def _private(owner: Any, name: str) -> Any:
    """A private name of torch; ImportError where this release does not have it."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise ImportError(
            f"sparsedrop uses {owner.__name__}.{name}, which torch {torch.__version__} does not "
            "have: use the release of torch that sparsedrop was tested with, or a newer sparsedrop"
        ) from None


_dispatch_modes: Callable[[], int] = _private(_C, "_len_torch_dispatch_stack")
_transforms_are_active: Callable[[], bool] = _private(_C, "_are_functorch_transforms_active")
_private(forward_ad, "_current_level")
_private(Tensor, "_version")
_private(torch.UntypedStorage, "_cdata")
_graph_task: Callable[[], int] = _private(_C, "_current_graph_task_id")
_will_run: Callable[[Any], bool] = _private(_C, "_will_engine_execute_node")
_functorch: Any = _private(_C, "_functorch")
_private(_functorch, "get_interpreter_stack")
_private(_functorch, "TransformType")
_is_batched: Callable[[Tensor], bool] = _private(_functorch, "is_legacy_batchedtensor")
_is_vmap_batch: Callable[[Tensor], bool] = _private(_functorch, "is_batchedtensor")
_unwrap_if_dead: Callable[[Tensor], Tensor] = _private(_functorch, "unwrap_if_dead")
_private(torch.utils, "_pytree")
_private(torch.compiler, "_is_exporting_flag")
if torch.distributed.is_available():
    _private(nn.parallel.DistributedDataParallel, "_active_ddp_module")
_raw_stream: Callable[[int], int] | None = (
    _private(_C, "_cuda_getCurrentRawStream") if torch.version.cuda else None
)

_empty_strided: Callable[..., Tensor] | None = (
    _private(_C._dynamo.guards, "_empty_strided_cuda") if torch.version.cuda else None
)

normalized: Callable[..., Any] = _private(torch, "_batch_norm_impl_index")
"""What F.batch_norm runs: with its result it returns what its backward pass needs."""

normalized_backward: Callable[..., Any] = _private(
    torch.ops.aten, "_batch_norm_impl_index_backward"
).default

foreach_copy: Callable[..., Any] = _private(torch, "_foreach_copy_")
"""Copies tensors into others, in one launch or a few."""

DispatchMode: Any = _private(_python_dispatch, "TorchDispatchMode")
"""A mode that sees every operation, whoever calls it."""

_module: Any = nn.modules.module
_global_hooks: tuple[dict[int, Any], ...] = tuple(
    _private(_module, f"_global_{kind}_hooks")
    for kind in ("forward", "forward_pre", "backward", "backward_pre")
)
"""Of every call of a module. torch changes these dictionaries, and makes no others."""

without_base: Callable[[Tensor, list[int]], Tensor] = _private(torch.ops.aten, "_unsafe_view")
"""Tensor.view, whose result counts for no view: an autograd node may return it, and whoever gets it
may write it in place."""

_PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


def raw_stream(index: int) -> int:
    """Address of torch's current stream on GPU `index`.

    The address alone: torch.cuda.current_stream() makes a Stream object around it.
    """
    assert _raw_stream is not None, "a torch without CUDA has no streams"
    return _raw_stream(index)


def empty_on_current_gpu(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """torch.empty_strided on the current GPU, in a third of its time on the host.

    It is what the code that torch.compile makes allocates with.
    """
    assert _empty_strided is not None, "a torch without CUDA has no GPU"
    return _empty_strided(shape, strides, dtype)


def abandon_pool(index: int, pool: Any) -> None:
    """Lets the allocator of GPU `index` forget a capture that failed: it waits for the end of that,
    and keeps the memory of the pool till then. Nothing happens where the capture has ended."""
    end, release = (
        getattr(_C, f"_cuda_{name}", None) for name in ("endAllocateToPool", "releasePool")
    )
    if end is not None and release is not None:
        with contextlib.suppress(RuntimeError):
            end(index, pool)
            release(index, pool)


def has_global_hooks() -> bool:
    """Whether somebody sees the call of every module."""
    return any(_global_hooks)


def is_watched(*tensors: Tensor) -> bool:
    """True where torch.compile, a mode, a transform or a subclass has to see an op.

    Elsewhere the op's implementation may be called itself: the dispatcher and its lists cost the
    host as much as a launch. Views that are negated only when they are read need them, too.
    """
    if torch.compiler.is_compiling() or _dispatch_modes() or _transforms_are_active():
        return True
    for tensor in tensors:  # noqa: SIM110 - a generator costs more than all that it would ask
        if type(tensor) not in _PLAIN_TYPES or tensor.is_neg():
            return True
    return False


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether autograd takes several at once, of which none has memory of its own."""
    return _is_batched(grad)


def is_watched_gradient(grad: Tensor) -> bool:
    """As `is_watched`, of a gradient; also of a batch of them."""
    return is_batch_of_gradients(grad) or is_watched(grad)


def is_exporting() -> bool:
    """True within torch.export.

    The compiler of torch 2.11 takes `torch.compiler.is_exporting()` for True wherever it meets it.
    """
    return torch.compiler._is_exporting_flag


def constant_when_compiled(function: Function) -> Function:
    """Lets torch.compile call the function while it traces, and take the result for a constant.

    torch.compiler.assume_constant_result does the same, but imports the compiler, which takes as
    long as torch itself.
    """
    marked: Any = function
    marked._dynamo_marked_constant = True
    return function


def register_container(
    cls: type,
    names: tuple[str, ...],
    flatten: Callable[[Any], tuple[list[Tensor], Any]],
    unflatten: Callable[[Any, Any], Any],
) -> None:
    """Lets torch.export, and whatever else walks through arguments, find a class's tensors.

    Args:
        cls: the class.
        names: of its tensors.
        flatten: object -> (its tensors, the rest as JSON has it).
        unflatten: (tensors, the rest) -> object.
    """
    pytree = torch.utils._pytree

    def flatten_with_keys(container: Any) -> tuple[Any, Any]:
        tensors, rest = flatten(container)
        keys = map(pytree.GetAttrKey, names)
        return list(zip(keys, tensors, strict=True)), rest

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


def is_transformed() -> bool:
    """True within a transform of torch.func, and within a level of forward-mode AD."""
    return _transforms_are_active() or forward_ad._current_level >= 0


def without_dead_levels(tree: Any) -> Any:
    """The same with tensors that a transform wrapped which is over; those of masks, too."""
    return torch.utils._pytree.tree_map_only(Tensor, _unwrap_if_dead, tree)


def is_vmapped() -> bool:
    """True under vmap."""
    return _is_within(_functorch.TransformType.Vmap)


def is_one_for_each(tensor: Tensor) -> bool:
    """Whether it has a value for each of vmap's examples."""
    return _is_vmap_batch(tensor)


def _is_within(kind: Any) -> bool:
    levels = _functorch.get_interpreter_stack() if _transforms_are_active() else None
    return any(level.key() == kind for level in levels or ())


def is_forward_mode(*tensors: Tensor | None) -> bool:
    """True in forward-mode AD: where a jvp is taken, or a tensor has a tangent."""
    if _transforms_are_active():
        return _is_within(_functorch.TransformType.Jvp)
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
        if tensor is not None
    )


def apply_eagerly(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """What `function.apply` calls in the end, without its detour for torch.func's transforms.

    For functions that refuse those: a tenth of a small layer's forward pass on the host.
    """
    of_functions: Any = super(torch.autograd.Function, function)
    return of_functions.apply


def version_of(tensor: Tensor) -> int:
    """How many in-place operations a tensor has seen; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int:
    """The same number for tensors that share memory, also where there is none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse tensor, or a wrapper of others
        return id(tensor)


def is_in_backward() -> bool:
    """True within a backward pass, where checkpointed forward passes are run again."""
    return _graph_task() != -1


def is_accumulated(leaf: Tensor) -> bool:
    """Whether the backward pass that runs adds to the `.grad` of a leaf.

    RuntimeError in torch.autograd.grad of that leaf.
    """
    # Of one that was frozen since its forward pass, torch gives no node, and adds to it still.
    return not leaf.requires_grad or _will_run(torch.autograd.graph.get_gradient_edge(leaf).node)


def is_in_ddp() -> bool:
    """True within the forward pass of DistributedDataParallel."""
    if not torch.distributed.is_available():
        return False
    return nn.parallel.DistributedDataParallel._active_ddp_module is not None


def keep_apart(op: Any) -> None:
    """Keeps torch.compile from merging two calls of a random op, of which it knows its own only.

    It goes by a list, and not by the tag that says so. To be called while a program is traced: the
    module is not imported before it is needed.
    """
    compile_utils = importlib.import_module("torch._functorch.compile_utils")
    random_ops = _private(compile_utils, "rand_ops")
    if op not in random_ops:
        random_ops.append(op)
