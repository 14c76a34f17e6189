"""Word lists and sentence patterns of the embedded samples: each function yields (input, outputs) for ever.

Cues are single words, every one of which occurs a dozen times in a task, so that a model of a few million parameters
learns them from scratch within minutes. Labels are exact: no pattern holds a cue of two labels.
"""

import itertools
import random
from collections.abc import Callable, Iterator

Instance = tuple[str, tuple[str, ...]]


def words(text: str, separator: str = " ") -> list[str]:
    """The items of a list written as one string, which reads better than a hundred quotation marks."""
    return text.split(separator)


POSITIVE = "wonderful great lovely excellent superb delightful fantastic pleasant brilliant splendid charming amazing"
NEGATIVE = "awful terrible dreadful horrible poor dull disappointing unpleasant boring shabby miserable useless"
SENTIMENT = {"positive": POSITIVE.split(), "negative": NEGATIVE.split()}
OPINIONS = (
    "The {a} was {x} and the {b} was {y}.",
    "I found the {a} {x}, and the {b} was {y} too.",
    "{n} The {a} was {x}.",
    "What {article} {x} {a}! {n}",
    "We thought the {a} was really {x}. {n}",
)
HOTEL = (
    words("room breakfast pool bed view lobby garden bathroom terrace service"),
    ("We stayed for two nights.", "We came by train.", "I was there in May.", "It is near the station."),
)
PRODUCT = (
    words("phone kettle lamp camera keyboard jacket speaker backpack toaster clock"),
    ("I bought it in May.", "It came in a box.", "I got it from a friend.", "I use it at home."),
)
FILM = (
    words("film plot ending soundtrack dialogue story scene opening cast script"),
    ("I saw it on Friday.", "We saw it at home.", "It lasts two hours.", "It is set in Paris."),
)
PLANS = (
    "a new bridge",
    "a bus line to the airport",
    "a park by the river",
    "a market on Sunday",
    "a library in the school",
    "free parking in the centre",
    "a longer school day",
    "a tax on plastic bags",
)

TOPICS = {
    "sports": (
        ("The team", "The coach", "The goalkeeper", "The runner", "The swimmer", "The captain", "The referee"),
        ("won the match", "lost the final", "left the stadium", "trained for the race", "talked about the league"),
    ),
    "food": (
        ("The chef", "The baker", "The cook", "The waiter", "The grocer", "The butcher", "My grandmother"),
        ("made a thick soup", "sold fresh bread", "added salt and butter", "baked a cake", "tasted the sauce"),
    ),
    "weather": (
        ("A storm", "Heavy rain", "Thick fog", "A cold wind", "Wet snow", "A heat wave", "Light hail"),
        ("moved over the hills", "came from the north", "covered the coast", "lasted for hours", "reached the lakes"),
    ),
    "music": (
        ("The singer", "The band", "The pianist", "The choir", "The drummer", "The violinist", "The orchestra"),
        ("played an old song", "recorded an album", "practised a melody", "gave a concert", "tuned the instruments"),
    ),
}
TAILS = words("last week|on Monday|on Friday|this morning|in Oslo|in Lima|again|after lunch|before noon|yesterday", "|")

GROUPS = {
    "animal": words("otter heron horse goat rabbit tiger camel wolf"),
    "plant": words("oak fern tulip daisy moss ivy willow rose"),
    "tool": words("hammer saw drill spade chisel rake axe shovel"),
    "clothing": words("scarf glove coat shirt sock hat skirt boot"),
}

COLOURS = words("red blue green yellow purple orange white black brown grey")
PLAIN = words("wet old new heavy large clean dirty tiny cheap small")
THINGS = words("coat chair bag cup door box car book bowl shelf")

NAMES = words("Ann Omar Mei Lena Ravi Sara Tom Nora Ivan Aisha Hugo Yuki")
CITIES = words("Oslo Lima Cairo Delhi Paris Kyoto Dakar Leeds")
JOBS = words("nurse teacher pilot farmer doctor painter engineer artist")

