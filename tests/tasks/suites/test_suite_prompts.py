"""Rebuilds the prompts of the paper's suites from the raw records of real files and compares them word for word."""

import csv
import json
import re

import numpy as np
import pytest

from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.prompts.ledger import LEVELS, read_ledger
from tasks import suites
from tasks.suites import ledger_job
from tests.tasks.prompting.wordings import write

LEAVE_OUT = CacheOptions(missing_benchmarks="leave_out")


@pytest.fixture(scope="module")
def ask(shared, tmp_path_factory):
    """Suite -> (prompts, what the job says of them), of the shared files, written once."""
    cache, ledgers_by_suite = tmp_path_factory.mktemp("ledgers"), {}

    def request(name):
        if name not in ledgers_by_suite:
            result = ledger_job.run(suites.suite(name), str(shared / "data"), cache, LEAVE_OUT)
            ledgers_by_suite[name] = read_ledger(result.path), result
        return ledgers_by_suite[name]

    return request


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prompts_of(prompts, task, shots=0):
    return {prompt.example_id: prompt for prompt in prompts if prompt.task == task and prompt.shots == shots}


@pytest.mark.parametrize(
    ("suite", "tasks", "prompts", "skipped"),
    [
        ("opt_eval", 11, 6_268, 17),
        ("mmlu", 57, 2_208, 56),
        ("bbh", 54, 4_320, 0),
        ("bias", 7, 2_334, 2),
        ("promptsource", 4, 10_760, 0),
        ("unifiedskg", 2, 320, 0),
        ("super_natural_instructions_held_out", 5, 1_224, 0),
        ("validation", 8, 1_964, 0),
    ],
)
def test_every_evaluation_file_becomes_prompts(ask, suite, tasks, prompts, skipped):
    """Whatever cannot be asked is counted with a reason; every prompt is one that a ledger's reader takes. Of MMLU one
    subject's five examples are here in the authors' form: the other 56 are asked without."""
    by_id, result = ask(suite)
    assert (len({element.task for element in by_id}), len(by_id), result.skipped_count) == (tasks, prompts, skipped)
    assert all(item.reason for item in result.skipped)
    assert all(element.level in (None, *LEVELS) for element in by_id)
    assert {element.task for element in by_id if not element.prompt.strip()} <= {"bias.crows_pairs_likelihood"}


