"""Texts that UTF-8 cannot write, which JSON can hold."""

import json
from typing import Any


def has_lone_surrogate(value: Any) -> bool:
    """Whether a text, or a text in a JSON value, has half a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
