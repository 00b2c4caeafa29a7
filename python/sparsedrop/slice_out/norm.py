"""Batch normalisation of a slice of channels, and its statistics for the full network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from numbers import Integral

import torch
from torch import Tensor, nn

from sparsedrop._torch import is_transformed, is_watched
from sparsedrop.masks import Slice
from sparsedrop.ops.slices.batch_norm import BatchNorm, Vectors, by_views
from sparsedrop.ops.slices.batch_norm import batch_norm as node

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out_slice: Slice | None = None,
) -> Tensor:
    """`F.batch_norm` of a slice of channels; statistics outside of it are left alone.

    A variance that is met behind a slice whose scale is 1 / q is too large for the full network, by
    about 1 / q: see `recalibrate_bn`.

    Args:
        x: `[N, C', ...]`, with the channels of `out_slice` only, in its order.
        running_mean: `[C]` or None.
        running_var: `[C]` or None.
        weight: `[C]` or None.
        bias: `[C]` or None.
        training: as for `F.batch_norm`.
        momentum: likewise.
        eps: likewise.
        out_slice: of C units; None: all of them.

    Raises:
        TypeError: for a slice that is no Slice.
        ValueError: where extents disagree, or there is one value a channel in training.
    """
    if out_slice is None:
        return nn.functional.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )
    if not isinstance(out_slice, Slice):
        raise TypeError(f"out_slice must be a Slice, not {type(out_slice).__name__}")
    vectors = Vectors(weight, bias, running_mean, running_var)
    for name, vector in vectors._asdict().items():
        if vector is not None and vector.shape != (out_slice.units,):
            raise ValueError(
                f"{name} is {list(vector.shape)}, but out_slice is of {out_slice.units} units"
            )
    if x.dim() < 2 or x.shape[1] != out_slice.width:
        raise ValueError(f"x is {list(x.shape)}, but out_slice keeps {out_slice.width} channels")
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"x is {list(x.shape)}: a channel of one value has no variance")
    how = BatchNorm(out_slice.pieces, training, momentum, eps)
    given = [vector for vector in vectors if vector is not None]
    if torch.compiler.is_compiling() or is_transformed() or is_watched(x, *given):
        return by_views(x, vectors, how)
    return node(x, vectors, how)


def recalibrate_bn(model: nn.Module, loader: Iterable[object], batches: int | None = None) -> int:
    """Replaces the statistics of batch norms by those of the full network, without dropout.

    Each becomes the plain mean over the batches. What slices left, a variance too large by about
    1 / q, is forgotten. Training flags and momenta are restored; no gradient is computed. The model
    has to use its nn.BatchNorm modules in evaluation; one that it does not call keeps its
    statistics.

    Args:
        model: any module.
        loader: of batches: x, or a tuple or list whose first is x. They are moved to the device of
            the statistics.
        batches: how many; None: all.

    Returns:
        The number of batch norms whose statistics are new.

    Raises:
        ValueError: if the model has no batch norm with statistics, `batches` is no whole number of
            at least 1, or there is no batch.
        TypeError: for a loader that is not iterable.
    """
    norms = [m for m in model.modules() if isinstance(m, Norm) and m.track_running_stats]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no batch norm with running statistics")
    if batches is not None and (not isinstance(batches, Integral) or batches < 1):
        raise ValueError(f"batches must be a whole number of at least 1, not {batches!r}")
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"loader must give batches one by one, not be of {type(loader).__name__}")
    mean = norms[0].running_mean
    assert mean is not None
    count = 0
    with _collecting(model, norms) as called, torch.no_grad():
        for batch in islice(loader, batches):
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(x.to(mean.device) if isinstance(x, Tensor) else x)
            count += 1
        if count == 0:
            raise ValueError("the loader has no batch")
        called += [norm for norm in norms if int(norm.num_batches_tracked or 0) > 0]
    return len(called)


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def _collecting(model: nn.Module, norms: Sequence[Norm]) -> Iterator[list[nn.Module]]:
    """Everything but the norms is in evaluation; what is not in the list in the end is as it was.

    The count of batches, which stands for all of a training, is as it was in any case.
    """
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    before = {norm: [getattr(norm, name).clone() for name in _STATISTICS] for norm in norms}
    called: list[nn.Module] = []
    model.eval()
    try:
        for norm in norms:
            norm.train()
            norm.momentum = None
            norm.reset_running_stats()
        yield called
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm in norms:
            norm.momentum = momenta[norm]
            names = _STATISTICS[2:] if norm in called else _STATISTICS
            old = dict(zip(_STATISTICS, before[norm], strict=True))
            for name in names:
                getattr(norm, name).copy_(old[name])
