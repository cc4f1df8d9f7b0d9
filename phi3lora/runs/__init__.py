"""Runs: store, queue, worker, backends."""
