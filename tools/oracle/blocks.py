"""The blocks of a model and its prefix tokens, found by running it on two batches of images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from .program import NoPlace, Recorder, place_to_pool

Ask = Callable[[nn.Module, int], Any]


class Call(NamedTuple):
    """A call of a block: its tokens [B, N, D], and whether it gives patch tokens the same results in any order."""

    block: nn.Module
    tokens: Tensor
    moves: bool


class Tower(NamedTuple):
    """The blocks that an image's tokens go through, one after another, and how many tokens have no pixels in them."""

    calls: list[Call]
    prefix: int


def tokens_of(args: Any, kwargs: Any = None) -> Tensor | None:
    """The tokens [B, N, D] that a block is given or returns: the first tensor, if it has that form."""
    first = next((x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)), None)
    return first if first is not None and first.dim() == 3 and first.is_floating_point() else None


def with_tokens(value: Any, tokens: Tensor) -> Any:
    """`value` with other tokens."""
    old = tokens_of(value)
    return tree_map(lambda x: tokens if x is old else x, value)


@contextmanager
def replaced(modules: Any, make: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]) -> Any:
    """Gives each module the forward `make(module, its own)` for a while."""
    modules = list(modules)
    held = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = make(module, module.forward)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, own in zip(modules, held, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own


def find_tower(model: nn.Module, ask: Ask) -> Tower:
    """The first container of two blocks or more that attend to all tokens and return as many.

    Raises:
        NoPlace: none has a place to pool, or prefix tokens are not at the front.
    """
    containers = [one for one in model.modules() if type(one) in (nn.Sequential, nn.ModuleList) and len(one) > 1]
    inputs = [first_tokens(model, containers, ask, seed) for seed in (0, 1)]
    reasons: list[str] = []
    for container in containers:
        before, after = (tokens.get(container[0]) for tokens in inputs)
        if before is None or after is None or before.shape != after.shape or torch.equal(before, after):
            continue
        constant = (before == after).all(2).all(0).tolist()
        prefix = constant.index(False)
        try:
            if any(constant[prefix:]):
                raise NoPlace("tokens without pixels behind the patches")
            return Tower(record(model, list(container), prefix, ask), prefix)
        except NoPlace as error:
            reasons.append(str(error))
    raise NoPlace(" and ".join(dict.fromkeys(reasons)) if reasons else "no blocks of tokens")


def first_tokens(model: nn.Module, containers: list[Any], ask: Ask, seed: int) -> dict[nn.Module, Tensor]:
    """The tokens that the first block of each container is called with."""
    found: dict[nn.Module, Tensor] = {}

    def make(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            tokens = tokens_of(args, kwargs)
            if tokens is not None:
                found.setdefault(module, tokens.clone())
            return own(*args, **kwargs)

        return forward

    with replaced(dict.fromkeys(container[0] for container in containers), make):
        ask(model, seed)
    return found


def record(model: nn.Module, blocks: list[nn.Module], prefix: int, ask: Ask) -> list[Call]:
    """The calls of the blocks in one forward of the model."""
    calls: list[Call] = []

    def make(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            tokens = tokens_of(args, kwargs)
            if tokens is None:
                raise NoPlace("no tokens in rows")
            _, out = place_of(own, args, kwargs)
            after = tokens_of(out)
            if after is None or after.shape != tokens.shape:
                raise NoPlace("blocks that return other tokens")
            calls.append(Call(module, tokens, moves(own, args, kwargs, after, prefix)))
            return out

        return forward

    with replaced(blocks, make):
        ask(model, 0)
    if [call.block for call in calls] != blocks:
        raise NoPlace("blocks that do not run one after another")
    return calls


def place_of(own: Callable[..., Any], args: Any, kwargs: Any) -> tuple[int, Any]:
    """The operation of a block where its tokens can be pooled, and what the block returns.

    Raises:
        NoPlace: there is none.
    """
    # A copy, since a block may change its tokens in place.
    tokens = tokens_of(args, kwargs).clone()
    args, kwargs = with_tokens((args, kwargs), tokens)
    shape = tuple(tokens.shape)
    with Recorder(tokens) as recorder:
        out = own(*args, **kwargs)
    return place_to_pool(recorder.operations, shape), out


def moves(own: Callable[..., Any], args: Any, kwargs: Any, after: Tensor, prefix: int) -> bool:
    """Whether a block gives patch tokens the same results in any order."""
    tokens = tokens_of(args, kwargs)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randperm(tokens.shape[1] - prefix, generator=generator) + prefix
    order = torch.cat([torch.arange(prefix), patches])
    args, kwargs = with_tokens((args, kwargs), tokens[:, order])
    other = tokens_of(own(*args, **kwargs))
    return close(other, after[:, order], 1e-6 if after.dtype == torch.float64 else 1e-3)


def close(x: Tensor, y: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree up to a share of the largest number of the second; NaN agrees with NaN."""
    if x.shape != y.shape:
        return False
    bound = tolerance * float(y.nan_to_num(posinf=0, neginf=0).abs().max()) if y.numel() else 0.0
    return torch.allclose(x.to(y.dtype), y, rtol=0, atol=bound, equal_nan=True)
