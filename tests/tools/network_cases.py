"""Kinds of networks, and what all of one network have in common."""

import torch

from sparsedrop.tools.networks import METHODS, NONE

KINDS = tuple(METHODS.values())


def assert_same_in_evaluation(models, inputs):
    """The same weights in the same order, and the same output."""
    models = {kind: model.eval() for kind, model in models.items()}
    with torch.no_grad():
        for kind in KINDS[1:]:
            pairs = zip(models[kind].parameters(), models[NONE].parameters(), strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
            assert torch.equal(models[kind](inputs), models[NONE](inputs))
