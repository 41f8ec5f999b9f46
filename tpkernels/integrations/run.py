"""One run of all blocks of a patched container, by the container or by a loop of the model's own forward."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import TokenPool
from ..ops.context import may_look
from ..schedule.keep import resolve_keep
from ..schedule.shapes import block_in
from .block import Turn, is_patched, tokens_of
from .plan import Facts, Plan
from .source_map import Step

# What transformers' attention functions read of the keyword arguments that they are passed.
_READ = {
    "attention_mask", "head_mask", "position_ids", "position_embeddings", "cache_position", "past_key_values",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "cumulative_seqlens_q", "cumulative_seqlens_k",
    "block_mask", "s_aux", "sliding_window", "softcap", "is_causal",
}  # fmt: skip


class Run:
    """One run of all blocks of a patched container, one after another: sizes and sources pass from each to the next.

    Raises:
        RuntimeError: while torch.jit traces, or blocks that are not those that `patch` saw.
    """

    def __init__(self, container: Any) -> None:
        refuse_jit()
        self.container = container
        self.plan, self.facts = plan_now(container)
        self.children = _children(container, self.plan)
        self.restores = self.plan.restores(self.facts)
        self.last = len(self.children) - 1 if self.plan.last_read is None else self.plan.last_read
        self.steps: list[Step] = []
        # How many tokens each block is given, their sizes and sources, the next one's last. A block that is recomputed
        # is given the same again.
        self.given: list[tuple[int | None, Tensor | None, Tensor | None]] = [(None, None, None)]
        # By a distance, the patch tokens that an image keeps at most after each block.
        self.most: list[int] | None = None

    @property
    def done(self) -> bool:
        """Whether every block has had its turn."""
        return len(self.given) > len(self.children)

    def block(self, layer: int, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The block's turn on tokens x [B, N, D], prefix first.

        Args:
            args, kwargs: what the model gives the block beside its tokens.

        Returns:
            tokens [B, M, D], or the run's first N after the block that restores them; in a tuple where the blocks
            return tuples.

        Raises:
            ValueError: a mask, positions or other tensors that attention reads, which pooling would not follow.
            RuntimeError: a block out of order or on other tokens than the last one left, tokens that the model does not
                tell about, or a block that is called but not run.
        """
        plan, container = self.plan, self.container
        if isinstance(x, torch.fx.Proxy):
            raise RuntimeError("torch.fx must not trace a model that is patched with tpkernels.patch: use torch.export")
        again = layer + 1 < len(self.given)
        if layer >= len(self.given) or (self.given[layer][0] is not None and self.given[layer][0] != x.shape[1]):
            raise RuntimeError(
                f"{type(container).__name__}: the blocks of a model that is patched with tpkernels.patch must be run "
                f"in their order, each on what the last one left, got block {layer} on {x.shape[1]} tokens after "
                f"{len(self.given) - 1} blocks: a forward that skips blocks cannot pool"
            )
        args, kwargs = _without_masks(container, args, kwargs)
        if layer == 0 and self.facts.most_patches is not None:
            check_count(plan.num_prefix_tokens, self.facts.most_patches, x)
        _, sizes, source = self.given[layer]
        child, pool = self.children[layer], plan.pools[layer]
        patches = x.shape[1] - plan.num_prefix_tokens
        if layer == 0 and patches > 0 and plan.distance is not None and may_look(x):
            self.most = resolve_keep(plan.keep, len(self.children), patches)
        if pool is not None and self.most is not None:
            pool = _keeping(pool, self.most[layer])
        pools = pool is not None and pool.pools(x.shape[0], patches)
        turn = Turn(
            plan,
            pool if pools else None,
            sizes,
            source,
            follows=self.restores or container.trace is not None,
            restores=self.restores and layer == self.last,
            grid_size=None if pool is None else _grid_now(pool, self.facts, patches),
            checkpoint=plan.family.checkpoint(container, block_in(child)),
        )
        x = _call(child, turn, x, args, kwargs)
        if not again:
            self._leave(layer, turn, x, pools)
        return (x,) if plan.returns_tuples else x

    def _leave(self, layer: int, turn: Turn, x: Tensor, pools: bool) -> None:
        if pools and self.container.trace is not None:
            assert turn.source is not None
            self.steps.append((layer, turn.source, turn.sizes))
        restored = turn.restores
        self.given.append((x.shape[1], None if restored else turn.sizes, None if restored else turn.source))
        if self.done and self.container.trace is not None:
            # At the end, since checkpointing stops a forward that it recomputes before its end.
            self.container.trace.hold(self.steps)


def _keeping(pool: TokenPool, most: int) -> TokenPool:
    """A pool by distance that keeps a count at most in place of a ratio.

    A batch is trimmed to the tokens that its images have; what an image keeps must not depend on that.
    """
    if isinstance(pool.keep, int) or pool.keep == 1:
        return pool
    pool = copy.copy(pool)
    pool.keep = most
    return pool


