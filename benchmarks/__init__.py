"""Benchmarks beside the peers: `make bench`. Not part of the package; nothing here is a test."""
