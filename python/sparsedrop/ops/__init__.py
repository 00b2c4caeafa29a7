"""How one product is run, and differentiated."""

from sparsedrop.ops.autograd import multiply
from sparsedrop.ops.dense import ACTIVATIONS, check_activation
from sparsedrop.ops.product import How, Product

__all__ = ["ACTIVATIONS", "How", "Product", "check_activation", "multiply"]
