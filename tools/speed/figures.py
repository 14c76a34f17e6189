"""Measures the data pipeline in a fresh process: `python -m tools.speed.figures WHAT ...` prints one JSON object.

This project and seqio run in separate processes: start time and memory are measured, and only seqio loads TensorFlow.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROW_LENGTH, BATCH_ROWS = 2048, 256
FAR = 108_936  # the block of step 10^6, at 256 rows per batch and 9.2 batches per block


def memory_mb() -> float:
    """Returns the peak memory of this process; `ru_maxrss` would include that of the process that forked it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def ours(manifest: str, demonstrations: float | None = None):
    import numpy as np

    from optiml_jax.data.loader import Loader
    from optiml_jax.data.settings import Data
    from optiml_jax.data.store import TokenStore
    from optiml_jax.tokenizer import OPT_EOS_ID, OPT_PAD_ID

    store = TokenStore.open(manifest)
    described = store.manifest
    settings = {"row_length": ROW_LENGTH, "batch_rows": BATCH_ROWS, "seed": 0, "prefetch": 0}
    data = Data(described.name, "", demonstrations=demonstrations, **settings)
    separators = [np.array([4, 5], np.uint16)] if demonstrations else []  # of two tokens, as three line breaks
    return Loader(store, described, data, pad_id=OPT_PAD_ID, eos_id=OPT_EOS_ID, separators=separators)


def our_start(manifest: str) -> dict:
    """Starts the loader; the parent process measures the time."""
    batch = next(ours(manifest))
    return {"first": True, "megabytes": memory_mb(), "rows": len(batch.rows)}


def our_rates(manifest: str, blocks: str, demonstrations: str = "") -> dict:
    """Measures planning (draw, pack, shuffle), planning with reading and emission, and restoring at a late step."""
    shape = float(demonstrations) if demonstrations else None
    loader = ours(manifest, shape)
    next(loader)
    start, tokens, rows = time.perf_counter(), 0, 0
    for block in range(1, 1 + int(blocks)):
        plan = loader.plan(block)
        tokens += int(plan.lengths_n.sum())
        rows += len(plan.rows)
    planning = time.perf_counter() - start
    rates = {"planned_per_second": tokens / planning, "row_fill": tokens / rows / ROW_LENGTH}
    count = 6 * int(blocks)
    for name in ("first_read_per_second", "emitted_per_second"):  # possibly from the disk, then from the page cache
        loader.restore({"block": 0, "row": 0})
        start = time.perf_counter()
        tokens = sum(next(loader).real_tokens for _ in range(count))
        rates[name] = tokens / (time.perf_counter() - start)

    loader.restore({"block": FAR, "row": 0})
    before = [next(loader) for _ in range(4)]
    fresh = ours(manifest, shape)
    start = time.perf_counter()
    fresh.restore(before[2].state)
    again = next(fresh)
    rates["restore_seconds"] = time.perf_counter() - start
    rates["same_bytes"] = all(again.arrays[name].tobytes() == before[3].arrays[name].tobytes() for name in again.arrays)
    return rates | {"megabytes": memory_mb()}


def seqio_start(manifest: str) -> dict:
    """Reads a packed batch of a cached mixture through seqio, shuffled as by default."""
    import seqio

    from tasks.seqio.store import to_seqio

    rows = seqio.get_dataset(
        mixture_or_task_name=to_seqio(manifest).name,
        task_feature_lengths={"inputs": ROW_LENGTH // 2, "targets": ROW_LENGTH // 2},
        dataset_split="train",
        shuffle=True,
        seed=0,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=True),
    )
    batch = next(rows.batch(BATCH_ROWS).as_numpy_iterator())
    return {"first": True, "megabytes": memory_mb(), "rows": len(batch["decoder_target_tokens"])}


def seqio_pack(manifest: str, examples: str) -> dict:
    """Runs seqio's packer over the examples that the loader draws first; one feature, and no id 0, which is its
    padding."""
    import numpy as np
    import seqio
    import tensorflow as tf

    lengths = ours(manifest).plan(0).lengths_n[: int(examples)]
    ids = tf.RaggedTensor.from_row_lengths(np.full(lengths.sum(), 7, np.int32), lengths)
    rows = seqio.trim_and_pack_dataset(
        tf.data.Dataset.from_tensor_slices({"targets": ids}), {"targets": ROW_LENGTH}, use_custom_ops=False
    )
    for _ in rows.take(1):  # it packs many rows before it yields the first; the timed run starts again with warm caches
        pass
    start, tokens, count = time.perf_counter(), 0, 0
    for row in rows.as_numpy_iterator():
        tokens += int((row["targets_segment_ids"] > 0).sum())
        count += 1
    return {
        "packed_per_second": tokens / (time.perf_counter() - start),
        "row_fill": tokens / count / ROW_LENGTH,
    }


def seqio_tokenise(data_dir: str, tokenizer: str, name: str) -> dict:
    """Reads the texts of a mixture through tf.data, task by task; excludes imports and registration."""
    import seqio

    from tasks import seqio_tasks
    from tasks.catalog import mixtures
    from tasks.task import CacheOptions

    options = CacheOptions(allow_empty_tasks=True)
    seqio_tasks.use_data_dir(data_dir, tokenizer, options)
    mixture = mixtures.mixture(name)
    result = mixture.discover(data_dir, options)
    start, tokens = time.perf_counter(), 0
    for task in mixture.tasks(result):
        rows = seqio.TaskRegistry.get(task.name).get_dataset(None, "train", shuffle=False)
        tokens += sum(len(row["inputs"]) + len(row["targets"]) for row in rows.as_numpy_iterator())
    return {"tokens_per_second": tokens / (time.perf_counter() - start), "tokens": tokens}


def peer_render(data_dir: str, tokenizer: str, count: str) -> dict:
    """PromptSource's rows by its templates as PromptSource does, which compiles the template for each example, then
    tokenises the prompts."""
    import jinja2

    from optiml_jax.tokenizer import Tokenizer
    from tasks.benchmarks import promptsource
    from tasks.catalog import registry

    tokens_of = Tokenizer.load(tokenizer)
    environment = jinja2.Environment()
    environment.globals["zip"] = zip
    environment.filters |= {
        "choice": lambda values: values[0],
        "most_frequent": promptsource.jinja_sandbox._most_frequent,
    }
    result = registry.discover("promptsource", data_dir)
    each = int(count) // len(result.tasks)
    work = []
    for task in result.tasks.values():
        templates = {template.id: template for template in promptsource.load(task.files[0])}
        for record in itertools.islice(task.read("train"), each):
            work.append((templates[task.templates[len(work) % len(task.templates)].id], record.fields["row"]))
    start, texts = time.perf_counter(), []
    for template, row in work:
        answers = environment.from_string(template.choices).render(**row).split("|||") if template.choices else None
        answers = answers and [answer.strip() for answer in answers]
        texts += environment.from_string(template.jinja).render(**row, answer_choices=answers).split("|||")
    tokens = sum(map(len, tokens_of.encode_batch([text.strip() for text in texts])))
    return {"tokens_per_second": tokens / (time.perf_counter() - start), "tokens": tokens}


FIGURES: dict[str, Callable[..., dict]] = {
    function.__name__: function
    for function in (our_start, our_rates, seqio_start, seqio_pack, seqio_tokenise, peer_render)
}


if __name__ == "__main__":
    print(json.dumps(FIGURES[sys.argv[1]](*sys.argv[2:])), flush=True)
    os._exit(0)  # excludes TensorFlow's shutdown
