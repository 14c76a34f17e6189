"""OPT's byte-level BPE: known ids, every form it comes in, and what is refused."""

import json
import random
import shutil

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

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


SPLIT = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(**options) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


PIPELINES = {  # added tokens, pre-tokenizer, normalizer, options of the model
    "opt": ([], byte_level(), None, {}),
    "chat": (["<|im_start|>", "<|im_end|>"], byte_level(), None, {}),
    "prefix": ([], pre_tokenizers.ByteLevel(add_prefix_space=True), None, {}),
    "galactica": (
        ["[START_REF]", "[END_REF]", "<work>"],
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
        normalizers.NFKC(),
        {},
    ),
    "lower": ([], byte_level(), normalizers.Lowercase(), {}),
    "llama": (
        ["<|eot_id|>"],
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"), byte_level(use_regex=False)]
        ),
        None,
        {"ignore_merges": True},
    ),
}
SCRIPTS = [(0x20, 0x7F), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE5B)]
SCRIPTS += [
    (0x3040, 0x30FF),
    (0x4E00, 0x4F00),
    (0xAC00, 0xAD00),
    (0xFB00, 0xFB06),
    (0x1F600, 0x1F640),
    (0x2000, 0x2040),
]


def texts_of_many_scripts(count: int) -> list[str]:
    rng = random.Random(3)
    parts = [
        "<|im_start|>user\n",
        "<|im_end|>",
        "[START_REF] x[END_REF]",
        "<work>",
        "<|eot_id|>",
        " 12345 ",
        "HELLO it's",
    ]

    def text() -> str:
        words = []
        for _ in range(rng.randint(1, 8)):
            first, last = rng.choice(SCRIPTS)
            words.append("".join(chr(rng.randrange(first, last)) for _ in range(rng.randint(1, 7))))
            words.append(rng.choice([" ", " ", "\n", "  ", "", rng.choice(parts)]))
        return "".join(words)

    return [text() for _ in range(count)]


def save_pipeline(directory, vocab_dir, added, pre_tokenizer, normalizer, options):
    vocab = json.loads((vocab_dir / "vocab.json").read_text(encoding="utf-8"))
    lines = (vocab_dir / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    pipeline = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", **options))
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        pipeline.normalizer = normalizer
    pipeline.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    directory.mkdir(parents=True)
    pipeline.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("opt", "galactica", "llama") else pytest.mark.slow) for name in PIPELINES],
)
def test_ids_equal_transformers_whatever_the_pipeline(name, shared, tmp_path):
    directory = save_pipeline(tmp_path / name, shared / "tokenizer", *PIPELINES[name])
    tokenizer = Tokenizer.load(directory)
    peer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    texts = texts_of_many_scripts(10_000)
    want = peer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_batch(texts) == want
    assert [tokenizer.encode(text) for text in texts[:500]] == want[:500]
    plain = Tokenizer.load(shared / "tokenizer")
    assert tokenizer.is_plain == (name == "opt") == (tokenizer.fingerprint == plain.fingerprint)
    assert (tokenizer.encode_batch(texts) == plain.encode_batch(texts)) == (name == "opt")
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint and again.encode_batch(texts) == want
    assert again.vocab_size == tokenizer.vocab_size == len(peer)
    marks = "</s> <s><pad>"
    assert not {0, 1, 2, 3} & set(tokenizer.encode(marks))
    if name != "lower":
        assert tokenizer.decode(tokenizer.encode(marks)).strip() == marks


def test_files_beside_the_vocabulary_change_what_it_means(shared, tmp_path):
    plain = Tokenizer.load(shared / "tokenizer")
    for number, (file, content, text) in enumerate(
        [
            ("added_tokens.json", {"<|im_start|>": 50265, "<|im_end|>": 50266}, "<|im_start|>user"),
            ("tokenizer_config.json", {"added_tokens_decoder": {"50265": {"content": "<|a|>"}}}, "<|a|>user"),
            ("tokenizer_config.json", {"add_prefix_space": True}, "Hello"),
        ]
    ):
        directory = tmp_path / str(number)
        shutil.copytree(shared / "tokenizer", directory, ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json"])
        (directory / file).write_text(json.dumps(content))
        other = Tokenizer.load(directory)
        assert other.fingerprint != plain.fingerprint and other.encode(text) != plain.encode(text)
        assert other.encode(text)[0] == (50265 if number < 2 else plain.encode(" Hello")[0])


def test_a_byte_order_mark_and_line_ends_are_no_other_tokenizer_and_cut_merges_are_none(shared, tmp_path):
    plain = Tokenizer.load(shared / "tokenizer")
    files = {name: (shared / "tokenizer" / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    changes = {
        "bom": lambda name, content: b"\xef\xbb\xbf" + content,
        "windows": lambda name, content: content.replace(b"\n", b"\r\n"),
        "headless": lambda name, content: content.split(b"\n", 1)[1] if name == "merges.txt" else content,
        "cut": lambda name, content: content[: len(content) // 2] if name == "merges.txt" else content,
    }
    for kind, change in changes.items():
        (tmp_path / kind).mkdir()
        for name, content in files.items():
            (tmp_path / kind / name).write_bytes(change(name, content))
        if kind == "cut":
            with pytest.raises(UserError, match=r"of 50,265 entries of the vocabulary are made by no merge"):
                Tokenizer.load(tmp_path / kind)
        else:
            assert Tokenizer.load(tmp_path / kind).fingerprint == plain.fingerprint, kind


def test_tokenizers_of_another_kind_are_refused_by_name(tmp_path):
    wordpiece = tokenizers.Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.Whitespace()
    metaspace = tokenizers.Tokenizer(models.BPE(SPECIAL | {"a": 4}, [], byte_fallback=True))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    kinds = ("WordPiece, Whitespace", wordpiece), ("BPE, Metaspace, byte_fallback", metaspace)
    for name, (what, pipeline) in zip("wm", kinds):
        (tmp_path / name).mkdir()
        pipeline.save(str(tmp_path / name / "tokenizer.json"))
        with pytest.raises(UserError, match=rf"another kind \({what}\); only byte-level BPE"):
            Tokenizer.load(tmp_path / name)


def test_half_a_surrogate_pair_is_one_line_that_quotes_the_text():
    tokenizer = Tokenizer.load(SAMPLES)
    for encode in (lambda: tokenizer.encode("Q \ud800"), lambda: tokenizer.encode_batch(["fine", "Q \ud800"])):
        with pytest.raises(UserError, match=r"half a surrogate pair, which is no character: 'Q \\ud800'"):
            encode()
