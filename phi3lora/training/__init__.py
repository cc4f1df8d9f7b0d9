"""Training: trainer, loss, attention, estimate."""
