"""13-grams shared by training and evaluation: against sets of tuples of words; what is decided on them."""

import contextlib
import itertools
import json
import random
import re

import numpy as np
import pytest

from optiml_jax.common.errors import DataError
from optiml_jax.data.cache_paths import ledger_path
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.prompts.ledger import LEVELS, read_ledger, write_ledger
from optiml_jax.tokenizer import Tokenizer
from tasks import suites
from tasks.benchmarks.samples import TOKENIZER
from tasks.catalog import mixtures, registry, review
from tasks.catalog.registry import CATALOG, listed
from tasks.decontamination import overlap
from tasks.decontamination.overlap import EvaluationExample, Index, N, TokenHashes, words
from tasks.suites import ledger_job, validation
from tests.evaluation.example_prompts import prompt
from tests.stores import opened
from tests.tasks.prompting.wordings import write
from tools import cache_tasks, find_overlap

TEXT = (
    "Don't stop, said the OLD man -- not now! \u00c9tude \u4e2d\u6587 \u00a0 a\u00a0b",
    "",
    "one two three four five six seven eight nine ten eleven twelve thirteen\n\n\nfourteen\tfifteen",
    "x " * 30,
    "\u00a0 \u00a0\u2003" * 20,
    "...!?",
    "a.b.c d-e-f (g) [h] {i} j/k l|m n_o p's q's r's s's t's u's v's w's",
)


def brute_force(text):
    result = words(text)
    return [tuple(result[i : i + N]) for i in range(len(result) - N + 1)]


@pytest.fixture(scope="module")
def tokenizer(shared):
    """OPT's own, whose vocabulary hold other white space too."""
    return Tokenizer.load(shared / "tokenizer")


def hashed(texts, tokenizer=None):
    """The 13-grams of texts, from their bytes or from their ids."""
    if tokenizer is None:
        runs, vocabulary = [list(f"{text}\n".encode()) for text in texts], overlap.byte_hashes()
    else:
        runs, vocabulary = tokenizer.encode_batch(list(texts)), TokenHashes.from_bytes(tokenizer.token_bytes())
    runs = [run or [0] for run in runs]
    starts = np.cumsum([0, *map(len, runs[:-1])])
    return overlap.grams(np.array(list(itertools.chain(*runs)), np.uint16), starts, vocabulary)


def test_words_are_small_letters_without_punctuation():
    assert words(TEXT[0]) == [
        *b"dont stop said the old man not now".split(),
        *"\u00c9tude \u4e2d\u6587 \u00a0 a\u00a0b".encode().split(),
    ]


def test_ids_and_text_have_the_13_grams_of_a_set_of_words(tokenizer):
    """Every one, in order, with the sequence that it is in, and two that are equal are one number."""
    texts = [text for text in TEXT if text] * 2
    expected = [(gram, number) for number, text in enumerate(texts) for gram in brute_force(text)]
    numbers = {}
    for source in (None, tokenizer):
        grams, sequence = hashed(texts, source)
        assert [number for _, number in expected] == sequence.tolist()
        for (gram, _), value in zip(expected, grams.tolist(), strict=True):
            assert numbers.setdefault(gram, value) == value
    assert len(set(numbers.values())) == len(numbers)


@pytest.mark.parametrize("seed", range(3))
def test_random_texts_of_odd_bytes_too(tokenizer, seed):
    draw = random.Random(seed)
    letters = [
        "a",
        "B",
        " ",
        "  ",
        "\n",
        "\t",
        ".",
        "'",
        "\u00a0",
        "\u00e9",
        "\u4e2d",
        "\U0001f600",
        "\x85",
        "\x0b",
        "7",
        "the ",
    ]
    texts = ["".join(draw.choices(letters, k=draw.randrange(1, 200))) for _ in range(200)]
    grams, sequence = hashed(texts, tokenizer)
    expected = [(gram, number) for number, text in enumerate(texts) for gram in brute_force(text)]
    assert sequence.tolist() == [number for _, number in expected] and len(grams) == len(expected) > 1000
    assert len(dict(zip(grams.tolist(), expected))) == len({gram for gram, _ in expected})
    np.testing.assert_array_equal(grams, hashed(texts)[0])


