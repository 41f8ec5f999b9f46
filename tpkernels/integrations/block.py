"""A block of a patched model: of a class that takes a turn in a run of all blocks, and refuses every other call.

Turns go through the block's own `__call__`, so that hooks, compilation, checkpointing, sharding and whatever else lives
there work as before.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import unpool
from ..modules import TokenPool, with_prefix
from ..names import PRUNERS
from .forwards import check_uncalled
from .packed import lay, may_pack, trimmed
from .plan import Checkpoint, Family, Plan
from .source_map import compose


class Turn:
    """One block's part of one run: what it is given beside its tokens, and what it leaves there.

    Args:
        plan, pool: the pool is None where the block does not pool this time.
        sizes: original tokens that each token stands for [B, N], 0 where an image has fewer than others; None before
            the first pooling.
        source: the token that holds each token of the run's input [B, N0]; None where nobody asks, or nothing pooled.
        follows: whether to follow the sources.
        restores: whether to copy the tokens to all places that they stand for at the block's end.
        grid_size: rows and columns of the tokens, for the method "grid".
        checkpoint: recomputes the activations of a function of tensors in the backward pass; None where they are kept.

    Afterwards `taken` says that the block's own forward was run, `sizes` and `source` are those of its output.
    """

    def __init__(
        self, plan: Plan, pool: TokenPool | None, sizes: Tensor | None, source: Tensor | None, *, follows: bool,
        restores: bool, grid_size: tuple[int, int] | None = None, checkpoint: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.pool, self.follows, self.restores = plan, pool, follows, restores
        self.grid_size, self.checkpoint = grid_size, checkpoint
        # Kept apart from what it leaves: a checkpoint around the block takes its turn twice.
        self.given = sizes, source
        self.sizes, self.source = sizes, source
        self.taken = False

    def take(self, block: Any, forward: Callable[..., Any], x: Tensor, args: Any, kwargs: Any) -> Any:
        """The block's output, in a tuple where the model's blocks return tuples."""
        run = partial(self._run, block, partial(forward, block), args, kwargs)
        # Within hooks, so that these are called once, and as a function without side effects.
        called = run if self.checkpoint is None else partial(self.checkpoint, run)
        x, sizes, self.source = called(x, *self.given)
        # A reentrant checkpoint marks all that it returns as requiring a gradient.
        self.sizes = None if sizes is None else sizes.detach()
        self.taken = True
        return (x,) if self.plan.returns_tuples else x

    def _run(
        self, block: Any, forward: Callable[..., Any], args: Any, kwargs: Any, x: Tensor, sizes: Tensor | None,
        source: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """By the block's own forward, or from its submodules where it pools or counts sizes."""
        plan = self.plan
        # Layers may lie on several devices.
        sizes = None if sizes is None else sizes.to(x.device)
        source = None if source is None else source.to(x.device)
        ragged = plan.distance is not None
        if self.pool is None and (sizes is None or not (plan.proportional or ragged)):
            x = tokens_of(forward(x, *args, **kwargs))
        else:
            check_uncalled(plan.family.uncalled(block), block.tpkernels_patched)
            x, sizes, label = run_block(
                plan.family, block, x, sizes, pool=self.pool, proportional=plan.proportional, position=plan.position,
                grid_size=self.grid_size, ragged=ragged,
            )  # fmt: skip
            if label is not None and self.follows:
                label = with_prefix(label, plan.num_prefix_tokens)
                source = label if source is None else compose(source, label)
        if self.restores and source is not None:
            x = unpool(x, source)
        return x, sizes, source


