"""Proof: base and tuned on the same held-out rows."""
