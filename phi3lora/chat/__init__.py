"""Chat with base and tuned from one copy of the weights."""
