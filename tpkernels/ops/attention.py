"""`tpkernels::attention`: the attention kernels as an operation with its gradient, and which backend runs a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .context import transformed
from .eager.attention import attention_chunks, attention_torch, empty_out
from .gpu import attention as gpu_attention
from .registry import operation


def attention(
    q: Tensor, k: Tensor, v: Tensor, key_size: Tensor | None, mask: Tensor | None, scale: float | None,
    need_significance: bool, backend: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Out [B, H, N, e] and significance [B, N] of a backend; arguments as those of `attention_torch`."""
    if backend == "torch" or transformed(q):
        return attention_torch(q, k, v, key_size, mask, scale, need_significance)
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    size = None if key_size is None else key_size.detach()
    out, significance, _ = attention_triton(q, k, v, size, mask, scale, need_significance)
    return out, significance if need_significance else None


_chunks = operation("attention_chunks")(attention_chunks)


@torch.library.register_fake(_chunks)
def _(q: Tensor, k: Tensor, v: Tensor, *_given: Any) -> tuple[Tensor, Tensor]:
    return empty_out(v, q.dtype), q.new_empty(q.shape[0], q.shape[2], dtype=torch.float32)


@operation("attention", differentiable=True)
def attention_triton(
    q: Tensor, k: Tensor, v: Tensor, key_size: Tensor | None, mask: Tensor | None, scale: float, need_significance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Out, significance and lse of `gpu.attention.attend`; differentiable in q, k, v through out alone."""
    return gpu_attention.attend(q, k, v, key_size, mask, scale, need_significance)


@torch.library.register_fake(attention_triton)
def _(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gpu_attention.outputs(q, v, given[-1])


@operation("attention_backward")
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_size: Tensor | None,
    mask: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of out to q, k, v; see `gpu.attention.attend_backward`."""
    return gpu_attention.attend_backward(grad, q, k, v, out, lse, key_size, mask, scale)


@torch.library.register_fake(attention_backward)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_given: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gpu_attention.gradients(q, v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, key_size, mask, ctx.scale, _ = inputs
    out, significance, lse = output
    ctx.save_for_backward(q, k, v, out, lse, key_size, mask)
    ctx.mark_non_differentiable(significance, lse)


def _backward(ctx: Any, grad: Tensor, _significance: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    return *attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None, None


torch.library.register_autograd(attention_triton, _backward, setup_context=_setup)
