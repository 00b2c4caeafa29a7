"""The digits that scikit-learn ships."""

from __future__ import annotations

import torch

from sparsedrop.tools.study.pictures import Images, Parts


def load() -> Parts:
    """scikit-learn's 1797 digits of 8×8 pixels: stratified halves to train and to validate on.

    The split is the same in every study. Halves, as in scikit-learn's own example: 899 validation
    images tell accuracies 0.1 % apart, and the other 898 are few enough to overfit. That leaves
    none to test on: to choose a step on the images one reports flatters every method alike.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, validation = train_test_split(
        torch.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0
    )
    images = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels)
    return Parts(
        Images(images[train], targets[train]), Images(images[validation], targets[validation]), None
    )
