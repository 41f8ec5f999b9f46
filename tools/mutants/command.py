"""The command: which mutants run, through which suites, and where the rows go."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reports import replace_between

from . import report, rows
from .mutant import Mutant
from .run import ROOT, Copy, Outcome, commit
from .table import MUTANTS, WHY

DESCRIPTION = """Plants the mutants of tools/mutants/ one after another in a copy of the checkout, and runs the tests of
the mutated room; on what those do not see the room's slow tests, if it has any, then the quick suite, then the full
one. A row is written as soon as it is known, and a run that was cut off goes on where it stopped."""


def judge(copy: Copy, mutant: Mutant, most: str) -> tuple[str | None, Outcome]:
    """The first suite that sees the mutant, and the test; None where no suite up to `most` does."""
    suites = {
        "room": (mutant.tests, False),
        "slow": (("--slow", *mutant.slow) if mutant.slow else None, False),
        "quick": ((), True),
        "full": (("--slow",), True),
    }
    seconds = 0.0
    with copy.with_mutant(mutant):
        for suite, (arguments, parallel) in suites.items():
            if arguments is not None:
                outcome = copy.test(arguments, parallel=parallel)
                seconds += outcome.seconds
                if outcome.failed is not None:
                    return suite, Outcome(outcome.failed, seconds)
            if suite == most:
                break
    return None, Outcome(None, seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is asked for; 1 where a mutant survives."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=DESCRIPTION)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "mutants.jsonl", help="rows, one a mutant")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--most", choices=list(rows.SUITES), default="full", help="the last suite to run on survivors")
    parser.add_argument("--workers", type=int, default=2, help="of the suites")
    parser.add_argument("--document", type=Path, help="write the table of the rows into this document and end")
    options = parser.parse_args(argv)
    unknown = set(options.only or ()) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"--only: expected names that --list prints, got {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:<28}{mutant.kind:<24}{mutant.file:<44}{mutant.what}")
        return 0
    if options.document is not None:
        measured = rows.known(rows.read(options.output), MUTANTS)
        table = report.text(measured, len(MUTANTS), WHY)
        document = options.document
        document.write_text(replace_between(document.read_text(), table, report.BEGIN, report.END))
        return 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = {mutant.name for mutant, _ in rows.known(rows.read(options.output), chosen)}
    left = [mutant for mutant in chosen if mutant.name not in done]
    if left:
        measure(left, options.output, options.most, options.workers)
    found = rows.known(rows.read(options.output), chosen)
    return int(any(row.suite is None for _, row in found))


def measure(mutants: Sequence[Mutant], output: Path, most: str, workers: int) -> None:
    """Writes a row for each of the mutants; then runs the tests that all rows name once more, without any mutant.

    Raises:
        SystemExit: one of those fails without a mutant too.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy, version = Copy(Path(folder).resolve(), workers), commit()
        for mutant in mutants:
            suite, outcome = judge(copy, mutant, most)
            row = rows.Row(mutant.name, mutant.digest, version, suite, outcome.failed, round(outcome.seconds, 1))
            # What suites that did not run would have seen is not known.
            if suite is not None or most == "full":
                rows.append(output, row)
            print(f"{mutant.name}: {suite or 'survives'} {row.test or ''} {row.seconds:.0f} s", flush=True)
        failed = sorted({row.test for row in rows.read(output).values() if row.test})
        if failed:
            sound = copy.test(failed, parallel=workers > 1)
            if sound.failed is not None:
                raise SystemExit(f"{sound.failed} fails without any mutant: take the rows that name it out of {output}")
            print(f"{len(failed)} tests that saw mutants pass without them, {sound.seconds:.0f} s")
