"""Prompts against the paper's own: Figures 7-16 and footnote 5."""

import collections

import pytest

from optiml_jax.tokenizer import join
from tasks.prompting import prompts

# Of each figure: end of the definition, input (shortened) and output of its record, and how they are printed together
FIGURES = {
    7: (
        "The answer should be correct to one decimal place.",
        "Sam went to 14 football games this year. How many did Sam go to in all?",
        "43.0",
        "Instructions: The answer should be correct to one decimal place. "
        "Sam went to 14 football games this year. How many did Sam go to in all? Output: 43.0",
    ),
    8: (
        'Answer the question with index of the correct option (e.g, "A").',
        "Fact1: plasma is formed by electrons, Question: What? (A) energy (B) Energy.",
        "D",
        "Answer the question with index of the correct option (e.g, “A”). "
        "Input: Fact1: plasma is formed by electrons, Question: What? (A) energy (B) Energy. Answer: D",
    ),
    9: (
        "Your list should be numbers inside brackets.",
        "[0, 0, 3, 6, 5, 3, 0, 4, 1, 5]",
        "[6, 4, 1]",
        "Your list should be numbers inside brackets. [0, 0, 3, 6, 5, 3, 0, 4, 1, 5] A: [6, 4, 1]",
    ),
    10: (
        "Zero is divisible by 3.",
        "[-71, 46, 80, -17, -57]",
        "[-71, 46, 80, -17]",
        "Zero is divisible by 3. Input: [-71, 46, 80, -17, -57] Answer: [-71, 46, 80, -17]",
    ),
    11: (
        "You should generate a question about the concept that leads to the given answer(s).",
        "concept: John Steinbeck answers: ['The Grapes of Wrath']",
        "what book did john steinbeck wrote?",
        "Task: You should generate a question about the concept that leads to the given answer(s). "
        "Input: concept: John Steinbeck answers: ['The Grapes of Wrath'] answer: what book did john steinbeck wrote?",
    ),
    12: (
        "Avoid questions that (ii) uses same words or phrases given in the passage",
        "Czechoslovakia was a sovereign state.\n\nFrom 1948 to 1990, it was part of the Soviet bloc.",
        "Was Czechoslovakia ever apart of the Soviet bloc?",
        "Instructions: Avoid questions that (ii) uses same words or phrases given in the passage Czechoslovakia was a "
        "sovereign state. From 1948 to 1990, it was part of the Soviet bloc. "
        "answer: Was Czechoslovakia ever apart of the Soviet bloc?",
    ),
    13: (
        "Classify given movie review into two categories: positive, or negative based on its content.",
        "natalie babbitt's gentle , endearing 1975 children's novel . ",
        "negative",
        "Classify given movie review into two categories: positive, or negative based on its content. "
        "natalie babbitt's gentle , endearing 1975 children's novel . A: negative",
    ),
    14: (
        'Determine the sentiment value as either "Positive", "Negative", and "Unknown".',
        "Event: PersonX is PersonY's last day. Intent: 1) eat the same thing.",
        "Negative",
        'Instructions: Determine the sentiment value as either "Positive", "Negative", and "Unknown". '
        "Event: PersonX is PersonY's last day. Intent: 1) eat the same thing. output: Negative",
    ),
    15: (
        'Give label "match" if headline is correct for article, otherwise give label "no".',
        "Article: Mike Snoei coached side Pune FC bounced back. Headline: Pfc bounce back",
        "match",
        'Give label "match" if headline is correct for article, otherwise give label "no". '
        "Article: Mike Snoei coached side Pune FC bounced back. Headline: Pfc bounce back Answer: match",
    ),
    16: (
        'Classify as "Yes" if they have same meaning; otherwise, classify them as "No".',
        "Sentence-1: I'd prefer to go to the beach. (sep) Sentence-2: I would like to go out .",
        "No",
        'Classify as "Yes" if they have same meaning; otherwise, classify them as "No". '
        "Sentence-1: I'd prefer to go to the beach. (sep) Sentence-2: I would like to go out . answer: No",
    ),
}


def as_printed(text: str) -> str:
    """The paper is typeset: quotes are typographic and line breaks are not kept."""
    return " ".join(text.translate(str.maketrans("“”‘’", "\"\"''")).split())


@pytest.mark.parametrize("figure", FIGURES)
def test_every_prompt_of_the_papers_figures_is_among_those_drawn(figure):
    definition, text, output, printed = FIGURES[figure]
    drawn = {prompts.task_level_source("task", str(i), definition, text)[0] for i in range(1500)}
    assert as_printed(printed) in {as_printed("".join(join(source, output))) for source in drawn}
    assert len(drawn) == len(prompts.OPENERS) * len(prompts.MARKERS) * len(prompts.DELIMITERS)


def test_the_delimiters_are_those_of_footnote_5():
    footnote = "“\nAnswer:”, “ Answer:”, “\nA:”, “ A:”, “\nOutput:”, “ Output:”, “\nanswer:”, “\noutput:”"
    assert [f"“{delimiter}”" for delimiter in prompts.DELIMITERS] == footnote.split(", ")


def test_instructions_that_end_in_a_colon_get_no_delimiter():
    assert prompts.with_delimiter("t", "1", "The answer is: ") == "The answer is:"
    assert prompts.with_delimiter("t", "1", "The answer is").startswith("The answer is")
    assert prompts.with_delimiter("t", "1", "The answer is").removeprefix("The answer is") in prompts.DELIMITERS


def test_choices_are_uniform_and_independent_over_examples():
    """Chi-square of opener x marker x delimiter over 48,000 ids: 47 degrees of freedom, 99.9% quantile 82.7."""
    counts = collections.Counter(prompts.task_level_source("task", f"id-{i}", "Do.", "It") for i in range(48_000))
    assert len(counts) == 48
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 82.7


def test_a_prompt_is_a_function_of_task_and_id_alone():
    """Written down once: a change would silently change every cache and every published evaluation."""
    first, input_start = prompts.task_level_source("samples.a", "x-1", " Do it. \n", " now \n")
    assert (first[:input_start], first[input_start:]) == ("Do it.", "\nInput: now Output:")
    sources = {prompts.task_level_source(f"samples.{name}", "x-1", "Do it.", "now") for name in "abcdefgh"}
    assert len(sources) > 1


def test_an_empty_input_leaves_the_definition_alone():
    sources = {prompts.task_level_source("t", str(i), "Write a line.", " ")[0] for i in range(200)}
    assert len(sources) == 24 and not any("Input:" in source for source in sources)
