"""Accuracy against MACs for every way to reduce tokens: figure 3 of the paper, in miniature.

Off the shelf on the shipped model and images, or fine-tuned too, which needs the training images:

    python examples/cost_accuracy.py
    python examples/cost_accuracy.py --data fashion-mnist --checkpoint runs/patch4/model.safetensors --tune \\
        --train-images 6000 --lr 1e-4

All methods have the same tokens at the same budget: those of a constant ratio at the layers that pool, clustering by
Ward counted. Runs that are there already are not made again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser
from common.document import around_marks, write_document
from common.files import FileError
from common.images import open_images
from deit.methods import METHODS, find_methods
from deit.model import DeiT
from deit.subjects import check_classes, load_small
from experiments.curves import picture, points, shelf, tuned

PROGRAM = "examples/cost_accuracy.py"
BUDGETS = (0.45, 0.52, 0.58, 0.65, 0.75, 0.85)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("cost_accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(method.name for method in METHODS)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, default=DATA, help="IDX files")
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"{names} (default: all)")
    parser.add_argument("--budget", nargs="+", type=float, default=list(BUDGETS), help="shares of the base's MACs")
    parser.add_argument("--layers", nargs="+", type=int, help="0-based blocks that pool; default: 3 6 9 of 12")
    parser.add_argument("--test-images", type=int, help="evenly spaced; default: all")
    parser.add_argument("--no-shelf", action="store_true", help="fine-tuned models alone")
    parser.add_argument("--batch-size", type=int, default=50, help="off the shelf")
    tune = parser.add_argument_group("fine-tuning")
    tune.add_argument("--tune", action="store_true", help="fine-tune every model, and the base model as long")
    tune.add_argument("--strided", nargs="*", type=int, default=[2, 4, 6, 8], help="blocks to try a convolution in")
    tune.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    tune.add_argument("--train-images", type=int, help="the first ones; default: all")
    tune.add_argument("--epochs", type=int, default=1)
    tune.add_argument("--lr", type=float, default=1e-4)
    tune.add_argument("--train-batch", type=int, default=128)
    tune.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--join", nargs="+", type=Path, metavar="CSV", help="no measuring; draw these points")
    parser.add_argument("--output", type=Path, default=Path("runs/cost_accuracy"), help="where the runs go")
    parser.add_argument("--csv", type=Path, help="the points (default: points.csv in --output)")
    parser.add_argument("--picture", type=Path, help="the figure (default: picture.png in --output)")
    parser.add_argument("--document", type=Path, help="put the tables between this document's marks")
    args = parser.parse_args(argv)
    for name in ("test_images", "batch_size", "train_images", "epochs", "train_batch", "jobs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.no_shelf and not args.tune:
        parser.error("--no-shelf leaves nothing to do without --tune")
    return args


def measure(args: argparse.Namespace) -> list[points.Point]:
    """All points of the arguments' methods, budgets and seeds."""
    methods, subject, source = find_methods(args.method), load_small(args.checkpoint), open_images(args.data)
    check_classes(subject, source)
    assert isinstance(subject.model, DeiT)
    work = []
    if args.tune:
        work = tuned.jobs(subject.model, methods, args.budget, args.layers, args.strided, args.seeds)
    found = []
    if not args.no_shelf:
        found = shelf.measure(subject, source, methods, args.budget, args.layers, args.test_images, args.batch_size)
    if work:
        common = ["--data", str(args.data), "--init", str(args.checkpoint), "--epochs", str(args.epochs)]
        common += ["--lr", str(args.lr), "--batch-size", str(args.train_batch), "--warmup", "0.1"]
        common += ["--eval-every", str(args.epochs)]
        for name, value in (("--limit", args.train_images), ("--test-limit", args.test_images)):
            common += [] if value is None else [name, str(value)]
        found += tuned.run(work, subject.name, common, args.output, args.jobs)
    return found


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    csv, drawn = args.csv or args.output / "points.csv", args.picture or args.output / "picture.png"
    if args.document is not None:
        # Raises before the work, not after it.
        around_marks(args.document, PROGRAM)
    args.output.mkdir(parents=True, exist_ok=True)
    found = [point for path in args.join for point in points.read(path)] if args.join else measure(args)
    points.write(csv, found)
    picture.draw(drawn, found)
    if args.document is not None:
        write_document(args.document, PROGRAM, points.table(found))
    print(f"{points.table(found)}\n\ntorch {torch.__version__}; points in {csv}, figure in {drawn}")


if __name__ == "__main__":
    try:
        main()
    except (FileError, OSError, ValueError, TypeError, RuntimeError) as error:
        sys.exit(f"cost_accuracy: {' '.join(str(error).split())}")
