"""The clients' own tests against this Hub: ``python -m tests.hub.conformance``."""
