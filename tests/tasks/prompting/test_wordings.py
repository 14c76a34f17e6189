"""Tasks of one wording: which of their files are read, and what happens to what cannot be."""

import json

import pytest

from optiml_jax.common.errors import DataError
from tasks.benchmarks.unifiedskg import MAX_TABLE, answer_of, linear_table
from tasks.catalog import registry
from tasks.catalog.registry import MissingError
from tests.tasks.prompting.wordings import examples, write

# --- files


def test_a_task_of_another_benchmark_is_left_out_by_name(tmp_path):
    write(tmp_path / "crossfit", **{"acronym_identification_train.tsv": "a\tb\n", "search_qa_train.tsv": "a\tb\n"})
    benchmark = registry.discover("crossfit", tmp_path)
    assert list(benchmark.tasks) == ["crossfit.search_qa"]
    [left] = benchmark.left_out
    assert left.where.endswith("acronym_identification_train.tsv")
    assert left.reason == "its data set is in PromptSource too"


def test_a_file_that_no_task_reads_is_listed_and_paperwork_is_not(tmp_path):
    write(tmp_path / "crossfit", **{"search_qa_train.tsv": "a\tb\n", "notes.txt": "x", "LICENSE": "MIT"})
    [left] = registry.discover("crossfit", tmp_path).left_out
    assert left.where.endswith("notes.txt") and left.reason == "no task reads it"


def test_the_seeds_of_a_few_shot_gym_are_one_task_and_its_lines_come_once(tmp_path):
    lines = {
        f"search_qa_32_{seed}_{split}.tsv": f"q{seed}\ta\nq\ta\n" for seed in (13, 21) for split in ("train", "dev")
    }
    write(tmp_path / "crossfit" / "search_qa", **lines)
    for split in ("train", "validation"):
        read, skipped = examples("crossfit", tmp_path, "search_qa", split)
        assert [example.source.split("\n")[1].split()[0] for example in read] == ["q13", "q", "q21"] and not skipped


def test_every_accepted_output_of_a_line_is_a_reference(tmp_path):
    write(tmp_path / "crossfit", **{"kilt_nq_train.tsv": "who?\tone\ttwo\tone\n"})
    [read], _ = examples("crossfit", tmp_path, "kilt_nq")
    assert read.references == ("one", "two") and read.target in read.references


def test_a_folder_without_a_known_file_is_missing_by_name(tmp_path):
    for name in ("crossfit", "exmix", "t5", "unifiedskg", "reasoning"):
        write(tmp_path / name, **{"x.bin": ""})
        with pytest.raises(MissingError, match=rf"{name}: no file of a known task"):
            registry.discover(name, tmp_path)


# --- bad input, a benchmark each


@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        ("question\tanswer\nquestion\n", ["1 columns, not 2 or more"]),
        ("question\tanswer\nquestion\t \n", ["no answer"]),
        ("question\tanswer\nquest", ["1 columns, not 2 or more"]),  # cut off
    ],
)
def test_crossfit_skips_lines_of_the_wrong_form(tmp_path, content, reasons):
    write(tmp_path / "crossfit", **{"search_qa_train.tsv": content})
    read, skipped = examples("crossfit", tmp_path, "search_qa")
    assert len(read) == 1 and [skip.reason for skip in skipped] == reasons
    assert skipped[0].where.endswith("search_qa_train.tsv:2")


def test_exmix_skips_wrong_columns_and_refuses_halves_that_do_not_belong_together(tmp_path):
    write(tmp_path / "exmix", **{"cogs/train.tsv": "a b .\tform ( )\tin_distribution\na b .\tform ( )\n"})
    read, skipped = examples("exmix", tmp_path, "cogs")
    assert len(read) == 1 and [skip.reason for skip in skipped] == ["2 columns, not 3"]
    halves = {"shakespearizing/train.modern.nltktok": "one\ntwo\n", "shakespearizing/train.original.nltktok": "one\n"}
    write(tmp_path / "exmix", **halves)
    with pytest.raises(DataError, match=r"train.original.nltktok: fewer lines"):
        examples("exmix", tmp_path, "shakespearizingmodernenglish")
    (tmp_path / "exmix/shakespearizing/train.original.nltktok").unlink()
    with pytest.raises(DataError, match=r"train.original.nltktok: is not there"):
        examples("exmix", tmp_path, "shakespearizingmodernenglish")
    write(tmp_path / "exmix", **{"news_quiz_qa/train.csv": 'url,question,answer\nx,"never ends,y\n'})
    with pytest.raises(DataError, match=r"train.csv:2: not a table"):
        examples("exmix", tmp_path, "newsquizqa")
    write(tmp_path / "exmix", **{"styleptb/XXX/train.tsv": "a\tb\n"})
    with pytest.raises(DataError, match="XXX is none of StylePTB's sets"):
        examples("exmix", tmp_path, "styleptb")