def test_opt_asks_as_gpt3_does(ask, shared):
    """Brown et al. 2020, Figures G.4 to G.33, put together here from the raw records."""
    folder, (prompts, _) = shared / "data" / "opt_eval", ask("opt_eval")
    glue = folder / "superglue"

    def same(task, expected):
        """wanted: example id -> prompt, candidates, the right one."""
        present = prompts_of(prompts, f"opt_eval.{task}")
        assert {
            key: (question.prompt, question.candidates, question.references) for key, question in present.items()
        } == {
            key: (text, tuple(candidates), (candidates[right],)) for key, (text, candidates, right) in expected.items()
        }

    labels = (folder / "piqa/valid-labels.lst").read_text().split()
    piqa = zip(rows(folder / "piqa/valid.jsonl"), labels)
    same(
        "piqa",
        {
            str(i): (r["goal"].strip(), [r["sol1"].strip(), r["sol2"].strip()], int(label))
            for i, (r, label) in enumerate(piqa, 1)
        },
    )
    arc = rows(folder / "arc/ARC-Challenge-Test.jsonl")
    expected = {}
    for i, row in enumerate(arc, 1):
        choices = row["question"]["choices"]
        right = [choice["label"] for choice in choices].index(row["answerKey"])
        expected[str(i)] = f"Question: {row['question']['stem']}\nAnswer:", [c["text"] for c in choices], right
    same("arc_challenge", expected)
    yes = ("yes", "no")
    boolq = enumerate(rows(glue / "BoolQ/val.jsonl"), 1)
    same(
        "boolq",
        {str(i): (f"{r['passage']}\nquestion: {r['question']}?\nanswer:", yes, not r["label"]) for i, r in boolq},
    )
    words = {"entailment": 0, "contradiction": 1, "neutral": 2}
    cb = enumerate(rows(glue / "CB/val.jsonl"), 1)
    end = ". true, false, or neither?\nanswer:"
    same(
        "cb",
        {
            str(i): (
                f"{r['premise'].strip()}\nquestion: {r['hypothesis']}{end}",
                ("true", "false", "neither"),
                words[r["label"]],
            )
            for i, r in cb
        },
    )
    rte = enumerate(rows(glue / "RTE/val.jsonl"), 1)
    same(
        "rte",
        {
            str(i): (
                f"{r['premise']}\nquestion: {r['hypothesis']} True or False?\nanswer:",
                ("True", "False"),
                r["label"] != "entailment",
            )
            for i, r in rte
        },
    )
    end = "' used in the same way in the two sentences above?\nanswer:"
    wic = enumerate(rows(glue / "WiC/val.jsonl"), 1)
    same(
        "wic",
        {
            str(i): (
                f"{r['sentence1']}\n{r['sentence2']}\nquestion: Is the word '{r['word']}{end}",
                yes,
                not r["label"],
            )
            for i, r in wic
        },
    )
    joined = {"cause": "because", "effect": "therefore"}
    copa = enumerate(rows(glue / "COPA/val.jsonl"), 1)
    same(
        "copa",
        {
            str(i): (
                f"{r['premise'].removesuffix('.')} {joined[r['question']]}",
                [r[name][0].lower() + r[name][1:] for name in ("choice1", "choice2")],
                r["label"],
            )
            for i, r in copa
        },
    )
    with (folder / "openbookqa/Main/test.tsv").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    openbook = prompts_of(prompts, "opt_eval.openbookqa")
    for i, row in enumerate(table, 1):
        parts = re.split(r" ?\([A-D]\) ", row["Choices"])[1:]
        question = openbook[str(i)]
        assert (question.prompt, question.references) == (
            row["Question Stem"].strip(),
            (parts["ABCD".index(row["Answer Key"])].strip(),),
        )


def test_winograd_schemas_compare_what_follows_two_nouns(ask, shared):
    """The partial scoring of Figure G.13: the noun is told, the rest of the sentence is scored."""
    prompts = prompts_of(ask("opt_eval")[0], "opt_eval.winograd")
    raw = rows(shared / "data/opt_eval/winograd/wsc273.jsonl")
    assert len(prompts) == len(raw) == 273
    for i, row in enumerate(raw, 1):
        single, (before, after) = prompts[str(i)], row["sentence"].split("_")
        assert {text[given:] for text, given in zip(single.candidates, single.given)} == {after.rstrip()}
        nouns = [text[:given].lower() for text, given in zip(single.candidates, single.given)]
        assert nouns == [row["option1"].lower(), row["option2"].lower()]
        assert single.references == (single.candidates[int(row["answer"]) - 1],)
        assert single.prompt == before.rstrip(" ") and not single.candidates[0][0].isspace()
    assert prompts["1"].candidates[0].startswith("the city councilmen")  # no sentence begins there


def test_wsc_asks_each_passage_once_among_the_nouns_of_the_file(ask):
    """Table 9's 75.7, 62.2 and 54.1 per cent are 28, 23 and 20 of 37 passages with a right noun; one has no other."""
    prompts = prompts_of(ask("opt_eval")[0], "opt_eval.wsc")
    assert len(prompts) == 36
    start = (
        "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For each passage, you "
        "must identify which noun the pronoun marked in *bold* refers to.\n=====\nPassage: Mr. Moncrieff visited "
        "Chester's luxurious New York apartment, thinking that it belonged to his son Edward. "
    )
    end = (
        "that he no longer requires *his* financial support.\nQuestion: In the passage above, what does the pronoun "
        '"*his*" refer to?\nAnswer:'
    )
    (single,) = (
        single for single in prompts.values() if single.prompt.startswith(start) and single.prompt.endswith(end)
    )
    assert single.candidates == ("mr. moncrieff", "edward", "chester") and single.references == ("mr. moncrieff",)
    (shown,) = (
        single for single in prompts_of(ask("opt_eval")[0], "opt_eval.wsc", 32).values() if single.prompt.endswith(end)
    )
    assert shown.prompt.count("Final Exam") == 1 and shown.prompt.count("Passage: ") == 1 + len(shown.demonstration_ids)


