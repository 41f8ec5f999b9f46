"""Counts hits, agreement and time for every row, batch by batch: all rows see a batch before the next one is read."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from common.distributed import World
from common.images import Batch
from torch import Tensor
from tqdm import tqdm

from .rows import Row


@dataclass(frozen=True)
class Seen:
    """How many images were classified, and which files could not be read, over all processes."""

    images: int
    corrupt: list[str]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def evaluate(rows: list[Row], batches: Iterable[Batch], world: World, dtype: torch.dtype, bar: tqdm) -> Seen:
    """Fills the rows' counts and speeds, summed over the processes; agreement is with the first row's answers.

    Only the model's own time is taken. The rows take turns at going first, so that a machine that warms up or slows
    down does so for all of them.
    """
    images, corrupt = 0, []
    for turn, batch in enumerate(batches):
        corrupt += batch.corrupt
        bar.update(len(batch.corrupt) * len(rows))
        if not len(batch.labels):
            continue
        images += len(batch.labels)
        pixels = batch.images.to(world.device, dtype)
        answers: dict[str, Tensor] = {}
        for row in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
            bar.set_postfix_str(row.label, refresh=False)
            synchronize(world.device)
            started = time.perf_counter()
            with row.watched() as trace:
                logits = row.model(pixels)
                synchronize(world.device)
            row.timed.append((len(pixels), time.perf_counter() - started))
            row.note(trace, len(pixels))
            answers[row.name] = logits.argmax(1).cpu()
            bar.update(len(pixels))
        for row in rows:
            row.correct += int((answers[row.name] == batch.labels).sum())
            row.agree += int((answers[row.name] == answers[rows[0].name]).sum())

    counted = [images, *(row.correct for row in rows), *(row.agree for row in rows)]
    counts = world.total(torch.tensor([*counted, *(macs for row in rows for macs in row.spent)])).tolist()
    spent = counts[len(counted) :]
    speeds = world.gather([row.median_speed() for row in rows])
    for i, row in enumerate(rows):
        row.correct, row.agree = counts[1 + i], counts[1 + len(rows) + i]
        row.spend(spent[2 * i : 2 * i + 2], counts[0])
        row.images_per_second = sum(speed[i] for speed in speeds)
    return Seen(counts[0], sorted(path for paths in world.gather(corrupt) for path in paths))
