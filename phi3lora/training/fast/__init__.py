"""Training faster than the libraries do, to the same numbers: loss, attention, layers."""
