"""Where the tensors of a stack's calls stand among their addresses, and what lies in its pack."""

from __future__ import annotations

from sparsedrop.ops.program import At, MaskPlace
from sparsedrop.ops.stack.facts import Branch, Facts, branches

ALIGNMENT = 16


class Pack:
    """One buffer of a call, in bytes: its masks, and behind them the biases that are rounded or
    scaled."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._mask_at: dict[int, int] = {}
        self._bias_at: dict[Branch, int] = {}
        size = 0
        for i, keep in enumerate(facts.keeps):
            if keep is not None:
                self._mask_at[i] = size
                size = _aligned(size + 4 * self.mask(i, 0).lies.size)
        last = len(facts.kinds) - 1
        for branch in branches(facts.kinds):
            is_scaled = branch.layer == last and facts.keeps[-1] is not None
            if branch.has_bias and (facts.rounds_parameters or is_scaled):
                self._bias_at[branch] = size
                size = _aligned(size + facts.dtype.itemsize * facts.kinds[branch.layer].outputs)
        self.size = size

    def mask(self, index: int, number: int) -> MaskPlace:
        """A mask of the stack, where the pack is the address of that number."""
        facts = self._facts
        shape = facts.rows, facts.features[index]
        return MaskPlace(number, shape, facts.block_shape, self._mask_at[index])

    def masks(self, number: int) -> dict[int, MaskPlace]:
        """All masks, by what they drop."""
        return {i: self.mask(i, number) for i in self._mask_at}

    def bias(self, branch: Branch, number: int) -> At | None:
        """Where a bias is rounded to; None: it is used as it was given."""
        at = self._bias_at.get(branch)
        return None if at is None else (number, at)


class Forward:
    """The places of a forward pass, by number."""

    X, USED_X, OUT, PACK, SCRATCH = range(5)

    def __init__(self, facts: Facts) -> None:
        count = 5
        self.weights: dict[Branch, int] = {}
        """Of a branch: its weight as given, where it is rounded to, as used, and its bias."""
        for branch in branches(facts.kinds):
            self.weights[branch] = count
            count += 4
        self.kept: list[tuple[int, ...]] = []
        """Of a layer: what the backward pass keeps of it; see `kept_of`."""
        self.results: list[int] = []
        """Of a layer: its result, if that is not kept and not the stack's."""
        for i in range(len(facts.kinds)):
            kept = kept_of(facts, i)
            self.kept.append(tuple(range(count, count + kept)))
            count += kept
            self.results.append(count)
            count += 1
        self.seeds: dict[int, int] = {}
        """Of a mask: its seed; the offset follows."""
        for i, keep in enumerate(facts.keeps):
            if keep is not None:
                self.seeds[i] = count
                count += 2
        self.handle = count
        """Of dense products: cuBLAS's handle, and whether sums may be added in 16 bits."""


class Backward:
    """The places of a backward pass, by number; gradients that are not wanted have none."""

    GRAD, X, PACK, GRAD_X, OTHER_GRAD_X, SCRATCH = range(6)

    def __init__(self, facts: Facts) -> None:
        count = 6
        self.weights: dict[Branch, int] = {}
        """Of a branch: its weight as used, and the gradients of weight and bias."""
        for branch in branches(facts.kinds):
            self.weights[branch] = count
            count += 3
        self.kept: list[tuple[int, ...]] = []
        """As in the forward pass."""
        self.grads: list[int] = []
        """Of a layer: the gradient before its activation; the gate's follows."""
        self.again: list[int] = []
        """Of a layer: its result, where it is made again in the room of that gradient."""
        for i in range(len(facts.kinds)):
            kept = kept_of(facts, i)
            self.kept.append(tuple(range(count, count + kept)))
            count += kept
            self.grads.append(count)
            self.again.append(count + 2)
            count += 3
        self.handle = count
        """As in the forward pass."""


def kept_of(facts: Facts, layer: int) -> int:
    """How many matrices the backward pass keeps of a layer's result: what went into the gate and
    into what it is multiplied by, what went into an activation, or the result itself; of the last
    layer without an activation nothing."""
    kind, is_last = facts.kinds[layer], layer == len(facts.kinds) - 1
    if kind.is_gated:
        return 2
    return 0 if is_last and kind.activation is None else 1


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
