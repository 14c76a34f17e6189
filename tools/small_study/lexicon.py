"""The words of the generated tasks, read from `lexicon.toml`."""

import tomllib
from pathlib import Path

_CONTENT = tomllib.loads(Path(__file__).with_name("lexicon.toml").read_text(encoding="utf-8"))

KINDS = {name: tuple(words.split()) for name, words in _CONTENT["kinds"].items()}
HELD_OUT_KINDS = {name: tuple(words.split()) for name, words in _CONTENT["held_out_kinds"].items()}
ALL_KINDS = KINDS | HELD_OUT_KINDS
DOMAINS = {name: tuple(words.split()) for name, words in _CONTENT["domains"].items()}
ADJECTIVES, NAMES, PLACES, GOOD, BAD, LABELS = (
    tuple(_CONTENT[name].split()) for name in ("adjectives", "names", "places", "good", "bad", "labels")
)
