"""The rates of all layers of a model at once."""

from __future__ import annotations

from torch import nn

from sparsedrop.conversion.kinds import check_model
from sparsedrop.masks import check_p
from sparsedrop.nn.rated import Rated


def set_rate(model: nn.Module, p: float) -> int:
    """Sets the drop probability of every layer of ours, converted or built by hand.

    Dropouts that were left alone keep their rate. Of an `nn.SparseDropMLP` it sets `p`, the rate of
    the hidden activation: `out_p`, which is 0 unless asked for, is another rate and stays.

    Under torch.compile a rate is a constant of the compiled program, as that of nn.Dropout is: a
    new one compiles again, and after several of them torch takes it for a variable or runs eagerly,
    by its own limits.

    Args:
        model: a model, converted or not.
        p: in [0, 1], such as a schedule of `sparsedrop.schedules` gives it.

    Returns:
        The number of modules that were set: linear layers and LSTMs, and each block or stack once.

    Raises:
        ValueError, TypeError: where p is no probability, or `model` no module; where p is 1 and
            there is a module of slices, which keep something; where p is more than the patterns of
            a module give. Then no rate has changed.
    """
    check_model(model)
    p = check_p(p)
    rated = [module for module in model.modules() if isinstance(module, Rated)]
    for module in rated:  # all or none of them
        module.check_rate(p)
    for module in rated:
        module.p = p
    return len(rated)