def test_a_document_in_pieces_continues(tokenizer):
    """The last id of a piece is the first of the next one, to be read there and not written twice here."""
    text = " ".join(f"w{i}" for i in range(100))
    ids = tokenizer.encode(text)
    cut = len(ids) // 2
    tokens = np.array([*ids[: cut + 1], *ids[cut:]], np.uint16)
    vocabulary, continues = TokenHashes.from_bytes(tokenizer.token_bytes()), np.array([False, True])
    grams, sequence = overlap.grams(tokens, np.array([0, cut + 1]), vocabulary, continues)
    np.testing.assert_array_equal(grams, hashed([text], tokenizer)[0])
    assert set(sequence.tolist()) == {0}


def sentence(draw, count):
    return " ".join(
        draw.choice(("red", "green", "blue", "seven", "eight", "over", "under")) + str(draw.randrange(500))
        for _ in range(count)
    )


@pytest.fixture
def cache(tmp_path):
    """Three train tasks, two suites with three tasks; some evaluation examples are planted into training."""
    draw = random.Random(7)
    requests = {f"bench.{name}": [sentence(draw, 30) for _ in range(40)] for name in ("sky", "sea", "sun")}
    train = {name: [sentence(draw, 40) for _ in range(60)] for name in ("a", "b", "c")}
    sky = requests["bench.sky"]
    for number in range(10):
        train["a"][number] += f" {sky[number].upper()}!"  # whole, in other letters and with a mark
    train["b"][0] = " ".join(sky[3].split()[5 : 5 + N])  # thirteen words and no more
    train["b"][1] = " ".join(sky[4].split()[: N - 1])  # one too few
    train["b"][2] = " ".join(requests["bench.sea"][0].split()[4 : 4 + N])
    head = " ".join(f"wording{i}" for i in range(20))
    train["c"] = [f"{head} {text}" for text in train["c"]]
    requests["bench.sun"] = [f"{head} {text}" for text in requests["bench.sun"]]
    for name, texts in train.items():
        lines = "".join(f'{{"prompt": "{text}", "completion": "yes"}}\n' for text in texts)
        others = '{"prompt": "not trained on", "completion": "yes"}\n'  # else some of the lines would be held out
        write(tmp_path / "data/jsonl", **{f"{name}/train.jsonl": lines, f"{name}/validation.jsonl": others})
    flags = ["--mixture=jsonl", f"--data_dir={tmp_path / 'data'}", f"--cache_dir={tmp_path / 'cache'}"]
    with contextlib.redirect_stdout(None):
        cache_tasks.main([*flags, f"--tokenizer={TOKENIZER}"])
    for suite, names in {"one": ("sky", "sun"), "two": ("sea",)}.items():
        made = [
            prompt(i, suite=suite, task=f"bench.{name}", prompt=text, candidates=None, metric="rouge_l")
            for name in names
            for i, text in enumerate(requests[f"bench.{name}"])
        ]
        write_ledger(ledger_path(tmp_path / "cache", suite), made, {})
    return tmp_path


def find(cache, *more):
    out = cache / "overlap.tsv"
    flags = ["--train=jsonl", "--eval=one,two", f"--cache_dir={cache / 'cache'}", f"--output={out}", *more]
    find_overlap.main(flags)
    rows = [line.split("\t") for line in out.read_text().splitlines() if not line.startswith("#")]
    return [dict(zip(rows[0], row)) for row in rows[1:]], overlap.read_examples(out.with_suffix(".examples.tsv"))


PLANTED = {
    ("jsonl.a", "bench.sky"): ("10", "0.2500", "0.2500"),
    ("jsonl.b", "bench.sky"): ("1", "0.0250", "0.0250"),
    ("jsonl.b", "bench.sea"): ("1", "0.0250", "0.0250"),
    ("jsonl.c", "bench.sun"): ("40", "1.0000", "0.0000"),  # all of it is the task's wording
}


def test_planted_copies_are_found_and_nothing_else(cache, capsys):
    pairs, examples = find(cache, "--processes=1")
    assert {(row["train"], row["evaluation"]): (row["sharing"], row["overlap"], row["own"]) for row in pairs} == PLANTED
    assert examples == {
        "bench.sky": frozenset(map(str, range(10))),
        "bench.sea": frozenset("0"),
        "bench.sun": frozenset(),
    }
    assert "3 train tasks with" in capsys.readouterr().out


