"""Benchmarks: pdopt and its peers on the same data, every answer re-checked by one independent judge."""
