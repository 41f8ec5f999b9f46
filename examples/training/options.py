"""The command line of `deit_train.py`, and what of it a resumed run must share with the one it goes on from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common.arguments import Parser, ratio_or_count
from deit.methods import METHODS

# What may differ between a run and its continuation: where and how fast it runs, not what it computes.
FREE = ("data", "output", "resume", "device", "workers", "test_limit", "eval_every", "init")


def parse_args(description: str | None, argv: list[str] | None) -> argparse.Namespace:
    """Reads the arguments; one line and exit code 2 where they exclude each other or are out of range."""
    parser = Parser("deit_train", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of IDX files, or with train/ and val/ folders")
    parser.add_argument("--output", type=Path, required=True, help="where weights, training state and log go")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch saved in --output")

    model = parser.add_argument_group("model")
    model.add_argument("--model", help="a timm DeiT or ViT; default: this repository's small DeiT")
    model.add_argument("--init", type=Path, help="weights to start from; another --patch is resized")
    model.add_argument("--patch", type=int, help="patch size in pixels of the small DeiT (default: 4, or --init's)")
    model.add_argument("--dim", type=int, help="its width (default: 96, or --init's)")
    model.add_argument("--heads", type=int, help="its heads (default: 3, or --init's)")

    pool = parser.add_argument_group("pooling (default: none)")
    pool.add_argument("--method", help=f"{', '.join(method.name for method in METHODS)}")
    pool.add_argument("--keep", nargs="+", type=ratio_or_count, help="ratio or count, as in deit_eval.py")
    pool.add_argument("--layers", nargs="+", type=int, help="0-based blocks that pool; default: 3 6 9 of 12")
    pool.add_argument("--budget", type=float, help="share of the base's MACs, Ward's clustering counted; not --keep")
    pool.add_argument("--schedule", type=Path, help="a file of search_schedule.py; neither --keep nor --budget")
    pool.add_argument("--strided", type=int, metavar="LAYER", help="a convolution of stride 2 there; no --method")

    train = parser.add_argument_group("training")
    train.add_argument("--epochs", type=int, default=12)
    train.add_argument("--limit", type=int, help="train on the first images only")
    train.add_argument("--batch-size", type=int, default=128, help="of each process")
    train.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    train.add_argument("--warmup", type=float, default=0.5, help="warm-up, in epochs")
    train.add_argument("--weight-decay", type=float, default=0.05)
    train.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient; 0 for any")
    train.add_argument("--label-smoothing", type=float, default=0.1)
    train.add_argument("--mixup", type=float, default=0.0, help="alpha of the Beta distribution; 0 for none")
    train.add_argument("--ema", type=float, default=0.0, help="decay of an average of the weights, kept beside them")
    train.add_argument("--distill", type=float, default=0.0, help="share of the loss from the unpooled first weights")
    train.add_argument("--temperature", type=float, default=3.0, help="of the distillation")
    train.add_argument("--amp", choices=("bfloat16", "float16"), help="autocast to this type")
    train.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    train.add_argument("--compile", action="store_true", help="train through torch.compile")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu", help="cpu or cuda")
    train.add_argument("--workers", type=int, default=0, help="processes that read images of a folder")
    train.add_argument("--test-limit", type=int, help="evenly spaced test images; default: all")
    train.add_argument("--eval-every", type=int, default=1, help="epochs between tests; the last one is always tested")
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: Parser, args: argparse.Namespace) -> None:
    if sum(value is not None for value in (args.keep, args.budget, args.schedule)) > 1:
        parser.error("--keep, --budget and --schedule exclude each other")
    if args.schedule is not None and args.layers is not None:
        parser.error("--schedule names its own layers; give no --layers")
    pooling = [name for name in ("keep", "budget", "schedule", "layers") if getattr(args, name) is not None]
    if args.method is None and pooling:
        parser.error(f"--{pooling[0]} needs --method")
    if args.strided is not None and args.method is not None:
        parser.error("--strided and --method exclude each other")
    if args.model and any(value is not None for value in (args.patch, args.dim, args.heads)):
        parser.error("--patch, --dim and --heads are of the small DeiT; give no --model")
    least = {"epochs": 1, "batch_size": 1, "eval_every": 1, "limit": 1, "test_limit": 1, "workers": 0}
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    for name, high in (("ema", 1), ("distill", 1), ("label_smoothing", 1)):
        if not 0 <= getattr(args, name) <= high:
            parser.error(f"--{name.replace('_', '-')} must lie in [0, {high}], got {getattr(args, name)}")
    for name in ("mixup", "clip", "warmup", "weight_decay"):
        if not getattr(args, name) >= 0:
            parser.error(f"--{name.replace('_', '-')} must be at least 0, got {getattr(args, name)}")
    for name in ("lr", "temperature"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be above 0, got {getattr(args, name)}")


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as plain values, those that a continuation must share."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(args).items())
        if name not in FREE
    }
