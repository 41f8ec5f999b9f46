"""The blocks of a patched model: containers that run them with pooling, from their own submodules.

Tokens, sizes and sources pass between blocks as arguments and results: a model keeps no state of a forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import unpool
from ..modules import TokenPool, with_prefix
from ..names import PRUNERS
from .plan import Family, Plan
from .source_map import Step, Trace, compose


class PooledSequential(nn.Sequential):
    """Blocks that are called as one: those of timm and torchvision.

    A block before the first pooling, or one that neither pools nor needs sizes, is called as it is. The others are run
    from their submodules: hooks on those and on the block fire, hooks on its attention do not. `plan` says what is
    pooled; `trace` is what `tpkernels.trace` fills; `checkpointing` recomputes activations block by block.
    """

    plan: Plan
    trace: Trace | None
    checkpointing: bool

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self, x)

    def __getitem__(self, index: Any) -> Any:
        return _cut(self, super().__getitem__(index), index)


class PooledList(nn.ModuleList):
    """Blocks that the model calls one after another: those of transformers. Iterating gives all of them as one call.

    Indices, `len`, `modules()` and `state_dict` are as they were. See PooledSequential.
    """

    plan: Plan
    trace: Trace | None
    checkpointing: bool

    def __iter__(self) -> Iterator[Any]:
        return iter((partial(run_blocks, self),))

    def __repr__(self) -> str:
        return repr(nn.ModuleList(self.children()))

    def __getitem__(self, index: Any) -> Any:
        return _cut(self, super().__getitem__(index), index)


CONTAINERS: dict[type[nn.Module], type[nn.Module]] = {nn.Sequential: PooledSequential, nn.ModuleList: PooledList}
ORIGINALS = {pooled: original for original, pooled in CONTAINERS.items()}


def run_blocks(container: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """All blocks of a patched container on tokens x [B, N, D], prefix first.

    Args:
        args, kwargs: what the model gives each block beside its tokens; for blocks that are called as they are.

    Returns:
        tokens [B, M, D], or the input's N where the plan restores them; in a tuple where the blocks return tuples.

    Raises:
        ValueError: a tensor beside the tokens, such as a mask, which pooling would not follow.
    """
    plan: Plan = container.plan
    _refuse_tensors(container, args, kwargs)
    sizes: Tensor | None = None
    source: Tensor | None = None
    steps: list[Step] = []
    for layer, (block, pool) in enumerate(zip(container.children(), plan.pools, strict=True)):
        pools = pool is not None and pool.pools(x.shape[0], x.shape[1] - plan.num_prefix_tokens)
        checkpoint = plan.family.checkpoint(container, block)
        if pools or (sizes is not None and plan.proportional):
            step: Callable[..., Any] = partial(
                run_block,
                plan.family,
                block,
                pool=pool if pools else None,
                proportional=plan.proportional,
                position=plan.position,
            )
            x, sizes, label = step(x, sizes) if checkpoint is None else checkpoint(step, x, sizes)
            # A reentrant checkpoint marks all that it returns as requiring a gradient.
            sizes = None if sizes is None else sizes.detach()
            if label is not None and (plan.restore or container.trace is not None):
                label = with_prefix(label, plan.num_prefix_tokens)
                source = label if source is None else compose(source, label)
                steps.append((layer, source, sizes))
        elif checkpoint is None or plan.family.blocks_checkpoint_themselves:
            x = _tokens_of(block(x, *args, **kwargs))
        else:
            x = checkpoint(block, x)
    if container.trace is not None:
        # At the end, since checkpointing stops a forward that it recomputes before its end.
        container.trace.hold(steps)
    if plan.restore and source is not None:
        x = unpool(x, source)
    return (x,) if plan.returns_tuples else x


def run_block(
    family: Family, block: Any, x: Tensor, sizes: Tensor | None, *, pool: TokenPool | None, proportional: bool,
    position: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """A pre-norm block from its own submodules, with pooling between attention and MLP or at its end.

    Args:
        x: tokens [B, N, D], prefix first.
        sizes: original tokens that each one stands for [B, N]; None before the first pooling.

    Returns:
        tokens [B, M, D]; their sizes [B, M], None where pooling only selects; and the cluster of every patch token
        [B, N - P], -1 where it was dropped, None where nothing was pooled.
    """

    def run(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        scores = pool is not None and pool.needs_significance
        update, significance, keys = family.attention(block, x, sizes if proportional else None, scores)
        x = x + update
        if pool is None:
            return x + family.mlp(block, x), sizes, None
        # ToMe matches tokens by their keys, averaged over the heads.
        metric = keys.mean(1) if pool.method == "bipartite" else None
        given = sizes
        if given is None and pool.method not in PRUNERS:
            given = x.new_ones(x.shape[:2], dtype=torch.float32)
        if position == "block":
            x = x + family.mlp(block, x)
        found = pool.pool(x, significance, sizes=given, metric=metric)
        x = found.tokens
        if position == "attention":
            x = x + family.mlp(block, x)
        return x, found.sizes, found.label

    return with_hooks(block, run, x)


def with_hooks(block: nn.Module, run: Callable[[Tensor], tuple[Any, ...]], x: Tensor) -> tuple[Any, ...]:
    """Runs `run(x)` between the forward hooks of `block`, in place of its own forward.

    Sharding (FSDP) and feature extraction rely on forward hooks.

    Args:
        run: takes the tokens, and returns the new tokens first; what else it returns is not passed to hooks.
        x: tokens [B, N, D].
    """
    if not block._forward_pre_hooks and not block._forward_hooks:
        return run(x)
    args: Any = (x,)
    kwargs: dict[str, Any] = {}
    for key, hook in list(block._forward_pre_hooks.items()):
        if key in block._forward_pre_hooks_with_kwargs:
            args, kwargs = hook(block, args, kwargs) or (args, kwargs)
        else:
            changed = hook(block, args)
            args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
    tokens, *rest = run(args[0])
    for key, after in list(block._forward_hooks.items()):
        if key in block._forward_hooks_with_kwargs:
            changed = after(block, args, kwargs, tokens)
        else:
            changed = after(block, args, tokens)
        tokens = tokens if changed is None else changed
    return (tokens, *rest)


def install(container: nn.Module, plan: Plan) -> None:
    """Changes the container's class; one that is patched already gets the new plan."""
    pooled: Any = container
    if type(container) in CONTAINERS:
        pooled.__class__ = CONTAINERS[type(container)]
        pooled.checkpointing = False
    pooled.plan, pooled.trace = plan, None


