"""The plan of a patched model, and the interface of a family of models that can be patched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..modules import TokenPool
from ..schedule.shapes import ViTShape, vit_shape
from .distribution import Distribution
from .packed import Packed

# Runs a function of tensors so that its activations are recomputed in the backward pass.
Checkpoint = Callable[..., Any]


class Attended(NamedTuple):
    """What a block's attention half adds to the tokens [B, N, D], the attention that each received [B, N] (None without
    `scores`), and the keys [B, H, N, d]."""

    update: Tensor
    significance: Tensor | None
    keys: Tensor


class Facts(NamedTuple):
    """What the model says of itself in every call, and may be changed between calls.

    num_prefix_tokens: tokens before the patches. grid_size: its patches at its own image size, rows and columns; None
    where it does not say. most_patches: more never reach the blocks; None where any number may. reads_patches: whether
    what follows the blocks reads patch tokens, so that they have to be there in full.
    """

    num_prefix_tokens: int
    grid_size: tuple[int, int] | None
    most_patches: int | None
    reads_patches: bool


class Family:
    """Vision transformers of one structure. Instances have no state, so that a plan, which holds one, can be pickled.

    supported: the models of the family, for messages.
    """

    supported = ""

    def find(self, module: nn.Module, *, inside: bool = False) -> nn.Module | None:
        """The container of the module's blocks, if the module itself looks like a tower of this family.

        Args:
            inside: the module was found in another one, where its parts have to say more than at the top.
        """
        raise NotImplementedError

    def check(self, tower: nn.Module, model: nn.Module) -> None:
        """Raises Unsupported, with the reason, where pooling would break the model; changes nothing."""
        raise NotImplementedError

    def shape(self, tower: nn.Module, model: nn.Module) -> ViTShape:
        """The tower's shape as it is now, with the heads of the model that it is in."""
        return vit_shape(tower)

    def facts(self, tower: nn.Module) -> Facts:
        """What the model says now; cheap, since every call asks."""
        raise NotImplementedError

    def last_read(self, tower: nn.Module, model: nn.Module) -> int | None:
        """The block whose tokens are read, where that is not the last one: later blocks pool nothing."""
        return None

    def attention(self, block: Any, x: Tensor, sizes: Tensor | Packed | None, scores: bool) -> Attended:
        """The attention half of a block from its own submodules, without the residual connection.

        Args:
            x: tokens [B, N, D], or packed [1, T, D].
            sizes: [B, N] for proportional attention, None for the plain one; or how the tokens are packed.
            scores: whether to return the significance.
        """
        raise NotImplementedError

    def uncalled(self, block: Any) -> tuple[nn.Module, ...]:
        """The modules of a block whose parts `attention` and `mlp` call in place of themselves."""
        raise NotImplementedError

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        """The MLP half of a block from its own submodules, without the residual connection."""
        raise NotImplementedError

    def norm2(self, block: Any) -> nn.Module:
        """The normalisation before the MLP: its input is the tokens that the block would pool."""
        raise NotImplementedError

    def checkpoint(self, blocks: Any, block: nn.Module) -> Checkpoint | None:
        """The function that recomputes the block's activations; None where the library's checkpointing is off."""
        return None

    def guarded(self, tower: nn.Module, model: nn.Module) -> list[nn.Module]:
        """The modules whose calls go through `check_call`."""
        return [tower]

    def check_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises ValueError for a call of a patched model that would bypass pooling, or that pooling would break."""

    def take_over(self, tower: nn.Module) -> None:
        """Changes of the tower beside those of its container and blocks, undone by `give_back`."""

    def give_back(self, tower: nn.Module) -> None:
        """Undoes `take_over`."""


class Unsupported(Exception):
    """Why a model cannot be patched; `patch` adds its class and what is supported."""


@dataclass(frozen=True)
class Plan:
    """What `patch` was told, for each of the blocks.

    keep: a ratio, a count or None a block, resolved by the tokens that come; pools: as keep, None where a block never
    pools. num_prefix_tokens: those of the pools; told_prefix: whether the caller gave them, else the model is asked in
    every call. position: "attention" or "block", after which a block pools. restore: whether tokens are copied to all
    places that they stand for after the block that is read (None: where the model reads patches). last_read: that
    block. returns_tuples: whether the model's blocks return tuples. distance: for each block the distance below which
    clusters merge, None where it does not pool; None where all images keep the same number of tokens. calibrated: what
    images kept by these distances, where that is known.
    """

    family: Family
    keep: tuple[float | int | None, ...]
    pools: tuple[TokenPool | None, ...]
    num_prefix_tokens: int
    proportional: bool
    told_prefix: bool = False
    position: str = "attention"
    restore: bool | None = False
    last_read: int | None = None
    returns_tuples: bool = False
    distance: tuple[float | None, ...] | None = None
    calibrated: Distribution | None = None

    def restores(self, facts: Facts) -> bool:
        """Whether the block that is read restores its tokens."""
        return facts.reads_patches if self.restore is None else self.restore

    def with_prefix(self, count: int) -> Plan:
        """The same for another number of prefix tokens."""
        pools = tuple(None if pool is None else copy.copy(pool) for pool in self.pools)
        for pool in pools:
            if pool is not None:
                pool.num_prefix_tokens = count
        return replace(self, pools=pools, num_prefix_tokens=count)

    def cut(self, index: slice) -> Plan:
        """The plan of a slice of the blocks: models are shortened by slicing them."""
        distance = None if self.distance is None else self.distance[index]
        return replace(self, keep=self.keep[index], pools=self.pools[index], distance=distance, calibrated=None)
