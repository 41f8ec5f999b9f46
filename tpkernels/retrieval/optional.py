"""Names of packages that need not be installed, or may be broken."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def find(module: str, *names: str) -> tuple[Any, ...] | None:
    """The names of another package's module, None where they cannot be had.

    A package that is there but whose import fails is told of in a warning; one that is not there, or whose release has
    no such module, is not.
    """
    try:
        found = importlib.import_module(module)
        return tuple(getattr(found, name) for name in names)
    # Packages of models import much that can fail in any way, as torchvision does over another torch.
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        if not absent:
            warnings.warn(
                f"tpkernels: {module} is installed, but its import fails ({type(error).__name__}: {error}), so classes "
                f"of tpkernels.retrieval are no subclasses of its {' and '.join(names)}",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
