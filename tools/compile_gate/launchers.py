"""How each launcher is called: the only file of the gate that depends on launchers' signatures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tpkernels.ops.gpu.streaming import STREAMING
from tpkernels.ops.problem import Spec, Tensors

from .calls import Call

# Launchers by what they do: module of `tpkernels.ops`, function.
LAUNCHERS = {
    "resident": ("gpu.resident", "cluster"),
    "streaming": ("cluster", "run"),
    "linkage": ("gpu.linkage", "linkage"),
    "mean": ("gpu.means", "cluster_mean"),
    "backward": ("gpu.means", "cluster_mean_backward"),
    "attention": ("gpu.attention", "attend"),
    "attention_backward": ("gpu.attention", "attend_backward"),
}
# Makes a tensor from its shape, dtype and oddness, see `launches.meta`.
Make = Callable[..., Any]


def make(call: Call, tensor: Make) -> None:
    """Makes the call on tensors that `tensor(*shape, dtype=, odd=)` makes."""
    _WAYS[call.launcher](call, tensor)


def launcher(name: str) -> Callable[..., Any]:
    """The function that launches."""
    module, function = LAUNCHERS[name]
    return getattr(importlib.import_module(f"tpkernels.ops.{module}"), function)


def _cluster(call: Call, tensor: Make) -> None:
    b, n, d, k = call.shape
    given = call.options

    def some(name: str, *shape: int, dtype: str = "float32") -> Any:
        return tensor(*shape, dtype=dtype, odd=call.odd) if given.get(name) else None

    start = tensor(b, k, dtype="int64") if given["init"] == "given" else None
    tensors = Tensors(
        tensor(b, n, d, dtype=call.dtype, odd=call.odd),
        some("weighted", b, n),
        some("pool_weighted", b, n),
        some("masked", b, n, dtype="bool"),
        start,
        some("counted", b, dtype="int64"),
    )
    # The resident launcher is the whole operation; the streaming one is `run` with the streaming primitives.
    using = [STREAMING] if call.launcher == "streaming" else []
    how = {name: given[name] for name in ("metric", "cut") if name in given}
    launcher(call.launcher)(tensors, Spec(k, given["method"], given["init"], given["output"], 5, **how), *using)


def _linkage(call: Call, tensor: Make) -> None:
    b, n, d, _ = call.shape
    weight = tensor(b, n, dtype="float32", odd=call.odd) if call.options.get("weighted") else None
    mask = tensor(b, n, dtype="bool", odd=call.odd) if call.options.get("masked") else None
    launcher("linkage")(tensor(b, n, d, dtype=call.dtype, odd=call.odd), weight, mask, call.options["metric"])


def _mean(call: Call, tensor: Make) -> None:
    b, n, d, k = call.shape
    weight = tensor(b, n, dtype="float32", odd=call.odd) if call.options.get("weighted") else None
    x = tensor(b, n, d, dtype=call.dtype, odd=call.odd)
    launcher("mean")(x, tensor(b, n, dtype="int64"), k, weight)


def _backward(call: Call, tensor: Make) -> None:
    b, n, d, k = call.shape
    weight = tensor(b, n, dtype="float32", odd=call.odd) if call.options.get("weighted") else None
    x, mean = (tensor(b, n, d, dtype=call.dtype, odd=call.odd), tensor(b, k, d, dtype=call.dtype))
    if weight is None:
        x, mean = None, None
    grad, label, total = tensor(b, k, d, dtype=call.dtype), tensor(b, n, dtype="int64"), tensor(b, k, dtype="float32")
    launcher("backward")(grad, label, x, mean, weight, total)


def _heads(call: Call, tensor: Make) -> tuple[Any, ...]:
    """q, k, v as one linear layer makes them; sizes and mask where the call has them."""
    b, n, d, h = call.shape
    qkv = tensor(b, n, 3, h, d, dtype=call.dtype, odd=call.odd).permute(2, 0, 3, 1, 4)
    size = tensor(b, n, dtype="float32", odd=call.odd) if call.options.get("sized") else None
    mask = tensor(b, n, dtype="bool", odd=call.odd) if call.options.get("masked") else None
    return qkv[0], qkv[1], qkv[2], size, mask


def _attention(call: Call, tensor: Make) -> None:
    launcher("attention")(*_heads(call, tensor), 0.125, not call.options.get("without significance"))


def _attention_backward(call: Call, tensor: Make) -> None:
    b, n, d, h = call.shape
    q, k, v, size, mask = _heads(call, tensor)
    grad, out = (tensor(b, n, h, d, dtype=call.dtype).transpose(1, 2) for _ in range(2))
    lse = tensor(b, h, n, dtype="float32")
    launcher("attention_backward")(grad, q, k, v, out, lse, size, mask, 0.125)


_WAYS = {
    "resident": _cluster,
    "streaming": _cluster,
    "linkage": _linkage,
    "mean": _mean,
    "backward": _backward,
    "attention": _attention,
    "attention_backward": _attention_backward,
}
