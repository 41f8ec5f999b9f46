"""Calls of the launchers that the compile gate goes through: every kernel, method, start, output, dtype and flag.

A call is data; `tools/compile_gate/launchers.py` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call of a launcher.

    launcher: one of `launchers`; options: what it does; shape: batch, tokens, channels, clusters (of attention: batch,
    tokens, channels of a head, heads); odd: in strides and offsets that no vector load fits; smoke: whether it is among
    the few that the race test compiles.
    """

    launcher: str
    shape: tuple[int, int, int, int]
    dtype: str = "bfloat16"
    options: dict[str, Any] = field(default_factory=dict)
    odd: bool = False
    smoke: bool = False

    @property
    def name(self) -> str:
        b, n, d, k = self.shape
        words = [str(value if not isinstance(value, bool) else name) for name, value in self.options.items() if value]
        words += ["odd"] if self.odd else []
        return f"{self.launcher} {' '.join(words)} {self.dtype} B{b} N{n} D{d} K{k}".replace("  ", " ")


def calls() -> list[Call]:
    """Every call of the gate."""
    return [
        *resident_calls(),
        *own_number_calls(),
        *linkage_calls(),
        *streaming_calls(),
        *mean_calls(),
        *attention_calls(),
    ]


def _options(method: str, init: str, output: str, *flags: str) -> dict[str, Any]:
    return {"method": method, "init": init, "output": output, **dict.fromkeys(flags, True)}


def resident_calls() -> list[Call]:
    """Each method with each output, each start, dtype and flag; one launch and four; the least tiles and the most; Ward
    of more tokens than the others stay resident for.
    """
    vit, small, video = (256, 196, 384, 98), (64, 49, 48, 34), (64, 576, 1024, 288)
    most, tiny = (2, 1024, 2048, 700), (8, 5, 3, 2)
    page, book, half = (16, 1030, 128, 515), (4, 4096, 2048, 4000), (4, 4096, 2048, 2000)
    fp16, fp32 = "float16", "float32"
    return [
        Call("resident", vit, options=_options("ward", "ward", "mean", "weighted", "pool_weighted")),
        Call("resident", vit, options=_options("ward", "ward", "mean")),
        Call("resident", vit, fp16, _options("ward", "ward", "medoid", "masked"), smoke=True),
        Call("resident", vit, fp32, _options("ward", "ward", "center")),
        Call("resident", vit, options=_options("kmedoids", "topk", "center", "weighted")),
        Call("resident", vit, fp32, _options("kmedoids", "farthest", "medoid", "masked"), smoke=True),
        Call("resident", vit, options=_options("kmeans", "topk", "center", "weighted"), smoke=True),
        Call("resident", vit, fp16, _options("kmeans", "ward", "mean", "pool_weighted")),
        Call("resident", small, fp16, _options("kmedoids", "given", "mean", "masked"), smoke=True),
        Call("resident", small, fp32, _options("kmeans", "strided", "medoid", "weighted")),
        Call("resident", video, options=_options("kmeans", "given", "center"), smoke=True),
        Call("resident", most, fp32, _options("ward", "ward", "mean", "weighted", "pool_weighted", "masked")),
        Call("resident", page, options=_options("ward", "ward", "mean", "weighted", "pool_weighted", "masked")),
        Call("resident", page, fp16, _options("ward", "ward", "medoid"), smoke=True),
        Call("resident", book, options=_options("ward", "ward", "center", "weighted", "pool_weighted", "masked")),
        Call("resident", half, fp32, _options("ward", "ward", "medoid", "weighted", "pool_weighted", "masked")),
        Call("resident", tiny, fp32, _options("kmedoids", "ward", "mean", "weighted", "masked"), odd=True, smoke=True),
        Call("resident", tiny, fp16, _options("ward", "ward", "mean"), odd=True, smoke=True),
    ]


