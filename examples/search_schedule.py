"""Searches the tokens that each block keeps, under a budget of MACs, and writes them as a schedule file.

Three ways. "error", without training: what every block's tokens would lose at every number of clusters is measured on
calibration images in one pass, and the schedule of least summed error is solved for, block l weighing 1 / l: what is
lost early is lost to all blocks that follow. "soft": PoWER-BERT's, which the Token Pooling paper used; weights by rank
of significance are learned with a penalty (examples/deit/soft.py), and the numbers of tokens that come out are scaled
by one factor to the budget. "distance", without training: distances below which clusters merge, so that each image
keeps what it needs, and the calibration images cost the budget in the mean.

Without arguments: the small DeiT of this repository on images that `deit_eval.py` does not evaluate. More:

    python examples/search_schedule.py --budget 0.65 --output runs/schedule.json
    python examples/deit_eval.py --schedule runs/schedule.json
    python examples/search_schedule.py --way distance --layers 3 6 9
    python examples/search_schedule.py --way soft --steps 300 --penalty 3e-5
    python examples/search_schedule.py --model deit_small_patch16_224 --data imagenet/train --limit 1000 --device cuda

One process; torchrun is not supported. The file is read by `tpkernels.patch(model, keep="runs/schedule.json")`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common.arguments import CHECKPOINT, DATA, Parser, find_device, one_line_of
from common.data import DataError
from common.images import Batch, ImageSet, batches, evenly_spaced, open_images
from deit.soft import fit_budget, learn_retention, tokens_retained
from deit.subjects import Subject, check_classes, load_small, load_timm
from deit_eval import SHIPPED_LIMIT
from torch import Tensor
from tqdm import tqdm

import tpkernels
from tpkernels.schedule.shapes import vit_shape

# Calibration images by default: what one pass needs, a training, and about 20 passes.
LIMITS = {"error": 200, "soft": 1000, "distance": 100}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("search_schedule", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--way", choices=tuple(LIMITS), default="error", help="training-free, PoWER-BERT's, or to each image"
    )
    parser.add_argument("--model", help="a timm DeiT or ViT; default: this repository's small DeiT")
    parser.add_argument("--checkpoint", type=Path, help="its weights; default: the repository's, or timm's pretrained")
    parser.add_argument("--data", type=Path, help="folder of class folders, or of IDX files; default: shipped images")
    parser.add_argument("--limit", type=int, help="images, evenly spaced; default: 200, soft 1000, distance 100")
    parser.add_argument("--budget", type=float, default=0.58, help="share of the base's MACs, clustering counted")
    parser.add_argument("--layers", nargs="+", type=int, help="0-based blocks that may pool; default: every block")
    parser.add_argument("--output", type=Path, default=Path("runs/schedule.json"), help="the schedule file")
    parser.add_argument("--seed", type=int, default=0, help="of the order of images in the soft search")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--weights", choices=("depth", "equal"), default="depth", help="of the blocks' errors: 1 / l, l from 1, or 1"
    )
    soft = parser.add_argument_group("soft")
    soft.add_argument("--steps", type=int, default=80)
    soft.add_argument("--lr", type=float, default=0.03, help="of the weights by rank")
    soft.add_argument("--penalty", type=float, default=3e-5, help="of each rank kept, times the block's number from 1")
    soft.add_argument("--model-lr", type=float, default=0.0, help="of the model's own weights; 0: frozen")
    args = parser.parse_args(argv)
    args.data = args.data or DATA
    args.limit = LIMITS[args.way] if args.limit is None else args.limit
    for name in ("limit", "batch_size", "steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for name in ("lr", "penalty", "model_lr"):
        value = getattr(args, name)
        if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
            least = "above 0" if name == "lr" else "at least 0"
            parser.error(f"--{name.replace('_', '-')} must be finite and {least}, got {value}")
    return args


def choose(total: int, args: argparse.Namespace) -> list[int]:
    """Numbers of the calibration images, evenly spaced; of the shipped ones those that `deit_eval.py` leaves out."""
    evaluated = evenly_spaced(total, SHIPPED_LIMIT) if args.data == DATA else []
    rest = sorted(set(range(total)).difference(evaluated))
    return [rest[i] for i in evenly_spaced(len(rest), args.limit)]


def calibration(loaded: Iterator[Batch], device: torch.device, bar: tqdm) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels on the device; what cannot be read is left out.

    Raises:
        DataError: nothing can be read.
    """
    seen, corrupt = 0, []
    for batch in loaded:
        corrupt += batch.corrupt
        if len(batch.labels):
            seen += len(batch.labels)
            yield batch.images.to(device), batch.labels.to(device)
        bar.update(len(batch.labels) + len(batch.corrupt))
    if not seen:
        raise DataError(f"none of the images can be read; the first is {corrupt[0]}")
    if corrupt:
        print(f"{len(corrupt)} corrupt image(s) left out: {', '.join(corrupt[:3])}")


def by_error(
    args: argparse.Namespace, subject: Subject, source: ImageSet, numbers: list[int], device: torch.device
) -> list[int]:
    """The training-free way; prints its summed error beside that of a constant ratio."""
    chunks = [numbers[i : i + args.batch_size] for i in range(0, len(numbers), args.batch_size)]
    with tqdm(total=len(numbers), unit="img", mininterval=0.5) as bar:
        loaded = calibration(batches(source, subject.transform, chunks, 0), device, bar)
        errors = tpkernels.reconstruction_errors(subject.model, (images for images, _ in loaded))
    if args.weights == "depth":
        errors = errors / torch.arange(1, len(errors) + 1)[:, None]
    tokens = tpkernels.solve_schedule(errors, subject.model, args.budget, layers=args.layers)
    print(f"summed error    {summed(errors, tokens):.4f} of the tokens' variance, all blocks, weights {args.weights}")
    try:
        constant = tpkernels.resolve_budget(subject.model, args.budget, args.layers)
    except ValueError as unreachable:
        print(f"constant ratio  none at these layers: {unreachable}")
    else:
        print(f"constant ratio  {summed(errors, constant):.4f} at {line(subject, constant)}")
    return tokens


