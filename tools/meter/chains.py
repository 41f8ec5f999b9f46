"""Call paths of instructions and of executed statements, in one form.

A chain is the statement that an instruction belongs to, then the statements that called its function, up to the
kernel's own: ((file, line), ...), with files by their names and statements by their first lines. Functions of Triton
itself (sums, maxima) are left out: what they do counts for the statement that calls them.
"""

from __future__ import annotations

import re
from pathlib import Path

from .sources import Statement, statements

Chain = tuple[tuple[str, int], ...]


class Files:
    """The files of kernels by their names.

    Args:
        kernel: the file that the launched kernel stands in; its neighbours come before files of that name elsewhere.
        folder: all files below it belong to kernels.
    """

    def __init__(self, kernel: Path, folder: Path) -> None:
        near = {path.name: path for path in kernel.parent.glob("*.py")}
        self._paths = {path.name: path for path in folder.rglob("*.py")} | near

    def statement(self, place: tuple[str, int]) -> Statement | None:
        """The statement at a file and line; None in a file that is no kernel's."""
        path = self._paths.get(place[0])
        return statements(path).get(place[1]) if path is not None else None

    def chain(self, comment: str) -> Chain:
        """The chain in a compiler's comment, `tokens.py:10:16 @[ gram.py:25:52 @[ launch.py:53:93 ] ]`."""
        found = []
        for name, line in re.findall(r"([\w.]+\.py):(\d+):\d+", comment):
            statement = self.statement((name, int(line)))
            if statement is not None:
                found.append((name, statement.first))
        return tuple(found)
