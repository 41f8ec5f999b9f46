"""Launches of kernels as the launchers make them on a GPU that need not be there.

The launchers run on tensors without data whose `is_cuda` is true, with the limits of a target, and their launches are
kept instead of made. So the gate compiles what a device would, and has no copy of the launchers' choices.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from .calls import Call, calls
from .launchers import LAUNCHERS, launcher, make
from .targets import Target


class Launch(NamedTuple):
    """A kernel, its arguments, and the call of a launcher that launched it."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    case: str


class OnGPU(Tensor):
    """A tensor without data whose `is_cuda` is true, like that of tensors made from it."""

    is_cuda = True  # type: ignore[assignment]


def launches(target: Target, chosen: list[Call] | None = None) -> list[Launch]:
    """The launches on a device with the target's limits, in order.

    Args:
        target: the device.
        chosen: calls of launchers; all of `calls()` by default.
    """
    found: list[Launch] = []
    for call in calls() if chosen is None else chosen:
        with recording(target) as kept:
            make(call, meta)
        if not kept:
            raise RuntimeError(f"{call.name}: the launcher launched nothing")
        found += [Launch(kernel, args, kwargs, call.name) for kernel, args, kwargs in kept]
    return found


def meta(*shape: int, dtype: str, odd: bool = False) -> Tensor:
    """A tensor without data whose `is_cuda` is true; an odd one is a view that no vector load fits."""
    if not odd:
        return torch.empty(*shape, dtype=getattr(torch, dtype), device="meta").as_subclass(OnGPU)
    room = torch.empty(*(size + 1 for size in shape), dtype=getattr(torch, dtype), device="meta").as_subclass(OnGPU)
    return room[tuple(slice(1, None) for _ in shape)]


@contextmanager
def recording(target: Target) -> Iterator[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    """Makes torch and Triton behave as on the target, as far as launchers query them; keeps launches and makes none."""
    from triton.runtime.jit import JITFunction

    kept: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def keep(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kept.append((kernel, args, kwargs))

    found = SimpleNamespace(
        multi_processor_count=target.limits.processors,
        shared_memory_per_block_optin=target.limits.shared_bytes,
        L2_cache_size=target.limits.l2_bytes,
        warp_size=target.limits.warp,
    )
    with ExitStack() as stack:
        for owner, name, value in (
            (JITFunction, "run", keep),
            (torch.cuda, "device", lambda device: nullcontext()),
            (torch.cuda, "get_device_properties", lambda device=None: found),
            (torch.version, "hip", "6.0" if target.backend == "hip" else None),
        ):
            stack.enter_context(patch.object(owner, name, value))
        for module, name, value in _stand_ins(target):
            stack.enter_context(patch.object(module, name, value))
        yield kept


def _stand_ins(target: Target) -> list[tuple[ModuleType, str, Callable[..., Any]]]:
    """Replacements for the functions that read a device's limits and tuned configurations: module, name, function.

    The functions are found by identity in all modules that are loaded below `tpkernels.ops`, however deep and under
    whatever name.

    Raises:
        RuntimeError: no launcher reads limits where this looks, so that kernels would be built for another device.
    """
    for name in LAUNCHERS:
        launcher(name)
    limits, tuning = (importlib.import_module(f"tpkernels.ops.gpu.{name}") for name in ("limits", "tuning"))
    # Configurations tuned on this machine do not ship.
    wanted = {id(limits.limits_of): lambda device: target.limits, id(tuning.lookup): lambda *given: None}
    found = [
        (module, name, wanted[id(value)])
        for path, module in sorted(sys.modules.items())
        if path.startswith("tpkernels.ops.")
        for name, value in vars(module).items()
        if id(value) in wanted
    ]
    readers = {module.__name__ for module, _, _ in found} - {limits.__name__, tuning.__name__}
    if not readers & {f"tpkernels.ops.{module}" for module, _ in LAUNCHERS.values()}:
        raise RuntimeError(f"limits_of: expected launchers that read it, got {sorted(readers)}")
    return found


def source(launch: Launch) -> tuple[Any, dict[str, Any]]:
    """The source and the options of a launch, specialised as Triton would: on ones and on multiples of 16."""
    from triton.compiler import ASTSource
    from triton.language import constexpr

    kernel, kwargs = launch.kernel, dict(launch.kwargs)
    given = dict(zip(kernel.arg_names, launch.args, strict=False))
    options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
    given |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def specialised(name: str, value: Any, path: tuple[int, ...], by_value: bool, by_alignment: bool) -> Any:
        """The type of an argument, or those of a tuple's parts: Triton specialises them whatever a parameter says."""
        if isinstance(value, tuple):
            parts = [specialised(name, part, (*path, i), True, True) for i, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if isinstance(value, constexpr) or value is None or (_whole(value) and value == 1 and by_value):
            constants[path] = value.value if isinstance(value, constexpr) else value
            return "constexpr"
        if by_alignment and _by_sixteen(value):
            attributes[path] = [["tt.divisibility", 16]]
        return _type(name, value)

    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        value = given.get(name, parameter.default)
        if parameter.is_constexpr:
            signature[name], constants[(place,)] = "constexpr", value
            continue
        fixed = bool(parameter.do_not_specialize)
        aligned = not (fixed or parameter.do_not_specialize_on_alignment)
        signature[name] = specialised(name, value, (place,), not fixed, aligned)
    return ASTSource(kernel, signature, constants, attributes), options


def key(launch: Launch) -> tuple[Any, ...]:
    """Equal for two launches that compile to the same, on one architecture."""
    made, options = source(launch)
    return (
        launch.kernel.__name__,
        *sorted(made.signature.items()),
        *sorted((place, repr(value)) for place, value in made.constants.items()),
        *sorted(place for place in made.attrs),
        *sorted((name, repr(value)) for name, value in options.items()),
    )


def configuration(launch: Launch) -> dict[str, Any]:
    """The constexprs of a launch by their names, those in its tuples too."""
    from triton.language import constexpr

    made, _ = source(launch)
    names = launch.kernel.arg_names
    constant = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    found = {names[path[0]]: value for path, value in made.constants.items() if names[path[0]] in constant}
    for value in launch.args:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            found |= {name: part.value for name, part in value._asdict().items() if isinstance(part, constexpr)}
    return found


_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"{name}: expected a tensor or a number as an argument of a kernel, got {type(value).__name__}")


def _by_sixteen(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return _whole(value) and value % 16 == 0