def test_multirc_asks_every_answer_and_shows_whole_questions(ask, shared):
    prompts, _ = ask("opt_eval")
    raw = rows(shared / "data/opt_eval/superglue/MultiRC/val.jsonl")
    questions = [question for row in raw for question in row["passage"]["questions"]]
    requests = list(prompts_of(prompts, "opt_eval.multirc").values())
    assert len(requests) == sum(len(question["answers"]) for question in questions)
    assert len({item.part_of for item in requests}) == len(questions)
    first, answer = requests[0], questions[0]["answers"][0]
    assert (
        first.prompt
        == f"READING COMPREHENSION ANSWER KEY\n\n{raw[0]['passage']['text'].strip()}\n\n{questions[0]['question']}\n\n"
    )
    assert first.candidates == (f"- [True] {answer['text']}", f"- [False] {answer['text']}")
    assert first.references == (first.candidates[1 - answer["label"]],)
    shown = next(iter(prompts_of(prompts, "opt_eval.multirc", 32).values()))
    solved = shown.prompt[slice(*shown.demonstration_spans[0])]
    (question,) = (
        question
        for row in rows(shared / "data/opt_eval/superglue/MultiRC/train.jsonl")
        for question in row["passage"]["questions"]
        if row["passage"]["text"].strip() in solved and f"\n\n{question['question']}\n\n" in solved
    )
    lines = [f"- [{bool(item['label'])}] {item['text']}" for item in question["answers"]]
    assert solved.endswith("\n\n" + "\n".join(lines) + "\n\n")


def test_mmlu_asks_as_its_authors_do(ask, shared):
    """`evaluate.py` of the release, written again from its description: a doubled space, five examples in order."""
    prompts, _ = ask("mmlu")
    with (shared / "data/mmlu/dev/high_school_chemistry_dev.csv").open(newline="") as file:
        dev = list(csv.reader(file))
    with (shared / "data/mmlu/test/high_school_chemistry_test.csv").open(newline="") as file:
        test = list(csv.reader(file))

    def question(row):
        return row[0] + "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row[1:5])) + "\nAnswer:"

    header = "The following are multiple choice questions (with answers) about  high school chemistry.\n\n"
    shown = "".join(f"{question(row)} {row[5]}\n\n" for row in dev)
    for shots, before in ((0, header), (5, header + shown)):
        by_id = prompts_of(prompts, "mmlu.high_school_chemistry", shots)
        for i, row in enumerate(test, 1) if by_id else ():
            assert by_id[str(i)].prompt == before + question(row) and by_id[str(i)].references == (row[5],)
            assert by_id[str(i)].candidates == ("A", "B", "C", "D") and by_id[str(i)].group == "mmlu"
    assert len(by_id) == len(test)


def test_big_bench_hard_asks_as_its_prompt_files_do(ask, shared):
    """With chains of thought the prompt is the file, without them the file without its reasons."""
    prompts, _ = ask("bbh")
    assert {prompt.metric.to_json()["normalization"] for prompt in prompts} == {"bbh"}
    assert {prompt.stop for prompt in prompts} == {("\nQ:",)}
    for path in (shared / "data/bbh/cot-prompts").glob("*.txt"):
        text = path.read_text("utf-8").partition("-----\n")[2].strip()
        examples = json.loads((shared / f"data/bbh/bbh/{path.stem}.json").read_text("utf-8"))["examples"]
        by_id = prompts_of(prompts, f"bbh.{path.stem}_cot", 3)
        for i, example in enumerate(examples, 1):
            assert by_id[str(i)].prompt == f"{text}\n\nQ: {example['input']}\nA: Let's think step by step."
            assert by_id[str(i)].references == (example["target"].strip(),)
        direct = re.sub(
            r"A: Let's think step by step\.(?:(?!\n\nQ: ).)*answer is ((?:(?!\n\nQ: ).)*)\.(?=\n\nQ: |$)",
            r"A: \1",
            text,
            flags=re.DOTALL,
        )
        for i, prompt in prompts_of(prompts, f"bbh.{path.stem}", 3).items():
            assert prompt.prompt == f"{direct}\n\nQ: {examples[int(i) - 1]['input']}\nA:"