def test_brute_force_finds_the_same_pairs(cache):
    """Every train example against every evaluation example, as sets of tuples."""
    store, tokenizer = opened(cache / "cache"), Tokenizer.load(TOKENIZER)
    pairs, _ = find(cache, "--processes=1")
    requests = [item for suite in ("one", "two") for item in read_ledger(ledger_path(cache / "cache", suite))]
    grams = {item.id: set(brute_force(f"{item.prompt} {item.references[0]}")) for item in requests}
    expected = {}
    for task in ("jsonl.a", "jsonl.b", "jsonl.c"):
        count = store.stats(task, "train")["examples"]
        texts = [tokenizer.decode(store.read(task, "train", i)[0]) for i in range(count)]
        trained = set(itertools.chain(*map(brute_force, texts)))
        for item in requests:
            expected[task, item.task] = expected.get((task, item.task), 0) + bool(trained & grams[item.id])
    assert {(row["train"], row["evaluation"]): int(row["sharing"]) for row in pairs} == {
        pair: count for pair, count in expected.items() if count
    }


@pytest.mark.parametrize("way", ["--processes=4", "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"])
def test_processes_and_beam_find_the_same(cache, way):
    alone = find(cache, "--processes=1"), (cache / "overlap.tsv").read_bytes()
    assert (find(cache, way), (cache / "overlap.tsv").read_bytes()) == alone


def test_decisions_stay_and_are_applied(cache, capsys):
    """A review is filled in by hand; the next run keeps what was decided, mixtures and suites follow it."""
    path = cache / "review.tsv"
    find(cache, "--processes=1", f"--review={path}", "--threshold=0.1")
    measured = review.read(path)
    assert [(pair.train, pair.evaluation, pair.decision) for pair in measured] == [
        ("jsonl.a", "bench.sky", ""),
        ("jsonl.c", "bench.sun", ""),
    ]
    decided = path.read_text().replace("0.2500\t0.2500\t\t\t", "0.2500\t0.2500\tdrop_train\tcopies\tme")
    path.write_text(decided.replace("1.0000\t0.0000\t\t\t", "1.0000\t0.0000\tdrop_evaluation\tsame words\tme"))
    find(cache, "--processes=1", f"--review={path}", "--threshold=0.02")
    review.read.cache_clear()
    pairs = review.read(path)
    assert len(pairs) == 4 and [pair.decision for pair in pairs] == ["drop_train", "", "", "drop_evaluation"]
    assert "2 of 4 pairs to decide" in capsys.readouterr().out
    review.dropped.cache_clear()
    mixture = mixtures.mixture("jsonl")
    benchmark = mixture.discover(cache / "data", CacheOptions(review=str(path)))
    assert {task.name for task in mixture.tasks(benchmark)} == {"jsonl.b", "jsonl.c"}
    (left,) = mixture.not_drawn(benchmark)
    assert left.where == "jsonl.a" and left.reason == f"dropped by {path}: copies (bench.sky)"


def test_a_ledger_flags_its_contaminated_examples_and_drops_what_is_decided(tmp_path):
    lines = "".join(f"question {i},a,b,c,d,A\n" for i in range(3))
    write(tmp_path, **{"mmlu/test/anatomy_test.csv": lines, "mmlu/test/astronomy_test.csv": lines})
    path = tmp_path / "review.tsv"
    review.write(path, [review.TaskPair("t", "mmlu.astronomy", "", "", "drop_evaluation", "copies", "me")])
    options = CacheOptions(review=str(path))
    overlaps = {"mmlu.anatomy": frozenset("2")}
    result = ledger_job.run(suites.suite("mmlu"), str(tmp_path), tmp_path / "cache", options, contaminated=overlaps)
    actual = {prompt.id: prompt.contaminated for prompt in read_ledger(result.path)}
    assert list(actual.values()) == [False, True, False] and all("anatomy" in name for name in actual)
    assert [prompt.where for prompt in result.left_out if "dropped by the review" in prompt.reason] == [
        "mmlu.astronomy"
    ]
    again = ledger_job.run(suites.suite("mmlu"), str(tmp_path), tmp_path / "cache", options)
    assert again.written and {prompt.contaminated for prompt in read_ledger(again.path)} == {None}


