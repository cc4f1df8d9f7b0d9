"""The project's own training on a CUDA device that is none: see `device.py`."""
