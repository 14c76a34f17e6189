"""One module a benchmark, each with `discover(directory, options) -> tasks.catalog.registry.Benchmark`.

One that needs no data directory says `BUILT_IN = True`.
"""
