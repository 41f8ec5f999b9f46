"""What `patch` changes in a model, and how it is undone: classes of the container and its blocks, and hooks."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from ..schedule.shapes import block_in
from .block import is_patched, original_class, pooled_class
from .containers import CONTAINERS, ORIGINALS, Tower, begin_call, end_call, plan_of
from .forwards import is_bound, kind_of
from .plan import Family, Plan


class Guard:
    """A forward pre-hook that refuses calls of a patched model that pooling would break."""

    def __init__(self, family: Family, tower: nn.Module) -> None:
        self.family, self.tower = family, tower

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Around a tower that was given back by itself it stays.
        if plan_of(self.family.find(self.tower)) is not None:
            self.family.check_call(module, args, kwargs)


def install(tower: nn.Module, container: nn.Module, plan: Plan, guarded: list[nn.Module]) -> None:
    """Makes the blocks of an unpatched container run by the plan."""
    family, pooled = plan.family, _as(container, CONTAINERS.get(type(container), type(container)))
    pooled.plan, pooled.tower, pooled.trace, pooled.checkpointing = plan, Tower(tower), None, False
    pooled.calls = {}
    for child in container.children():
        block: Any = block_in(child)
        # A block that stands at two places is one.
        if not is_patched(block):
            _as(block, pooled_class(type(block)))
            block.tpkernels_patched = tuple(kind_of(part) for part in family.uncalled(block))
    caller = next(part for part in tower.modules() if any(child is container for child in part.children()))
    caller.register_forward_pre_hook(begin_call)
    caller.register_forward_hook(end_call, always_call=True)
    family.take_over(tower)
    for module in guarded:
        module.register_forward_pre_hook(Guard(family, tower), with_kwargs=True)


def uninstall(model: nn.Module, container: Any) -> None:
    """Undoes `install` for a container somewhere in a model."""
    plan, tower = container.plan, container.tower.model
    for module in (*model.modules(), *tower.modules()):
        _remove_hooks(module, tower, container)
    plan.family.give_back(tower)
    give_back(container)
    del container.plan, container.tower, container.trace, container.checkpointing, container.calls
    # A class that was made of this one since, such as FSDP's, stays, and runs the blocks as ever.
    if type(container) in ORIGINALS:
        _as(container, ORIGINALS[type(container)])


def give_back(model: nn.Module) -> None:
    """Gives every patched block in a module its own forward again, wherever it stands by now."""
    for block in model.modules():
        held: Any = block
        if is_patched(block):
            del held.tpkernels_patched
            if type(block) is pooled_class(original_class(block)):
                _as(block, original_class(block))


def _as(module: Any, cls: type[nn.Module]) -> Any:
    """Changes a module's class, also for bound forwards that are kept on it: accelerate's hooks call them."""
    bound = [name for name in ("forward", "_old_forward") if is_bound(module.__dict__.get(name), module)]
    module.__class__ = cls
    for name in bound:
        module.__dict__[name] = MethodType(cls.forward, module)
    return module


def _remove_hooks(module: nn.Module, tower: nn.Module, container: nn.Module) -> None:
    """Removes guards of the tower from any module, the hooks of the container's calls from the module that calls it."""
    calls = any(child is container for child in module.children())
    pre, after = module._forward_pre_hooks, module._forward_hooks
    for key in [key for key, hook in pre.items() if (calls and hook is begin_call) or _guards(hook, tower)]:
        del pre[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    for key in [key for key, hook in after.items() if calls and hook is end_call]:
        del after[key]
        module._forward_hooks_always_called.pop(key, None)


def _guards(hook: Any, tower: nn.Module) -> bool:
    return isinstance(hook, Guard) and hook.tower is tower
