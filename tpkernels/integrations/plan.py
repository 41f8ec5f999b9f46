"""The plan of a patched model, and the interface of a family of models that can be patched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..modules import TokenPool
from ..schedule.shapes import ViTShape

# Runs a function of tensors so that its activations are recomputed in the backward pass.
Checkpoint = Callable[..., Any]


class Attended(NamedTuple):
    """What a block's attention half adds to the tokens [B, N, D], the attention that each received [B, N] (None without
    `scores`), and the keys [B, H, N, d]."""

    update: Tensor
    significance: Tensor | None
    keys: Tensor


class Family:
    """Vision transformers of one structure. Instances have no state, so that a plan, which holds one, can be pickled.

    supported: the models of the family, for messages. blocks_checkpoint_themselves: whether a block's own call already
    checkpoints.
    """

    supported = ""
    blocks_checkpoint_themselves = False

    def find(self, model: nn.Module) -> nn.Module | None:
        """The container of the model's blocks, if the model looks like one of this family."""
        raise NotImplementedError

    def read(self, model: nn.Module) -> ViTShape:
        """The model's shape; changes nothing.

        Raises:
            Unsupported: with the reason, where pooling would break the model.
        """
        raise NotImplementedError

    def reads_patches(self, model: nn.Module) -> bool:
        """Whether what follows the blocks reads patch tokens, so that they have to be there in full."""
        raise NotImplementedError

    def attention(self, block: Any, x: Tensor, sizes: Tensor | None, scores: bool) -> Attended:
        """The attention half of a block from its own submodules, without the residual connection.

        Args:
            x: tokens [B, N, D].
            sizes: [B, N] for proportional attention, None for the plain one.
            scores: whether to return the significance.
        """
        raise NotImplementedError

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        """The MLP half of a block from its own submodules, without the residual connection."""
        raise NotImplementedError

    def norm2(self, block: Any) -> nn.Module:
        """The normalisation before the MLP: its input is the tokens that the block would pool."""
        raise NotImplementedError

    def guarded(self, model: nn.Module) -> list[nn.Module]:
        """The modules whose calls go through `check_call`."""
        return []

    def check_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises ValueError for a call of a patched model that would bypass pooling, or that pooling would break."""

    def checkpoint(self, blocks: nn.Module, block: nn.Module) -> Checkpoint | None:
        """The function that recomputes the block's activations; None where gradient checkpointing is off."""
        return None

    def take_over(self, model: nn.Module) -> None:
        """Changes of the model beside those of its container, undone by `give_back`."""

    def give_back(self, model: nn.Module) -> None:
        """Undoes `take_over`."""


class Unsupported(Exception):
    """Why a model cannot be patched; `patch` adds its class and what is supported."""


@dataclass(frozen=True)
class Plan:
    """Patch tokens after each block, and each block's pool (None where it pools nothing).

    position: "attention" or "block", after which a block pools. restore: whether the last block's tokens are copied to
    all places that they stand for. returns_tuples: whether the model's blocks return tuples.
    """

    family: Family
    schedule: tuple[int, ...]
    pools: tuple[TokenPool | None, ...]
    num_prefix_tokens: int
    proportional: bool
    position: str = "attention"
    restore: bool = False
    returns_tuples: bool = False
