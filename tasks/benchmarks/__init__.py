"""Benchmarks, one module each, with `discover(directory, options) -> tasks.catalog.registry.Benchmark`.

A benchmark that needs no data directory sets `BUILT_IN = True`.
"""
