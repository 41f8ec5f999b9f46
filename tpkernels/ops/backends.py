"""Which backend runs a call, and why; and what the torch backend computes with."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from ..names import CLUSTERERS, WARD_TOKENS
from .context import may_look
from .eager.primitives import EAGER
from .gpu.launch import interpreting
from .gpu.limits import SCRATCH_BYTES, Limits, limits_of
from .problem import Primitives

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One program holds a row of so many distances at a time; see kernels/resident/cluster.py. Beyond, K-Means and K-Medoids
# stream; Ward's rows are held in parts up to `WARD_TOKENS`.
RESIDENT_TOKENS = 1024
# Channels of a head that a program holds at a time; see kernels/attention/rows.py.
ATTENTION_CHANNELS = 256
# The first release with `disable_licm`, without which loops keep a sample's values in registers.
TRITON_NEEDED = (3, 5)
# NumPy 2.4 no longer converts arrays of one element to scalars; Triton's interpreter can do without from 3.7 on.
TRITON_INTERPRETS, NUMPY_STRICT = (3, 7), (2, 4)


def _release(package: str, unknown: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Major and minor number of an installed package, without importing it; None where there is none.

    Args:
        unknown: what a build from source that left no metadata counts as.
    """
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return tuple(int(part) for part in version(package).split(".")[:2])
    except PackageNotFoundError:
        return unknown


# A Triton without metadata is a build from source: take it for new enough.
TRITON_RELEASE, NUMPY_RELEASE = _release("triton", TRITON_NEEDED), _release("numpy", ()) or ()


@functools.cache
def has_numba() -> bool:
    """Whether numba is installed, which compiles the loops for CPUs."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _tell_of_numba() -> None:
    text = "numba is not installed, so clustering on a CPU takes 3 to 4 times as long: pip install numba"
    warnings.warn(f"tpkernels: {text}", RuntimeWarning, stacklevel=2)


def torch_primitives(x: Tensor) -> Primitives:
    """What the torch backend computes with: compiled loops where they can read x, torch's operations elsewhere."""
    if not may_look(x):
        return EAGER
    if not has_numba():
        _tell_of_numba()
        return EAGER
    from .cpu.primitives import COMPILED

    return COMPILED


def ward_scratch(n: int, d: int) -> int:
    """Bytes of scratch of one sample of Ward: costs and Gram matrix [N, N] in float32, and centered tokens [N, D] in
    float32 or as two halves. Where tokens are pooled to means there is one matrix less.
    """
    return 8 * n * n + 4 * n * d


def regime(n: int, d: int, method: str, limits: Limits) -> str | None:
    """Which kernels cluster samples of N tokens on a device: "resident", "streaming", or None where none can.

    Resident ones keep a sample's N x N matrix in scratch of a program: up to 1,024 tokens, while that matrix fits into
    the second-level cache. Streaming ones take any number of tokens and make no such matrix. Ward needs it and has no
    streaming kernel: it stays resident up to 4,096 tokens, while a sample's scratch fits `SCRATCH_BYTES`.

    Args:
        d: channels of a token.
        method: "ward", "kmeans" or "kmedoids".
        limits: of the device, `limits_of(x.device)`.
    """
    if method == "ward":
        return "resident" if n <= WARD_TOKENS and ward_scratch(n, d) <= SCRATCH_BYTES else None
    return "resident" if n <= RESIDENT_TOKENS and 4 * n * n <= limits.l2_bytes else "streaming"


def why_not_triton(
    device: torch.device | str, dtype: torch.dtype, d: int, n: int, method: str = "kmedoids", metric: str = "euclidean"
) -> str | None:
    """The reason why the Triton kernels can't take this call; None if they can."""
    device = torch.device(device)
    if TRITON_RELEASE is None:
        return "Triton is not installed"
    if TRITON_RELEASE < TRITON_NEEDED:
        return "the kernels need Triton {}.{}, {}.{} is installed".format(*TRITON_NEEDED, *TRITON_RELEASE)
    if device.type == "cpu" and not interpreting():
        return "the tensors are on the CPU (set TRITON_INTERPRET=1 before the first import to run the kernels there)"
    if device.type == "cpu" and TRITON_RELEASE < TRITON_INTERPRETS and NUMPY_RELEASE >= NUMPY_STRICT:
        return "the interpreter of Triton {}.{} fails with NumPy {}.{}: install numpy<2.4 or triton>=3.7".format(
            *TRITON_RELEASE, *NUMPY_RELEASE
        )
    if device.type not in ("cpu", "cuda"):
        return f"Triton kernels run on CUDA and ROCm devices, not on {device.type}"
    if dtype not in TRITON_DTYPES:
        return f"the kernels take float32, float16 and bfloat16, not {dtype}"
    if dtype == torch.bfloat16 and device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"bfloat16 needs compute capability 8.0, the device has {major}.{minor}"
    if method == "swap":
        return 'refine="swap" has no kernel, the torch backend runs it on every device'
    if metric == "rows":
        return 'metric="rows" has no kernel, the torch backend runs it on every device'
    if method == "ward" and n > WARD_TOKENS:
        return f"Ward's kernels take up to {WARD_TOKENS} tokens, got {n}"
    if method == "ward" and regime(n, d, method, limits_of(device)) is None:
        return (
            f"x: expected samples whose scratch for Ward fits {_mebibytes(SCRATCH_BYTES)}, got "
            f"{_mebibytes(ward_scratch(n, d))} for {n} tokens of {d} channels"
        )
    if method == "attention" and d > ATTENTION_CHANNELS:
        return f"the attention kernels take heads of up to {ATTENTION_CHANNELS} channels, got {d}"
    return None


def choose_backend(
    device: torch.device | str, dtype: torch.dtype, d: int, n: int, method: str = "kmedoids", metric: str = "euclidean"
) -> str:
    """What `backend="auto"` takes for such tensors: Triton off the CPU where it can take the call, else torch."""
    if torch.device(device).type == "cpu" or why_not_triton(device, dtype, d, n, method, metric) is not None:
        return "torch"
    return "triton"


def explain_backend(
    device: torch.device | str, dtype: torch.dtype, d: int, n: int, method: str = "kmedoids"
) -> tuple[str, str]:
    """What `backend="auto"` takes for such tensors, and the reason."""
    if torch.device(device).type == "cpu":
        why = "the torch backend is the fast one on a CPU"
        if method == "ward":
            why += "; its rounds run as numba's compiled loop" if has_numba() else "; faster with numba"
    else:
        kernels = f"the {regime(n, d, method, limits_of(device))} kernels" if method in CLUSTERERS else "the kernels"
        room = f", with {_mebibytes(ward_scratch(n, d))} of scratch a sample" if method == "ward" else ""
        why = why_not_triton(device, dtype, d, n, method) or f"{kernels} take this call{room}"
    return choose_backend(device, dtype, d, n, method), why


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
