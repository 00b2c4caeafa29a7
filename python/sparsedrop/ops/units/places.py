"""Where the tensors of a block's calls stand among their addresses.

Numbers of branches: the gate first, if there is one, and up; behind them down.
"""

from __future__ import annotations

UNITS_SIZE, HANDLE_SIZE = 4, 2
"""Of a call's live units; of cuBLAS's handle, and whether parts of sums may be added in 16 bits."""


class Forward:
    """The places of a forward pass. What is used is what was given, where nothing is gathered."""

    X, USED_X, OUT, HIDDEN, SCRATCH = range(5)
    UNITS = 5
    HANDLE = UNITS + UNITS_SIZE
    BRANCHES = HANDLE + HANDLE_SIZE

    @classmethod
    def of(cls, branch: int) -> tuple[int, int, int, int]:
        """A weight as given and as used, its bias, and the product of x with it; of down its bias
        as used."""
        start = cls.BRANCHES + 4 * branch
        return start, start + 1, start + 2, start + 3


class Backward:
    """The places of a backward pass; what is not wanted has none.

    HIDDEN is where the hidden activation is made again.
    """

    GRAD, X, HIDDEN, GRAD_X, SCRATCH = range(5)
    UNITS = 5
    HANDLE = UNITS + UNITS_SIZE
    BRANCHES = HANDLE + HANDLE_SIZE

    @classmethod
    def of(cls, branch: int) -> tuple[int, ...]:
        """A weight as used, its bias, what is kept of its product, the gradient of that, the
        gradients of weight and bias, and rooms for those of live units alone, before they are
        placed: the weight's, and sums of columns in float32."""
        start = cls.BRANCHES + 8 * branch
        return tuple(range(start, start + 8))


ALPHA = 0
"""The number of a pass: what live units are multiplied by."""
