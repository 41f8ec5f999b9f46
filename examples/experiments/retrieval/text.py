"""A corpus of text that is at hand: the docstrings of installed packages, read from their source files.

A document is a docstring without its first paragraph and without one of its sentences. Both are queries for it, which
no longer stand in it: "summary" asks as one who knows what a thing is called, "sentence" as one who recalls a line.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

# All three come with the extra `test`; no other packages of it have docstrings as long.
PACKAGES = ("numpy", "scipy", "sklearn")
# The distribution's name where it is another.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
# Words of a document at least; words of a summary and of a sentence.
BODY_WORDS, SUMMARY_WORDS, SENTENCE_WORDS = 70, range(3, 26), range(8, 41)
# From a capital that begins a line or follows a sentence, to a full stop, without marks of code and mathematics.
SENTENCE = re.compile(r"(?:^ *|(?<=[.?!]) )([A-Z][^.?!:|<>{}\[\]\\=]+[.?!])(?=\s|$)", re.MULTILINE)
# Lines that underline headings and frame tables.
RULES = re.compile(r"^[ \-=~^+]+\n", re.MULTILINE)
# Characters of a document that every encoder reads: sentences are taken from them.
READ = 1600


class Document(NamedTuple):
    """text: what is indexed; summary and sentence: what is asked; neither stands in the text."""

    text: str
    summary: str
    sentence: str


def docstrings(folder: Path) -> Iterator[str]:
    """The docstrings of all modules, classes and functions in a folder, by file and line, its tests left out."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if any(part == "tests" or part.startswith("test_") for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):
            # Templates, and what is written for another Python.
            continue
        named = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in ast.walk(tree) if isinstance(node, named)]
        for node in sorted(found, key=lambda node: getattr(node, "lineno", 0)):
            text = ast.get_docstring(node)
            if text:
                yield text


def document(docstring: str) -> Document | None:
    """A docstring in its three parts; None where it has no summary, no sentence to ask for, or too little else."""
    summary, _, body = docstring.partition("\n\n")
    summary, body = " ".join(summary.split()), RULES.sub("\n\n", body)
    sentences = SENTENCE.findall(body[:READ])
    # What runs over an empty line is a heading or a table with the sentence behind it.
    sentences = [found for found in sentences if len(found.split()) in SENTENCE_WORDS and "\n\n" not in found]
    if not sentences or len(summary.split()) not in SUMMARY_WORDS:
        return None
    sentence = sentences[len(sentences) // 2]
    text = body.replace(sentence, " ").strip()
    sentence = " ".join(sentence.split())
    flat = " ".join(text.split())
    if len(flat.split()) < BODY_WORDS or summary in flat or sentence in flat:
        return None
    return Document(text, summary, sentence)


def corpus(packages: tuple[str, ...] = PACKAGES) -> list[Document]:
    """The documents of the packages in order; what has a part in common with another document is left out.

    Raises:
        ValueError: a package is not installed.
    """
    found = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f'the text is in {", ".join(packages)}; {package} is not installed (pip install "..[test]")'
            )
        for text in docstrings(Path(spec.submodule_search_locations[0])):
            one = document(text)
            if one is not None:
                found.append(one)
    counts = [Counter(part) for part in zip(*found, strict=True)]
    return [one for one in found if all(count[part] == 1 for count, part in zip(counts, one, strict=True))]


def versions(packages: tuple[str, ...] = PACKAGES) -> str:
    """The packages with their versions, as a header tells them."""
    names = [DISTRIBUTIONS.get(package, package) for package in packages]
    return ", ".join(f"{name} {version(name)}" for name in names)
