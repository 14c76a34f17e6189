# ruff: noqa: E501 (texts of the figures)
"""Prompts equal, character for character, to the figures of the paper's Appendix C whose record they show.

The delimiter is drawn for each example from the paper's eight (section 2.4), so any of them may stand where the figure
has one. Line breaks are those of the figures; where the text of a figure runs over them, they are white space there.
"""

import json

import pytest

from tasks.prompting.prompts import DELIMITERS
from tests.tasks.prompting.wordings import examples, write

SCHEMA = (
    "| formula_1 | circuits : circuitid , circuitref , name , location , country , lat , lng , alt , url | races : raceid "
    ", year , round , circuitid , name , date , time , url | drivers : driverid , driverref , number , code , forename , "
    "surname , dob , nationality , url | status : statusid , status | seasons : year , url"
)
TABLES = [table.split(" : ") for table in SCHEMA.removeprefix("| formula_1 | ").split(" | ")]
DATABASE = {
    "db_id": "formula_1",
    "table_names_original": [name.title() for name, _ in TABLES],
    "column_names_original": [
        [-1, "*"],
        *([i, column.title()] for i, (_, columns) in enumerate(TABLES) for column in columns.split(" , ")),
    ],
}
COSQL = [{"database_id": "formula_1", "interaction": [{"utterance": "How many races has there been?"}]}]
COSQL[0]["interaction"][0]["query"] = "SELECT count ( * ) FROM races"
GRAIL = (
    "virgo super-cluster: m.01825t common.image.appears_in_topic_gallery astronomy.galactic_super_cluster "
    "astronomy.galactic_group astronomy.galactic_super_cluster.galaxy_clusters"
)
SQA = (
    "col : ndeg | name | position | date of birth | nationality row 1 : 1 | marcus popp | s | 23 settembre 1981 | germany "
    "row 2 : 2 | stanislav simin | c | 4 ottobre 1986 | serbia"
)
WIKISQL = (
    "col : date | venue | opponents | competition | match report row 1 : 12 july 2008 | ochilview park | stenhousemuir | f "
    "| raith rovers official site [ dead link ]"
)
TOTTO = "<page_title> Bruce Weber (basketball) </page_title> <section_title> Head coaching record </section_title>"
BRUSSELS = (
    "ATHLETICS - SALAH HISSOU BREAKS 10,000 METRES WORLD RECORD . [START_ENT] BRUSSELS [END_ENT] 1996-08-23 Morocco 's "
    "Salah Hissou broke the men 's 10,000 metres world record on Friday when he clocked 26 minutes 38.08 seconds at the "
    "Brussels grand prix on Friday ."
)
GMINA = (
    "Gmina Jaraczewo contains the villages and settlements of Bielejewo , Brzostów , [START_ENT] Cerekwica [END_ENT] , "
    "Gola , Góra , Jaraczewo , Łobez"
)
SUNSHINE = (
    "“ Ai n’t No Sunshine ” is a song by Bill Withers from his 1971 album Just As I Am , produced by Booker T. Jones ."
)
REST = "The record featured musicians Donald “ Duck ” Dunn on bass guitar ."
THANKS = (
    "“:Thanks for the comment and bringing this to my attention.\n\nOn reflection, I think there are exceptions.\n\n“"
)
PIMPLES = "Scalp pimples are the best: you're out and about with your day and feel an itch on your head."
LIGHTS = "sentence 1: The took lights weren't orange.", "sentence 2: The taken lights weren't orange."
KIMBERLEY = (
    "sentence 1: Kimberley has really ever found those actresses to compete.",
    "sentence 2: Kimberley has not ever found those actresses to compete.",
)
REASON = "Answer the following question by reasoning step by step.\n"
OPTIONS = ("popularity", "know all", "own house", "care about", "flu")
CHOICES = [{"label": label, "text": text} for label, text in zip("ABCDE", OPTIONS)]
LOVE = "How do most people feel about a person they love?"


def dump(struct, requests, answer):
    return json.dumps({"struct_in": struct, "text_in": requests, "seq_out": answer})


def tabs(*cells):
    return "\t".join(cells) + "\n"


