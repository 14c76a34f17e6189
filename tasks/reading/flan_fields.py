"""Maps the rows of each data set to the field names of FLAN's templates (Wei et al. 2022; `flan/tasks.py`, e9e4ec6).

A recipe takes a row with the field names of TensorFlow Datasets or of `datasets` and returns the fields of the
templates: `options` and `answer` where there is something to choose from, `answers` where several are right.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.reading.fields import UnusableError, text, texts, value

Fields = dict[str, Any]
Recipe = Callable[[Mapping[str, Any]], Fields]


def _label_index(row: Mapping[str, Any], names: str, first: int = 0) -> int:
    """A label: a number from `first`, a truth value, or a letter."""
    label = value(row, names)
    if isinstance(label, str) and label in "ABCDEFGH" and label:
        return "ABCDEFGH".index(label)
    try:
        return int(label) - first
    except (TypeError, ValueError):
        raise UnusableError(f"the label {label!r} is no number") from None


def _chosen(options: Sequence[str], index: int) -> Fields:
    if not 0 <= index < len(options):
        raise UnusableError(f"the label {index} is none of {len(options)} options")
    return {"options": list(options), "answer": options[index]}


def named(*same: str, **renamed: str) -> Recipe:
    """A recipe of texts alone. `same` fields keep their names, `renamed` are template's name = row's."""
    names = {name: name for name in same} | renamed
    return lambda row: {name: text(row, source) for name, source in names.items()}


def labelled(options: Sequence[str], *same: str, label: str = "label", **renamed: str) -> Recipe:
    """A recipe of texts, and of fixed options."""
    fields = named(*same, **renamed)
    return lambda row: fields(row) | _chosen(options, _label_index(row, label))


def ranked(options: Sequence[str], *same: str) -> Recipe:
    """A recipe of texts, and of options that are fields of the row."""
    fields = named(*same)
    return lambda row: fields(row) | _chosen([text(row, name) for name in options], _label_index(row, "label"))


def _translation(language: str, code: str) -> Recipe:
    def recipe(row: Mapping[str, Any]) -> Fields:
        english, other = text(row, "en|translation.en"), text(row, f"{code}|translation.{code}")
        return {"lang1": "English", "lang2": language, "sent1": english, "sent2": other}

    return recipe


def _numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def _answers(row: Mapping[str, Any], names: str) -> Fields:
    texts_ = value(row, names)
    texts_ = [texts_] if isinstance(texts_, str) else texts_
    if not texts_ or not all(isinstance(text_, str) for text_ in texts_):
        raise UnusableError(f"no answer in {names}")
    return {"answer": texts_[0], "answers": list(texts_)}


def _wsc273(row: Mapping[str, Any]) -> Fields:
    whole = text(row, "text")
    ending = whole[int(value(row, "pronoun_end")) :].strip()
    options = [f"{text(row, f'option{i}_normalized|options.{i - 1}')} {ending}" for i in (1, 2)]
    context = whole[: int(value(row, "pronoun_start"))].strip()
    return {"context": context} | _chosen(options, _label_index(row, "label"))


def _record(row: Mapping[str, Any]) -> Fields:
    before, placeholder, after = text(row, "query").partition("@placeholder")
    if not placeholder:
        raise UnusableError("no @placeholder in the query")
    options = [entity + after for entity in texts(row, "entities")]
    answers = [answer + after for answer in texts(row, "answers")]
    if not answers:
        raise UnusableError("no answers")
    passage = text(row, "passage").split("\n@highlight")[0]
    fields = {"passage": passage, "query": before.strip(), "options": options}
    return fields | {"options_str": _options(options), "answer": answers[0], "answers": answers}


def _arc(row: Mapping[str, Any]) -> Fields:
    choices = texts(row, "choices.text")
    if len(choices) != 4:
        raise UnusableError(f"{len(choices)} choices; FLAN takes questions with four")
    key = value(row, "answerKey")
    labels = row["choices"].get("label") or []
    index = labels.index(key) if key in labels else _label_index(row, "answerKey")
    return {"question": text(row, "question")} | _chosen(choices, index)


def _aeslc(row: Mapping[str, Any]) -> Fields:
    body, subject = text(row, "email_body"), text(row, "subject_line")
    return {"body": body.replace("\n", " "), "subject": subject.replace("\n", "")}


def _cnn_dailymail(row: Mapping[str, Any]) -> Fields:
    article = text(row, "article")
    for head in ("2013 . ", "2014 . ", "2012 . ", ") -- "):
        article = article.split(head)[-1]
    return {"text": article, "highlights": text(row, "highlights")}


def _gigaword(row: Mapping[str, Any]) -> Fields:
    fields = named("summary", text="document")(row)
    if any(sign in "".join(fields.values()) for sign in ("UNK", "#")):
        raise UnusableError("FLAN leaves out texts with UNK or #")
    return fields


def _rotten_tomatoes(row: Mapping[str, Any]) -> Fields:
    reviews = texts(row, "_critics.value")
    if not reviews:
        raise UnusableError("no reviews")
    fields = {"critic_consensus": text(row, "_critic_consensus"), "movie": text(row, "_movie_name").replace("_", " ")}
    return fields | {"first_review": reviews[0], "numbered_reviews": _numbered(reviews[:10])}


def _idebate(row: Mapping[str, Any]) -> Fields:
    sentences = _numbered(texts(row, "_argument_sentences.value")[:10])
    return named(claim="_claim", debate_name="_debate_name")(row) | {"argument_sentences": sentences}


def _coqa(row: Mapping[str, Any]) -> Fields:
    numbered = {"numbered_questions": "questions", "numbered_answers": "answers.input_text"}
    return {"text": text(row, "story")} | {name: _numbered(texts(row, field)) for name, field in numbered.items()}


def _samsum(row: Mapping[str, Any]) -> Fields:
    dialogue = re.sub("<.*>", " ", text(row, "dialogue").replace("\r\n", "\n"))
    return {"summary": text(row, "summary"), "dialogue": dialogue}


def _squad(row: Mapping[str, Any]) -> Fields:
    fields = named("context", "question")(row) | {"title": text(row, "title").replace("_", " ")}
    return fields | _answers(row, "answers.text")


def _squad_v2(row: Mapping[str, Any]) -> Fields:
    if row.get("is_impossible") or not value(row, "answers.text"):
        return _squad({**row, "answers": {"text": ["unanswerable"]}})
    return _squad(row)


def _sentiment140(row: Mapping[str, Any]) -> Fields:
    polarity = value(row, "polarity|sentiment")
    if polarity == 2:
        raise UnusableError("neither negative nor positive")
    return {"text": text(row, "text")} | _chosen(("negative", "positive"), int(polarity > 2))


def _story_cloze(row: Mapping[str, Any]) -> Fields:
    if "context" in row:
        return {"context": text(row, "context")} | _chosen(texts(row, "endings"), _label_index(row, "label", 1))
    context = " ".join(text(row, f"input_sentence_{i}") for i in range(1, 5))
    endings = [text(row, f"sentence_quiz{i}") for i in (1, 2)]
    return {"context": context} | _chosen(endings, _label_index(row, "answer_right_ending", 1))


def _replaced(recipe: Recipe, field: str, *pairs: tuple[str, str]) -> Recipe:
    """Another recipe, with regular expressions replaced in one of its fields."""

    def changed(row: Mapping[str, Any]) -> Fields:
        fields = recipe(row)
        for pattern, replacement in pairs:
            fields[field] = re.sub(pattern, replacement, fields[field])
        return fields

    return changed


def _winogrande(row: Mapping[str, Any]) -> Fields:
    context, blank, ending = text(row, "sentence").partition("_")
    if not blank:
        raise UnusableError("no blank in the sentence")
    options = [text(row, f"option{i}") + ending for i in (1, 2)]
    index = _label_index(row, "label") if "label" in row else _label_index(row, "answer", 1)
    return {"context": context} | _chosen(options, index)


def _referenced(recipe: Recipe) -> Recipe:
    """Another recipe, with the references of the row."""

    def changed(row: Mapping[str, Any]) -> Fields:
        fields = recipe(row)
        references = row.get("references") or []
        return fields | {"answers": [*references, fields["target"]]}

    return changed


def _common_gen(row: Mapping[str, Any]) -> Fields:
    concepts = texts(row, "concepts")
    return {"concepts": ", ".join(concepts), "concepts_newline": "\n".join(concepts), "target": text(row, "target")}


def _dart(row: Mapping[str, Any]) -> Fields:
    triples = [triple if isinstance(triple, str) else ", ".join(triple) for triple in value(row, "tripleset")]
    shown = re.sub(r"\[(.*?)\]", "", "; ".join(triples))
    return {"tripleset": shown, "tripleset_newline": "\n".join(triples), "target": text(row, "target")}


def _web_nlg(row: Mapping[str, Any]) -> Fields:
    joined = "; ".join(texts(row, "input")).replace("_", " ").replace(" | ", ", ")
    return {"input_string": joined, "target": text(row, "target")}


def _true_case(row: Mapping[str, Any]) -> Fields:
    whole = text(row, "en|translation.en")
    return _changed({"lower": whole.lower(), "answer": whole}, "lower")


def _fix_punct(row: Mapping[str, Any]) -> Fields:
    whole = text(row, "en|translation.en")
    return _changed({"no_punct": re.sub(r"[^\w\s]", "", whole, flags=re.ASCII), "answer": whole}, "no_punct")


def _changed(fields: Fields, name: str) -> Fields:
    if fields[name] == fields["answer"]:
        raise UnusableError("nothing to change")
    return fields


def _word_segment(row: Mapping[str, Any]) -> Fields:
    whole = text(row, "en|translation.en")
    return {"no_space": whole.replace(" ", ""), "answer": whole}


def _bool_q(row: Mapping[str, Any]) -> Fields:
    fields = labelled(YES, "question", text="passage", label="label|answer")(row)
    if "title" in row:
        return fields | {"title": text(row, "title")}
    title, separator, passage = fields["text"].partition(" -- ")  # SuperGLUE writes it before the passage
    return fields | ({"title": title, "text": passage} if separator else {})


def _trivia_qa(row: Mapping[str, Any]) -> Fields:
    aliases = texts(row, "answer.normalized_aliases")
    return named("question", answer="answer.normalized_value")(row) | {"answers": aliases}


def _natural_questions(row: Mapping[str, Any]) -> Fields:
    return {"question": text(row, "question") + "?"} | _answers(row, "answer")


def _stsb(row: Mapping[str, Any]) -> Fields:
    score = value(row, "label")
    if not isinstance(score, (int, float)) or score < 0:
        raise UnusableError("the score is hidden")
    options = [str(number) for number in range(6)]
    fields = named("sentence1", "sentence2")(row) | _chosen(options, round(score))
    return fields | {"answer_str": fields["answer"]}


def _openbookqa(row: Mapping[str, Any]) -> Fields:
    nested = isinstance(row.get("question"), Mapping)
    question = text(row, "question.stem|question_stem")
    choices = [text(row, f"question.choice_{c}") for c in "ABCD"] if nested else texts(row, "choices.text")
    fact = row.get("fact1")
    fields = {"question": question} | _chosen(choices, _label_index(row, "answerKey"))
    return fields | ({"fact": fact} if isinstance(fact, str) else {})


def _hellaswag(row: Mapping[str, Any]) -> Fields:
    context = re.sub(r"\[.*?\]\s", "\n", re.sub(r"\[header\]\s", "", text(row, "context|ctx")))
    endings = [re.sub(r"\[.*?\]\s", "", ending) for ending in texts(row, "endings")]
    return {"context": context, "activity_label": row.get("activity_label", "")} | _chosen(
        endings, _label_index(row, "label")
    )


def _options(options: Sequence[str]) -> str:
    return "OPTIONS:\n- " + "\n- ".join(options)


def fields_of(task: str, row: Mapping[str, Any]) -> Fields:
    """A row of a task as its templates name it.

    Raises:
      UnusableError: why it makes no example.
    """
    try:
        fields = RECIPES[task](row)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:  # a field of another kind
        raise UnusableError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from None
    return fields | ({"options_": _options(fields["options"])} if "options" in fields else {})


YES = ("no", "yes")
SENTIMENT = ("negative", "positive")
NLI = ("yes", "it is not possible to tell", "no")
QUESTIONS = ("description", "entity", "abbreviation", "human", "numeric", "location")
PAIR = ("sentence1", "sentence2")

RECIPES: dict[str, Recipe] = {
    "aeslc": _aeslc,
    "cnn_dailymail": _cnn_dailymail,
    "gigaword": _gigaword,
    "multi_news": named("summary", text="document"),
    "newsroom": named("text", "title", "summary"),
    "samsum": _samsum,
    "xsum": named("summary", text="document"),
    "ag_news_subset": labelled(("World", "Sports", "Business", "Science/Tech"), "title", text="description"),
    "opinion_abstracts_rotten_tomatoes": _rotten_tomatoes,
    "opinion_abstracts_idebate": _idebate,
    "wiki_lingua_english_en": named("source", "target"),
    "web_nlg_en": _referenced(_web_nlg),
    "common_gen": _referenced(_common_gen),
    "e2e_nlg": _referenced(
        _replaced(named("meaning_representation", "target"), "meaning_representation", (r"\[", " = "), (r"\]", ""))
    ),
    "dart": _referenced(_dart),
    "squad_v1": _squad,
    "squad_v2": _squad_v2,
    "drop": lambda row: named("question", context="passage")(row) | _answers(row, "answer|answers_spans.spans"),
    "multirc": labelled(YES, "paragraph", "question", response="answer"),
    "openbookqa": _openbookqa,
    "bool_q": _bool_q,
    "trivia_qa": _trivia_qa,
    "natural_questions": _natural_questions,
    "arc_challenge": _arc,
    "arc_easy": _arc,
    "glue_mrpc": labelled(YES, *PAIR),
    "glue_qqp": _replaced(
        _replaced(labelled(YES, "question1", "question2"), "question1", ('""', "'")), "question2", ('""', "'")
    ),
    "paws_wiki": labelled(YES, *PAIR),
    "stsb": _stsb,
    "imdb_reviews": _replaced(labelled(SENTIMENT, "text"), "text", ("<br />", "\n")),
    "sentiment140": _sentiment140,
    "yelp_polarity_reviews": _replaced(labelled(SENTIMENT, "text"), "text", (r'\\""', '"'), (r"\\n", " ")),
    "sst2": labelled(SENTIMENT, "sentence"),
    "true_case": _true_case,
    "fix_punct": _fix_punct,
    "word_segment": _word_segment,
    "copa": ranked(("choice1", "choice2"), "premise", "question"),
    "hellaswag": _hellaswag,
    "story_cloze": _story_cloze,
    "piqa": ranked(("sol1", "sol2"), "goal"),
    "para_crawl_enes": _translation("Spanish", "es"),
    "wmt14_enfr": _translation("French", "fr"),
    "wmt16_translate_deen": _translation("German", "de"),
    "wmt16_translate_tren": _translation("Turkish", "tr"),
    "wmt16_translate_csen": _translation("Czech", "cs"),
    "wmt16_translate_fien": _translation("Finnish", "fi"),
    "wmt16_translate_roen": _translation("Romanian", "ro"),
    "wmt16_translate_ruen": _translation("Russian", "ru"),
    "definite_pronoun_resolution": lambda row: (
        named("sentence", "pronoun")(row) | _chosen(texts(row, "candidates"), _label_index(row, "label"))
    ),
    "winogrande": _winogrande,
    "wsc": labelled(YES, context="text", text1="span1_text", text2="span2_text"),
    "anli_r1": labelled(("Yes", "It's impossible to say", "No"), "hypothesis", context="context|premise"),
    "cb": labelled(("Yes", "No", "It's impossible to say"), "premise", "hypothesis"),
    "rte": labelled(("yes", "no"), "premise", "hypothesis"),
    "mnli_matched": labelled(NLI, "premise", "hypothesis"),
    "qnli": labelled(("yes", "no"), "sentence", "question"),
    "wnli": labelled(YES, *PAIR),
    "snli": labelled(NLI, "premise", "hypothesis"),
    "math_dataset": named("question", "answer"),
    "quac": lambda row: (
        named("background", "context", "question", title="title|section_title")(row) | _answers(row, "orig_answer.text")
    ),
    "coqa": _coqa,
    "wic": labelled(("different meanings", "the same meaning"), *PAIR, "word"),
    "cola": labelled(("unacceptable", "acceptable"), "sentence"),
    "trec": labelled(QUESTIONS, "text", label="label-coarse|coarse_label"),
    "record": _record,
    "cosmos_qa": ranked([f"answer{i}" for i in range(4)], "context", "question"),
    "wsc273": _wsc273,
}
RECIPES |= {"anli_r2": RECIPES["anli_r1"], "anli_r3": RECIPES["anli_r1"], "mnli_mismatched": RECIPES["mnli_matched"]}
