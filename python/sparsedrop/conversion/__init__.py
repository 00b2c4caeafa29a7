"""Swaps modules of a model that somebody else wrote, so that what its dropouts drop is skipped."""

from sparsedrop.conversion.converting import convert
from sparsedrop.conversion.rates import set_rate
from sparsedrop.conversion.report import Entry, Report
from sparsedrop.conversion.swapping import revert

__all__ = ["Entry", "Report", "convert", "revert", "set_rate"]
