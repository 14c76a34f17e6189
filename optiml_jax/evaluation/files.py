"""Writing a result so that no reader ever sees half of it."""

from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """Writes UTF-8 text under a temporary name beside `path`, then renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
