"""The mutants can be planted in today's code, and a row is about the text that it was measured with."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tools.mutants import report, rows
from tools.mutants.command import main
from tools.mutants.mutant import Mutant, planted
from tools.mutants.run import FAILURE, ROOT
from tools.mutants.table import MUTANTS, WHY

SAMPLE = Mutant("sample", "sign", "tpkernels/ops/file.py", "a - b", "a + b", "a sum", ("tests/test_api.py",))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted(mutant: Mutant) -> None:
    ast.parse(planted(mutant, (ROOT / mutant.file).read_text()))
    for test in (*mutant.tests, *mutant.slow):
        file, _, name = test.partition("::")
        assert (ROOT / file).exists(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), test


def test_mutants_are_many_and_of_many_kinds() -> None:
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert max(Counter(mutant.kind for mutant in MUTANTS).values()) <= 3
    assert set(WHY) <= {mutant.name for mutant in MUTANTS}


@pytest.mark.parametrize("content", ["a * b", "a - b, a - b"])
def test_a_text_that_is_not_there_once_is_refused(content: str) -> None:
    assert planted(SAMPLE, "x = a - b") == "x = a + b"
    with pytest.raises(ValueError, match="sample: expected its text once"):
        planted(SAMPLE, content)


def test_a_row_of_another_text_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows.append(path, rows.Row("sample", SAMPLE.digest, "abc", "quick", "tests/test_api.py::test_x", 2.0))
    ((mutant, row),) = rows.known(rows.read(path), [SAMPLE])
    assert (mutant, row.suite) == (SAMPLE, "quick")
    assert rows.known(rows.read(path), [SAMPLE._replace(new="b - a")]) == []
    table = report.text([(SAMPLE, row)], 1, {})
    assert "| sign | `ops/file.py` | a sum | the quick suite: `test_api.py::test_x` |" in table
    document = tmp_path / "document.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert main(["--output", str(path), "--document", str(document)]) == 0
    # The sample is none of the mutants that there are.
    begin, end = f"before\n{report.BEGIN}\n\n0 of {len(MUTANTS)} mutants", f"\n\n{report.END}\nafter\n"
    assert document.read_text().startswith(begin) and document.read_text().endswith(end)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("FAILED tests/a/test_b.py::test_c[x - y] - assert 1 == 2", "tests/a/test_b.py::test_c"),
        ("FAILED tests/test_b.py::test_c", "tests/test_b.py::test_c"),
        ("ERROR tests/test_b.py::test_c - RuntimeError", "tests/test_b.py::test_c"),
        ("ERROR tests/test_b.py - ImportError: no module", None),
    ],
)
def test_a_failure_names_its_test(line: str, found: str | None) -> None:
    match = FAILURE.search(f"...\n{line}\n1 failed\n")
    assert (match and match[1]) == found
