"""Tables of every kind of results, each between its own markers of one document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import results
from .errors import Refusal


def replace_between(document: str, tables: str, begin: str, end: str) -> str:
    """The document with what is between its markers replaced.

    Raises:
        Refusal: it has not one pair of markers in order.
    """
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise Refusal(f"--document: expected one {begin} and one {end} after it")
    before, rest = document.split(begin)
    return f"{before}{begin}\n\n{tables}\n\n{end}{rest.split(end)[1]}"


def write(kinds: Sequence[ModuleType], folder: Path, document: Path | None, quick: bool = False) -> str:
    """The tables of those kinds of which there are results, also put into the document where one is given.

    Args:
        kinds: modules with a KIND of files and the COMMANDS that write them, a `text` of them, and the markers BEGIN
            and END.

    Raises:
        Refusal: no results of any of them, a file of another make, or a document without their markers.
    """
    found = [kind for kind in kinds if results.files(folder, quick, kind.KIND)]
    if not found:
        *most, last = (command for kind in kinds for command in kind.COMMANDS)
        commands = f"{', '.join(most)} or {last}" if most else last
        raise Refusal(f"--output: expected results as CSV in {folder}; run {commands} first")
    tables = {kind: kind.text(folder, quick) for kind in found}
    if document is not None:
        if not document.is_file():
            raise Refusal(f"--document: no file at {document}")
        content = document.read_text()
        for kind, text in tables.items():
            content = replace_between(content, text, kind.BEGIN, kind.END)
        document.write_text(content)
    return "\n\n".join(tables.values())