def uninstall(container: nn.Module) -> None:
    """Undoes `install`."""
    pooled: Any = container
    if type(container) in ORIGINALS:
        del pooled.plan, pooled.trace, pooled.checkpointing
        pooled.__class__ = ORIGINALS[type(container)]


def plan_of(container: nn.Module | None) -> Plan | None:
    """The plan of a patched container; None where there is none."""
    return container.plan if isinstance(container, (PooledSequential, PooledList)) else None


def _tokens_of(out: Any) -> Tensor:
    # Older releases of transformers return tuples.
    return out[0] if isinstance(out, tuple) else out


def _cut(container: Any, part: Any, index: Any) -> Any:
    """Gives a slice of a container its part of the plan: models are shortened by slicing their blocks."""
    if isinstance(index, slice):
        plan = container.plan
        part.plan = replace(plan, schedule=plan.schedule[index], pools=plan.pools[index])
        part.trace, part.checkpointing = None, container.checkpointing
    return part


def _refuse_tensors(container: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for name, value in (*enumerate(args, 1), *kwargs.items()):
        if isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(torch.is_tensor, value))):
            if isinstance(name, int):
                taken = list(inspect.signature(next(container.children()).forward).parameters)
                name = taken[name] if name < len(taken) else f"argument {name} of a block"
            raise ValueError(
                f"{name} must be None in a patched model: masks, positions and the like do not follow pooled tokens, "
                f"got a {type(value).__name__}"
            )
