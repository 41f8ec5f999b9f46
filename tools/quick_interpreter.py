"""Triton's interpreter without what it does over and over: the same bits in less than half the time.

It patches `triton.language` at every call of a device function, and makes the types of its values anew for every one of
them. Nothing changes where Triton has other names.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock


@contextmanager
def quickened(interpreter: ModuleType) -> Iterator[None]:
    """All of this file's guards.

    Args:
        interpreter: `triton.runtime.interpreter`.
    """
    with patched_once(interpreter), types_once(interpreter):
        yield


@contextmanager
def patched_once(interpreter: ModuleType) -> Iterator[None]:
    """Leaves out patches of a language that is patched already.

    A patch goes through all members of the language: in a kernel of many small functions, a third of its time.
    """
    patch, language = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "tl", None)
    is_builtin = getattr(getattr(language, "core", None), "is_builtin", None)
    # A patch replaces builtins, and the end of a launch puts them back: one of each place tells.
    if patch is None or is_builtin is None or not is_builtin(getattr(language.tensor, "__add__", None)):
        yield
        return
    nothing = getattr(interpreter, "_LangPatchScope", lambda: None)

    @functools.cache
    def places(function: Any) -> list[tuple[Any, str]]:
        seen = [value for value in function.__globals__.values() if isinstance(value, ModuleType)]
        return [(language.tensor, "__add__"), *((one, "load") for one in (language, language.core) if one in seen)]

    @functools.wraps(patch)
    def patch_where_needed(function: Any) -> Any:
        if any(is_builtin(getattr(owner, name)) for owner, name in places(function)):
            return patch(function)
        return nothing()

    with mock.patch.object(interpreter, "_patch_lang", patch_where_needed):
        yield


@contextmanager
def types_once(interpreter: ModuleType) -> Iterator[None]:
    """Remembers types of blocks, what a tensor reads off its type, and NumPy's dtypes; skips conversions of nothing."""
    core = getattr(getattr(interpreter, "tl", None), "core", None)
    semantic = getattr(interpreter, "TritonSemantic", None)
    wanted = (
        *((core, name) for name in ("block_type", "tensor")),
        *((interpreter, name) for name in ("_get_np_dtype", "interpreter_builder")),
        *((semantic, name) for name in ("binary_op_type_checking_impl", "broadcast_impl_value", "cast")),
    )
    if not all(hasattr(owner, name) for owner, name in wanted):
        yield
        return
    make_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    np_dtype, cast, options = interpreter._get_np_dtype, semantic.cast, interpreter.interpreter_builder.options
    convert, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value
    types: dict[Any, dict[str, Any]] = {}
    shapes: dict[Any, Any] = {}
    tensors: dict[str, dict[str, Any]] = {}
    dtypes: dict[str, Any] = {}
    numbers: dict[Any, Any] = {}

    @functools.wraps(make_type)
    def remembered_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *shape)
        if key not in types:
            make_type(self, element_ty, shape)
            # Types of one shape share it, which tells that nothing is left to broadcast.
            self.shape = shapes.setdefault(tuple(self.shape), self.shape)
            types[key] = self.__dict__.copy()
        self.__dict__.update(types[key], element_ty=element_ty)

    @functools.wraps(make_tensor)
    def remembered_tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in tensors:
            make_tensor(self, handle, type)
            tensors[type.name] = self.__dict__.copy()
        self.__dict__.update(tensors[type.name], handle=handle, type=type, dtype=type.scalar)

    @functools.wraps(np_dtype)
    def remembered_dtype(type: Any) -> Any:
        if type.name not in dtypes:
            dtypes[type.name] = np_dtype(type)
        return dtypes[type.name]

    @functools.wraps(convert)
    def convert_where_needed(self: Any, lhs: Any, rhs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(lhs, core.tensor) and lhs.dtype.name in ("fp32", "int32", "int64"):
            if isinstance(rhs, core.tensor) and lhs.dtype.name == rhs.dtype.name:
                return self.broadcast_impl_value(lhs, rhs)
            if type(rhs) in (int, float):
                # By its digits, which tell 0 from -0, and by the rules of the operation.
                key = repr(rhs), lhs.type.name, args, *kwargs.items()
                if key in numbers:
                    return lhs, numbers[key]
                same, other = convert(self, lhs, rhs, *args, **kwargs)
                if same is lhs:
                    other.handle.data.flags.writeable = False
                    numbers[key] = other
                return same, other
        return convert(self, lhs, rhs, *args, **kwargs)

    @functools.wraps(cast)
    def cast_where_needed(self: Any, input: Any, dst_ty: Any, *args: Any, **kwargs: Any) -> Any:
        if input.type.scalar.name == dst_ty.scalar.name:
            return input
        return cast(self, input, dst_ty, *args, **kwargs)

    @functools.wraps(broadcast)
    def broadcast_where_needed(self: Any, lhs: Any, rhs: Any) -> Any:
        if getattr(lhs.type, "shape", None) is getattr(rhs.type, "shape", None):
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    with (
        mock.patch.object(core.block_type, "__init__", remembered_type),
        mock.patch.object(core.tensor, "__init__", remembered_tensor),
        mock.patch.object(interpreter, "_get_np_dtype", remembered_dtype),
        mock.patch.object(semantic, "binary_op_type_checking_impl", convert_where_needed),
        mock.patch.object(semantic, "broadcast_impl_value", broadcast_where_needed),
        mock.patch.object(semantic, "cast", cast_where_needed),
        # Without debug its verdict on sums of integers is worked out and dropped.
        mock.patch.object(
            interpreter.interpreter_builder,
            "options",
            dataclasses.replace(options, sanitize_overflow=options.sanitize_overflow and options.debug),
        ),
    ):
        yield
