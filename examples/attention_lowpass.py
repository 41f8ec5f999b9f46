"""The paper's low-pass claim, measured on a trained model: is attention a Gaussian filter, is its output smoother?

Without arguments: the small DeiT of this repository on 200 of its Fashion-MNIST test images, on the CPU. The page's
picture, its tables and their CSV come from

    python examples/attention_lowpass.py --picture docs/attention_lowpass.png --csv docs/attention_lowpass.csv \\
        --document docs/attention_lowpass.md
    python examples/attention_lowpass.py --model deit_small_patch16_224 --data imagenet/val
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser, one_line_of
from common.document import around_marks, write_document
from common.images import all_read, batches, evenly_spaced, open_images
from common.tables import heading
from deit.subjects import Subject, load_small, load_timm
from experiments.lowpass.measure import curves, measure, summarise
from experiments.lowpass.picture import draw
from experiments.lowpass.record import find_blocks, record
from experiments.lowpass.report import Row, markdown, write_csv
from experiments.lowpass.spectrum import MEDIAN, Basis, basis, grid_weights, white_shares
from torch import Tensor
from tqdm import tqdm

import tpkernels

PROGRAM = "examples/attention_lowpass.py"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("attention_lowpass", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a timm DeiT or ViT; default: this repository's small DeiT")
    parser.add_argument("--checkpoint", type=Path, help="its weights; default: the repository's, or timm's pretrained")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of class folders, or of IDX files")
    parser.add_argument("--limit", type=int, default=200, help="evenly spaced images")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--picture", type=Path, default=Path("runs/attention_lowpass.png"))
    parser.add_argument("--csv", type=Path, default=Path("runs/attention_lowpass.csv"), help="a line a block")
    parser.add_argument("--curves", type=Path, help="CSV of every cut and every K; default: beside --csv")
    parser.add_argument("--document", type=Path, help="put the tables between this document's marks")
    args = parser.parse_args(argv)
    for name in ("limit", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    args.curves = args.curves or args.csv.with_name(f"{args.csv.stem}_curves.csv")
    return args


def prepare_output(args: argparse.Namespace) -> None:
    """Finds out before the minutes of measuring whether its results can be written.

    Raises:
        ValueError: an output has no directory that can be made, or the document lacks the marks.
        OSError: the document cannot be read.
    """
    for name in ("picture", "csv", "curves"):
        folder = getattr(args, name).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--{name} expects a directory to write to, got {folder} ({error.strerror})") from None
    if args.document is not None:
        around_marks(args.document, PROGRAM)


def measure_all(subject: Subject, args: argparse.Namespace, grid: Basis) -> list[dict[str, Tensor]]:
    """What `measure` finds in every block, of all images, one a row.

    Raises:
        DataError: an image cannot be read.
    """
    source = open_images(args.data)
    numbers = evenly_spaced(len(source.labels), args.limit)
    chunks = [numbers[i : i + args.batch_size] for i in range(0, len(numbers), args.batch_size)]
    prefix = subject.model.num_prefix_tokens
    found: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in find_blocks(subject.model)]
    with tqdm(total=len(numbers) * len(found), unit="block") as bar:
        for batch in all_read(batches(source, subject.transform, chunks, workers=0), args.data):
            for layer, of_block in zip(record(subject.model, batch.images), found, strict=True):
                for name, value in measure(layer, grid, prefix).items():
                    of_block[name].append(value)
                bar.update(len(batch.labels))
    return [{name: torch.cat(values) for name, values in of_block.items()} for of_block in found]


def run(args: argparse.Namespace) -> None:
    """Measures, prints, writes.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    prepare_output(args)
    subject = load_timm(args.model, args.checkpoint) if args.model else load_small(args.checkpoint or CHECKPOINT)
    rows_of_patches, columns = subject.model.patch_embed.grid_size
    grid = basis(grid_weights(rows_of_patches, columns))
    found = measure_all(subject, args, grid)
    rows = [summarise(number, of_block) for number, of_block in enumerate(found)]
    lines: list[Row] = [line for number, of_block in enumerate(found) for line in curves(number, of_block)]
    white = float(white_shares(grid)[MEDIAN])

    facts = {
        "model": f"{subject.name}, {subject.provenance}",
        "images": f"{rows[0]['images']} of {args.data.name}, evenly spaced",
        "noise": f"{100 * white:.1f} % of its energy lies above the median frequency of the grid",
        "versions": f"torch {torch.__version__}, tpkernels {tpkernels.__version__}",
    }
    write_csv(args.csv, rows)
    write_csv(args.curves, lines)
    after = [line for line in lines if line["curve"] == "error at kept" and line["signal"] == "after_attention"]
    title = f"{subject.name}; {facts['images']}"
    draw(args.picture, rows, after, rows_of_patches * columns, white, title)
    tables = markdown(rows)
    if args.document is not None:
        said = "; ".join(f"{name}: {value}" for name, value in facts.items())
        write_document(args.document, PROGRAM, f"{said[0].upper()}{said[1:]}.\n\n{tables}")
    print(f"{heading(facts)}\n\n{tables}\n\n{args.csv}, {args.curves} and {args.picture} are written")


def main(argv: list[str] | None = None) -> None:
    started = time.perf_counter()
    args = parse_args(argv)
    with one_line_of("attention_lowpass"):
        run(args)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
