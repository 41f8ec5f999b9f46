"""How much faster a pooled model trains: steps of it and of the unpooled one by turns, in one process.

    python examples/training_speed.py --method ward wk-medoids topk --budget 0.58

A step is what `deit_train.py` does: forward, loss, backward, clipping, AdamW; the shipped model on shipped images.
Beside the speed-up stands the inverse of the MACs' share: what it would be if time were proportional to MACs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common.arguments import CHECKPOINT, DATA
from common.data import load_idx
from common.files import FileError
from deit.methods import find_methods
from deit.model import DeiT
from deit.rows import build_rows, tokens_per_block
from deit.subjects import load_small
from torch import Tensor
from training.sources import to_input


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, default=DATA, help="IDX files")
    parser.add_argument("--method", nargs="+", default=["ward", "wk-medoids", "topk"], metavar="NAME")
    parser.add_argument("--budget", type=float, default=0.58)
    parser.add_argument("--layers", nargs="+", type=int)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    return parser.parse_args(argv)


def step(model: DeiT, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Seconds of one training step."""
    started = time.perf_counter()
    loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if not bool(loss.isfinite()):
        raise ValueError(f"the loss must be finite, got {loss.item()}")
    return time.perf_counter() - started


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_small(args.checkpoint).model
    assert isinstance(model, DeiT)
    pixels, labels = load_idx(args.data, "test")
    images, labels = to_input(pixels[: args.batch_size], model.cfg), labels[: args.batch_size]
    tokens = tokens_per_block(model, None, args.budget, args.layers)
    rows = build_rows(model, find_methods(args.method), tokens, False)
    # Twins share the weights: a learning rate so small that these hardly change.
    optimizers = [torch.optim.AdamW(row.model.parameters(), lr=1e-9, fused=True) for row in rows]
    taken: list[list[float]] = [[] for _ in rows]
    for turn in range(args.rounds + 1):
        for place in range(len(rows)):
            index = (place + turn) % len(rows)
            taken[index].append(step(rows[index].model.train(), optimizers[index], images, labels))
    print(f"batch {args.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}, tokens {tokens}")
    for row, seconds in zip(rows, taken, strict=True):
        # The first round warms up.
        ratios = [base / own for base, own in zip(taken[0][1:], seconds[1:], strict=True)]
        speed = args.batch_size / statistics.median(seconds[1:])
        expected = row.macs.base / row.macs.total
        print(
            f"{row.label:32} {speed:7.1f} images/s  {statistics.median(ratios):.2f}x the base model "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {expected:.2f}x by MACs"
        )


if __name__ == "__main__":
    try:
        main()
    except (FileError, ValueError, TypeError) as error:
        sys.exit(f"training_speed: {error}")
