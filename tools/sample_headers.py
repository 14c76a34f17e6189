"""Headers of the embedded sample tasks: definition, examples and labels of the taxonomy."""

import dataclasses
import random
from collections.abc import Callable, Iterator

from tools import sample_grammars as grammars


@dataclasses.dataclass(frozen=True)
class Header:
    """A task without its instances.

    Attributes:
      name: file name, without `.json`.
      role: "train", "test" or "excluded".
      kind: "classification", "short answer" or "free text"; for the README only.
      positive: (input, output, explanation) of correct examples, which are kept out of the instances.
      negative: the same for wrong outputs.
      generate: yields (input, outputs) for ever from a random generator.
      count: number of instances.
    """

    name: str
    role: str
    kind: str
    category: str
    reasoning: tuple[str, ...]
    domain: str
    definition: str
    positive: tuple[tuple[str, str, str], ...]
    negative: tuple[tuple[str, str, str], ...]
    generate: Callable[[random.Random], Iterator[grammars.Instance]]
    count: int = 400
    output_language: str = "English"


HEADERS = (
    Header(
        "sample001_hotel_review_sentiment",
        "train",
        "classification",
        "Sentiment Analysis",
        (),
        "Reviews",
        'Read the review of a hotel and decide whether its sentiment is "positive" or "negative".',
        (
            ("The stairs were lovely and the view was superb.", "positive", "Both parts are praised."),
            ("The sofa was dreadful. I was there in May.", "negative", '"Dreadful" is a complaint.'),
        ),
        (("The bed was awful.", "positive", 'The guest complains, so the answer is "negative".'),),
        grammars.reviews(grammars.HOTEL),
    ),
    Header(
        "sample002_product_review_sentiment",
        "train",
        "classification",
        "Sentiment Analysis",
        (),
        "Reviews -> Products",
        'You are given what a customer says about a product. Is the opinion "positive" or "negative"?',
        (
            ("What a charming teapot! It came in a box.", "positive", "The customer likes the teapot."),
            ("I found the printer useless.", "negative", "The customer is not satisfied."),
        ),
        (("The lamp was great.", "negative", 'The customer likes the lamp, so the answer is "positive".'),),
        grammars.reviews(grammars.PRODUCT),
    ),
    Header(
        "sample003_sentence_topic_classification",
        "train",
        "classification",
        "Text Categorization",
        (),
        "News",
        'Choose the topic of the sentence. The possible topics are "sports", "food", "weather" and "music".',
        (
            ("The team won the cup.", "sports", "Teams and cups belong to sports."),
            ("The baker tasted the dough.", "food", "A baker works with food."),
        ),
        (("Heavy rain came at noon.", "music", "Rain is weather."),),
        grammars.topics,
    ),
    Header(
        "sample004_question_answer_type",
        "train",
        "classification",
        "Question Understanding",
        (),
        "Miscellaneous",
        'What kind of answer does the question ask for? Reply with "person", "place", "time" or "number".',
        (
            ("Who wrote the letter?", "person", '"Who" asks for a person.'),
            ("How many rooms does the house have?", "number", '"How many" asks for a number.'),
        ),
        (("Where was the ring found?", "time", '"Where" asks for a place.'),),
        grammars.questions,
    ),
    Header(
        "sample005_word_group_classification",
        "train",
        "classification",
        "Word Semantics",
        ("Commonsense Reasoning",),
        "Miscellaneous",
        'The three words name things of one kind. Write the kind: "animal", "plant", "tool" or "clothing".',
        (
            ("heron, cat, goat", "animal", "All three are animals."),
            ("saw, pencil, rake", "tool", "All three are used for work."),
        ),
        (("oak, pine, fern", "animal", "These are plants."),),
        grammars.groups,
    ),
    Header(
        "sample006_colour_mention_answering",
        "train",
        "classification",
        "Question Answering",
        (),
        "Miscellaneous",
        'Is the name of a colour used in the sentence? Answer "yes" if it is and "no" otherwise.',
        (
            ("Mei wore a green hat.", "yes", '"Green" is a colour.'),
            ("Tom has an old hat.", "no", "No colour is named."),
        ),
        (("Sara found a blue ring.", "no", '"Blue" is a colour, so the answer is "yes".'),),
        grammars.colours,
    ),
    Header(
        "sample007_number_parity",
        "train",
        "classification",
        "Program Execution",
        ("Quantitative Reasoning",),
        "Mathematics",
        'Look at the last digit of the given number and say whether the number is "odd" or "even".',
        (
            ("Number: 40728", "even", "The last digit, 8, is even."),
            ("Number: 51683", "odd", "The last digit, 3, is odd."),
        ),
        (("Number: 20005", "even", "The last digit, 5, is odd."),),
        grammars.parities,
    ),
    Header(
        "sample008_last_list_item",
        "train",
        "short answer",
        "Program Execution",
        ("Logical Reasoning",),
        "Code",
        "You will see a list of words with commas between them. Write down the last word of the list.",
        (
            ("cup, tram, moss", "moss", '"Moss" stands at the end of the list.'),
            ("pen, goat, rake, hat", "hat", '"Hat" stands at the end of the list.'),
        ),
        (("oak, pen, saw", "oak", '"Oak" is the first word; the last one is "saw".'),),
        grammars.last_items,
    ),
    Header(
        "sample009_adjective_opposite",
        "train",
        "short answer",
        "Word Semantics",
        ("Commonsense Reasoning",),
        "Miscellaneous",
        "The sentence describes a thing with an adjective. Write one word that is the opposite of this adjective.",
        (
            ("The milk is hot.", "cold", '"Cold" is the opposite of "hot".'),
            ("This bench looks old.", "new", '"New" is the opposite of "old".'),
        ),
        (("The bed is big.", "big", 'The adjective is repeated; its opposite is "small".'),),
        grammars.opposites,
    ),
    Header(
        "sample010_next_weekday_answering",
        "train",
        "classification",
        "Question Answering",
        ("Temporal Reasoning",),
        "Miscellaneous",
        "The sentence says on which day of the week something happens. Which day comes after it?",
        (
            ("The play in Turin is on Monday.", "Tuesday", "Tuesday follows Monday."),
            ("The fair in Riga was on Sunday.", "Monday", "After Sunday a new week starts with Monday."),
        ),
        (("The show in Lima is on Friday.", "Thursday", "Thursday comes before Friday; Saturday comes after it."),),
        grammars.next_days,
    ),
    Header(
        "sample011_person_data_to_text",
        "train",
        "free text",
        "Data to Text",
        (),
        "Miscellaneous",
        "Write one sentence about the person that contains the name, the job and the city.",
        (
            ("name: Ada | job: tailor | city: Bern", "Ada is a tailor in Bern.", "All three facts are there."),
            (
                "name: Leo | job: actor | city: Rome",
                "Leo lives in Rome and is an actor.",
                "A full sentence with all facts.",
            ),
        ),
        (("name: Jan | job: judge | city: Bonn", "Jan is a judge.", "The city is missing."),),
        grammars.people,
    ),
    Header(
        "sample012_note_headline_generation",
        "train",
        "free text",
        "Title Generation",
        (),
        "News",
        "Write a short headline for the local news note. Leave out the day and the city.",
        (
            (
                "On Monday the club in Bern opened a new field.",
                "Club opens new field",
                "Short, without day and city.",
            ),
            (
                "On Friday the zoo in Rome sold an old truck.",
                "Old truck sold by zoo",
                "It says what happened, and no more.",
            ),
        ),
        (
            (
                "On Sunday the bank in Bonn closed a small hall.",
                "Bank closes small hall in Bonn on Sunday",
                "The headline must not name the city or the day.",
            ),
        ),
        grammars.headlines,
    ),
    Header(
        "sample013_film_review_sentiment",
        "test",
        "classification",
        "Sentiment Analysis",
        (),
        "Reviews -> Movies",
        'Someone writes about a film. Label the sentiment of the review as "positive" or "negative".',
        (
            ("The music was brilliant and the plot was lovely.", "positive", "Music and plot are praised."),
            ("What a boring sequel! I saw it on Friday.", "negative", "The viewer was bored."),
        ),
        (("The cast was superb.", "negative", 'The cast is praised, so the answer is "positive".'),),
        grammars.reviews(grammars.FILM),
        count=200,
    ),
    Header(
        "sample014_plan_stance_detection",
        "test",
        "classification",
        "Stance Detection",
        (),
        "Debatepedia",
        'Decide whether the opinion of the comment about the plan is "positive" or "negative".',
        (
            ("Plan: a bench at the lake. Comment: I think it is great.", "positive", "The writer likes the plan."),
            ("Plan: a new road. Comment: It sounds awful to me.", "negative", "The writer dislikes the plan."),
        ),
        (("Plan: a zoo. Comment: This is a lovely idea.", "negative", "The writer likes the plan."),),
        grammars.stances,
        count=200,
    ),
    Header(
        "sample015_opposite_word_analogy",
        "test",
        "short answer",
        "Word Analogy",
        ("Relational Reasoning",),
        "Miscellaneous",
        "The first adjective and the second are opposites. Write the word that is the opposite of the third adjective.",
        (
            ("rough : smooth. hot : ?", "cold", "Opposites, so hot is to cold."),
            ("near : far. old : ?", "new", "Opposites, so old is to new."),
        ),
        (("up : down. fast : ?", "big", 'The opposite of "fast" is "slow".'),),
        grammars.analogies,
        count=200,
    ),
    Header(
        "sample016_greeting_translation_en_es",
        "excluded",
        "free text",
        "Translation",
        (),
        "Dialogue",
        "Translate the given English sentence into Spanish. Leave the names of people as they are.",
        (
            ("Good morning, Leo.", "Buenos días, Leo.", "A correct translation."),
            ("Where is Ada?", "¿Dónde está Ada?", "Correct, with both question marks."),
        ),
        (("Good night, Jan.", "Buenos días, Jan.", 'This means "Good morning, Jan."'),),
        grammars.greetings,
        count=120,
        output_language="Spanish",
    ),
)
