"""Triton's interpreter patches `triton.language` at every call of a device function; here only where that is undone.

A patch goes through all members of the language, and in a kernel of many small functions that is a third of its time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def patched_once(interpreter: ModuleType) -> Iterator[None]:
    """Leaves out patches of a language that is patched already; changes nothing where Triton has other names.

    Args:
        interpreter: `triton.runtime.interpreter`.
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

    interpreter._patch_lang = patch_where_needed
    try:
        yield
    finally:
        interpreter._patch_lang = patch
