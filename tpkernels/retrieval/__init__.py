"""Pooling of multi-vector documents (ColBERT, ColPali) in batches, as the retrieval packages do it one by one."""

from importlib import import_module
from typing import Any

from .pool import pool_embeddings
from .presets import PRESETS, Rules
from .stream import stream_pooled

__all__ = ["PRESETS", "Rules", "pool_embeddings", "stream_pooled"]

# What stands for other packages' own, by its file: accessing it first imports that package, where it is there.
_DROP_INS = {
    "HierarchicalTokenPooler": "colpali",
    "HierarchicalTokenPooling": "sentence_transformers",
    "patch_pylate": "pylate",
    "unpatch_pylate": "pylate",
}


def __getattr__(name: str) -> Any:
    if name not in _DROP_INS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_DROP_INS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_DROP_INS})
