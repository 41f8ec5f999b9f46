"""Accuracy, MACs and throughput of a vision transformer with and without Token Pooling, one row per method.

Without arguments: the small DeiT of this repository on its Fashion-MNIST test images, on the CPU. More:

    python examples/deit_eval.py --method ward bipartite --keep 0.5 --layers 2 5 8
    python examples/search_schedule.py && python examples/deit_eval.py --schedule runs/schedule.json
    python examples/deit_eval.py --model deit_small_patch16_224 --data imagenet/val --device cuda --dtype bfloat16
    torchrun --nproc-per-node 2 examples/deit_eval.py --limit 2000
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser, find_device, make_output, one_line_of, ratio_or_count
from common.data import DataError
from common.distributed import World, join
from common.images import ImageSet, batches, evenly_spaced, open_images
from common.tables import heading
from deit.distances import merging, read_distances
from deit.evaluate import evaluate
from deit.methods import METHODS, find_methods
from deit.picture import draw
from deit.report import corrupt_line, table, to_record, write_csv, write_json
from deit.rows import Row, build_rows, tokens_per_block
from deit.subjects import Subject, check_classes, load_small, load_timm
from tqdm import tqdm

import tpkernels

# What two CPU cores evaluate in well under two minutes.
SHIPPED_LIMIT = 1000


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("deit_eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a timm DeiT or ViT; default: this repository's small DeiT")
    parser.add_argument("--checkpoint", type=Path, help="its weights; default: the repository's, or timm's pretrained")
    parser.add_argument("--data", type=Path, help="folder of class folders, or of IDX files; default: shipped images")
    parser.add_argument("--limit", type=int, help=f"evenly spaced images; default: all, {SHIPPED_LIMIT} of the shipped")
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"rows: {', '.join(m.name for m in METHODS)}")
    parser.add_argument(
        "--keep", nargs="+", type=ratio_or_count, help="ratio (0.7, the default) or count (98); one, or one per layer"
    )
    parser.add_argument("--layers", nargs="+", type=int, help="0-based blocks that pool; default: 3 6 9 of 12")
    parser.add_argument("--budget", type=float, help="share of the base's MACs, Ward's clustering counted; not --keep")
    parser.add_argument("--schedule", type=Path, help="file of search_schedule.py; not --keep, --budget or --layers")
    parser.add_argument("--batch-size", type=int, help="default: 50 on a CPU, 256 on a GPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="run every row through torch.compile")
    parser.add_argument("--workers", type=int, help="processes that read images; default: 0 on a CPU, up to 8 on a GPU")
    parser.add_argument("--output", type=Path, default=Path("runs/deit_eval"), help="where CSV, JSON and PNG go")
    args = parser.parse_args(argv)
    if args.keep and args.budget is not None:
        parser.error("--keep and --budget exclude each other")
    if args.schedule is not None and (args.keep or args.layers or args.budget is not None):
        parser.error("--schedule excludes --keep, --budget and --layers")
    for name in ("limit", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.workers is not None and args.workers < 0:
        parser.error(f"--workers must be at least 0, got {args.workers}")
    return args


def describe(
    args: argparse.Namespace, subject: Subject, source: ImageSet, used: int, rows: list[Row], world: World
) -> dict[str, str]:
    """The header: all that the numbers below it depend on."""
    trained = [f"{name} {value}" for name, value in subject.facts.items() if value is not None and value is not False]
    layers = [layer for layer in rows[-1].macs.per_layer if layer.tokens_out < layer.tokens_in]
    counts = [rows[0].tokens[0], *(layer.tokens_out for layer in layers)]
    where = f" at layers {', '.join(str(layer.layer) for layer in layers)} (0-based)" if layers else ", not pooled"
    where += "; by distance: these are the most that an image keeps" if rows[-1].by_distance else ""
    total = len(source.labels)
    on_cpu = world.device.type == "cpu"
    hardware = f"{torch.get_num_threads()} thread(s)" if on_cpu else torch.cuda.get_device_name(world.device)
    return {
        "model": subject.name,
        "checkpoint": subject.checkpoint,
        "trained": ", ".join(trained) or "no record in the checkpoint",
        "rows": subject.provenance,
        "data": f"{args.data}: {used:,} of {total:,} images" + (", evenly spaced" if used < total else ""),
        "crop": subject.crop,
        "interpolation": subject.interpolation,
        "dtype": args.dtype,
        "batch": str(args.batch_size),
        "device": f"{world.device}, {hardware}, {world.size} process(es), {'compiled' if args.compile else 'eager'}",
        "versions": f"torch {torch.__version__}, tpkernels {tpkernels.__version__}",
        "patch tokens": " -> ".join(map(str, counts)) + where,
    }


def prepare(args: argparse.Namespace) -> tuple[Subject, ImageSet, list[Row], World]:
    """Everything that can be wrong with the arguments shows here, before the first batch.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    methods, device = find_methods(args.method), find_device(args.device)
    on_cpu = device.type == "cpu"
    args.limit = args.limit or (SHIPPED_LIMIT if args.data is None else None)
    args.batch_size = args.batch_size or (50 if on_cpu else 256)
    args.workers = (0 if on_cpu else min(8, os.cpu_count() or 1)) if args.workers is None else args.workers
    args.data = args.data or DATA
    make_output(args.output)

    source = open_images(args.data)
    subject = load_timm(args.model, args.checkpoint) if args.model else load_small(args.checkpoint or CHECKPOINT)
    check_classes(subject, source)
    world = join(device)
    model = subject.model.to(world.device, getattr(torch, args.dtype))
    distances = read_distances(model, args.schedule)
    if distances is None:
        tokens = tokens_per_block(model, args.keep, args.budget, args.layers, args.schedule)
    else:
        tokens = list(distances.tokens)
        methods = methods if args.method else merging(methods)
    return subject, source, build_rows(model, methods, tokens, args.compile, distances), world


