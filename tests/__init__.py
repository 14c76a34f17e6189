# XLA's flags for tests, most of which wait for the compiler: no optimization, quicker emitters, one module.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
