"""One epoch of training, and the test after it."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from common.distributed import World
from torch import Tensor, nn
from tqdm import tqdm

from .augment import mixup
from .sources import Source, generator_of
from .state import Run


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to the peak, then a cosine to zero at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_of(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices alone."""
    decay = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    rest = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.999), fused=True)


def autocast(args: argparse.Namespace, device: torch.device) -> Any:
    """The context that forwards run in."""
    dtype = getattr(torch, args.amp) if args.amp else torch.float32
    return torch.autocast(device.type, dtype, enabled=args.amp is not None)


def loss_of(logits: Tensor, labels: Tensor, other: Tensor, share: float, smoothing: float) -> Tensor:
    """Cross-entropy against labels [B], mixed with those of the images that were mixed in."""
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if share == 1:
        return loss
    return share * loss + (1 - share) * F.cross_entropy(logits, labels[other], label_smoothing=smoothing)


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))` (Hinton et al., arXiv 1503.02531)."""
    student, teacher = (F.log_softmax(x / temperature, -1) for x in (logits, taught))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def train_epoch(
    run: Run, forward: nn.Module, teacher: nn.Module | None, source: Source, args: argparse.Namespace, world: World
) -> dict[str, Any]:
    """Trains `forward`, which computes what `run.model` does, for an epoch; its row of the log."""
    epoch, per_epoch = run.epoch, source.steps(world)
    steps, warmup = args.epochs * per_epoch, max(1, round(args.warmup * per_epoch))
    mixing = generator_of(args.seed, epoch, 500 + world.rank)
    # Dropout and stochastic depth draw from the global generator.
    torch.manual_seed(generator_of(args.seed, epoch, 250 + world.rank).initial_seed())
    forward.train()
    started, total, seen = time.perf_counter(), torch.zeros((), dtype=torch.float64), 0
    bar = tqdm(
        total=source.count, desc=f"epoch {epoch + 1}/{args.epochs}", unit="img", mininterval=2,
        disable=not world.is_first,
    )  # fmt: skip
    with bar:
        for step, (images, labels) in enumerate(source.epoch(epoch, world), start=epoch * per_epoch):
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, warmup, args.lr)
            images, other, share = mixup(images, args.mixup, mixing)
            images, labels, other = (tensor.to(world.device, non_blocking=True) for tensor in (images, labels, other))
            with autocast(args, world.device):
                logits = forward(images)
                taught = None
                if teacher is not None:
                    with torch.no_grad():
                        taught = teacher(images).float()
            loss = loss_of(logits.float(), labels, other, share, args.label_smoothing)
            if taught is not None:
                loss = (1 - args.distill) * loss + args.distill * distillation(logits.float(), taught, args.temperature)
            update(run, loss, args.clip)
            total += loss.detach().double().cpu() * len(labels)
            seen += len(labels)
            bar.set_postfix(loss=f"{total.item() / seen:.3f}", refresh=False)
            bar.update(len(labels) * world.size)
    seconds = time.perf_counter() - started
    loss_sum, images_seen = world.total(torch.stack([total, torch.tensor(float(seen), dtype=torch.float64)])).tolist()
    return {
        "epoch": epoch + 1,
        "loss": round(loss_sum / images_seen, 4),
        "images": int(images_seen),
        "images_per_second": round(images_seen / seconds, 1),
        "seconds": round(seconds, 1),
    }


def update(run: Run, loss: Tensor, clip: float) -> None:
    """A step of the optimizer, with the gradient's norm at most `clip` (0: any), and of the average."""
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    if clip:
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.ema is not None:
        run.ema.update_parameters(run.model)


@torch.no_grad()
def hits(model: nn.Module, source: Source, args: argparse.Namespace, world: World) -> tuple[int, int]:
    """How many test images the model classifies right, and how many there are, over all processes."""
    model.eval()
    right, count = 0, 0
    for images, labels in source.test(world):
        with autocast(args, world.device):
            answers = model(images.to(world.device)).argmax(1).cpu()
        right += int((answers == labels).sum())
        count += len(labels)
    right, count = world.total(torch.tensor([right, count])).tolist()
    return right, count
