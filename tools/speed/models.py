"""Architectures by name, from `gin/models`. Read as text, because machines that only measure speed lack the gin
library."""

import ast
import re
from pathlib import Path

from optiml_jax.model.config import OPTConfig

FOLDER = Path(__file__).parents[2] / "gin" / "models"
SETTING = re.compile(r"^OPTConfig\.(\w+) = (.+)$", re.MULTILINE)
SIZES = ("125m", "350m", "1.3b", "2.7b", "6.7b")


def _read(size: str) -> OPTConfig:
    text = (FOLDER / f"opt_{size.replace('.', '_')}.gin").read_text(encoding="utf-8")
    return OPTConfig(**{name: ast.literal_eval(value) for name, value in SETTING.findall(text)})


# "tiny" is for tests of the tool; its weights are large enough to reveal errors.
_TINY = OPTConfig(layers=2, model_dim=64, heads=4, ffn_dim=256, vocab_size=512, init_scale=0.1)
MODELS = {"tiny": _TINY} | {size: _read(size) for size in SIZES}
