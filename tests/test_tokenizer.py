"""OPT's byte-level BPE: known ids, every form it comes in, and what is refused."""

import json

import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.tokenizer import SPLITTABLE, Tokenizer, join
from tests.conftest import ROOT

SAMPLES = ROOT / "tasks" / "samples" / "tokenizer"
TEXTS = [
    "Hello world",
    " leading",
    "trailing ",
    "line\n\nbreak",
    "naïve café – 漢字 🙂",
    "</s> <pad>",
    "",
    "a\tb\r\n",
    "\x00",
]


def test_known_ids_of_opt(shared):
    """From metaseq's vocabulary (projects/OPT/assets)."""
    tokenizer = Tokenizer.load(shared / "tokenizer")
    expected_ids = {
        "Hello world": [31414, 232],
        "\n": [50118],
        " yes": [4420],
        "\n\nOutput:": [50118, 50118, 48293, 35],
    }
    assert {text: tokenizer.encode(text) for text in expected_ids} == expected_ids
    assert tokenizer.vocab_size == 50_265
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)


@pytest.mark.parametrize("which", ["samples", "opt"])
def test_texts_come_back_and_are_never_parsed_for_special_tokens(which, request):
    directory = SAMPLES if which == "samples" else request.getfixturevalue("shared") / "tokenizer"
    tokenizer = Tokenizer.load(directory)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {0, 1, 2, 3} & set(ids)
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    hello = tokenizer.encode("hello")
    assert tokenizer.decode([2, *hello, 2, 1]) == "hello"
    assert tokenizer.decode([2, *hello], skip_special=False) == "</s>hello"
    assert tokenizer.decode([*hello, 50_270]) == "hello"  # an id of the padded embedding that no piece has


def test_every_file_form_is_the_same_tokenizer(tmp_path):
    original = Tokenizer.load(SAMPLES)
    original.save(tmp_path / "saved")
    model = {
        "vocab": json.loads((SAMPLES / "vocab.json").read_text()),
        "merges": [line.split(" ") for line in (SAMPLES / "merges.txt").read_text().split("\n")[1:] if line],
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "tokenizer.json").write_text(json.dumps({"model": model}))
    for directory in ("saved", "one"):
        again = Tokenizer.load(tmp_path / directory)
        assert again.fingerprint == original.fingerprint
        assert again.encode(TEXTS[4]) == original.encode(TEXTS[4])
    model["merges"] = model["merges"][:-1]
    (tmp_path / "one" / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert Tokenizer.load(tmp_path / "one").fingerprint != original.fingerprint


@pytest.mark.parametrize(
    ("source", "target", "joined"),
    [
        ("Answer:", "yes", "Answer: yes"),
        ("Answer: ", "yes", "Answer: yes"),
        ("Answer:\n", "yes", "Answer:\nyes"),
        ("Answer:\n  ", "yes", "Answer:\nyes"),
        ("", "the whole text", "the whole text"),
    ],
)
def test_source_and_target_meet_with_one_space_or_the_sources_own_break(source, target, joined):
    assert "".join(join(source, target)) == joined


def write(directory, vocab: dict, merges: str = "#version: 0.2\n"):
    directory.mkdir()
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text(merges)
    return directory


SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


def test_what_cannot_be_used_is_refused_by_name(tmp_path):
    cases = {
        "ids reach 65,536 but a store holds 65,535": write(tmp_path / "large", SPECIAL | {"a": 65_536}),
        "the vocabulary lacks <pad>, <unk>": write(tmp_path / "other", {"<s>": 0, "</s>": 2}),
        "not a byte-level BPE tokenizer": write(tmp_path / "merges", SPECIAL, "#version: 0.2\na b\n"),
        "no vocab.json": tmp_path,
        "neither a directory nor a hub name": tmp_path / "nowhere",
    }
    for message, directory in cases.items():
        with pytest.raises(UserError) as caught:
            Tokenizer.load(directory)
        assert message in str(caught.value) and str(directory) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert Tokenizer.load(write(tmp_path / "largest", SPECIAL | {"a": 65_535})).vocab_size == 65_536


def test_many_texts_have_the_ids_of_the_library(shared):
    """Random texts of characters that are hard to split, and every character alone and between letters."""
    tokenizer = Tokenizer.load(shared / "tokenizer")
    library = tokenizer._tokenizer
    rng = np.random.default_rng(0)
    pieces = [
        *" \t\n\r'_-.,!?½²³¹¼¾ªºµ×÷ßéÿĀſƻǀɏ‐–—‘’“”…‰⁄‿⁀⁞\xa0\x85\x1c\x0b\u2028\u3000中ا́😀",
        "'s",
        "'S",
        "'ll",
        "'re",
        "'",
    ]
    pieces += ["word", "Word", "12", "a", "Z", "  ", "\n\n", " \n", "\n ", "don't", "I'LL", "__", "a_b"]
    texts = ["".join(rng.choice(pieces, rng.integers(0, 12))) for _ in range(20_000)]
    texts += [template.format(chr(n)) for n in range(0x2400) for template in ("{}", "a{}b", " {} ", "{}{{}}1")]
    texts = [text.replace("{}", "'") for text in texts]
    fast = sum(SPLITTABLE.fullmatch(text) is not None for text in texts)
    assert len(texts) / 10 < fast < len(texts)
    for start in range(0, len(texts), 4096):
        part = texts[start : start + 4096]
        want = [encoding.ids for encoding in library.encode_batch_fast(part, add_special_tokens=False)]
        have = tokenizer.encode_batch(part)
        assert have == want, next((text, a, b) for text, a, b in zip(part, have, want) if a != b)


def test_the_words_in_memory_are_bounded(monkeypatch):
    tokenizer = Tokenizer.load(SAMPLES)
    monkeypatch.setattr("optiml_jax.tokenizer.MAX_WORDS", 10)
    for i in range(5):
        texts = [f"word{i}{j} again" for j in "abcdefgh"]
        assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
        assert len(tokenizer._words) <= 10 + 3 * len(texts)
