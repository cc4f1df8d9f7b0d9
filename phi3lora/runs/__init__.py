"""Runs: kept in folders (`store`), started in order (`queue`), computed apart (`worker`)."""
