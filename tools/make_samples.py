"""Writes the embedded samples: tasks, splits and tokenizer. The output is deterministic.

python -m tools.make_samples [--directory=tasks/samples]
"""

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from optiml_jax.tokenizer import SPECIAL, Tokenizer, join
from tasks.prompting.prompts import DELIMITERS, OPENERS
from tools.sample_headers import HEADERS, Header

DIRECTORY = Path(__file__).resolve().parents[1] / "tasks" / "samples"
VOCABULARY = 1536
DRAWS = 10_000  # repeated inputs after which a grammar is exhausted
ROLES = ("train", "test", "excluded")
TABLE = "| Task | Category | Kind | Split | Instances |\n|---|---|---|---|---|\n"


def instances(header: Header) -> list[dict]:
    """Makes `header.count` instances with distinct inputs, in random order; the examples' inputs are left out."""
    rng = random.Random(header.name)
    seen = {text for text, _, _ in (*header.positive, *header.negative)}
    chosen = []
    draws = header.generate(rng)
    while len(chosen) < header.count:
        text, outputs = next(drawn for drawn in itertools.islice(draws, DRAWS) if drawn[0] not in seen)
        seen.add(text)
        chosen.append((text, outputs))
    rng.shuffle(chosen)
    number = header.name.split("_")[0]
    return [
        {"id": f"{number}-{hashlib.md5(text.encode()).hexdigest()}", "input": text, "output": list(outputs)}
        for text, outputs in chosen
    ]


def task(header: Header) -> dict:
    """Returns the content of a task file, in the key order of Super-NaturalInstructions v2.x."""
    fields = ("input", "output", "explanation")
    return {
        "Contributors": ["OPTIML-JAX authors"],
        "Source": ["optiml_jax_samples"],
        "URL": ["https://creativecommons.org/publicdomain/zero/1.0/"],
        "Categories": [header.category],
        "Reasoning": list(header.reasoning),
        "Definition": [header.definition],
        "Input_language": ["English"],
        "Output_language": [header.output_language],
        "Instruction_language": ["English"],
        "Domains": [header.domain],
        "Positive Examples": [dict(zip(fields, example)) for example in header.positive],
        "Negative Examples": [dict(zip(fields, example)) for example in header.negative],
        "Instances": instances(header),
        "Instance License": ["CC0 1.0"],
    }


def texts(tasks: Sequence[dict]) -> Iterator[str]:
    """Yields each instance as training sees it, with all openers, delimiters and references in turn."""
    index = 0
    for content in tasks:
        for instance in content["Instances"]:
            for reference in instance["output"]:
                opener, delimiter = sorted(OPENERS)[index % 3], DELIMITERS[index % 8]
                label = ("", "Input: ")[index // 3 % 2]
                source = f"{opener}{content['Definition'][0]}\n{label}{instance['input']}{delimiter}"
                yield "".join(join(source, reference))
                index += 1


def train_tokenizer(tasks: Sequence[dict]) -> Tokenizer:
    """Trains a byte-level BPE with OPT's special ids, then the 256 bytes, then the merges in the order learned.

    Its training text has no digits, so no piece has two digits and the last digit of a number is a token.
    """
    without_digits = str.maketrans("", "", "0123456789")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL), min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((text.translate(without_digits) for text in texts(tasks)), trainer)
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    # The library orders bytes differently; the id of a merge is its rank after the bytes.
    pieces = [SPECIAL[name] for name in ("bos", "pad", "eos", "unk")] + alphabet
    pieces += dict.fromkeys(left + right for left, right in merges)
    return Tokenizer({piece: index for index, piece in enumerate(pieces)}, merges, "samples")


def table() -> str:
    """Returns the table of tasks in the README of the samples."""
    rows = (f"| {h.name} | {h.category} | {h.kind} | {h.role} | {h.count} |\n" for h in HEADERS)
    return TABLE + "".join(rows)


def write(directory: Path) -> None:
    """Writes tasks/, splits/default/ and tokenizer/ below `directory`."""
    tasks = [task(header) for header in HEADERS]
    for folder in ("tasks", "splits/default"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for header, content in zip(HEADERS, tasks):
        text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
        (directory / "tasks" / f"{header.name}.json").write_text(text, encoding="utf-8")
    for role in ROLES:
        names = "".join(f"{header.name}\n" for header in HEADERS if header.role == role)
        (directory / "splits" / "default" / f"{role}_tasks.txt").write_text(names, encoding="utf-8")
    train_tokenizer(tasks).save(directory / "tokenizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="output folder (default: tasks/samples)")
    write(parser.parse_args().directory)


if __name__ == "__main__":
    main()
