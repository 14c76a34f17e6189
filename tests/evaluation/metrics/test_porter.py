"""The stemmer against NLTK's, which is rouge-score's."""

import itertools
import random

from nltk.stem.porter import PorterStemmer

from optiml_jax.evaluation.metrics import porter

SEED = 1980
SUFFIXES = [s for rules in (porter.STEP_2, porter.STEP_3, porter.STEP_4) for pairs in rules.values() for s, _ in pairs]
SUFFIXES += ["s", "es", "ies", "sses", "ss", "ed", "eed", "ied", "ing", "y", "e", "ll", "ated", "bled", "izing"]


def test_every_stem_is_nltks():
    """Short words in full, stacked suffixes over random stems, and the irregular forms."""
    rng, theirs = random.Random(SEED), PorterStemmer()
    words = ["".join(letters) for length in range(1, 5) for letters in itertools.product("aeytsl1", repeat=length)]
    for _ in range(30_000):
        letters = rng.choice(("abcdefghijklmnopqrstuvwxyz0", "aeyslt"))
        beginning = "".join(rng.choices(letters, k=rng.randint(0, 5)))
        words.append(beginning + "".join(rng.choices(SUFFIXES, k=rng.randint(1, 3))))
    words += [form + ending for form in porter.IRREGULAR for ending in ("", "s", "ed")]
    assert [word for word in words if porter.stem(word) != theirs.stem(word)] == []
