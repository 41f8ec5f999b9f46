"""What stands at a line of a kernel's source: its statement, the statements around it, and its function."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import NamedTuple


class Statement(NamedTuple):
    """first: its line; kind: "for", "while", "if", "barrier", "plain", or "static" for a loop that the compiler
    unrolls; fixed: an `if` decided at compile time; test:
    an `if`'s condition; function: that it stands in; around: first lines of the compound statements that it stands in,
    the innermost first."""

    first: int
    kind: str
    fixed: bool
    test: str
    function: str
    around: tuple[int, ...]


KINDS = {ast.For: "for", ast.While: "while", ast.If: "if"}


@functools.cache
def statements(path: Path) -> dict[int, Statement]:
    """The statement of each line in the file's kernels and device functions; a compound statement has the lines of its
    header alone.
    """
    found: dict[int, Statement] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(one) for one in node.decorator_list):
            # Instructions that belong to no statement have the line of the function itself.
            lines = range(min([node.lineno, *(one.lineno for one in node.decorator_list)]), node.body[0].lineno)
            found |= dict.fromkeys(lines, Statement(node.lineno, "plain", False, "", node.name, ()))
            _enter(node.body, node, _varying(node), (), found)
    return found


def _enter(
    body: list[ast.stmt], function: ast.FunctionDef, varying: set[str], around: tuple[int, ...], found: dict
) -> None:
    for node in body:
        kind = KINDS.get(type(node), "barrier" if "debug_barrier()" in ast.unparse(node) else "plain")
        if isinstance(node, ast.For) and "static_range" in ast.unparse(node.iter):
            kind = "static"
        inner = getattr(node, "body", [])
        last = inner[0].lineno - 1 if inner else node.end_lineno or node.lineno
        test = node.test if isinstance(node, ast.If) else None
        fixed = test is not None and not _names(test) & varying
        text = "" if test is None else ast.unparse(test)
        made = Statement(node.lineno, kind, fixed, text, function.name, around)
        found |= dict.fromkeys(range(node.lineno, max(last, node.lineno) + 1), made)
        for part in (inner, getattr(node, "orelse", [])):
            _enter(part, function, varying, (node.lineno, *around), found)


def _names(test: ast.expr) -> set[str]:
    """Names that a condition reads; parts of a tuple in capitals are constants."""
    if isinstance(test, ast.Attribute) and test.attr.isupper():
        return set()
    mine = {test.id} if isinstance(test, ast.Name) else set()
    return mine.union(*(_names(one) for one in ast.iter_child_nodes(test)))  # type: ignore[arg-type]


def _varying(function: ast.FunctionDef) -> set[str]:
    """Names that have a value at run time: parameters that are no constexpr, and what is assigned."""
    given = {one.arg for one in function.args.args if "constexpr" not in ast.unparse(one.annotation or ast.Name(""))}
    return given | {
        one.id for one in ast.walk(function) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    }
