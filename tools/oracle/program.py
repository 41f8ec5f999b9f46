"""What a call computes, operation by operation, and where in it tokens are between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SOFTMAX = (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)


class NoPlace(Exception):
    """Why there is no place in a block where its tokens could be pooled."""


class Operation(NamedTuple):
    """An operation's place among those that came before: whose results it reads, -1 for the block's tokens.

    result: its shape where it is one tensor of numbers; softmax: whether it is one.
    """

    reads: frozenset[int]
    result: tuple[int, ...] | None
    softmax: bool


class Recorder(TorchDispatchMode):
    """Lists the operations below it. Operations that do not depend on `tokens` read nothing."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._made = {id(tokens): -1}
        # An id is a tensor's as long as the tensor lives.
        self._alive: list[Any] = [tokens]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads = frozenset(self._made[id(x)] for x in tree_leaves((args, kwargs)) if id(x) in self._made)
        out = func(*args, **kwargs)
        self._alive.append(out)
        shape = tuple(out.shape) if isinstance(out, Tensor) and out.is_floating_point() else None
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and reads:
                self._made[id(leaf)] = len(self.operations)
        self.operations.append(Operation(reads, shape, func in SOFTMAX))
        return out


def place_to_pool(operations: list[Operation], shape: tuple[int, ...]) -> int:
    """The operation of a block whose result are the tokens between attention and MLP.

    It is the first after the attention whose result has the tokens' shape [B, N, D], is all that the rest reads of what
    came before, and is read twice: by the MLP, and by the sum around it.

    Raises:
        NoPlace: there is none.
    """
    attention = [i for i, one in enumerate(operations) if one.softmax and one.reads and one.result[-1] == shape[1]]
    if not attention:
        raise NoPlace("no attention over all tokens")
    for here in range(attention[-1] + 1, len(operations)):
        if operations[here].result != shape or not operations[here].reads:
            continue
        later = [one.reads for one in operations[here + 1 :] if one.reads]
        if sum(here in reads for reads in later) > 1 and all(min(reads) >= here for reads in later):
            return here
    raise NoPlace("no place between attention and MLP")


class Pooling(TorchDispatchMode):
    """Runs a block with log sizes in its softmax, and with the result of one operation replaced.

    Args:
        sizes: [B, N] of the tokens that come in; None for ones.
        place: the operation; None for none.
        pool: what the tokens [B, N, D] are replaced by.
    """

    def __init__(self, sizes: Tensor | None, place: int | None, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._sizes, self._place, self._pool = sizes, place, pool
        self._index = -1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._index += 1
        if func in SOFTMAX and self._sizes is not None and args[0].shape[-1] == self._sizes.shape[1]:
            args = (self._with_sizes(args[0]), *args[1:])
        out = func(*args, **(kwargs or {}))
        if self._index == self._place:
            pooled = self._pool(out)
            if any(out is x for x in args):
                # Done in place: whoever holds the tensor reads it.
                out.data = pooled
            else:
                out = pooled
        return out

    def _with_sizes(self, logits: Tensor) -> Tensor:
        """Adds log sizes to logits [B, ..., N]; heads may stand in the first dimension, too."""
        sizes = self._sizes.repeat_interleave(len(logits) // len(self._sizes), 0)
        return logits + sizes.log().to(logits.dtype).view(len(logits), *[1] * (logits.dim() - 2), -1)