def run_block(
    family: Family, block: Any, x: Tensor, sizes: Tensor | None, *, pool: TokenPool | None, proportional: bool,
    position: str, grid_size: tuple[int, int] | None = None, ragged: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """A pre-norm block from its own submodules, with pooling between attention and MLP or at its end.

    Args:
        x: tokens [B, N, D], prefix first.
        sizes: original tokens that each one stands for [B, N]; None before the first pooling.
        grid_size: rows and columns of the tokens, for the method "grid".
        ragged: samples may have different numbers of tokens: those of size 0 are not there.

    Returns:
        tokens [B, M, D]; their sizes [B, M], None where pooling only selects; and the cluster of every patch token
        [B, N - P], -1 where it was dropped, None where nothing was pooled.
    """
    scores = pool is not None and pool.needs_significance
    lay_out = partial(lay, proportional=proportional, ragged=ragged, packs=ragged and may_pack(block))
    layout = lay_out(sizes)
    x = layout.pack(x)
    update, significance, keys = family.attention(block, x, layout.keys, scores)
    x = x + update
    if pool is None:
        return layout.pad(x + family.mlp(block, x)), sizes, None
    # ToMe matches tokens by their keys, averaged over the heads.
    metric = keys.mean(1) if pool.method == "bipartite" else None
    if sizes is None and pool.method not in PRUNERS:
        sizes = x.new_ones(x.shape[:2], dtype=torch.float32)
    if position == "block":
        x = x + family.mlp(block, x)
    given: dict[str, Any] = {"sizes": sizes, "mask": layout.mask, "metric": metric, "grid_size": grid_size}
    found = pool.pool(layout.pad(x), significance, **given)
    x, sizes = trimmed(found, pool.num_prefix_tokens) if ragged else (found.tokens, found.sizes)
    if position == "attention":
        layout = lay_out(sizes)
        x = layout.pack(x)
        x = layout.pad(x + family.mlp(block, x))
    return x, sizes, found.label


def is_patched(module: nn.Module) -> bool:
    """Whether a module itself is a block that takes turns; not by `getattr`, which asks a wrapper's block."""
    return "tpkernels_patched" in module.__dict__


def tokens_of(out: Any) -> Tensor:
    """A block's tokens: older releases of transformers return them in tuples."""
    return out[0] if isinstance(out, tuple) else out


def pooled_class(original: type[nn.Module]) -> type[nn.Module]:
    """The class of a patched block: a subclass of its own, of the same name, one for each class."""
    made = _CLASSES.get(original)
    return _CLASSES.setdefault(original, _make_class(original)) if made is None else made


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _make_class(original: type[nn.Module]) -> type[nn.Module]:

    tokens = next(iter(list(inspect.signature(original.forward).parameters)[1:]), "")

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, tpkernels_turn: Turn | None = None, **kwargs: Any) -> Any:
        if tpkernels_turn is not None:
            if not args:
                # A wrapper passed the tokens by their name.
                args = (kwargs.pop(tokens),)
            return tpkernels_turn.take(self, original.forward, args[0], args[1:], kwargs)
        # A bound forward can outlive `unpatch` in a wrapper.
        if is_patched(self):
            raise RuntimeError(
                f"{original.__name__}: a block of a model that is patched with tpkernels.patch must be run by the "
                "model's own call of all its blocks, got a call of its own, which would pool nothing: call the model "
                "(not its forward), make a forward that loops over the blocks go through their container, or "
                "tpkernels.unpatch the model"
            )
        return original.forward(self, *args, **kwargs)

    def reduce_ex(self: Any, protocol: Any) -> Any:
        # Classes are pickled by name, and this one has its original's.
        reduced = super(made, self).__reduce_ex__(protocol)
        if type(self) is made and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_remake, (original,), *reduced[2:])
        return reduced

    members: dict[str, Any] = {
        "__module__": original.__module__, "__qualname__": original.__qualname__, "__reduce_ex__": reduce_ex,
        "tpkernels_original": original,
    }  # fmt: skip
    if _calls_to_checkpoint(original):
        members["__call__"] = nn.Module.__call__
    made: Any = type(original.__name__, (original,), members)
    # Not as a member: layers of transformers wrap the forward of a class that is made, to checkpoint it.
    made.forward = forward
    return made


def _calls_to_checkpoint(original: type[nn.Module]) -> bool:
    """Whether a class' `__call__` is the one by which transformers 4.53 to 5 checkpoint: a turn does that itself."""
    owner = next(one for one in original.__mro__ if "__call__" in one.__dict__)
    return owner.__name__ == "GradientCheckpointingLayer"


def _remake(original: type[nn.Module]) -> Any:
    return object.__new__(pooled_class(original))


def original_class(block: Any) -> type[nn.Module]:
    """The class that a block had before `patch`; its own where it is not patched."""
    return getattr(type(block), "tpkernels_original", type(block))
