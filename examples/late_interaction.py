"""Token pooling for late-interaction retrieval: fewer vectors for each document, in batched calls on any device.

    from late_interaction import pool_documents
    vectors, mask = pool_documents(embeddings, mask, pool_factor=3, protected=1)

Run as a program it pools image documents (tokens of this repository's small DeiT), finds them again from other views of
their images, and puts scipy's Ward of one document at a time beside it:

    python examples/late_interaction.py
    python examples/late_interaction.py --images-per-document 8 --limit 100 --pool-factor 2 4
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser, find_device, one_line_of
from common.images import evenly_spaced, open_images
from common.tables import heading
from deit.subjects import load_small
from experiments.retrieval import rivals
from experiments.retrieval.compare import METHODS, compare, find_methods
from experiments.retrieval.documents import Ragged, embed, join, load_pixels, other_view, pick
from experiments.retrieval.pooling import pool_documents
from experiments.retrieval.report import table, write_csv, write_json

import tpkernels

__all__ = ["main", "pool_documents"]


def pool_factor(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 1):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: an integer no smaller than `least`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {value}")
        return value

    return integer


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("late_interaction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="weights from deit_train.py")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of class folders, or of IDX files")
    parser.add_argument("--limit", type=at_least(2), default=300, help="documents, of evenly spaced images")
    parser.add_argument("--images-per-document", type=at_least(1), default=1, help="more make longer documents")
    parser.add_argument("--pool-factor", nargs="+", type=pool_factor, default=[2, 3, 4, 6], help="tokens a vector")
    parser.add_argument("--protected", type=at_least(0), default=1, help="first tokens that are never pooled")
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"rows: {', '.join(m.name for m in METHODS)}")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="timed turns; medians are shown")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the queries' views")
    parser.add_argument("--threads", type=at_least(1), help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path("runs/late_interaction"), help="where CSV and JSON go")
    return parser.parse_args(argv)


def describe(args: argparse.Namespace, documents: Ragged, queries: Ragged) -> dict[str, str]:
    """The header: all that the numbers below it depend on."""
    lengths = documents.mask.sum(1)
    scipy_version = "not installed: no rows of it, nothing to be faster than (pip install scipy)"
    if rivals.scipy_there():
        import scipy

        scipy_version = scipy.__version__
    backend, reason = tpkernels.explain_backend(documents.vectors, "ward")
    device = documents.vectors.device
    hardware = f"{torch.get_num_threads()} thread(s)" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {
        "checkpoint": str(args.checkpoint),
        "documents": f"{len(lengths):,} of {args.images_per_document} image(s) from {args.data}, "
        f"{int(lengths.min())} to {int(lengths.max())} tokens, {lengths.double().mean():.1f} on average, "
        f"{args.protected} protected",
        "queries": f"another view of each document's first image, {queries.mask.sum(1).double().mean():.1f} tokens",
        "device": f"{device}, {hardware}",
        "backend": f"{backend}: {reason}",
        "scipy": scipy_version,
        "versions": f"torch {torch.__version__}, tpkernels {tpkernels.__version__}, Python {platform.python_version()}",
    }


def run(args: argparse.Namespace) -> None:
    """Makes documents and queries, compares, prints and writes.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    methods, device = find_methods(args.method), find_device(args.device)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output must be a directory to write to, got {args.output} ({error.strerror})") from None
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    source, subject = open_images(args.data), load_small(args.checkpoint)
    each = args.images_per_document
    count = min(args.limit, len(source.labels) // each)
    if count < 2:
        raise ValueError(
            f"--images-per-document must leave two documents of the {len(source.labels)} images in {args.data}, "
            f"got {each}"
        )
    pixels = load_pixels(source, subject, evenly_spaced(len(source.labels), count * each))
    model = subject.model.to(device)
    documents = join(embed(model, pixels, device), each)
    views = other_view(pixels[::each], torch.Generator().manual_seed(args.seed))
    queries = pick(embed(model, views, device))

    facts = describe(args, documents, queries)
    print(heading(facts), flush=True)
    rows = compare(documents, queries, methods, args.pool_factor, args.protected, args.repeats)
    write_csv(args.output / "rows.csv", rows)
    write_json(args.output / "rows.json", facts, rows)
    print(f"\n{table(rows)}\n")
    print("MB: of float16 vectors. objective: over scipy's Ward on the same vectors, mean and worst document.")
    print(f"ms: pooling all documents. rows.csv and rows.json are in {args.output}")


def main(argv: list[str] | None = None) -> None:
    started = time.perf_counter()
    args = parse_args(argv)
    with one_line_of("late_interaction"):
        run(args)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