def test_a_users_review_says_what_was_trained_on_besides_the_projects(tmp_path):
    path = tmp_path / "review.tsv"
    review.write(path, [review.TaskPair("own.train", "own.asked", "", "", "drop_train", "copies", "me")])
    assert review.trained_as(["own.asked", "own.other"], path) == {"own.asked": ["own.train"]}
    assert review.trained_as(["own.asked"], None) == {}


def test_the_words_of_a_tasks_only_example_are_its_own():
    """Wording is what more than half of the examples share; of one example that is nothing, of three what two share."""
    words = " ".join(f"word{i}" for i in range(20))
    for examples, own in (([words], [0]), ([words, words, f"{words} more"], []), ([words, "else"], [0])):
        index = Index.build([EvaluationExample(0, str(n), (text,)) for n, text in enumerate(examples)])
        _, beyond_wording = index.shared(np.arange(len(index.grams))[:1])
        assert beyond_wording.tolist() == own


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb\t\t\tdrop\tx\ty", ':2: decision "drop"; use one of keep, drop_train, drop_evaluation, or nothing'),
        ("a\tb\t\t\tkeep\t\ty", ":2: keep without a reason"),
        ("a\tb\t\t", ":2: 4 columns, not 7"),
        ("a\tb\t\t\tkeep\tx\ty\na\tb\t\t\tkeep\tx\ty", ":3: a and b were already decided"),
    ],
)
def test_a_wrong_review_is_named(tmp_path, line, message):
    path = tmp_path / "review.tsv"
    path.write_text("\t".join(review.COLUMNS) + f"\n{line}\n")
    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        review.read(path)
    path.write_text("")
    review.read.cache_clear()
    with pytest.raises(DataError, match=r":1: .* train, evaluation, overlap"):
        review.read(path)
    path.write_text("nothing\n")
    with pytest.raises(DataError, match=r"list of examples of tools\.find_overlap"):
        overlap.read_examples(path)


# --- what the project itself holds out


SAME = (  # what the benchmarks call one data set
    ("arc", r"\barc_|\barc\b|ai2_arc"),
    ("boolq", r"bool_?q"),
    ("civil_comments", "civil_comments|jigsaw"),
    ("disfl_qa", "disfl_?qa"),
    ("mnli", r"\bmnli|multi_?nli"),
    ("mmlu", r"mmmlu|\bmmlu|measuring_massive"),
    ("multiwoz", r"multi_?woz"),
    ("openbookqa", "openbookqa|obqa"),
    ("race", r"\brace[_/]|\brace\b"),
    ("scitail", "scitail"),
    ("snli", "snli"),
    ("squad", r"\bsquad(_v1)?\b|xquad"),
    ("storycloze", "story_?cloze"),
    ("winograd", r"mwsc|winograd_|enhanced_wsc|\bwsc|wsc273|winowhy"),
    ("wic", r"\bxl_?wic|\bwic\b|__wic"),
)


def source_of(row):
    text = re.sub(r"task\d+_", "", f"{row.name.partition('.')[2]} {row.source}".lower())
    source = row.source.lower().removeprefix("super_glue/").removeprefix("glue/").split("/")[0]
    return next((name for name, pattern in SAME if re.search(pattern, text)), re.sub(r"[^a-z0-9]", "", source))


