"""One module a benchmark, each with `discover(directory, options) -> tasks.registry.Benchmark`."""
