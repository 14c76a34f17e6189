"""What a fresh process measures of the data plane: `python -m tools.speed.figures WHAT ...`, one JSON object out.

Ours and seqio's in processes of their own: start and memory are figures themselves, and ours must not hold TensorFlow.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROW_LENGTH, BATCH_ROWS = 2048, 256
PAD, EOS = 1, 2
FAR = 108_936  # the block of step 10^6, at 256 rows a batch and 9.2 batches a block


def memory_mb() -> float:
    """The most this process has held. Not `ru_maxrss`: that counts what the process it was forked from held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def ours(manifest: str):
    from optiml_jax.data.loader import Loader
    from optiml_jax.data.manifest import Manifest
    from optiml_jax.data.settings import Data
    from optiml_jax.data.store import TokenStore

    store = TokenStore(Path(manifest).parents[1])
    described = Manifest.read(manifest)
    data = Data(described.name, "", row_length=ROW_LENGTH, batch_rows=BATCH_ROWS, seed=0, prefetch=0)
    return Loader(store, described, data, pad_id=PAD, eos_id=EOS)


def our_start(manifest: str) -> dict:
    """The parent takes the time."""
    batch = next(ours(manifest))
    return {"first": True, "megabytes": memory_mb(), "rows": len(batch.rows)}


def our_rates(manifest: str, blocks: str) -> dict:
    """Planning (draw, pack, shuffle), then planning and reading and emitting; restoring far away."""
    loader = ours(manifest)
    next(loader)
    start, tokens, rows = time.perf_counter(), 0, 0
    for block in range(1, 1 + int(blocks)):
        plan = loader.plan(block)
        tokens += int(plan.lengths_n.sum())
        rows += len(plan.rows)
    planning = time.perf_counter() - start
    found = {"planned_per_second": tokens / planning, "row_fill": tokens / rows / ROW_LENGTH}
    count = 6 * int(blocks)
    for name in ("first_read_per_second", "emitted_per_second"):  # from the disk perhaps, then from the page cache
        loader.restore({"block": 0, "row": 0})
        start = time.perf_counter()
        tokens = sum(next(loader).real_tokens for _ in range(count))
        found[name] = tokens / (time.perf_counter() - start)

    loader.restore({"block": FAR, "row": 0})
    before = [next(loader) for _ in range(4)]
    fresh = ours(manifest)
    start = time.perf_counter()
    fresh.restore(before[2].state)
    again = next(fresh)
    found["restore_seconds"] = time.perf_counter() - start
    found["same_bytes"] = all(again.arrays[name].tobytes() == before[3].arrays[name].tobytes() for name in again.arrays)
    return found | {"megabytes": memory_mb()}


def seqio_start(manifest: str) -> dict:
    """A packed batch of a cached mixture, shuffled as by default."""
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
    """seqio's packer over the examples that our loader draws first; one feature, and no id 0, its padding."""
    import numpy as np
    import seqio
    import tensorflow as tf

    lengths = ours(manifest).plan(0).lengths_n[: int(examples)]
    ids = tf.RaggedTensor.from_row_lengths(np.full(lengths.sum(), 7, np.int32), lengths)
    rows = seqio.trim_and_pack_dataset(
        tf.data.Dataset.from_tensor_slices({"targets": ids}), {"targets": ROW_LENGTH}, use_custom_ops=False
    )
    for _ in rows.take(1):  # it packs many rows before it gives the first; what is timed starts anew, but warm
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
    """The texts of a mixture through tf.data, task after task; without imports and registration."""
    import seqio

    from tasks import seqio_tasks
    from tasks.catalog import mixtures
    from tasks.task import Options

    options = Options(allow_empty_tasks=True)
    seqio_tasks.use_data_dir(data_dir, tokenizer, options)
    mixture = mixtures.mixture(name)
    found = mixture.discover(data_dir, options)
    start, tokens = time.perf_counter(), 0
    for task in mixture.tasks(found):
        rows = seqio.TaskRegistry.get(task.name).get_dataset(None, "train", shuffle=False)
        tokens += sum(len(row["inputs"]) + len(row["targets"]) for row in rows.as_numpy_iterator())
    return {"tokens_per_second": tokens / (time.perf_counter() - start), "tokens": tokens}


def peer_render(data_dir: str, tokenizer: str, count: str) -> dict:
    """PromptSource's rows by its templates in its own way: a template is compiled for each example, then tokenised."""
    import jinja2

    from optiml_jax.tokenizer import Tokenizer
    from tasks.benchmarks import promptsource
    from tasks.catalog import registry

    tokens_of = Tokenizer.load(tokenizer)
    environment = jinja2.Environment()
    environment.globals["zip"] = zip
    environment.filters |= {"choice": lambda values: values[0], "most_frequent": promptsource.jinja._most_frequent}
    found = registry.discover("promptsource", data_dir)
    each = int(count) // len(found.tasks)
    work = []
    for task in found.tasks.values():
        own = {template.id: template for template in promptsource.load(task.files[0])}
        for record in itertools.islice(task.read("train"), each):
            work.append((own[task.templates[len(work) % len(task.templates)].id], record.fields["row"]))
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
    os._exit(0)  # what TensorFlow takes to end is not measured
