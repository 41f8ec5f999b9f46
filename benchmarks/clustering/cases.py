"""What is measured: problems by method, start, weights and shape, for GPUs and for CPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import Refusal

# Tokens to a cluster where N grows.
TOKENS_PER_CLUSTER = 32


@dataclass(frozen=True)
class Case:
    """One problem: x [B, N, D] into K clusters.

    method: ward, kmedoids or kmeans. init: "topk" (the K tokens of highest weight), "strided" (evenly spaced)
    or "ward" (Ward's clusters).
    weighted: whether tokens count by their weight; without it the start stays the same. tokens: "structured" (low rank
    and spatially correlated, as a transformer's are), "outlying" (structured, with offsets that a few entries lack,
    so that every sample takes the second, exact matrix) or "random" (independent normal numbers). dtype: of x.
    """

    method: str
    b: int
    n: int
    d: int
    k: int
    iters: int = 5
    init: str = "topk"
    weighted: bool = True
    tokens: str = "structured"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise ValueError(f"k: expected 1 to n = {self.n} clusters, got {self.k}")

    @property
    def name(self) -> str:
        """What the case is called in rows, without its shape."""
        if self.method == "ward":
            return f"ward, {self.tokens}"
        return f"{self.method} from {self.init}{', weighted' if self.weighted else ''}, {self.tokens}"

    @property
    def shape(self) -> str:
        """The shape as text."""
        return f"B={self.b} N={self.n} D={self.d} K={self.k}"


def _ward(b: int, n: int, d: int, k: int, **more: object) -> Case:
    return Case("ward", b, n, d, k, iters=0, weighted=False, **more)


def _three(b: int, n: int, d: int, k: int) -> list[Case]:
    return [_ward(b, n, d, k), Case("kmedoids", b, n, d, k), Case("kmeans", b, n, d, k)]


def _large(method: str, b: int, n: int, d: int, k: int, **more: object) -> Case:
    return Case(method, b, n, d, k, init="strided", weighted=False, **more)


def kernels(device: str) -> list[Case]:
    """The cases of the speed table: images of tokens in batches, and one image alone."""
    if device == "cpu":
        return [
            *_three(32, 196, 384, 98),
            _ward(128, 196, 384, 98),
            _ward(32, 196, 384, 98, tokens="random"),
            Case("kmedoids", 1, 196, 384, 98),
            _large("kmeans", 1, 4096, 64, 256, iters=10),
        ]
    cases = [*_three(256, 196, 384, 98), *_three(256, 196, 768, 98), *_three(64, 576, 1024, 288)]
    cases += [Case("kmedoids", 1, 196, 384, 98), _ward(1, 196, 384, 98)]
    cases += [_ward(256, 196, 384, 98, tokens=tokens) for tokens in ("random", "outlying")]
    return [replace(case, dtype="bfloat16") for case in cases]


def scaling(device: str) -> list[Case]:
    """K-Means over batches of large samples, K-Means and K-Medoids over N at fixed N / K."""
    if device == "cpu":
        sizes = [1 << power for power in range(10, 15)]
        return [_large(m, 1, n, 128, n // TOKENS_PER_CLUSTER) for n in sizes for m in ("kmeans", "kmedoids")]
    cases = [_large("kmeans", b, 32_768, 128, 1000) for b in (1, 2, 4, 8, 16, 32)]
    sizes = [1 << power for power in range(10, 18)]
    cases += [_large(m, 1, n, 128, n // TOKENS_PER_CLUSTER) for n in sizes for m in ("kmeans", "kmedoids")]
    return [replace(case, dtype="bfloat16") for case in cases]


def peers(device: str) -> list[Case]:
    """What other packages solve too: with and without weights, and random tokens."""
    b = 32 if device == "cpu" else 256
    shape = (b, 196, 384, 98)
    cases = [
        _ward(*shape),
        Case("kmedoids", *shape, weighted=False),
        Case("kmeans", *shape, weighted=False),
        Case("kmeans", *shape),
        Case("kmedoids", *shape, weighted=False, tokens="random"),
        _large("kmeans", 1, 4096, 64, 256, iters=10),
    ]
    return cases if device == "cpu" else [replace(case, dtype="bfloat16") for case in cases]


def sweep(device: str) -> list[Case]:
    """The main cases, and others that run the same compiled kernels: batch, channels, clusters, iterations, tokens."""
    batch, others = (256, (1, 132, 264)) if device == "cuda" else (32, (1, 2))
    found = []
    for case in _three(batch, 196, 384, 98):
        found += [case, *(replace(case, b=b) for b in others), *(replace(case, d=d) for d in (64, 768))]
        if case.method == "ward":
            found += [*(replace(case, k=k) for k in (66, 128)), replace(case, tokens="random")]
        else:
            found += [replace(case, iters=iters) for iters in (0, 1, 2)]
    return found if device == "cpu" else [replace(case, dtype="bfloat16") for case in found]


def large(device: str) -> list[Case]:
    """Samples that take several launches: images of 24 x 24 tokens, and one long sample."""
    if device == "cpu":
        return [*_three(2, 576, 64, 288), *(_large(method, 1, 4096, 128, 1000) for method in ("kmedoids", "kmeans"))]
    found = _three(64, 576, 1024, 288)
    found += [_large(method, 8, 32_768, 128, 1000) for method in ("kmedoids", "kmeans")]
    return [replace(case, dtype="bfloat16") for case in found]


GROUPS = {"kernels": kernels, "scaling": scaling, "peers": peers, "sweep": sweep, "large": large}


def quick(cases: list[Case]) -> list[Case]:
    """The same kinds of cases, small enough to see within seconds that all of it runs."""
    most = {"b": 2, "n": 48, "d": 16, "k": 12, "iters": 2}
    small = [replace(case, **{name: min(getattr(case, name), top) for name, top in most.items()}) for case in cases]
    return list(dict.fromkeys(small))


def select(group: str, device: str, *, small: bool = False, only: str | None = None) -> list[Case]:
    """The cases of a group for a kind of device ("cpu" or "cuda").

    Args:
        small: the quick ones.
        only: those whose name and shape contain this text.

    Raises:
        Refusal: no case is left.
    """
    cases = GROUPS[group](device)
    cases = quick(cases) if small else cases
    found = [case for case in cases if only is None or only in f"{case.name} {case.shape}"]
    if not found:
        raise Refusal(f"--case: none of {[f'{case.name} {case.shape}' for case in cases]} contains {only!r}")
    return found
