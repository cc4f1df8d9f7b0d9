"""One command for each: python -m benchmarks.training, .chat, .startup, .data, .gpu."""
