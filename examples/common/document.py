"""Documents with tables that a program writes, between two marks."""

from __future__ import annotations

from pathlib import Path

from .files import write_atomically

END = "<!-- end -->"


def around_marks(path: Path, program: str) -> tuple[str, str]:
    """The document up to and with the mark that names `program`, and from the end mark on.

    Raises:
        ValueError: the document has no such marks.
        OSError: it cannot be read.
    """
    begin = f"<!-- begin: {program} -->"
    before, mark, rest = path.read_text().partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end or begin in rest:
        raise ValueError(f"--document: {path} must hold the lines {begin} and {END}, the first one once")
    return before + mark, end + after


def write_document(path: Path, program: str, text: str) -> None:
    """Puts `text` between the marks that name `program`, atomically.

    Raises:
        ValueError: the document has no such marks.
        OSError: it cannot be read or written.
    """
    before, after = around_marks(path, program)
    content = f"{before}\n\n{text}\n\n{after}"
    write_atomically(path, lambda temporary: temporary.write_text(content))
