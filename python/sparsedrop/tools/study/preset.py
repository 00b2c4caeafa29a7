"""How a network is made and trained."""

from __future__ import annotations

from dataclasses import dataclass

from sparsedrop.tools.study.method import Block


@dataclass(frozen=True)
class Preset:
    """What holds unless the user says otherwise; None where a task has no such thing."""

    width: int
    layers: int
    batch_size: int
    lr: float
    block_shapes: tuple[Block, ...] = ((128, 128),)  # none: nothing is dropped in blocks
    sampler: str | None = "bernoulli"
    scale: str | None = "global"  # of what patterns keep
    seeds: int = 3
    heads: int | None = None
    context: int | None = None  # characters or words of a window
    weight_decay: float = 0.0
    clip: float | None = None  # the most that the norm of all gradients is
    epochs: int | None = None
    steps: int | None = None  # where there are no epochs
    eval_every: int | None = None  # steps; None is an epoch
    patience: int | None = None  # evaluations without a better one; None: to the last step
