"""Numbers of features that a module of several layers is given."""

from __future__ import annotations

import operator
from typing import Any


def check_features(name: str, features: Any) -> int:
    """A number of features as an int; TypeError or ValueError where it is none."""
    try:
        number = None if isinstance(features, bool) else operator.index(features)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number of features, not {features!r}")
    if number < 0:
        raise ValueError(f"{name} must not be negative, not {number}")
    return number