def _children(container: nn.Module, plan: Plan) -> list[nn.Module]:
    """The blocks, or what wraps them, as `patch` saw them."""
    # Not `children()`, which leaves out a block that stands at two places.
    children = [child for child in container._modules.values() if child is not None]
    strangers = [child for child in children if not _takes_turns(child)]
    if strangers or len(children) != len(plan.pools):
        got = f"one of class {type(strangers[0]).__name__}" if strangers else f"{len(children)} of {len(plan.pools)}"
        raise RuntimeError(
            f"{type(container).__name__}: the blocks of a patched model must be those that tpkernels.patch saw, got "
            f"{got}: patch again after exchanging, adding or removing blocks"
        )
    return children


def _takes_turns(child: nn.Module) -> bool:
    """Whether a container's child is a patched block, or has one in it."""
    if is_patched(child):
        return hasattr(type(child), "tpkernels_original")
    return any(map(is_patched, child.modules()))


def _call(child: nn.Module, turn: Turn, x: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The tokens of a block that takes its turn when it is called."""
    if not torch.compiler.is_compiling():
        if "forward" in child.__dict__:
            _check_passes_on(child, child.__dict__["forward"])
        elif not is_patched(child):
            _check_passes_on(child, type(child).forward)
    x = tokens_of(child(x, *args, tpkernels_turn=turn, **kwargs))
    if not turn.taken:
        raise RuntimeError(
            f"{type(child).__name__}: a block of a patched model must run its class' own forward when it is called, "
            "got a call that passes it by; tpkernels.unpatch the model, or let what replaced the forward call it"
        )
    return x


def refuse_jit() -> None:
    """Raises RuntimeError while torch.jit traces: it would make constants of every number of tokens."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError(
            "torch.jit.trace must not be called on a model that is patched with tpkernels.patch, nor by exporters, as "
            "torch.onnx.export(dynamo=False) does: use torch.export.export or torch.onnx.export(dynamo=True)"
        )


def plan_now(container: Any) -> tuple[Plan, Facts]:
    """The plan, with the prefix tokens that the model has now, and what else it says."""
    plan: Plan = container.plan
    facts = plan.family.facts(container.tower.model)
    if not plan.told_prefix and facts.num_prefix_tokens != plan.num_prefix_tokens:
        plan = container.plan = plan.with_prefix(facts.num_prefix_tokens)
    return plan, facts


def check_count(prefix: int, most: int, x: Tensor) -> None:
    """Raises RuntimeError where there are tokens [B, N, D] beside `most` patches that the model does not tell of."""
    if x.shape[1] > prefix + most:
        raise RuntimeError(
            f"num_prefix_tokens: a patched model's blocks must get at most {most} patches and the "
            f"{prefix} tokens before them that the model tells of, got {x.shape[1]} tokens: where it "
            "adds tokens of its own, such as prompts, give their number in all to tpkernels.patch"
        )


def _grid_now(pool: TokenPool, facts: Facts, patches: int) -> tuple[int, int] | None:
    """The patch grid, for the block that pools it first: later ones have tokens in raster order, but no grid."""
    grid = facts.grid_size
    # Other methods leave a number of patches that a compiler keeps open as it is; None is the square, at any size.
    if pool.method != "grid" or grid is None or grid[0] * grid[1] != patches:
        return None
    return grid


def _without_masks(
    container: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without masks that drop nothing.

    Raises:
        ValueError: tensors that a block's attention would read; what only passes through may pass.
    """
    given = list(args)
    for place, name, value in list(_tensors(args, kwargs)):
        block = block_in(next(container.children()))
        if place is not None:
            taken = list(inspect.signature(type(block).forward).parameters)[1:]
            name = taken[place + 1] if place + 1 < len(taken) else f"argument {place + 1} of a block"
        elif name not in _READ and name not in _taken_by(frozenset(type(part) for part in block.modules())):
            continue
        if name == "attention_mask" and torch.compiler.is_compiling():
            # Made by transformers for its exporters; one that was given has been refused in the model's call.
            if place is None:
                kwargs = {**kwargs, name: None}
            else:
                given[place] = None
            continue
        kind = type(value).__name__
        raise ValueError(
            f"{name} must be None in a patched model: masks, positions and the like do not follow pooled tokens, "
            f"got {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        )
    if kwargs.get("is_causal"):
        raise ValueError(f"is_causal must be False in a patched model, got {kwargs['is_causal']!r}")
    return tuple(given), kwargs


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[int | None, str, Any]]:
    """The tensors among a call's arguments: their places, None for those with names; their names; themselves."""
    named = [(None, name, value) for name, value in kwargs.items()]
    for place, name, value in (*((place, "", value) for place, value in enumerate(args)), *named):
        if isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(torch.is_tensor, value))):
            yield place, name, value


@cache
def _taken_by(kinds: frozenset[Any]) -> set[str]:
    """The arguments that the forwards of classes name."""
    return {name for kind in kinds for name in inspect.signature(kind.forward).parameters}


def _check_passes_on(child: nn.Module, forward: Any) -> None:
    """Raises RuntimeError where the forward of a wrapper, or of an instance, does not take what a turn needs."""
    kinds = inspect.signature(forward, follow_wrapped=False).parameters.values()
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in kinds):
        raise RuntimeError(
            f"{type(child).__name__}: a forward around a block of a patched model must take keyword arguments "
            "(**kwargs) and pass them on to the block's own, got one that does not"
        )