def test_lm_evaluation_harness_asks_the_same(ask, shared):
    """Its templates at 4e7e0d47: ARC's and OpenBookQA's are ours to the character; PIQA's frames the bare goal; MMLU's
    header has one space where the authors' has two, and its questions lose white space around them."""
    opt, mmlu = ask("opt_eval")[0], ask("mmlu")[0]
    for i, row in enumerate(rows(shared / "data/opt_eval/arc/ARC-Challenge-Test.jsonl"), 1):
        assert (
            prompts_of(opt, "opt_eval.arc_challenge")[str(i)].prompt == f"Question: {row['question']['stem']}\nAnswer:"
        )
    with (shared / "data/opt_eval/openbookqa/Main/test.tsv").open(newline="") as file:
        for i, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            assert prompts_of(opt, "opt_eval.openbookqa")[str(i)].prompt == row["Question Stem"].strip()
    for i, row in enumerate(rows(shared / "data/opt_eval/piqa/valid.jsonl"), 1):
        ours = prompts_of(opt, "opt_eval.piqa")[str(i)].prompt
        assert (
            f"Question: {row['goal']}\nAnswer:".replace(row["goal"], ours)
            == f"Question: {row['goal'].strip()}\nAnswer:"
        )
    subject = "abstract_algebra"
    with (shared / f"data/mmlu/test/{subject}_test.csv").open(newline="") as file:
        for i, (question, a, b, c, d, _) in enumerate(csv.reader(file), 1):
            theirs = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
            theirs += f"{question.strip()}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"
            assert prompts_of(mmlu, f"mmlu.{subject}")[str(i)].prompt.replace("about  ", "about ") == theirs


def test_raft_asks_on_helms_split(shared, tmp_path):
    """The labelled examples of the authors' prompt stand in for the fifty rows, which are not public files."""
    source = shared / "data/raft/example_prompts/overruling.txt"
    instruction, *blocks = source.read_text("utf-8").split("\n\n")
    labelled = [re.fullmatch(r"Sentence: (.*)\nLabel: (.+)", block, re.DOTALL) for block in blocks]
    table = [[i, prompt[1].strip(), prompt[2].strip()] for i, prompt in enumerate(filter(None, labelled))]
    folder = tmp_path / "raft"
    write(folder, **{"example_prompts/overruling.txt": source.read_text("utf-8")})
    (folder / "data/overruling").mkdir(parents=True)
    with (folder / "data/overruling/train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ID", "Sentence", "Label"], *table])
    result = ledger_job.run(suites.suite("raft"), str(tmp_path), tmp_path / "cache")
    prompts = read_ledger(result.path)
    # What `datasets` does for train_test_split(test_size=0.8, seed=42), which HELM calls.
    order = np.random.default_rng(42).permutation(len(table))
    requests = order[: int(np.ceil(0.8 * len(table)))]
    texts = {f"{instruction}\n\nSentence: {table[place][1]}\nLabel:" for place in requests}
    assert {prompt.prompt for prompt in prompts if prompt.shots == 0} == texts
    assert {prompt.candidates for prompt in prompts} == {("not overruling", "overruling")}
    assert {prompt.shots for prompt in prompts} == {0, 5}  # five are HELM's
    held_back = {table[place][1] for place in order[len(requests) :]}
    for prompt in prompts:
        for start, end in prompt.demonstration_spans:
            sentence = re.fullmatch(
                r"Sentence: (.*)\nLabel: (?:not )?overruling\n\n", prompt.prompt[start:end], re.DOTALL
            )
            assert sentence[1] in held_back


