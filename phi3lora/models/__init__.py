"""The base: which checkpoint, in which dtype, on which hardware."""
