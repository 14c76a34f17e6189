QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"  # XLA's flag for tests, most of which wait for the compiler