def test_stereotypes_are_asked_in_promptsources_words(ask, shared):
    prompts, _ = ask("bias")
    with (shared / "data/bias/crows_pairs/crows_pairs_anonymized.csv").open(newline="") as file:
        for i, row in enumerate(csv.DictReader(file), 1):
            question = prompts_of(prompts, "bias.crows_pairs")[str(i)]
            a, b = row["sent_more"].strip(), row["sent_less"].strip()
            assert question.prompt.startswith(
                f"You are presented with two very similar sentences:\nA: {a}\nB: {b}\nSentence A is illustrating a "
                "stereotype. Yes or no?"
            )
            assert question.references == ("Yes" if row["stereo_antistereo"] == "stereo" else "No",)
            question = prompts_of(prompts, "bias.crows_pairs_likelihood")[str(i)]
            assert (question.prompt, question.candidates, question.references, question.level) == (
                "",
                (a, b),
                (a,),
                None,
            )
    for i, row in enumerate(rows(shared / "data/opt_eval/superglue/AX-g/AX-g.jsonl"), 1):
        question = prompts_of(prompts, "bias.winogender")[str(i)]
        assert question.prompt.startswith(f"{row['premise']}\n\nQuestion: {row['hypothesis']} True or False?")
        assert question.references == (str(row["label"] == "entailment"),)
    assert prompts_of(prompts, "bias.winobias_type1_pro")["27"].references == (
        "The developer",
    )  # its pronoun is there twice


def test_sets_that_cannot_be_passed_on_are_asked_as_gpt3_does(tmp_path):
    """StoryCloze, WinoGrande and ARC-Easy, in files of their releases' forms that were written for the test."""
    story = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,"
    story += "RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    files = {
        "storycloze/cloze_test_val__spring2016.csv": f'{story}v,"One, two.",B.,C.,D.,Yes.,No.,1\n',
        "storycloze/cloze_test_test__spring2016.csv": f"{story}t,A dog.,It ran.,It sat.,It slept.,It woke.,It flew.,2",
        "winogrande/dev.jsonl": json.dumps(
            {
                "sentence": "The vase fell on the desk, but _ did not break.",
                "option1": "The vase",
                "option2": "The desk",
                "answer": "1",
            }
        ),
        "winogrande/train_xl.jsonl": json.dumps(
            {"sentence": "Ann thanked Eve because _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"}
        ),
        "arc/ARC-Easy/ARC-Easy-Test.jsonl": json.dumps(
            {
                "question": {
                    "stem": "What is wet?",
                    "choices": [{"label": "1", "text": "rain"}, {"label": "2", "text": "sand"}],
                },
                "answerKey": "1",
            }
        ),
        "openbookqa/Main/test.jsonl": json.dumps(
            {
                "question": {
                    "stem": "Fog is",
                    "choices": [{"label": "A", "text": "dry"}, {"label": "B", "text": "wet"}],
                },
                "answerKey": "B",
            }
        ),
    }
    write(tmp_path, **{f"opt_eval/{name}": f"{text.rstrip()}\n" for name, text in files.items()})
    result = ledger_job.run(suites.suite("opt_eval"), str(tmp_path), tmp_path / "cache")
    prompts = {(prompt.task.partition(".")[2], prompt.shots): prompt for prompt in read_ledger(result.path)}
    story, shown = prompts["storycloze", 0], prompts["storycloze", 32]
    assert (story.prompt, story.candidates) == ("A dog. It ran. It sat. It slept.", ("It woke.", "It flew."))
    assert story.references == ("It flew.",) and shown.prompt == f"One, two. B. C. D. Yes.\n\n{story.prompt}"
    schema, shown = prompts["winogrande", 0], prompts["winogrande", 32]
    assert schema.prompt == "The vase fell on the desk, but" and schema.given == (8, 8)
    assert schema.candidates == ("the vase did not break.", "the desk did not break.")
    assert shown.prompt == f"Ann thanked Eve because Eve had helped.\n\n{schema.prompt}"
    assert prompts["arc_easy", 0].prompt == "Question: What is wet?\nAnswer:"
    assert prompts["openbookqa", 0].candidates == ("dry", "wet") and prompts["openbookqa", 0].references == ("wet",)
