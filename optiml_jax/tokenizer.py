"""OPT's byte-level BPE (Zhang et al. 2022; metaseq `projects/OPT/assets`), and others, over Hugging Face `tokenizers`.

Special tokens are neither parsed nor added: the caller that lays out an example places the `</s>` at its start and end,
so that a literal "</s>" in a text stays text. Other added tokens, such as the marks of a chat, are parsed.
"""

import functools
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers

from optiml_jax import tokenizer_files
from optiml_jax.common.errors import UserError
from optiml_jax.common.surrogates import has_lone_surrogate
from optiml_jax.tokenizer_files import ALL_FILES, FILES, NAMES, PIPELINE, SPECIAL

MAX_ID = 65_535  # token stores hold uint16
OPT_PAD_ID, OPT_EOS_ID = 1, 2  # in OPT's vocabulary
# GPT-2's pattern, for texts of characters that Python's `re` and the library classify alike: ASCII, Latin letters,
# punctuation. Letters stand first because most words match there.
LETTERS, NUMBERS = "A-Za-zªµºÀ-ÖØ-öø-ɏ", "0-9²³¹¼½¾"
SPLITTABLE = re.compile(r"[\t\n\r -~¡-ɏ‐-‧‰-⁞]*")
WORD = re.compile(rf" ?[{LETTERS}]+|'(?:[stmd]|re|ve|ll)| ?[{NUMBERS}]+| ?[^\s{LETTERS}{NUMBERS}]+|\s+(?!\S)|\s+")
MAX_WORDS = 500_000  # in memory, about 100 MB