def own_number_calls() -> list[Call]:
    """Samples that each have their own number of clusters: counts, cuts by value; the other metrics."""
    vit, tiny, page, book = (256, 196, 384, 98), (8, 5, 3, 2), (16, 1030, 128, 515), (4, 4096, 2048, 4000)
    fp16, fp32 = "float16", "float32"
    ward = _options("ward", "ward", "mean")
    both = {"weighted": True, "pool_weighted": True, "masked": True}
    start = _options("kmeans", "ward", "center")
    return [
        Call("resident", vit, options=ward | {"counted": True}),
        Call("resident", vit, fp16, _options("kmedoids", "given", "center", "counted")),
        Call("resident", vit, options=ward | {"cut": "distance"}),
        Call("resident", vit, fp16, ward | both | {"counted": True, "cut": "error"}, smoke=True),
        Call("resident", vit, fp32, _options("ward", "ward", "center", "weighted") | {"metric": "cosine"}),
        Call("resident", vit, options=ward | {"metric": "dot"}, smoke=True),
        Call("resident", page, fp32, ward | both | {"counted": True, "cut": "distance", "metric": "dot"}),
        Call("resident", book, options=_options("ward", "ward", "center") | both | {"counted": True, "cut": "error"}),
        Call("resident", tiny, fp32, start | {"counted": True, "cut": "distance"}, odd=True, smoke=True),
    ]


def linkage_calls() -> list[Call]:
    """The whole dendrogram, in one launch and in four."""
    vit, page, book, tiny = (256, 196, 384, 1), (16, 1030, 128, 1), (4, 4096, 2048, 1), (8, 5, 3, 1)
    both = {"weighted": True, "masked": True}
    return [
        Call("linkage", vit, options={"metric": "euclidean"}),
        Call("linkage", vit, "float32", {"metric": "cosine"} | both, smoke=True),
        Call("linkage", page, "float16", {"metric": "dot"} | both, smoke=True),
        Call("linkage", book, "float32", {"metric": "euclidean"} | both),
        Call("linkage", tiny, "float16", {"metric": "cosine"}, odd=True),
        Call("linkage", tiny, "float32", {"metric": "clipped"}, odd=True),
    ]


def streaming_calls() -> list[Call]:
    """Both methods, each output and dtype; channels held and not, few tokens and many."""
    long, wide, huge = (8, 32768, 128, 1000), (4, 8192, 768, 1024), (1, 131072, 2048, 16384)
    least = (2, 1100, 3, 2)
    fp16, fp32 = "float16", "float32"
    return [
        Call("streaming", long, options=_options("kmeans", "strided", "center")),
        Call("streaming", wide, fp16, _options("kmedoids", "topk", "mean", "weighted", "pool_weighted", "masked")),
        Call("streaming", huge, fp32, _options("kmeans", "given", "medoid"), smoke=True),
        Call("streaming", least, fp32, _options("kmedoids", "strided", "center", "masked"), odd=True, smoke=True),
    ]


def mean_calls() -> list[Call]:
    """Means of given clusters and their gradient."""
    vit = (256, 196, 384, 98)
    return [
        Call(kind, shape, dtype, {"weighted": weighted}, odd, smoke)
        for kind in ("mean", "backward")
        for shape, dtype, weighted, odd, smoke in (
            (vit, "bfloat16", False, False, False),
            (vit, "float32", True, False, True),
            ((8, 49, 48, 34), "float16", True, True, False),
            # A lane has one channel.
            ((8, 49, 24, 34), "float32", True, False, False),
        )
    ]


def attention_calls() -> list[Call]:
    """Whole rows and streaming keys; heads of 20 to 256 channels, each dtype and flag; forward and backward."""
    both = {"sized": True, "masked": True}
    vit, pooled, few, long = (256, 197, 64, 6), (256, 138, 64, 6), (256, 72, 64, 6), (8, 4096, 64, 12)
    wide, siglip, largest, odd = (16, 257, 80, 16), (8, 729, 72, 16), (2, 577, 256, 4), (2, 300, 20, 3)
    bf16, fp16, fp32 = "bfloat16", "float16", "float32"
    either = [
        (vit, fp32, both, False, False),
        (few, bf16, both, False, True),
        (long, bf16, {}, False, False),
        (siglip, fp16, both, False, False),
        ((8, 1024, 128, 16), fp32, {}, False, False),
        (largest, fp16, both, False, False),
        (odd, fp32, both, True, True),
        (odd, fp16, both, True, False),
    ]
    return [
        Call("attention", vit, bf16),
        Call("attention", pooled, fp16, {"sized": True}),
        Call("attention", few, bf16, {"without significance": True}),
        Call("attention", wide, bf16, both),
        *(Call(kind, *given) for kind in ("attention", "attention_backward") for given in either),
    ]