def test_opt_iml_trains_on_no_data_source_and_no_category_that_the_paper_evaluates():
    """Over the whole catalog, whether or not the files are there. What shares a source all the same is one of the
    official test tasks that the paper does not evaluate, and the review says so."""
    mixture = mixtures.mixture("opt_iml")
    trained = mixture.listed()
    held_out = {row["category"] for row in listed(CATALOG) if row["level"] == LEVELS[0]}
    assert held_out == mixtures.held_out_categories() and len(held_out) == 9
    assert not held_out & {row.category for row in trained}
    retained = {(pair.train, pair.evaluation) for pair in review.read() if pair.decision == review.KEEP}
    requests = [
        registry.CatalogRow(**row)
        for row in listed(CATALOG)
        if (row["split"] == "test" and row["level"] in LEVELS[:2])
        or row["name"] in {f"{item.benchmark}.{task}" for item in validation.TABLE_15 for task in item.tasks}
    ]
    by_source = {}
    for row in requests:
        by_source.setdefault(source_of(row), []).append(row.name)
    shared = {(row.name, name) for row in trained for name in by_source.get(source_of(row), ())}
    assert shared <= retained, f"{sorted(shared - retained)[:5]}"
    assert all(pair.reason and pair.reviewer and pair.decision for pair in review.read())
    names = {row["name"] for row in listed(CATALOG)}
    assert all({pair.train, pair.evaluation} <= names for pair in review.read())


def test_held_out_instances_are_not_in_the_store(tmp_path):
    """A fully supervised task: its suite asks the validation set, and no word of that is trained on."""
    rows = {
        split: "".join(
            json.dumps({"text_in": f"question{split}{i}", "struct_in": f"table{split}", "seq_out": f"select{split}{i}"})
            + "\n"
            for i in range(20)
        )
        for split in ("train", "dev", "test")
    }
    write(
        tmp_path / "data/unifiedskg",
        **{f"spider_{split}.jsonl": text for split, text in rows.items() if split != "test"},
    )
    flags = ["--mixture=unifiedskg", f"--data_dir={tmp_path / 'data'}", f"--cache_dir={tmp_path / 'cache'}"]
    with contextlib.redirect_stdout(None):
        cache_tasks.main([*flags, f"--tokenizer={TOKENIZER}"])
    store, tokenizer = opened(tmp_path / "cache"), Tokenizer.load(TOKENIZER)
    assert store.stats("unifiedskg.spider", "train")["examples"] == 20
    trained = " ".join(tokenizer.decode(store.read("unifiedskg.spider", "train", i)[0]) for i in range(20))
    assert "selecttrain19" in trained and "dev" not in trained
    requests = read_ledger(ledger_path(tmp_path / "cache", "unifiedskg"))
    assert {item.level for item in requests} == {LEVELS[2]} and all("questiondev" in item.prompt for item in requests)
    shown = [item.prompt[start:end] for item in requests for start, end in item.demonstration_spans]
    assert shown and not any("dev" in text for text in shown)  # solved examples come from the train split


@pytest.mark.slow
def test_opt_iml_shares_nothing_with_the_evaluations_at_hand(shared, tmp_path):
    """Real files: what Super-NaturalInstructions' own list trains on shares 65 pairs above 1%, opt_iml none at all."""
    flags = [f"--data_dir={shared / 'data'}", f"--cache_dir={tmp_path}", "--missing_benchmarks=leave_out"]
    flags += ["--allow_bad_records", f"--tokenizer={shared / 'tokenizer'}", "--max_prompts_per_task=0"]
    names = "opt_eval,promptsource,unifiedskg,mmlu,bbh,bias,validation,super_natural_instructions_held_out"
    by_name = {}
    with contextlib.redirect_stdout(None):
        for mixture in ("super_natural_instructions", "opt_iml"):
            cache_tasks.main([f"--mixture={mixture}", *flags])
        cache_tasks.main([f"--suite={names}", *flags])
        for mixture in ("super_natural_instructions", "opt_iml"):
            path = tmp_path / f"{mixture}.tsv"
            more = [f"--output={tmp_path / 'pairs.tsv'}", f"--review={path}", "--processes=1"]
            find_overlap.main([f"--train={mixture}", f"--eval={names}", f"--cache_dir={tmp_path}", *more])
            by_name[mixture] = review.read(path)
    assert not by_name["opt_iml"] and len(by_name["super_natural_instructions"]) == 65
    decided = {(pair.train, pair.evaluation): pair for pair in review.read()}
    for pair in by_name["super_natural_instructions"]:
        decided_pair = decided[pair.train, pair.evaluation]
        assert (decided_pair.overlap, decided_pair.own) == (
            pair.overlap,
            pair.own,
        ) and decided_pair.decision == review.DROP_TRAIN
