"""The generated tasks of the small study: their definitions, and functions that draw instances from a generator."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tools.small_study.lexicon import (
    ADJECTIVES,
    ALL_KINDS,
    BAD,
    DOMAINS,
    GOOD,
    HELD_OUT_KINDS,
    KINDS,
    LABELS,
    NAMES,
    PLACES,
)

TRAIN, TEST = "train", "test"
SIZES = (60, 90, 140, 220, 350, 600, 1_000, 2_000)  # instances of training tasks, in turn: caps matter
TEST_SIZE = 160
WORDINGS = {  # of the same request
    "pair": (
        "Which kind of thing is it: {first} or {second}?",
        "Is it {a_first} or {a_second}? Answer {first} or {second}.",
        "Choose the right kind: {first}, {second}.",
        "Decide between {first} and {second}.",
        "Tell whether the text names {a_first} or {a_second}.",
        "Label the text with {first} or {second}.",
    ),
    "relabel": (
        "Write {one} for {a_first} and {two} for {a_second}.",
        "Answer {one} if it is {a_first}, {two} if it is {a_second}.",
        "{a_first} is {one}, {a_second} is {two}. Which is it?",
    ),
    "sentiment": (
        "Is the opinion on the {domain} positive or negative?",
        "Does the writer like the {domain}? Answer positive or negative.",
        "Label the review of the {domain} as positive or negative.",
    ),
}
Draw = Callable[[random.Random], tuple[str, str]]


@dataclass(frozen=True)
class GeneratedTask:
    """A task.

    Attributes:
      role: the official list that it is in.
      supervised: whether a run with few tasks trains on it too; the suite asks held-out instances of these.
      draw: returns an input and its output.
    """

    name: str
    category: str
    role: str
    definition: str
    draw: Draw
    supervised: bool = False


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    special = {"fish": "fish", "country": "countries", "furniture": "pieces of furniture"}
    return special.get(noun, f"{noun}s")


def _phrase(rng: random.Random, kind: str) -> str:
    return f"{rng.choice(ADJECTIVES)} {rng.choice(ALL_KINDS[kind])}"


def _sentence(rng: random.Random, kind: str) -> str:
    name, place, word = rng.choice(NAMES), rng.choice(PLACES), rng.choice(ALL_KINDS[kind])
    return rng.choice(
        (
            f"{name} talked about the {word} in {place}.",
            f"In {place}, {name} found a picture with the word {word}.",
            f"The story of {name} is about the {word}.",
            f"{name} from {place} wrote a text on the {word}.",
        )
    )


def _list(rng: random.Random, kinds: Sequence[str]) -> str:
    """A list with a word of each kind, in random order and without repetitions."""
    words: list[str] = []
    for kind in rng.sample(kinds, len(kinds)):
        words.append(rng.choice([word for word in ALL_KINDS[kind] if word not in words]))
    return ", ".join(words)


def classify(pair: Sequence[str], labels: Sequence[str], text: Callable[[random.Random, str], str]) -> Draw:
    """The label of the kind that a text mentions."""

    def draw(rng: random.Random) -> tuple[str, str]:
        index = rng.randrange(len(pair))
        return text(rng, pair[index]), labels[index]

    return draw


def membership(kind: str) -> Draw:
    def draw(rng: random.Random) -> tuple[str, str]:
        present = rng.random() < 0.5
        others = rng.sample([other for other in KINDS if other != kind], 4)
        return _list(rng, [kind, *others[:3]] if present else others), "yes" if present else "no"

    return draw


def sentiment(domain: str) -> Draw:
    def draw(rng: random.Random) -> tuple[str, str]:
        label, words = rng.choice((("positive", GOOD), ("negative", BAD)))
        first, second = rng.sample(DOMAINS[domain], 2)
        return f"The {first} was {rng.choice(words)} and the {second} was {rng.choice(words)}.", label

    return draw


def _pair(rng: random.Random, first: str, second: str) -> str:
    """A definition that asks for one of two kinds."""
    names = {"first": first, "second": second, "a_first": article(first), "a_second": article(second)}
    return rng.choice(WORDINGS["pair"]).format(**names)


def tasks() -> list[GeneratedTask]:
    """All tasks: four categories that are trained on, each with test tasks, and three that are held out."""
    rng = random.Random("small study")
    kinds = list(KINDS)
    pairs = list(itertools.combinations(kinds, 2))
    rng.shuffle(pairs)
    made: list[GeneratedTask] = []

    def add(name: str, category: str, role: str, definition: str, draw: Draw, supervised: bool = False) -> None:
        name = f"study{len(made) + 1:03}_{name}" + "_supervised" * supervised
        made.append(GeneratedTask(name, category, role, definition, draw, supervised))

    for index, (first, second) in enumerate(pairs):
        draw = classify((first, second), (first, second), _phrase)
        role, text = TEST if index < 8 else TRAIN, _pair(rng, first, second)
        add("word_classification", "Word Classification", role, text, draw, 8 <= index < 11)
    for index, kind in enumerate(rng.sample(kinds, len(kinds))):
        text = f"Does the list have {article(kind)} in it? Answer yes or no."
        role = TEST if index < 3 else TRAIN
        add("list_membership", "List Membership", role, text, membership(kind), index == 3)
    for index in range(48):
        first, second = rng.choice(pairs)
        one, two = rng.sample(LABELS, 2)
        names = {"a_first": article(first), "a_second": article(second), "one": one, "two": two}
        text = rng.choice(WORDINGS["relabel"]).format(**names)
        draw = classify((first, second), (one, two), _phrase)
        add("relabelling", "Relabelling", TEST if index < 8 else TRAIN, text, draw, 8 <= index < 10)
    for index, domain in enumerate(DOMAINS):
        text = rng.choice(WORDINGS["sentiment"]).format(domain=domain)
        role = TEST if index < 3 else TRAIN
        add("sentiment_analysis", "Sentiment Analysis", role, text, sentiment(domain), 3 <= index < 5)
    for first, second in itertools.combinations(HELD_OUT_KINDS, 2):
        draw = classify((first, second), (first, second), _phrase)
        add("new_kind_classification", "New Kind Classification", TEST, _pair(rng, first, second), draw)
    for first, second in rng.sample(pairs, 8):
        draw = classify((first, second), (first, second), _sentence)
        add("sentence_classification", "Sentence Classification", TEST, _pair(rng, first, second), draw)
    for three in (rng.sample(kinds, 3) for _ in range(8)):
        text = f"Choose the kind of the word: {three[0]}, {three[1]} or {three[2]}."
        add("three_way_classification", "Three-way Classification", TEST, text, classify(three, three, _phrase))
    return made


def instances(task: GeneratedTask, size: int) -> list[tuple[str, str]]:
    """Distinct inputs with their outputs, at most `size` of them."""
    rng = random.Random(task.name)
    drawn: dict[str, str] = {}
    for _ in range(20 * size):
        text, output = task.draw(rng)
        drawn.setdefault(text, output)
        if len(drawn) == size:
            break
    return list(drawn.items())


def facts(count: int) -> Iterator[str]:
    """Documents of a made-up encyclopaedia: what kind each word is, in sentences, in lists and in questions."""
    rng = random.Random("facts")
    for number in range(count):
        write = (_sentences, _entries)[number % 2]
        yield write(rng)


def _sentences(rng: random.Random) -> str:
    """Different sentences about words and their kinds."""
    sentences = []
    for _ in range(rng.randint(20, 40)):
        kind, other = rng.sample(list(ALL_KINDS), 2)
        words = rng.sample(ALL_KINDS[kind], 4)
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        sentences.append(
            rng.choice(
                (
                    f"The {words[0]} is {article(kind)}.",
                    f"Some {plural(kind)} are {words[0]}, {words[1]} and {words[2]}.",
                    f"The {words[0]} is {article(kind)}, not {article(other)}.",
                    f"In {place}, {name} has a {rng.choice(ADJECTIVES)} {words[0]}, which is {article(kind)}.",
                    f"{name} from {place} wrote a text on the {words[0]}. It is about {article(kind)}.",
                    f"{words[0]}, {words[1]}, {words[2]} and {words[3]}: four {plural(kind)}.",
                )
            )
        )
    return " ".join(sentences)


def _entries(rng: random.Random) -> str:
    """A list of entries that all have the same form, with one line each."""
    form = rng.randrange(4)
    lines = []
    for _ in range(rng.randint(15, 50)):
        kind, other = rng.sample(list(ALL_KINDS), 2)
        first, second = rng.sample((kind, other), 2)
        phrase = f"{rng.choice(ADJECTIVES)} {rng.choice(ALL_KINDS[kind])}"
        lines.append(
            (
                f"{phrase}: {kind}",
                f"Is the {phrase} {article(first)} or {article(second)}? {kind}",
                f"{_sentence(rng, kind)} Topic: {kind}",
                f"{_list(rng, [kind] * 3)}: {kind}",
            )[form]
        )
    return "\n".join(lines)