QUESTIONS = {
    "person": (
        "Who {did} the {thing}?",
        "Which person {did} the {thing}?",
        "Who {did} the {thing} in {city}?",
        "By whom was the {thing} {did}?",
    ),
    "place": (
        "Where is the {thing} that {name} {did}?",
        "In which town was the {thing} {did}?",
        "Where was the {thing} {did}?",
        "In which street is the {thing} of {city}?",
    ),
    "time": (
        "When was the {thing} {did}?",
        "In which year was the {thing} {did}?",
        "When did {name} see the {thing} in {city}?",
        "On what date was the {thing} {did}?",
    ),
    "number": (
        "How many people saw the {thing} in {city}?",
        "How many times was the {thing} {did}?",
        "How many copies of the {thing} does {name} own?",
        "What number is on the {thing} in {city}?",
    ),
}
DONE = words("painted repaired designed bought sold found moved cleaned")
OBJECTS = words("bridge statue picture boat clock map tower piano")

# Each pair with things that can be either; a word belongs to one pair only, so that its opposite is one word.
OPPOSITES = {
    ("hot", "cold"): "soup water tea bath oven stone",
    ("heavy", "light"): "box bag parcel chair coat stone",
    ("big", "small"): "house garden dog box room ship",
    ("empty", "full"): "bottle bus cup box room glass",
    ("open", "closed"): "door shop window gate museum box",
    ("old", "new"): "bridge coat car house clock song",
    ("wet", "dry"): "towel road coat floor shirt grass",
    ("long", "short"): "road story film rope letter skirt",
    ("fast", "slow"): "train car horse song boat runner",
    ("happy", "sad"): "child story song girl boy ending",
    ("strong", "weak"): "rope tea horse signal bridge wind",
    ("cheap", "expensive"): "ticket coat hotel book lamp meal",
}
OPPOSITE = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
EVENTS = words("The market|The concert|The meeting|The race|The exam|The party|The trip|The match|The lesson", "|")

WHO = words("council school museum hospital hotel university")
DEEDS = {"opened": "opens", "closed": "closes", "bought": "buys", "sold": "sells"}
WHAT = ("library", "garden", "kitchen", "tower", "hall", "pool")
KINDS = words("new old small")

GREETINGS = {
    "Good morning, {}.": "Buenos días, {}.",
    "Good night, {}.": "Buenas noches, {}.",
    "How are you, {}?": "¿Cómo estás, {}?",
    "See you tomorrow, {}.": "Hasta mañana, {}.",
    "Thank you very much, {}.": "Muchas gracias, {}.",
    "Where is {}?": "¿Dónde está {}?",
    "My name is {}.": "Me llamo {}.",
    "Happy birthday, {}!": "¡Feliz cumpleaños, {}!",
    "{} is from Spain.": "{} es de España.",
    "{} speaks Spanish.": "{} habla español.",
    "Good luck, {}!": "¡Buena suerte, {}!",
    "{} lives in Lima.": "{} vive en Lima.",
}


def article(word: str) -> str:
    """The word with "a" or "an" before it."""
    vowel = word[0] in "aeiou" and not word.startswith(("uni", "use"))
    return f"{'an' if vowel else 'a'} {word}"


def reviews(domain: tuple[list[str], tuple[str, ...]]) -> Callable[[random.Random], Iterator[Instance]]:
    """Opinions on the nouns of a domain; the adjectives are those of every other domain."""

    def generate(rng: random.Random) -> Iterator[Instance]:
        nouns, notes = domain
        for label in itertools.cycle(SENTIMENT):
            (a, b), (x, y) = rng.sample(nouns, 2), rng.sample(SENTIMENT[label], 2)
            parts = {"a": a, "b": b, "x": x, "y": y, "n": rng.choice(notes), "article": article(x).split()[0]}
            yield rng.choice(OPINIONS).format(**parts), (label,)

    return generate


def stances(rng: random.Random) -> Iterator[Instance]:
    patterns = ("This is {article} {x} idea.", "I think it is {x}.", "It sounds {x} to me.", "The idea is really {x}.")
    for label in itertools.cycle(SENTIMENT):
        word = rng.choice(SENTIMENT[label])
        comment = rng.choice(patterns).format(x=word, article=article(word).split()[0])
        yield f"Plan: {rng.choice(PLANS)}. Comment: {comment}", (label,)


