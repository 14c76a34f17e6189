"""The benchmark: texts, prompts, categories, splits. `import tasks` registers every task and mixture in seqio.

Where the data are is read from `OPTIML_DATA_DIR` (one folder a benchmark), the tokenizer from `OPTIML_TOKENIZER`, or
both are given by `tasks.use_data_dir(folder, tokenizer=...)`. The samples need neither. What is cached becomes a
seqio mixture by `tasks.to_seqio(manifest)`.

`OPTIML_TASKS_WITHOUT_SEQIO=1` leaves seqio out: importing TensorFlow takes 5 s and 500 MB, and the tools and the worker
processes that only read, render and cache tasks need the modules below this package, not the registries.
"""

import os

if os.environ.get("OPTIML_TASKS_WITHOUT_SEQIO") != "1":
    from tasks.seqio_store import to_seqio as to_seqio
    from tasks.seqio_tasks import use_data_dir

    use_data_dir(os.environ.get("OPTIML_DATA_DIR"), os.environ.get("OPTIML_TOKENIZER"))