def by_soft_weights(
    args: argparse.Namespace, subject: Subject, source: ImageSet, numbers: list[int], device: torch.device
) -> list[int]:
    """PoWER-BERT's way; prints what was learned before it is scaled to the budget."""
    generator = torch.Generator().manual_seed(args.seed)
    drawn: list[int] = []
    while len(drawn) < args.steps * args.batch_size:
        drawn += [numbers[i] for i in torch.randperm(len(numbers), generator=generator).tolist()]
    chunks = [drawn[i * args.batch_size : (i + 1) * args.batch_size] for i in range(args.steps)]
    with tqdm(total=args.steps * args.batch_size, unit="img", mininterval=0.5) as bar:
        loaded = calibration(batches(source, subject.transform, chunks, 0), device, bar)
        retention = learn_retention(subject.model, loaded, lr=args.lr, penalty=args.penalty, model_lr=args.model_lr)
    print(f"learned         {line(subject, tokens_retained(retention, args.layers))}")
    return fit_budget(retention, subject.model, args.budget, args.layers)


def by_distance(
    args: argparse.Namespace, subject: Subject, source: ImageSet, numbers: list[int], device: torch.device
) -> tpkernels.Schedule:
    """Distances for the budget; prints them, and what the images keep by them."""
    chunks = [numbers[i : i + args.batch_size] for i in range(0, len(numbers), args.batch_size)]
    with tqdm(total=len(numbers), unit="img", mininterval=0.5) as bar:
        loaded = calibration(batches(source, subject.transform, chunks, 0), device, bar)
        images = [images for images, _ in loaded]
    found = tpkernels.solve_schedule(images, subject.model, args.budget, layers=args.layers, adaptive=True)
    assert found.distance is not None
    for block, one in enumerate(found.distance):
        if one is not None:
            print(f"block {block:<10}clusters closer than {one:.4g} merge; {found.tokens[block]} tokens at most")
    return found


def summed(errors: Tensor, tokens: list[int]) -> float:
    """The sum over the blocks of what each loses at its number of tokens."""
    return sum(float(row[count - 1]) for row, count in zip(errors, tokens, strict=True))


def line(subject: Subject, tokens: list[int]) -> str:
    """Tokens after each block and what they cost."""
    macs = tpkernels.count_macs(subject.model, tokens)
    cost = f"{macs.total / 1e9:.3f} GMAC with clustering, {100 * macs.ratio:.1f} % of {macs.base / 1e9:.3f}"
    return f"{' '.join(map(str, tokens))}: {cost}"


def prepare(args: argparse.Namespace) -> tuple[Subject, ImageSet, torch.device]:
    """Everything that can be wrong with the arguments shows here, before the first batch.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    device, source = find_device(args.device), open_images(args.data)
    subject = load_timm(args.model, args.checkpoint) if args.model else load_small(args.checkpoint or CHECKPOINT)
    check_classes(subject, source)
    subject.model.to(device)
    shape = vit_shape(subject.model)
    # Any errors do to see whether there is a schedule at these layers within the budget.
    tpkernels.solve_schedule(torch.zeros(shape.depth, shape.num_patches), shape, args.budget, layers=args.layers)
    if args.output.is_dir():
        raise ValueError(f"--output must be a file to write to, got the directory {args.output}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    return subject, source, device


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_of("search_schedule"):
        subject, source, device = prepare(args)
        numbers = choose(len(source.labels), args)
        print(f"{subject.name}, {subject.checkpoint}; {len(numbers):,} of {len(source.labels):,} images of {args.data}")
        found = SEARCHES[args.way](args, subject, source, numbers, device)
        patches = vit_shape(subject.model).num_patches
        if not isinstance(found, tpkernels.Schedule):
            print(f"schedule        {line(subject, found)}")
            found = tpkernels.Schedule(tuple(found), patches)
        made = facts(args, subject, found, len(numbers))
        if found.distance is not None:
            share = f"{100 * made['macs'] / made['base_macs']:.1f} % of {made['base_macs'] / 1e9:.3f} GMAC"
            print(f"distances       {share} with clustering, in the mean of these images")
        tpkernels.save_schedule(args.output, found, **made)
    print(f"wrote {args.output}")


SEARCHES = {"error": by_error, "soft": by_soft_weights, "distance": by_distance}


def facts(args: argparse.Namespace, subject: Subject, found: tpkernels.Schedule, images: int) -> dict[str, Any]:
    """What the file says of its making; MACs by distance are the mean of the images."""
    macs = tpkernels.count_macs(subject.model, list(found.tokens))
    total = round(macs.base * found.facts["calibrated"]["mean_ratio"]) if "calibrated" in found.facts else macs.total
    soft = ("steps", "lr", "penalty", "model_lr", "seed", "batch_size")
    own = {"soft": soft, "error": ("weights",)}.get(args.way, ())
    return {
        "way": args.way,
        "method": "ward",
        "budget": args.budget,
        "layers": args.layers,
        "macs": total,
        "base_macs": macs.base,
        "model": subject.name,
        "data": args.data.name,
        "images": images,
        **{name: getattr(args, name) for name in own},
        "versions": f"torch {torch.__version__}, tpkernels {tpkernels.__version__}",
    }


if __name__ == "__main__":
    main()