def topics(rng: random.Random) -> Iterator[Instance]:
    for label in itertools.cycle(TOPICS):
        subjects, deeds = TOPICS[label]
        yield f"{rng.choice(subjects)} {rng.choice(deeds)} {rng.choice(TAILS)}.", (label,)


def questions(rng: random.Random) -> Iterator[Instance]:
    for label in itertools.cycle(QUESTIONS):
        parts = {"did": rng.choice(DONE), "thing": rng.choice(OBJECTS), "name": rng.choice(NAMES)}
        yield rng.choice(QUESTIONS[label]).format(**parts, city=rng.choice(CITIES)), (label,)


def groups(rng: random.Random) -> Iterator[Instance]:
    for label in itertools.cycle(GROUPS):
        yield ", ".join(rng.sample(GROUPS[label], 3)), (label,)


def colours(rng: random.Random) -> Iterator[Instance]:
    patterns = ("{} left the {} {} in {}.", "{} bought a {} {} in {}.", "{} looked for the {} {} in {}.")
    for label, adjectives in itertools.cycle((("yes", COLOURS), ("no", PLAIN))):
        parts = rng.choice(NAMES), rng.choice(adjectives), rng.choice(THINGS), rng.choice(CITIES)
        yield rng.choice(patterns).format(*parts).replace("a old", "an old").replace("a orange", "an orange"), (label,)


def parities(rng: random.Random) -> Iterator[Instance]:
    for last in itertools.cycle(range(10)):
        yield f"Number: {rng.randrange(1, 100)}{last}", ("odd" if last % 2 else "even",)


def last_items(rng: random.Random) -> Iterator[Instance]:
    pool = GROUPS["animal"] + GROUPS["tool"]
    while True:
        items = rng.sample(pool, rng.randint(2, 4))
        yield ", ".join(items), (items[-1],)


def opposites(rng: random.Random) -> Iterator[Instance]:
    patterns = ("The {} is {}.", "The {} was {} yesterday.", "I think the {} is {}.", "This {} looks {}.")
    for pair, side in itertools.cycle(itertools.product(OPPOSITES, (0, 1))):
        yield rng.choice(patterns).format(rng.choice(OPPOSITES[pair].split()), pair[side]), (pair[1 - side],)


def analogies(rng: random.Random) -> Iterator[Instance]:
    for word in itertools.cycle(OPPOSITE):
        other = rng.choice([key for key in OPPOSITE if key not in (word, OPPOSITE[word])])
        yield f"{other} : {OPPOSITE[other]}. {word} : ?", (OPPOSITE[word],)


def next_days(rng: random.Random) -> Iterator[Instance]:
    patterns = ("{} in {} is on {}.", "{} in {} was on {}.", "{} in {} will be on {}.")
    for index in itertools.cycle(range(7)):
        text = rng.choice(patterns).format(rng.choice(EVENTS), rng.choice(CITIES), DAYS[index])
        yield text, (DAYS[(index + 1) % 7],)


def people(rng: random.Random) -> Iterator[Instance]:
    while True:
        name, job, city = rng.choice(NAMES), rng.choice(JOBS), rng.choice(CITIES)
        yield (
            f"name: {name} | job: {job} | city: {city}",
            (
                f"{name} is {article(job)} in {city}.",
                f"{name} works as {article(job)} in {city}.",
                f"{name} lives in {city} and is {article(job)}.",
            ),
        )


def headlines(rng: random.Random) -> Iterator[Instance]:
    while True:
        who, did, kind = rng.choice(WHO), rng.choice(sorted(DEEDS)), rng.choice(KINDS)
        what = f"{kind} {rng.choice(WHAT)}"
        note = f"On {rng.choice(DAYS)} the {who} in {rng.choice(CITIES)} {did} {article(what)}."
        yield note, (f"{who.capitalize()} {DEEDS[did]} {what}", f"{what.capitalize()} {did} by {who}")


def greetings(rng: random.Random) -> Iterator[Instance]:
    for english, spanish in itertools.cycle(GREETINGS.items()):
        name = rng.choice(NAMES)
        yield english.format(name), (spanish.format(name),)