def run(args: argparse.Namespace, subject: Subject, source: ImageSet, rows: list[Row], world: World) -> None:
    """Prints the header, evaluates, and writes the rows; of several processes the first one prints and writes.

    Raises:
        DataError: no image can be read.
    """
    numbers = evenly_spaced(len(source.labels), args.limit)
    facts = describe(args, subject, source, len(numbers), rows, world)
    if world.is_first:
        print(heading(facts), flush=True)

    chunks = [numbers[i : i + args.batch_size] for i in range(0, len(numbers), args.batch_size)]
    mine = world.shard(chunks)
    work = sum(map(len, mine)) * len(rows)
    with tqdm(total=work, unit="img", disable=not world.is_first, mininterval=0.5) as bar:
        loaded = batches(source, subject.transform, mine, args.workers)
        seen = evaluate(rows, loaded, world, getattr(torch, args.dtype), bar)
    world.close()
    if not seen.images:
        raise DataError(f"none of the {len(numbers)} images in {args.data} can be read; the first is {seen.corrupt[0]}")
    if not world.is_first:
        return

    records = [to_record(row, seen.images) for row in rows]
    write_csv(args.output / "rows.csv", records)
    write_json(args.output / "rows.json", facts, records, seen)
    draw(args.output / "picture.png", rows, seen.images, f"{subject.name}; pooled {facts['patch tokens']}")
    print(f"\n{table(records)}\n")
    if rows[-1].by_distance:
        print("by distance each image keeps what it needs: GMACs are the mean of these images")
    if seen.corrupt:
        print(corrupt_line(seen))
    print(f"rows.csv, rows.json and picture.png are in {args.output}")


def one_line(error: Exception) -> str:
    return f"deit_eval: {' '.join(str(error).split())}"


def main(argv: list[str] | None = None) -> None:
    started = time.perf_counter()
    args = parse_args(argv)
    with one_line_of("deit_eval"):
        prepared = prepare(args)
    try:
        run(args, *prepared)
    except DataError as error:
        sys.exit(one_line(error))
    if prepared[-1].is_first:
        print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