FIGURES = {
    "37 grailqa": (
        "unifiedskg",
        "grailqa",
        {
            "grailqa_train.jsonl": dump(
                GRAIL, "which galactic cluster is it?", "(AND astronomy.galactic_cluster m.01825t)"
            )
        },
        f"knowledge graph: {GRAIL}\nquestion: which galactic cluster is it?\nKG query:",
        "(AND astronomy.galactic_cluster m.01825t)",
    ),
    "38 cosql": (
        "unifiedskg",
        "cosql",
        {"cosql/train.json": json.dumps(COSQL), "cosql/tables.json": json.dumps([DATABASE])},
        f"database: {SCHEMA}\nquestion sequence: How many races has there been?\nSQL query:",
        "select count ( * ) from races",
    ),
    "39 sqa": (
        "unifiedskg",
        "sqa",
        {"sqa_train.jsonl": dump(SQA, "what are the birth dates? || who are all the player?", "16 aprile 1993")},
        f"table: {SQA}\nquestion: what are the birth dates? || who are all the player?\nanswer:",
        "16 aprile 1993",
    ),
    "40 wikisql": (
        "unifiedskg",
        "wikisql",
        {"wikisql_train.jsonl": dump(WIKISQL, "what is the match report?", "raith rovers official site [ dead link ]")},
        f"table: {WIKISQL}\nquestion: what is the match report?\nanswer:",
        "raith rovers official site [ dead link ]",
    ),
    "41 sql2text": (
        "unifiedskg",
        "sql2text",
        {
            "spider/train.json": json.dumps(
                [
                    {
                        "query": 'SELECT LName FROM STUDENT WHERE Sex = "F" ORDER BY Age DESC',
                        "question": "Find the last name of female (sex is F) students in the descending order of age.",
                    }
                ]
            )
        },
        'SQL: SELECT LName FROM STUDENT WHERE Sex = "F" ORDER BY Age DESC\nquery in natural language:',
        "Find the last name of female (sex is F) students in the descending order of age.",
    ),
    "42 logic2text": (
        "unifiedskg",
        "logic2text",
        {
            "logic2text_train.jsonl": dump(
                "Caption: black swan - class sloop | name, pennant, builder, laid down, launched, commissioned",
                "eq hop argmin all_rows ; laid down ; name ; chanticleer = true",
                "the chanticleer was the first sloop to be laid down in the black swan - class sloop .",
            )
        },
        "table: Caption: black swan - class sloop | name, pennant, builder, laid down, launched, commissioned\n"
        "query: eq hop argmin all_rows ; laid down ; name ; chanticleer = true\nquery description:",
        "the chanticleer was the first sloop to be laid down in the black swan - class sloop .",
    ),
    "43 totto": (
        "unifiedskg",
        "totto",
        {"totto_train.jsonl": dump(TOTTO, "", "Weber finished the 2007–08 Illini season.")},
        f"table fact: {TOTTO}\ntextual description:",
        "Weber finished the 2007–08 Illini season.",
    ),
    "44 blimp": (
        "crossfit",
        "blimp_irregular_past_participle_adjectives",
        {"blimp-irregular_past_participle_adjectives_16_100_train.tsv": tabs(" [SEP] ".join(LIGHTS), "sentence 2")},
        f"Select the sentence without English grammar error from the given pair. {' '.join(LIGHTS)}",
        "sentence 2",
    ),
    "45 blimp": (
        "crossfit",
        "blimp_sentential_negation_npi_licensor_present",
        {"blimp-sentential_negation_npi_licensor_present_train.tsv": tabs(" [SEP] ".join(KIMBERLEY), "sentence 2")},
        f"Select the sentence without English grammar error from the given pair. {' '.join(KIMBERLEY)}",
        "sentence 2",
    ),
    "46, 47 eli5": (
        "crossfit",
        "eli5_eli5",
        {"eli5-eli5_train.tsv": tabs("Why do some pimples hurt and swell more than others?", PIMPLES)},
        "Why do some pimples hurt and swell more than others?",
        PIMPLES,
    ),
    "48 lama": (
        "crossfit",
        "lama_trex",
        {"data/lama-trex/lama-trex_32_13_train.tsv": tabs("Tiv people is located in [MASK] .", "Nigeria")},
        "Predict the content that fills in the [MASK] placeholder to complete each fact statement: Tiv people is located "
        "in [MASK] .",
        "Nigeria",
    ),
    "49 lama": (
        "crossfit",
        "lama_conceptnet",
        {"lama-conceptnet_train.tsv": tabs("Something you might do while helping someone is [MASK].", "dying")},
        "Predict the content that fills in the [MASK] placeholder to complete each fact statement: Something you might do "
        "while helping someone is [MASK].",
        "dying",
    ),
    "50, 51 kilt_ay2": (
        "crossfit",
        "kilt_ay2",
        {"kilt_ay2_train.tsv": tabs(BRUSSELS, "Brussels")},
        "Generate a normalized form of the entity denoted in the given passage with [START_ENT] and [END_ENT]. Passage: "
        f"{BRUSSELS}",
        "Brussels",
    ),
    "52 styleptb": (
        "exmix",
        "styleptb",
        {
            "styleptb/VSR/train.tsv": tabs(
                "renewed efforts to fight drugs and crime will be costly",
                "renewed efforts to fight_back drugs and crime will be costly",
            )
        },
        "In this sentence, replace verbs with their synonyms.\nrenewed efforts to fight drugs and crime will be costly",
        "renewed efforts to fight_back drugs and crime will be costly",
    ),
    "53 shakespeare": (
        "exmix",
        "shakespearizingmodernenglish",
        {
            "shakespearizing/train.modern.nltktok": 'Exactly , “ she said , “it’s good and mild ; it doesn’t hurt anyone."\n',
            "shakespearizing/train.original.nltktok": '“Just , “ said she , “it hurts nobody."\n',
        },
        "How would Shakespeare write the following sentence?\nExactly , “ she said , “it’s good and mild ; it doesn’t hurt "
        'anyone."',
        '“Just , “ said she , “it hurts nobody."',
    ),
    "54 unimer": (
        "exmix",
        "unimer",
        {
            "unimer_funql/atis/atis_funql_train.tsv": tabs(
                "what is the cost of a flight from boston to san francisco",
                "answer(_fare(_flight(intersection(_from_2(city_name(boston)),_to_2(city_name(san_francisco))))))",
            )
        },
        "Transform the following sentence into funql.\nwhat is the cost of a flight from boston to san francisco",
        "answer(_fare(_flight(intersection(_from_2(city_name(boston)),_to_2(city_name(san_francisco))))))",
    ),
    "55 cogs": (
        "exmix",
        "cogs",
        {
            "cogs/train.tsv": tabs(
                "Victoria awarded a cake to Olivia .",
                "award . agent ( x _ 1 , Victoria ) AND award . theme ( x _ 1 , x _ 3 ) AND cake ( x _ 3 )",
                "in_distribution",
            )
        },
        "Construct a semantic representation of the following sentence.\nVictoria awarded a cake to Olivia .",
        "award . agent ( x _ 1 , Victoria ) AND award . theme ( x _ 1 , x _ 3 ) AND cake ( x _ 3 )",
    ),
    "56 wned": (
        "exmix",
        "wned",
        {
            "wned/wned-train-kilt.jsonl": json.dumps(
                {"input": GMINA, "output": [{"answer": "Cerekwica, Jarocin County"}]}
            )
        },
        f"Which Wikipedia entity does the marked entity correspond to?\n{GMINA}",
        "Cerekwica, Jarocin County",
    ),
    "57 aidayago2": (
        "exmix",
        "aidayago2",
        {"aidayago2/train.jsonl": json.dumps({"input": BRUSSELS, "output": [{"answer": "Brussels"}]})},
        f"Which Wikipedia entity does the marked entity correspond to?\n{BRUSSELS}",
        "Brussels",
    ),
    "58, 59 newsquizqa": (
        "exmix",
        "newsquizqa",
        {
            "news_quiz_qa/train.csv": 'url,question,answer\nhttps://example.org,"Who visited LeBron James?",Magic Johnson\n'
        },
        "Who visited LeBron James?",
        "Magic Johnson",
    ),
    "60, 61 toxicity": (
        "exmix",
        "wikipedia_toxicity_subtypes",
        {"wikipedia_toxicity_subtypes/train.jsonl": json.dumps({"text": THANKS, "toxicity": 0.0})},
        f"Is the following comment toxic?\n{THANKS}",
        "No",
    ),
    "62 cnn_dailymail": (
        "t5",
        "cnn_dailymail_v002",
        {
            "rows/cnn_dailymail/train.jsonl": json.dumps(
                {
                    "article": "Editor's note: Ruben Navarrette is a columnist.",
                    "highlights": "Ruben Navarrette: McCain\n.",
                }
            )
        },
        "summarize: Editor's note: Ruben Navarrette is a columnist.",
        "Ruben Navarrette: McCain\n.",
    ),
    "63 qed": (
        "reasoning",
        "qed",
        {
            "qed/qed-train.jsonlines": json.dumps(
                {
                    "paragraph_text": f"{SUNSHINE} {REST}",
                    "question_text": "who did ain’t no sunshine when she’s gone",
                    "annotation": {
                        "explanation_type": "single_sentence",
                        "selected_sentence": {"string": SUNSHINE},
                        "answer": [{"paragraph_reference": {"string": "Bill Withers"}}],
                    },
                }
            )
        },
        f"{REASON}{SUNSHINE} {REST}\nwho did ain’t no sunshine when she’s gone",
        f"{SUNSHINE} The answer is Bill Withers",
    ),
    "64 cose": (
        "reasoning",
        "cose",
        {
            "cos_e/v1.11/cose_train_v1.11.jsonl": json.dumps(
                {"id": "a", "explanation": {"open-ended": "we care about people we love"}}
            ),
            "commonsenseqa/train_rand_split.jsonl": json.dumps(
                {"id": "a", "question": {"stem": LOVE, "choices": CHOICES}, "answerKey": "D"}
            ),
        },
        f"{REASON}{LOVE}\npopularity, know all, own house, care about, flu",
        "we care about people we love. The answer is care about",
    ),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_prompt_is_that_of_the_figure(figure, tmp_path):
    benchmark, task, files, source, target = FIGURES[figure]
    write(tmp_path / benchmark, **files)
    [example], skipped = examples(benchmark, tmp_path, task)
    assert not skipped and example.target == target
    if source.endswith(":"):
        assert example.source == source, "no delimiter after an instruction that ends in a colon"
    else:
        assert example.source in [source + delimiter for delimiter in DELIMITERS]
