"""The embedded samples: their schema, their split, their tokenizer, and that they can be learned."""

import collections
import filecmp
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from optiml_jax.tokenizer import Tokenizer
from tools import make_samples

SAMPLES = Path(__file__).resolve().parents[3] / "tasks" / "samples"
KEYS = (
    "Contributors Source URL Categories Reasoning Definition Input_language Output_language Instruction_language "
    "Domains Positive_Examples Negative_Examples Instances Instance_License"
)
TASKS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(SAMPLES.glob("tasks/*.json"))}
SPLIT = {role: (SAMPLES / f"splits/default/{role}_tasks.txt").read_text().split() for role in make_samples.ROLES}
CLASSIFICATION = [header.name for header in make_samples.HEADERS if header.kind == "classification"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(SAMPLES / "tokenizer")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_official_schema_and_distinct_instances(name):
    task = TASKS[name]
    assert [key.replace(" ", "_") for key in task] == KEYS.split()
    instances = task["Instances"]
    assert all(set(instance) == {"id", "input", "output"} for instance in instances)
    assert all(output and output == output.strip() for instance in instances for output in instance["output"])
    examples = task["Positive Examples"] + task["Negative Examples"]
    assert all(set(example) == {"input", "output", "explanation"} for example in examples)
    inputs = [instance["input"] for instance in instances]
    assert len(set(inputs)) == len({instance["id"] for instance in instances}) == len(instances)
    assert not set(inputs) & {example["input"] for example in examples}


def test_the_split_names_each_task_once():
    assert sorted(itertools.chain(*SPLIT.values())) == sorted(TASKS)


def test_one_test_task_shares_its_category_with_training_and_two_do_not():
    category = {name: task["Categories"][0] for name, task in TASKS.items()}
    seen = {category[name] for name in SPLIT["train"]}
    assert sorted(category[name] in seen for name in SPLIT["test"]) == [False, False, True]


def test_no_test_input_is_a_training_input():
    inputs = {role: {i["input"] for name in SPLIT[role] for i in TASKS[name]["Instances"]} for role in SPLIT}
    assert not inputs["test"] & inputs["train"]


@pytest.mark.parametrize(
    "text", ["", "Name: Ann | 1,234\n\nAnswer: ", "¿Dónde está Łódź? 日本 🙂\t\x00", "</s> is text"]
)
def test_the_tokenizer_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_has_opt_special_ids_then_bytes_then_merges(tokenizer):
    vocabulary = json.loads((SAMPLES / "tokenizer/vocab.json").read_text(encoding="utf-8"))
    assert [vocabulary[piece] for piece in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert all(len(piece) == 1 for piece, index in vocabulary.items() if 4 <= index < 260)
    assert sorted(vocabulary.values()) == list(range(tokenizer.vocab_size))
    merges = (SAMPLES / "tokenizer/merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0] == "#version: 0.2"
    assert [vocabulary[merge.replace(" ", "")] for merge in merges[1:]] == list(range(260, tokenizer.vocab_size))


def test_a_number_is_tokenized_digit_by_digit(tokenizer):
    assert len(tokenizer.encode("40728")) == 5


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_no_label_is_above_sixty_percent(name):
    instances = TASKS[name]["Instances"]
    counts = collections.Counter(output for instance in instances for output in instance["output"])
    assert 2 <= len(counts) <= 7
    assert max(counts.values()) <= 0.6 * len(instances)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_a_bag_of_tokens_learns_the_labels(tokenizer, name):
    """The cues are local: logistic regression on 200 instances, scored on another 100 (or all that are left)."""
    instances = TASKS[name]["Instances"][:300]
    test = 100 if len(instances) == 300 else 50
    labels, target = np.unique([instance["output"][0] for instance in instances], return_inverse=True)
    features = bag_of_tokens(tokenizer, [instance["input"] for instance in instances])
    weights = softmax_regression(features[:-test], np.eye(len(labels))[target[:-test]])
    assert np.mean(np.argmax(features[-test:] @ weights, axis=1) == target[-test:]) > 0.85


def bag_of_tokens(tokenizer, texts):
    """[texts, features]: 1 for each unigram and bigram of tokens in a text, which ends with an end mark."""
    grams = []
    for ids in tokenizer.encode_batch([f" {text}" for text in texts]):
        ids = [*ids, tokenizer.eos_id]
        grams.append({*ids, *itertools.pairwise(ids)})
    columns = {gram: column for column, gram in enumerate(sorted(set().union(*grams), key=str))}
    features = np.zeros((len(texts), len(columns)))
    for row, present in enumerate(grams):
        features[row, [columns[gram] for gram in present]] = 1.0
    return features


def softmax_regression(features, one_hot, steps=200, rate=1.0, decay=1e-3):
    """[features, labels] weights by gradient descent on the mean cross-entropy with an L2 penalty."""
    weights = np.zeros((features.shape[1], one_hot.shape[1]))
    for _ in range(steps):
        logits = features @ weights
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = odds / odds.sum(axis=1, keepdims=True) - one_hot
        weights -= rate * (features.T @ error / len(features) + decay * weights)
    return weights


def test_the_generator_reproduces_the_committed_files(tmp_path):
    make_samples.write(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert len(names) == len(TASKS) + len(SPLIT) + 2
    assert filecmp.cmpfiles(tmp_path, SAMPLES, names, shallow=False) == (names, [], [])


def test_the_readme_lists_the_tasks():
    assert make_samples.table() in (SAMPLES / "README.md").read_text(encoding="utf-8")
