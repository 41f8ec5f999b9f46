"""Sharding over the processes that torchrun starts, and adding up what they counted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among `size`; alone where torchrun did not start it."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def shard(self, batches: list[list[int]]) -> list[list[int]]:
        """Every size-th batch: whole batches, so that each is computed exactly as a single process computes it."""
        return batches[self.rank :: self.size]

    def total(self, counts: Tensor) -> Tensor:
        """The sum of `counts` over all processes."""
        if self.size == 1:
            return counts
        total = counts.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def join(device: torch.device) -> World:
    """Joins the processes of torchrun: gloo on a CPU, NCCL with one GPU per process; alone without WORLD_SIZE."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        return World(0, 1, device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), size, device)
