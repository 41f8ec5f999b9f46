"""`python -m tools.oracle`: judges every model, and writes docs/models.md or compares it."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from .catalogue import candidates, judge_all, libraries, others, versions
from .table import document, undated
from .verdict import WRONG

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "models.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where a model is wrong, or where --check finds another document."""
    parser = argparse.ArgumentParser(prog="python -m tools.oracle", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the document is up to date")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="judge these alone, and write nothing")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="the document")
    options = parser.parse_args(argv)
    # The models are small: threads would wait for each other longer than they compute.
    torch.set_num_threads(1)
    started = time.perf_counter()
    packages = libraries()
    models = candidates(packages)
    if options.only:
        named = set(options.only)
        models = [one for one in models if named & {one.kind, *one.names}]
    judged = []
    for one in judge_all(models):
        judged.append(one)
        if options.only or one.verdict.state == WRONG:
            print(
                f"{one.candidate.library} {one.names[0]}: {one.verdict.state} {one.verdict.reason}".rstrip(), flush=True
            )
    states = Counter(one.verdict.state for one in judged)
    print(f"{dict(sorted(states.items()))} of {len(judged)} structures, {time.perf_counter() - started:.0f} s")
    failed = states[WRONG] > 0
    if not options.only:
        text = document(datetime.date.today().isoformat(), versions(packages), judged, others(packages))
        if not options.check:
            options.document.write_text(text)
        elif not options.document.exists() or undated(options.document.read_text()) != undated(text):
            print(f"{options.document.name} is not up to date: run python -m tools.oracle", file=sys.stderr)
            failed = True
    return int(failed)
