"""Trains a small DeiT on an IDX image set such as Fashion-MNIST.

The checkpoint that the repository carries was made by the commands in `examples/weights/README.md`.

    python examples/deit_train.py --data DIR --patch 4 --epochs 12 --output runs/patch4
    python examples/deit_train.py --data DIR --patch 2 --epochs 2 --output runs/patch2 \\
        --init runs/patch4/model.safetensors
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from deit.checkpoint import CheckpointError, read_weights, save_weights, write_atomically
from deit.data import DataError, load_idx
from deit.model import DeiT, DeiTConfig, resize_patches
from torch import Tensor
from tqdm import tqdm


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the four IDX files")
    parser.add_argument("--output", type=Path, required=True, help="where weights, training state and log go")
    parser.add_argument("--patch", type=int, default=4, help="patch size in pixels")
    parser.add_argument("--dim", type=int, default=96, help="width of the model")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=float, default=0.5, help="warm-up, in epochs")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--init", type=Path, help="weights to start from; another patch size is resized")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch saved in --output")
    parser.add_argument("--limit", type=int, help="use only the first images of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    return parser.parse_args(argv)


def augment(images: Tensor, generator: torch.Generator, pad: int = 2) -> Tensor:
    """Shifts each image [B, H, W] by up to `pad` pixels and flips half of them."""
    b, h, w = images.shape
    rows = torch.randint(0, 2 * pad + 1, (b, 1), generator=generator) + torch.arange(h)
    cols = torch.randint(0, 2 * pad + 1, (b, 1), generator=generator) + torch.arange(w)
    flip = torch.rand(b, 1, generator=generator) < 0.5
    cols = torch.where(flip, cols.flip(1), cols)
    padded = F.pad(images, (pad, pad, pad, pad))
    return padded[torch.arange(b)[:, None, None], rows[:, :, None], cols[:, None, :]]


def to_input(images: Tensor, cfg: DeiTConfig, device: torch.device) -> Tensor:
    """uint8 [B, H, W] to normalised float [B, 1, H, W]."""
    return ((images.to(device).float() / 255 - cfg.mean) / cfg.std).unsqueeze(1)


@torch.no_grad()
def accuracy(model: DeiT, images: Tensor, labels: Tensor, device: torch.device) -> float:
    model.eval()
    hits = 0
    for batch, target in zip(images.split(500), labels.split(500), strict=True):
        hits += (model(to_input(batch, model.cfg, device)).argmax(1).cpu() == target).sum().item()
    return hits / len(labels)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def build_model(args: argparse.Namespace) -> DeiT:
    torch.manual_seed(args.seed)
    model = DeiT(DeiTConfig(patch_size=args.patch, embed_dim=args.dim, num_heads=args.heads))
    if args.init:
        config, state, _ = read_weights(args.init)
        if config.patch_size != args.patch:
            state = resize_patches(state, config, model.cfg)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{args.init} does not fit --dim {args.dim} --heads {args.heads}: {error}") from None
    return model


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = torch.device(args.device)
    train_images, train_labels = (t[: args.limit] for t in load_idx(args.data, "train"))
    test_images, test_labels = (t[: args.limit] for t in load_idx(args.data, "test"))
    model = build_model(args).to(device)
    forward = torch.compile(model) if args.compile else model
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.999), fused=True,
    )  # fmt: skip
    per_epoch = math.ceil(len(train_images) / args.batch_size)
    steps, warmup = args.epochs * per_epoch, max(1, round(args.warmup * per_epoch))

    state_file, log_file = args.output / "state.pt", args.output / "log.jsonl"
    first = 0
    if args.resume:
        if not state_file.is_file():
            raise CheckpointError(f"nothing to resume: {state_file} does not exist")
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    args.output.mkdir(parents=True, exist_ok=True)

    for epoch in range(first, args.epochs):
        # The epoch's own generator: a resumed run draws what the uninterrupted one would have drawn.
        generator = torch.Generator().manual_seed(args.seed * 100_003 + epoch)
        order = torch.randperm(len(train_images), generator=generator)
        model.train()
        started, total = time.perf_counter(), 0.0
        bar = tqdm(order.split(args.batch_size), desc=f"epoch {epoch + 1}/{args.epochs}", unit="batch", mininterval=10)
        for step, index in enumerate(bar, start=epoch * per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, warmup, args.lr)
            batch = to_input(augment(train_images[index], generator), model.cfg, device)
            target = train_labels[index].to(device)
            loss = F.cross_entropy(forward(batch), target, label_smoothing=args.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.detach() * len(index)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        seconds = time.perf_counter() - started
        row = {
            "epoch": epoch + 1,
            "loss": round(float(total) / len(train_images), 4),
            "test_top1": round(100 * accuracy(model, test_images, test_labels, device), 2),
            "images_per_second": round(len(train_images) / seconds, 1),
            "seconds": round(seconds, 1),
        }
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        write_atomically(state_file, lambda path, saved=saved: torch.save(saved, path))
        with log_file.open("a") as log:
            log.write(json.dumps(row) + "\n")
        facts = {name: value for name, value in vars(args).items() if not isinstance(value, Path) and value is not None}
        save_weights(args.output / "model.safetensors", model, {**facts, **row, "torch": torch.__version__})
        tqdm.write(json.dumps(row))


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, DataError) as error:
        sys.exit(f"deit_train: {error}")
