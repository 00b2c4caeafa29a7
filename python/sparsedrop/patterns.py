"""The patterns of Approximate Random Dropout: the search for their probabilities, and the draw.

d = patterns.search(0.5)                  # of the periods 1 to 8
pattern = RowPattern.draw(2048, d)        # pattern.period, pattern.offset
"""

from sparsedrop.masks.patterns import RowPattern, rate, search

__all__ = ["RowPattern", "rate", "search"]
