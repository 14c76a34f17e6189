"""The benchmark: texts, prompts, categories, splits. Importing this package is cheap.

`import tasks.seqio_tasks` registers every task and mixture in seqio (t5x's MIXTURE_OR_TASK_MODULE).
"""
