"""Trains or fine-tunes a DeiT, pooled or not: on Fashion-MNIST in miniature, or a timm model on ImageNet's folders.

The checkpoint that the repository carries was made by the commands in `examples/weights/README.md`.

    python examples/deit_train.py --data DIR --patch 4 --epochs 12 --output runs/patch4
    python examples/deit_train.py --data DIR --init runs/patch4/model.safetensors --method ward --budget 0.58 \\
        --epochs 1 --lr 1e-4 --output runs/pooled
    torchrun --nproc-per-node 8 examples/deit_train.py --data imagenet --model deit_small_patch16_224 --device cuda \\
        --method wk-medoids --budget 0.58 --amp bfloat16 --epochs 30 --lr 5e-5 --workers 8 --output runs/imagenet

A run that was killed goes on with --resume, on as many threads to the same weights that it would have reached.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from common.arguments import find_device, one_line_of
from common.distributed import World, join
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from training import state
from training.loop import hits, optimizer_of, train_epoch
from training.models import build_model, open_source, pool, teacher_of
from training.options import facts, parse_args
from training.sources import Source
from training.state import Run


def prepare(args: Any) -> tuple[Run, nn.Module | None, Source, World]:
    """Everything that can be wrong with the arguments shows here, before the first step.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    device = find_device(args.device)
    model, transform = build_model(args)
    source = open_source(args, model, transform)
    world = join(device)
    model.to(world.device)
    teacher = teacher_of(model) if args.distill else None
    how, tokens = pool(args, model)
    model.to(world.device)
    if args.checkpointing:
        model.set_grad_checkpointing(True)
    average = None
    if args.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema), use_buffers=True)
    known = {**facts(args), "processes": world.size, "tokens": tokens, "finetuned": how if args.init else ""}
    known = {name: value for name, value in known.items() if value not in (None, "", False)}
    scaler = torch.amp.GradScaler(world.device.type, enabled=args.amp == "float16")
    run = Run(model, optimizer_of(model, args), scaler, average, known, [])
    if args.resume:
        state.load(args.output, run, world.device)
        if world.is_first:
            # A kill may have come between the state and these.
            state.write_reports(args.output, run)
    args.output.mkdir(parents=True, exist_ok=True)
    return run, teacher, source, world


def train(args: Any, run: Run, teacher: nn.Module | None, source: Source, world: World) -> None:
    """The epochs that are left, each tested and saved by the first process."""
    forward = run.model
    if world.size > 1:
        forward = DistributedDataParallel(forward)
    if args.compile:
        forward = torch.compile(forward)
    while run.epoch < args.epochs:
        row = train_epoch(run, forward, teacher, source, args, world)
        if row["epoch"] % args.eval_every == 0 or row["epoch"] == args.epochs:
            for name, model in (("test", run.model), ("ema", run.ema)):
                if model is not None:
                    right, count = hits(model, source, args, world)
                    row |= {f"{name}_correct": right, "test_images": count}
                    row[f"{name}_top1"] = round(100 * right / max(count, 1), 2)
        run.rows.append(row)
        if world.is_first:
            state.save(args.output, run)
            tqdm.write(json.dumps(row))
    world.close()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(__doc__, argv)
    with one_line_of("deit_train"):
        prepared = prepare(args)
    try:
        train(args, *prepared)
    except OSError as error:
        sys.exit(f"deit_train: {error}; the last whole epoch is in {args.output}, --resume goes on from it")


if __name__ == "__main__":
    main()
