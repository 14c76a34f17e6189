"""A row of every FLAN task under the names of TensorFlow Datasets, and what its templates make of it."""

ANSWERS = {"text": ["the cat", "a cat"], "answer_start": [0, 3]}
PAIR = {"sentence1": "A b.", "sentence2": "C d."}
JUDGED = {"premise": "It rains.", "hypothesis": "It is wet."}

ROWS = {
    "aeslc": ({"email_body": "Dear\nall", "subject_line": "Lunch\n"}, {"body": "Dear all", "subject": "Lunch"}),
    "cnn_dailymail": (
        {"article": "LONDON (CNN) -- Rain fell. 12 May 2013 . It was wet.", "highlights": "Rain ."},
        {"text": "It was wet.", "highlights": "Rain ."},
    ),
    "gigaword": ({"document": "rain fell .", "summary": "rain"}, {"text": "rain fell .", "summary": "rain"}),
    "multi_news": ({"document": "rain fell .", "summary": "rain"}, {"text": "rain fell .", "summary": "rain"}),
    "newsroom": ({"text": "t", "title": "h", "summary": "s"}, {"text": "t", "title": "h", "summary": "s"}),
    "samsum": (
        {"dialogue": "A: hi\r\nB: <file_photo> yes", "summary": "s"},
        {"dialogue": "A: hi\nB:   yes", "summary": "s"},
    ),
    "xsum": ({"document": "rain fell .", "summary": "rain"}, {"text": "rain fell .", "summary": "rain"}),
    "ag_news_subset": (
        {"title": "h", "description": "d", "label": 2},
        {"title": "h", "text": "d", "answer": "Business", "options": ["World", "Sports", "Business", "Science/Tech"]},
    ),
    "opinion_abstracts_rotten_tomatoes": (
        {"_critic_consensus": "Good.", "_movie_name": "the_film", "_critics": {"value": ["Nice.", "Fine."]}},
        {
            "critic_consensus": "Good.",
            "movie": "the film",
            "first_review": "Nice.",
            "numbered_reviews": "1. Nice.\n2. Fine.",
        },
    ),
    "opinion_abstracts_idebate": (
        {"_claim": "c", "_debate_name": "d", "_argument_sentences": {"value": ["x", "y"]}},
        {"claim": "c", "debate_name": "d", "argument_sentences": "1. x\n2. y"},
    ),
    "wiki_lingua_english_en": ({"source": "s", "target": "t"}, {"source": "s", "target": "t"}),
    "web_nlg_en": (
        {"input": ["A_b | in | C", "C | is | D"], "target": "t", "references": ["u"]},
        {"input_string": "A b, in, C; C, is, D", "target": "t", "answers": ["u", "t"]},
    ),
    "common_gen": (
        {"concepts": ["cat", "look"], "target": "t", "references": ["u"]},
        {"concepts": "cat, look", "concepts_newline": "cat\nlook", "target": "t", "answers": ["u", "t"]},
    ),
    "e2e_nlg": (
        {"meaning_representation": "name[A], food[B]", "target": "t", "references": []},
        {"meaning_representation": "name = A, food = B", "target": "t"},
    ),
    "dart": (
        {"tripleset": ["A | b | C", "[TABLE] | d | E"], "target": "t", "references": []},
        {"tripleset": "A | b | C;  | d | E", "tripleset_newline": "A | b | C\n[TABLE] | d | E", "target": "t"},
    ),
    "squad_v1": (
        {"title": "A_b", "context": "c", "question": "q", "answers": ANSWERS},
        {"title": "A b", "context": "c", "question": "q", "answer": "the cat", "answers": ["the cat", "a cat"]},
    ),
    "squad_v2": (
        {"title": "A_b", "context": "c", "question": "q", "answers": {"text": [], "x": []}, "is_impossible": True},
        {"title": "A b", "answer": "unanswerable", "answers": ["unanswerable"]},
    ),
    "drop": (
        {"passage": "c", "question": "q", "answer": "3"},
        {"context": "c", "question": "q", "answer": "3", "answers": ["3"]},
    ),
    "multirc": (
        {
            "paragraph": "p",
            "question": "q",
            "answer": "r",
            "label": 1,
            "idx": {"paragraph": 0, "question": 0, "answer": 0},
        },
        {"paragraph": "p", "question": "q", "response": "r", "answer": "yes", "options": ["no", "yes"]},
    ),
    "openbookqa": (
        {
            "question": {"stem": "q", "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d"},
            "fact1": "f",
            "answerKey": 1,
        },
        {"question": "q", "fact": "f", "answer": "b", "options": ["a", "b", "c", "d"]},
    ),
    "bool_q": (
        {"title": "h", "passage": "p", "question": "q", "answer": True},
        {"title": "h", "text": "p", "question": "q", "answer": "yes"},
    ),
    "trivia_qa": (
        {"question": "q", "answer": {"value": "A", "normalized_value": "a", "normalized_aliases": ["a", "b"]}},
        {"question": "q", "answer": "a", "answers": ["a", "b"]},
    ),
    "natural_questions": (
        {"question": "who", "answer": ["a", "b"]},
        {"question": "who?", "answer": "a", "answers": ["a", "b"]},
    ),
    "arc_challenge": (
        {"question": "q", "choices": {"text": ["a", "b", "c", "d"], "label": [0, 1, 2, 3]}, "answerKey": 2},
        {"question": "q", "answer": "c", "options": ["a", "b", "c", "d"]},
    ),
    "glue_mrpc": (PAIR | {"label": 1}, PAIR | {"answer": "yes"}),
    "glue_qqp": (
        {"question1": 'a ""b""', "question2": "c", "label": 0},
        {"question1": "a 'b'", "question2": "c", "answer": "no"},
    ),
    "paws_wiki": (PAIR | {"label": 0}, PAIR | {"answer": "no"}),
    "stsb": (PAIR | {"label": 3.8}, PAIR | {"answer_str": "4", "options": ["0", "1", "2", "3", "4", "5"]}),
    "imdb_reviews": ({"text": "a<br />b", "label": 1}, {"text": "a\nb", "answer": "positive"}),
    "sentiment140": ({"text": "a", "polarity": 4}, {"text": "a", "answer": "positive"}),
    "yelp_polarity_reviews": (
        {"text": 'a \\""b\\"" c\\nd', "label": 0},
        {"text": 'a "b" c d', "answer": "negative"},
    ),
    "sst2": ({"sentence": "a", "label": 0}, {"sentence": "a", "answer": "negative"}),
    "true_case": ({"en": "A Cat"}, {"lower": "a cat", "answer": "A Cat"}),
    "fix_punct": ({"en": "Yes, a cat."}, {"no_punct": "Yes a cat", "answer": "Yes, a cat."}),
    "word_segment": ({"en": "A cat"}, {"no_space": "Acat", "answer": "A cat"}),
    "copa": (
        {"premise": "It rained.", "question": "effect", "choice1": "a", "choice2": "b", "label": 1},
        {"premise": "It rained.", "question": "effect", "answer": "b", "options": ["a", "b"]},
    ),
    "hellaswag": (
        {
            "context": "[header] How to [title] do it [step] so",
            "activity_label": "x",
            "endings": ["a [step] b", "c", "d", "e"],
            "label": 0,
        },
        {"context": "How to \ndo it \nso", "answer": "a b", "options": ["a b", "c", "d", "e"]},
    ),
    "story_cloze": ({"context": "c", "endings": ["a", "b"], "label": 2}, {"context": "c", "answer": "b"}),
    "piqa": ({"goal": "g", "sol1": "a", "sol2": "b", "label": 0}, {"goal": "g", "answer": "a", "options": ["a", "b"]}),
    "para_crawl_enes": (
        {"en": "cat", "es": "gato"},
        {"lang1": "English", "lang2": "Spanish", "sent1": "cat", "sent2": "gato"},
    ),
    "wmt14_enfr": ({"en": "cat", "fr": "chat"}, {"lang2": "French", "sent1": "cat", "sent2": "chat"}),
    "wmt16_translate_deen": ({"en": "cat", "de": "Katze"}, {"lang2": "German", "sent1": "cat", "sent2": "Katze"}),
    "wmt16_translate_tren": ({"en": "cat", "tr": "kedi"}, {"lang2": "Turkish", "sent1": "cat", "sent2": "kedi"}),
    "wmt16_translate_csen": ({"en": "cat", "cs": "kočka"}, {"lang2": "Czech", "sent1": "cat", "sent2": "kočka"}),
    "wmt16_translate_fien": ({"en": "cat", "fi": "kissa"}, {"lang2": "Finnish", "sent1": "cat", "sent2": "kissa"}),
    "wmt16_translate_roen": ({"en": "cat", "ro": "pisică"}, {"lang2": "Romanian", "sent1": "cat", "sent2": "pisică"}),
    "wmt16_translate_ruen": ({"en": "cat", "ru": "кот"}, {"lang2": "Russian", "sent1": "cat", "sent2": "кот"}),
    "definite_pronoun_resolution": (
        {"sentence": "s", "pronoun": "it", "candidates": ["a", "b"], "label": 1},
        {"sentence": "s", "pronoun": "it", "answer": "b", "options": ["a", "b"]},
    ),
    "winogrande": (
        {"sentence": "Ann met Eve and _ ran.", "option1": "Ann", "option2": "Eve", "label": 0},
        {"context": "Ann met Eve and ", "answer": "Ann ran.", "options": ["Ann ran.", "Eve ran."]},
    ),
    "wsc": (
        {"text": "t", "span1_text": "a", "span2_text": "b", "label": 1},
        {"context": "t", "text1": "a", "text2": "b", "answer": "yes"},
    ),
    "anli_r1": (
        {"context": "c", "hypothesis": "h", "label": 1},
        {"context": "c", "hypothesis": "h", "answer": "It's impossible to say"},
    ),
    "cb": (JUDGED | {"label": 1}, JUDGED | {"answer": "No"}),
    "rte": (JUDGED | {"label": 1}, JUDGED | {"answer": "no"}),
    "mnli_matched": (JUDGED | {"label": 1}, JUDGED | {"answer": "it is not possible to tell"}),
    "qnli": ({"sentence": "s", "question": "q", "label": 0}, {"sentence": "s", "question": "q", "answer": "yes"}),
    "wnli": (PAIR | {"label": 0}, PAIR | {"answer": "no"}),
    "snli": (JUDGED | {"label": 2}, JUDGED | {"answer": "no"}),
    "math_dataset": ({"question": "q", "answer": "3"}, {"question": "q", "answer": "3"}),
    "quac": (
        {"title": "h", "background": "b", "context": "c", "question": "q", "orig_answer": {"text": "a"}},
        {"title": "h", "background": "b", "context": "c", "question": "q", "answer": "a"},
    ),
    "coqa": (
        {"story": "s", "questions": ["q", "r"], "answers": {"input_text": ["a", "b"]}},
        {"text": "s", "numbered_questions": "1. q\n2. r", "numbered_answers": "1. a\n2. b"},
    ),
    "wic": (PAIR | {"word": "w", "label": 1}, PAIR | {"word": "w", "answer": "the same meaning"}),
    "cola": ({"sentence": "s", "label": 0}, {"sentence": "s", "answer": "unacceptable"}),
    "trec": ({"text": "t", "label-coarse": 3}, {"text": "t", "answer": "human"}),
    "record": (
        {
            "query": "He saw @placeholder there.",
            "passage": "p\n@highlight\nq",
            "entities": ["A", "B"],
            "answers": ["B"],
        },
        {
            "query": "He saw",
            "passage": "p",
            "options": ["A there.", "B there."],
            "options_str": "OPTIONS:\n- A there.\n- B there.",
            "answer": "B there.",
            "answers": ["B there."],
        },
    ),
    "cosmos_qa": (
        {"context": "c", "question": "q", "answer0": "a", "answer1": "b", "answer2": "c", "answer3": "d", "label": 3},
        {"context": "c", "question": "q", "answer": "d", "options": ["a", "b", "c", "d"]},
    ),
    "wsc273": (
        {
            "text": "Ann met Eve. She ran.",
            "pronoun_start": 13,
            "pronoun_end": 16,
            "option1_normalized": "Ann",
            "option2_normalized": "Eve",
            "label": 1,
        },
        {"context": "Ann met Eve.", "answer": "Eve ran.", "options": ["Ann ran.", "Eve ran."]},
    ),
}
ROWS |= {"arc_easy": ROWS["arc_challenge"], "mnli_mismatched": ROWS["mnli_matched"]}
ROWS |= {"anli_r2": ROWS["anli_r1"], "anli_r3": ROWS["anli_r1"]}
