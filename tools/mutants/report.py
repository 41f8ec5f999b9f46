"""The table of docs/reliability.md, from the rows that were measured."""

from __future__ import annotations

from collections.abc import Sequence

from .mutant import Mutant
from .rows import QUICK, SUITES, Row

BEGIN, END = "<!-- mutants:begin -->", "<!-- mutants:end -->"


def text(measured: Sequence[tuple[Mutant, Row]], planned: int, why: dict[str, str]) -> str:
    """What was measured, then a line for each mutant.

    Args:
        planned: mutants that there are.
        why: for mutants that nothing sees, why they are no mistakes.
    """
    commits = sorted({row.commit for _, row in measured})
    counts = {suite: sum(row.suite == suite for _, row in measured) for suite in SUITES}
    quick = sum(counts[suite] for suite in QUICK)
    total = len(measured)
    missed = [mutant.name for mutant, row in measured if row.suite is None]
    lines = [
        f"{total} of {planned} mutants, measured on {', '.join(commits)}. Killed by the tests of their own room: "
        f"{counts['room']};",
        f"by the quick suite, which has those tests: {quick} ({100 * quick / max(total, 1):.0f} %); by the full one: "
        f"{total - len(missed)}. Survivors: {', '.join(missed) or 'none'}.",
        "",
        "| kind | where | what | killed by |",
        "|---|---|---|---|",
    ]
    for mutant, row in sorted(measured, key=lambda pair: (pair[0].kind, pair[0].file)):
        by = why.get(mutant.name, "nothing")
        if row.suite is not None and row.test is not None:
            by = f"{SUITES[row.suite]}: `{row.test.removeprefix('tests/')}`"
        lines.append(f"| {mutant.kind} | `{mutant.file.removeprefix('tpkernels/')}` | {mutant.what} | {by} |")
    return "\n".join(lines)
