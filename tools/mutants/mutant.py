"""What a mutant is, and how it is planted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """A mistake as data.

    file: in the checkout; old: text that occurs in it exactly once; new: what replaces it; what: the mistake in a few
    words; tests: files, or node ids, that are about the mutated lines, the cheapest first; slow: those that `--slow`
    runs and the quick suite does not.
    """

    name: str
    kind: str
    file: str
    old: str
    new: str
    what: str
    tests: tuple[str, ...]
    slow: tuple[str, ...] = ()

    @property
    def room(self) -> str:
        """Where the file lies in the package."""
        folder = str(Path(self.file).parent.relative_to("tpkernels"))
        return Path(self.file).name if folder == "." else folder

    @property
    def digest(self) -> str:
        """Of what is planted, wherever it lies: a row of results is about this text and no other."""
        return hashlib.sha256(f"{self.old}\0{self.new}".encode()).hexdigest()[:12]


def planted(mutant: Mutant, content: str) -> str:
    """The file's content with the mistake in it.

    Raises:
        ValueError: the text to replace does not occur exactly once, or nothing would change.
    """
    count = content.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.name}: expected its text once in {mutant.file}, got it {count} times")
    if mutant.old == mutant.new:
        raise ValueError(f"{mutant.name}: expected another text, got the same")
    return content.replace(mutant.old, mutant.new)