def test_t5_skips_rows_without_its_fields(tmp_path):
    rows = [{"translation": {"en": "Yes.", "de": "Ja."}}, {"translation": {"en": "No."}}, {"de": "Nein.", "en": "No."}]
    write(tmp_path / "t5" / "rows" / "wmt14" / "de-en", **{"train.jsonl": "\n".join(map(json.dumps, rows))})
    read, skipped = examples("t5", tmp_path, "wmt14_ende_v003")
    assert [item.target for item in read] == ["Ja.", "Nein."] and len(skipped) == 1
    for item, word in zip(read, ("Yes", "No"), strict=True):
        assert item.source.startswith(f"translate English to German: {word}.")


def test_unifiedskg_skips_a_question_whose_table_or_database_is_missing(tmp_path):
    question = {"phase": 1, "table_id": "1-1", "question": "Who?", "sql": {"sel": 0, "agg": 0, "conds": []}}
    write(tmp_path / "unifiedskg", **{"wikisql/train.jsonl": json.dumps(question)})
    read, [skipped] = examples("unifiedskg", tmp_path, "wikisql")
    assert not read and skipped.reason.startswith("its table 1-1 is not in ") and "train.tables.jsonl" in skipped.reason
    table = {"id": "1-1", "header": ["Name", "Age"], "rows": [["Ann", 3], ["Bob", 4]]}
    write(tmp_path / "unifiedskg", **{"wikisql/train.tables.jsonl": json.dumps(table)})
    [read], skipped = examples("unifiedskg", tmp_path, "wikisql")
    assert read.source == "table: col : name | age row 1 : ann | 3 row 2 : bob | 4\nquestion: who?\nanswer:"
    assert read.target == "ann, bob" and not skipped
    header = "id\tutterance\tcontext\ttargetValue\n"
    write(
        tmp_path / "unifiedskg",
        **{"wikitq/data/random-split-1-train.tsv": f"{header}nt-1\twho?\tcsv/1-csv/1.csv\tAnn\n"},
    )
    read, [skipped] = examples("unifiedskg", tmp_path, "wikitq")
    assert not read and "1-csv/1.tsv is not there" in skipped.reason
    spider = [{"db_id": "pets", "question": "Who?", "query": "SELECT 1"}]
    write(tmp_path / "unifiedskg", **{"spider/train_spider.json": json.dumps(spider)})
    read, [skipped] = examples("unifiedskg", tmp_path, "spider")
    assert not read and skipped.reason.startswith("its database pets is not in ")
    write(tmp_path / "unifiedskg", **{"multiwoz22/train/dialogues_001.json": '[{"dialogue_id": "1", "turns": []}]'})
    _, [skipped] = examples("unifiedskg", tmp_path, "multiwoz")
    assert skipped.reason == "no schema.json beside the dialogues"
    write(tmp_path / "unifiedskg", **{"multiwoz22/schema.json": "[]"})
    _, [skipped] = examples("unifiedskg", tmp_path, "multiwoz")
    assert skipped.reason == "a dialogue without turns"


