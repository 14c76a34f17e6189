"""The files of a byte-level BPE tokenizer, read as a pipeline of the `tokenizers` library: the content of its
`tokenizer.json`.

A folder holds a `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`, beside which `added_tokens.json` and
`tokenizer_config.json` may change what they mean.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError

PIPELINE, FILES = "tokenizer.json", ("vocab.json", "merges.txt")
ADDED, CONFIG, NAMES = "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"
ALL_FILES = (PIPELINE, *FILES, ADDED, CONFIG, NAMES)
SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
UNREACHABLE = 0.01, 64  # share and number of entries of a vocabulary that no merge makes (OPT: 8); more: merges are cut
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def read_pipeline(directory: Path) -> dict[str, Any]:
    """Reads a folder's tokenizer.

    Raises:
      UserError: it has none, or not a whole byte-level BPE.
    """
    if (directory / PIPELINE).exists():
        pipeline = _json(directory / PIPELINE)
        pipeline = plain_pipeline({}, []) | pipeline if "pre_tokenizer" not in pipeline else pipeline
    elif all((directory / name).exists() for name in FILES):
        lines = (directory / FILES[1]).read_text(encoding="utf-8-sig").split("\n")
        merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
        pipeline = plain_pipeline(_json(directory / FILES[0]), merges)
        pipeline["added_tokens"] = _added(directory)
        pipeline["pre_tokenizer"]["add_prefix_space"] = _config(directory).get("add_prefix_space") is True
    else:
        raise UserError(f"{directory}: no {' + '.join(FILES)} and no {PIPELINE}; is this the tokenizer's folder?")
    _check(pipeline, directory)
    return pipeline


def plain_pipeline(vocab: Mapping[str, int], merges: list) -> dict[str, Any]:
    """GPT-2's and OPT's: no normalizer, no added tokens."""
    model = {"type": "BPE", "unk_token": SPECIAL["unk"], "vocab": dict(vocab), "merges": merges}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": dict(BYTE_LEVEL),
        "post_processor": None,
        "decoder": dict(BYTE_LEVEL),
        "model": model,
    }


def is_plain(pipeline: Mapping[str, Any]) -> bool:
    """Whether vocabulary and merges alone say what the tokenizer does."""
    model, step = pipeline["model"], pipeline["pre_tokenizer"]
    return (
        not pipeline.get("added_tokens")
        and not pipeline.get("normalizer")
        and step["type"] == "ByteLevel"
        and not step.get("add_prefix_space", True)
        and step.get("use_regex", True)
        and not any(model.get(name) for name in ("dropout", "ignore_merges", "fuse_unk"))
    )


def special_names(directory: Path, vocab: Mapping[str, int]) -> dict[str, str]:
    """The names of the special tokens: OPT's if the vocabulary has them, else those that the folder states, of which
    that of the end stands in for a missing one."""
    stated = _config(directory) | (_json(directory / NAMES) if (directory / NAMES).exists() else {})
    if not stated.get("eos_token"):
        return SPECIAL
    names = {}
    for kind, name in SPECIAL.items():
        other = stated.get(f"{kind}_token")
        other = other.get("content") if isinstance(other, dict) else other
        names[kind] = name if name in vocab else other
    return {kind: name if name in vocab else names["eos"] for kind, name in names.items()}


def without_special(pipeline: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The pipeline that takes special tokens in a text as text: they are entries of the vocabulary, not added tokens.
    Other added tokens, such as the marks of a chat, remain what they are."""
    added, special = pipeline.get("added_tokens") or [], set(names.values())
    vocab = {entry["content"]: entry["id"] for entry in added if entry["content"] in special}
    model = pipeline["model"]
    return pipeline | {
        "model": model | {"vocab": model["vocab"] | vocab},
        "added_tokens": [entry for entry in added if entry["content"] not in special],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _added(directory: Path) -> list[dict[str, Any]]:
    """The tokens that the files beside `vocab.json` add, in order of their ids."""
    tokens = {}
    if (directory / ADDED).exists():
        tokens = {number: {"content": content} for content, number in _json(directory / ADDED).items()}
    for number, entry in _config(directory).get("added_tokens_decoder", {}).items():
        tokens[int(number)] = entry
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [flags | entry | {"id": number} for number, entry in sorted(tokens.items())]


def _config(directory: Path) -> dict[str, Any]:
    return _json(directory / CONFIG) if (directory / CONFIG).exists() else {}


def _json(path: Path) -> dict[str, Any]:
    content = typed_json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def _check(pipeline: Mapping[str, Any], directory: Path) -> None:
    model, decoder = pipeline["model"], pipeline.get("decoder") or {}
    kind = model.get("type", "BPE")
    steps = pipeline["pre_tokenizer"] or {}
    last = (steps.get("pretokenizers") or [steps])[-1].get("type")
    decoded_by = (decoder.get("decoders") or [decoder])[-1].get("type")
    if kind != "BPE" or model.get("byte_fallback") or (last, decoded_by) != ("ByteLevel", "ByteLevel"):
        what = f"{kind}, {last or 'no pre-tokenizer'}" + (", byte_fallback" if model.get("byte_fallback") else "")
        raise UserError(f"{directory}: a tokenizer of another kind ({what}); only byte-level BPE is supported")
    if model.get("ignore_merges"):
        return
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    made = {"".join(pair) for pair in pairs}
    special = {entry["content"] for entry in pipeline.get("added_tokens") or []}
    lost = [piece for piece in model["vocab"] if len(piece) > 1 and piece not in made and piece not in special]
    if len(lost) > max(UNREACHABLE[0] * len(model["vocab"]), UNREACHABLE[1]):
        raise UserError(
            f"{directory}: {len(lost):,} of {len(model['vocab']):,} entries of the vocabulary are made by no merge, "
            f"such as {lost[-1]!r}; are the merges cut off? Fetch the files again"
        )
