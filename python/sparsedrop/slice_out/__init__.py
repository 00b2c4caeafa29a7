"""SliceOut (Notin et al. 2020): the pieces from which a user slices a network of his own.

    kept = Slice.draw(256, 0.5)
    h = slice_out.conv2d(x, conv1.weight, out_slice=kept, padding=1)
    h = relu(slice_out.batch_norm(h, bn.running_mean, ..., training=True, out_slice=kept))
    y = slice_out.conv2d(h * kept.scale, conv2.weight, in_slice=kept, padding=1)

A slice is drawn once a forward pass and given to all layers that share the units; tensors between
them are compact. Under torch.compile draw it outside: each new slice compiles once more, of which
there are as many as `Slice.draw` has starts.
"""

from sparsedrop.slice_out.layers import conv2d, linear
from sparsedrop.slice_out.norm import batch_norm, recalibrate_bn
from sparsedrop.slice_out.optimizer import LazyOptimizer, lazy

__all__ = ["LazyOptimizer", "batch_norm", "conv2d", "lazy", "linear", "recalibrate_bn"]
