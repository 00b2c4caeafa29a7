"""SliceOut (Notin et al. 2020): the pieces from which a user slices a network of his own."""
