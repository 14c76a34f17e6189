"""Ways to damage a file of JSON or of JSON lines."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _written(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content) and None


WHOLE: dict[str, Damage] = {
    "a folder": _folder,
    "empty": _written(b""),
    "half": _half,
    "not UTF-8": _written(b"\xff\xfe{}\n"),
    "a list": _written(b"[1, 2]\n"),
    "null": _written(b"null\n"),
    "a text": _written(b'"x"\n'),
    "an empty object": _written(b"{}\n"),
    "nested": _written(b"[" * 200_000 + b"\n"),
    "a long number": _written(b'{"format": ' + b"1" * 10_000 + b"}\n"),
    "no number": _written(b'{"format": NaN}\n'),
}
WRONG: tuple[Any, ...] = (None, -3, "x", [3], {"x": 3})


def of_fields(content: dict[str, Any]) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    """Changes of one field each, by name: left out, or of another type."""
    for name, value in content.items():
        yield f"without {name}", lambda record, name=name: record.pop(name) and None
        for wrong in WRONG:
            if not isinstance(wrong, type(value)) or type(wrong) is bool:
                yield (
                    f"{name} = {json.dumps(wrong)}",
                    lambda record, name=name, wrong=wrong: record.update({name: wrong}),
                )


def of_document(path: Path) -> Iterator[tuple[str, Damage]]:
    """Damages of a JSON document: as a whole, and field by field."""
    yield from WHOLE.items()
    for name, change in of_fields(json.loads(path.read_text(encoding="utf-8"))):
        yield name, lambda path, change=change: _rewrite(path, change)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def of_lines(path: Path, number: int = 0) -> Iterator[tuple[str, Damage]]:
    """Damages of JSON lines: as a whole, and field by field of one line."""
    yield from WHOLE.items()
    for name, change in of_fields(json.loads(path.read_text(encoding="utf-8").splitlines()[number])):
        yield name, lambda path, change=change: _rewrite_line(path, number, change)


def _rewrite_line(path: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[number])
    change(record)
    lines[number] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def the_file(folder: Path, pattern: str) -> Path:
    """The first file of a folder that a pattern matches."""
    return next(iter(sorted(folder.glob(pattern))))


def remove(path: Path) -> None:
    """Removes a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