def test_reasoning_skips_records_without_an_answer_or_a_rationale(tmp_path):
    rows = [
        {"question": "2 + 2?", "answer": "It is four. #### 4"},
        {"question": "2 + 2?", "answer": "It is four. ####"},
    ]
    rows += [{"question": "2 + 2?", "answer": "#### 4"}, {"question": "2 + 2?"}]
    write(tmp_path / "reasoning", **{"gsm8k/train.jsonl": "\n".join(map(json.dumps, rows))})
    read, skipped = examples("reasoning", tmp_path, "gsm8k")
    assert [example.target for example in read] == ["It is four. The answer is 4"]
    assert [example.reason for example in skipped[:2]] == ["no answer", "no rationale"] and len(skipped) == 3
    lonely = {"id": "a", "explanation": {"open-ended": "because"}}
    write(tmp_path / "reasoning", **{"cos_e/v1.11/cose_train_v1.11.jsonl": json.dumps(lonely)})
    with pytest.raises(DataError, match=r"commonsenseqa/train_rand_split\.jsonl: .*not there"):
        examples("reasoning", tmp_path, "cose")


def test_reasoning_reads_flans_files_of_the_same_data_sets(tmp_path):
    line = "2 + 2?\\nThink.\t4\tIt is four.\n"
    write(tmp_path, **{"reasoning/gsm8k_train.tsv": line, "flan/v2/cot_data/creak_train.tsv": line})
    for task in ("gsm8k", "creak"):
        [read], _ = examples("reasoning", tmp_path, task)
        assert read.target == "It is four. The answer is 4"
        assert read.source.startswith("Answer the following question by reasoning step by step.\n2 + 2?\nThink.")
        assert read.input_start == len("Answer the following question by reasoning step by step.")


# --- tables


def test_a_table_that_is_too_long_keeps_the_rows_that_the_question_names():
    cells = [[f"name{i}", "x" * 100] for i in range(100)]
    text = linear_table(["name", "text"], cells, "what of name73 ?")
    assert len(text) <= MAX_TABLE and "name73" in text and "name0 " in text and "name99" not in text
    assert text.startswith("col : name | text row 1 : name0 | xxx")
    assert linear_table(["a"], [["1\n 2"]], "") == "col : a row 1 : 1 2"


def test_a_query_of_wikisql_is_answered_on_its_table():
    cells = [["Ann", "3"], ["Bob", "1,004"], ["ann", "5"]]

    def query(sel, agg, *conds):
        return answer_of({"sel": sel, "agg": agg, "conds": conds}, cells)

    assert query(1, 0, [0, 0, "ANN"]) == ["3", "5"]
    assert query(0, 3, [1, 1, 4]) == ["2"] and query(0, 0, [1, 2, 4]) == ["Ann"]
    assert [query(1, agg, [0, 0, "ann"]) for agg in (1, 2, 4, 5)] == [["5"], ["3"], ["8"], ["4"]]


def test_numbers_of_wikisql_have_all_their_digits():
    cells = [["12,345,678"], ["0.1"], ["-0.00000001"], ["1234567.25"]]

    def of_rows(agg, *rows):
        return answer_of({"sel": 0, "agg": agg, "conds": []}, [cells[row] for row in rows])

    assert [of_rows(1, 0), of_rows(4, 0, 0), of_rows(4, 0, 1), of_rows(2, 2)] == [
        ["12345678"],
        ["24691356"],
        ["12345678.1"],
        ["0"],
    ]
    assert of_rows(5, 3, 1) == ["617283.675"] and of_rows(5, 1, 1, 1, 0) == ["3086419.575"]


# --- the samples of the official files


@pytest.mark.parametrize(
    ("benchmark", "counts"),
    [
        ("exmix", {"cogs": 200, "shakespearizingmodernenglish": 200, "unimer": 450}),
        ("reasoning", {"winowhy": 300, "aqua": 150, "qasc": 150}),
        ("unifiedskg", {"tab_fact": 29}),
    ],
)
def test_the_official_samples_are_read_and_every_file_is_accounted_for(benchmark, counts, shared):
    discovered = registry.discover(benchmark, shared / "data")
    for task, count in counts.items():
        read, skipped = examples(benchmark, shared / "data", task)
        assert (len(read), skipped) == (count, [])
    files = {str(path) for path in (shared / "data" / benchmark).rglob("*") if path.is_file()}
    source_files = {str(path) for task in discovered.tasks.values() for path in task.files}
    named = {item.where for item in discovered.left_out if item.reason}
    papers = {
        path for path in files - source_files - named if not any(w in path.lower() for w in ("license", "readme"))
    }
    assert not papers
