"""Files that are written whole or not at all, and what a file that cannot be used raises."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class FileError(Exception):
    """A file that cannot be used; the message names it and says what was expected."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary file beside `path`, then renames it: a kill or a full disk leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    # A temporary file is its owner's alone; the finished one has what the user's umask allows.
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(handle, 0o666 & ~umask)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]], ending: str = "\n") -> None:
    """Rows under a header of `fields`, atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields, lineterminator=ending)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), newline=""))


def read_rows(path: Path, kind: type[T], what: str) -> list[T]:
    """The lines of a CSV as objects of a dataclass of int, float and str; an empty cell is None.

    Args:
        what: the file's content in words, for the messages.

    Raises:
        ValueError: another file, or a damaged one.
        OSError: it cannot be read.
    """
    numbers: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    kinds = {field.name: str(field.type).split(" | ")[0] for field in fields(kind)}  # type: ignore[arg-type]
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(kinds):
            raise ValueError(f"{path} holds no {what}: expected the columns {', '.join(kinds)}")
        try:
            return [
                kind(**{name: numbers[kinds[name]](value) if value != "" else None for name, value in row.items()})
                for row in reader
            ]
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); expected {what}") from None


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