class _Words(dict):
    """The ids of words as little-endian uint16, each tokenized when it is first met."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        self[word] = ids = _to_bytes(self._encode(word))
        return ids


def _check_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        if isinstance(text, str) and has_lone_surrogate(text):
            raise UserError(f"a text has half a surrogate pair, which is no character: {text[:60]!r}")


def _none(_: str) -> None:
    return None


def _to_bytes(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}H", *ids)


def join(source: str, target: str, separator: str = " ") -> tuple[str, str]:
    """Returns source and target as they meet in an example: joined by one space, or by the white space that the source
    ends in (other than spaces) or that the target starts with.

    With another `separator` the source is unchanged and the separator stands before the target.

    The two are then encoded separately, as inference encodes a prompt and its continuation (metaseq encodes them
    together and recovers the boundary by length, `streaming_finetune_language_modeling.py`).
    """
    if separator != " ":
        return source, separator + target
    source = source.rstrip(" ")
    return source, target if not source or source[-1].isspace() or target[:1].isspace() else " " + target


class Tokenizer:
    """Converts texts to ids and back.

    Attributes:
      vocab_size: largest id + 1 (50,265 for OPT, whose embedding is padded to 50,272).
      bos_id, pad_id, eos_id, unk_id: 0, 1, 2, 3 for OPT. `</s>` both starts and ends a text.
      special: names of these four, by "bos", "pad", "eos", "unk".
      is_plain: whether vocabulary and merges say all, as for OPT and GPT-2.
      fingerprint: sha256 of vocabulary and merges, and of the rest of the pipeline unless it is plain; equal for every
        file format of the same tokenizer.
    """

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], origin: str = "tokenizer") -> None:
        self._set(tokenizer_files.plain_pipeline(vocab, list(map(list, merges))), SPECIAL, origin)

    @classmethod
    def load(cls, source: str | os.PathLike) -> "Tokenizer":
        """Loads a directory (`tokenizer.json`, or `vocab.json` + `merges.txt`) or a name on the Hugging Face hub.

        Raises:
          UserError: neither exists, or the files are not a byte-level BPE.
        """
        directory = Path(source)
        if not directory.is_dir():
            directory = _download(str(source))
        try:
            pipeline = tokenizer_files.read_pipeline(directory)
            added = {entry["content"]: entry["id"] for entry in pipeline.get("added_tokens") or []}
            names = tokenizer_files.special_names(directory, pipeline["model"]["vocab"] | added)
            tokenizer = cls.__new__(cls)
            tokenizer._set(pipeline, names, str(directory))
            return tokenizer
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception for merges that do not fit the vocabulary
            raise UserError(f"{directory}: not a byte-level BPE tokenizer ({str(error).splitlines()[0]})") from error

    def _set(self, pipeline: dict, names: dict[str, str], origin: str) -> None:
        self._pipeline = pipeline = tokenizer_files.without_special(pipeline, names)
        self.special, model = names, pipeline["model"]
        self._merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        self._vocab = model["vocab"] | {entry["content"]: entry["id"] for entry in pipeline["added_tokens"]}
        missing = [SPECIAL[kind] for kind, name in names.items() if name not in self._vocab]
        if missing:
            raise UserError(f"{origin}: the vocabulary lacks {', '.join(missing)}; OPT needs them")
        self.vocab_size = max(self._vocab.values()) + 1
        if self.vocab_size > MAX_ID + 1:
            raise UserError(
                f"{origin}: ids reach {self.vocab_size - 1:,} but a store holds {MAX_ID:,}; use a smaller vocabulary"
            )
        self.bos_id, self.pad_id, self.eos_id, self.unk_id = (self._vocab[names[kind]] for kind in SPECIAL)
        self.is_plain = tokenizer_files.is_plain(pipeline)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(pipeline, ensure_ascii=False))
        wrong = [token for token, number in self._vocab.items() if self._tokenizer.token_to_id(token) != number]
        if wrong:
            raise UserError(f"{origin}: the library gives {wrong[0]!r} another id than the files")
        self._words = _Words(self.encode)

    @functools.cached_property
    def fingerprint(self) -> str:
        canonical = [sorted(self._vocab.items()), [" ".join(merge) for merge in self._merges]]
        if not self.is_plain:
            rest = {name: value for name, value in self._pipeline.items() if name != "model"}
            options = {
                name: value for name, value in self._pipeline["model"].items() if name not in ("vocab", "merges")
            }
            canonical += [json.dumps([rest, options], sort_keys=True)]
        text = json.dumps(canonical, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
          UserError: the text has half a surrogate pair, which UTF-8 cannot write.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # the library's, which does not say so
            _check_surrogates([text])
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes many texts; see `encode_batch_to_bytes`."""
        return [list(struct.unpack(f"<{len(ids) // 2}H", ids)) for ids in self.encode_batch_to_bytes(texts)]

    def encode_batch_to_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """Encodes many texts as little-endian uint16: the path for whole data sets.

        BPE never merges across words, so the ids of a text are those of its words, which repeat: five times as fast as
        the library on one core, whose time goes into splitting. Texts with other characters than `SPLITTABLE` are left
        to the library.
        """
        if len(self._words) > MAX_WORDS:
            self._words.clear()
        ids_of = self._words.__getitem__
        splittable = SPLITTABLE.fullmatch if self.is_plain else _none
        result = [b"".join(map(ids_of, WORD.findall(text))) if splittable(text) else None for text in texts]
        others = [i for i, ids in enumerate(result) if ids is None]
        try:
            encodings = self._tokenizer.encode_batch_fast([texts[i] for i in others], add_special_tokens=False)
        except TypeError:
            _check_surrogates(texts)
            raise
        for i, encoding in zip(others, encodings):
            result[i] = _to_bytes(encoding.ids)
        return result

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Decodes `ids`; ids without a token (OPT's embedding is padded) are dropped."""
        special = {self.bos_id, self.pad_id, self.eos_id, self.unk_id} if skip_special else set()
        return self._tokenizer.decode([int(i) for i in ids if int(i) not in special], skip_special_tokens=False)

    def token_bytes(self) -> list[bytes]:
        """The bytes of each id's token; empty for special tokens and ids without a token."""
        # GPT-2 writes a printable byte as itself, any other as a character from 256 on.
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = (byte for byte in range(256) if byte not in printable)
        byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
        bytes_by_id = [b""] * self.vocab_size
        for entry in self._pipeline["added_tokens"]:
            bytes_by_id[entry["id"]] = entry["content"].encode()
        special = set(self.special.values())
        for token, number in self._pipeline["model"]["vocab"].items():
            if token not in special and all(character in byte_of for character in token):
                bytes_by_id[number] = bytes(byte_of[character] for character in token)
        return bytes_by_id

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `vocab.json` and `merges.txt`, or `tokenizer.json` with the names of special tokens if the tokenizer
        is not plain."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if not self.is_plain or self.special != SPECIAL:
            names = {f"{kind}_token": name for kind, name in self.special.items()}
            for file, content in ((PIPELINE, self._pipeline), (NAMES, names)):
                (directory / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            return
        merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in self._merges)]) + "\n"
        (directory / FILES[0]).write_text(json.dumps(self._vocab, ensure_ascii=False), encoding="utf-8")
        (directory / FILES[1]).write_text(merges, encoding="utf-8")


def _download(name: str) -> Path:
    """Downloads the tokenizer files of a hub name, or finds them in the local cache."""
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise UserError(f"TOKENIZER: {name} is neither a directory nor a hub name such as facebook/opt-125m")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=list(ALL_FILES)))
    except Exception as error:  # network, authentication and missing files come in many classes
        reason = str(error).splitlines()[0]
        raise UserError(f"TOKENIZER: {name} is not a directory and could not be downloaded ({reason})") from error
