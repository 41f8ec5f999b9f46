"""Every family of kernels against the torch backend, and against itself: called again, and with one sample alone.

A row has the results; its `red` says what is wrong with them. Bounds are those of the harness' gate for objectives; for
values the rounding of the type that they are stored in.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import tpkernels
from tpkernels.ops.cluster_mean import cluster_mean

from ..clustering.cases import Case
from ..clustering.gate import Gate, objective
from ..clustering.inputs import Inputs, make_inputs
from ..clustering.providers import Library
from ..rehearsal import rehearsing
from .attention import qkv_of, relative_error
from .children import Run
from .journal import Journal
from .problems import AVERAGED, POOLED, SMOKE_HEADS, TINY_LONG, TINY_VIT, device, smoke_cases

AGAIN = 10
# Relative errors of norms: bfloat16 keeps 8 bits of each factor and each result, float32 sums keep 20 of theirs.
HALF_ERROR, FULL_ERROR = 2e-2, 1e-5
# Relative to the torch backend's objective from the same start; two roundings can differ at a near tie.
RATIO_ERROR = 5e-3


def cases(run: Run) -> None:
    """The cases of one step: objective and labels, the same bits again and alone, rounds, finite outputs."""
    _poison()
    for case in smoke_cases()[run.part]:
        _case(case, run.journal)


def _case(case: Case, journal: Journal) -> None:
    inputs = make_inputs(case, device())
    kernels, twin = Library("triton"), Library("torch")
    began = time.perf_counter()
    found = kernels.clusters(inputs)
    _wait()
    cold = time.perf_counter() - began
    expected = twin.clusters(inputs)
    red = _what_is_red(found, expected, inputs)
    again = [kernels.clusters(inputs) for _ in range(1 if rehearsing() else AGAIN)]
    if not all(_same(found, other) for other in again):
        red.append("other bits the next time")
    alone = kernels.clusters(_sample(inputs, 1))
    # Few large samples take four launches, the same number alone: then too the sample is the same.
    if not torch.equal(alone.assignment[0], found.assignment[1]):
        red.append("other labels alone than in a batch")
    journal.tell(
        what=f"{case.name}, {case.shape}, {case.dtype}",
        cold_s=round(cold, 2),
        objective_to_torch=round(_ratio(case, inputs, found, expected), 6),
        same_labels=round(float((found.assignment == expected.assignment).float().mean()), 5),
        same_samples=round(float((found.assignment == expected.assignment).all(1).float().mean()), 4),
        rounds=int(found.n_iter.max()), rounds_of_torch=int(expected.n_iter.max()),
        samples_of_other_rounds=int((found.n_iter != expected.n_iter).sum()),
        centers_apart=float((found.centers.float() - expected.centers.float()).abs().max()),
        red="; ".join(red),
    )  # fmt: skip


def _what_is_red(found: tpkernels.Clusters, expected: tpkernels.Clusters, inputs: Inputs) -> list[str]:
    case, red = inputs.case, []
    verdict = Gate(inputs).check(found.assignment, weighted=case.weighted, same_path=True, half_centers=False)
    if verdict.wrong is not None:
        return [verdict.wrong]
    ratio = _ratio(case, inputs, found, expected)
    if abs(ratio - 1) > RATIO_ERROR:
        red.append(f"objective: expected the torch backend's, got {ratio:.6f} of it")
    # Unwritten memory is NaN here, see `_poison`.
    if not bool(found.centers.isfinite().all() and found.loss.isfinite().all()):
        red.append("centers or loss are not finite")
    if case.method == "ward" and int(found.n_iter.max()) > case.n - case.k:
        red.append(f"rounds: expected at most {case.n - case.k}, got {int(found.n_iter.max())}")
    far = (found.loss.double() / expected.loss.double() - 1).abs().max()
    if float(far) > RATIO_ERROR:
        red.append(f"loss: expected the torch backend's, got {float(far):.2e} off it")
    return red


def _ratio(case: Case, inputs: Inputs, found: tpkernels.Clusters, expected: tpkernels.Clusters) -> float:
    """Objective of the labels over that of the torch backend's, in float64, the farthest from 1 of three samples."""
    ratios = []
    for i in sorted({0, case.b // 2, case.b - 1}):
        weight = None if inputs.weight is None else inputs.weight[i]
        mine, its = (
            objective(case.method, inputs.x[i], weight, label[i], case.k)
            for label in (found.assignment, expected.assignment)
        )
        ratios.append(mine / its)
    return max(ratios, key=lambda ratio: abs(ratio - 1))


def _same(one: tpkernels.Clusters, other: tpkernels.Clusters) -> bool:
    return torch.equal(one.assignment, other.assignment) and torch.equal(one.centers, other.centers)


def _sample(inputs: Inputs, i: int) -> Inputs:
    weight = None if inputs.weight is None else inputs.weight[i : i + 1]
    case = dataclasses.replace(inputs.case, b=1)
    return dataclasses.replace(inputs, case=case, x=inputs.x[i : i + 1], weight=weight, start=inputs.start[i : i + 1])


def attention(run: Run) -> None:
    """Output, significance and gradients against softmax in float64; the same bits again."""
    _poison()
    generator = torch.Generator().manual_seed(0)
    for heads in SMOKE_HEADS:
        b, h, n, d = shape = heads.shape
        qkv = [x.detach().requires_grad_() for x in qkv_of(heads, 0)]
        size = (torch.rand(b, n, generator=generator) + 0.5).to(device())
        # As the output lies in memory, so does its gradient.
        grad = _normal((b, n, h, d), generator).transpose(1, 2)
        for key_size in (None, size):
            out, received = tpkernels.attention(*qkv, key_size=key_size, backend="triton", need_significance=True)
            wide = [x.detach().double().requires_grad_() for x in qkv]
            logits = wide[0] @ wide[1].mT * d**-0.5
            p = (logits if key_size is None else logits + key_size.double().log()[:, None, None]).softmax(-1)
            expected = p @ wide[2]
            gradients = torch.autograd.grad(out, qkv, grad.to(out.dtype))
            exact = torch.autograd.grad(expected, wide, grad.double())
            pairs = [(out, expected), *zip(gradients, exact, strict=True)]
            # Prefix tokens' queries count like others; where sizes are given, queries count by them.
            counted = p if key_size is None else p * key_size.double()[:, None, :, None]
            errors = [relative_error(mine, its) for mine, its in (*pairs, (received, counted.sum((1, 2))))]
            red = [] if max(errors) <= HALF_ERROR else [f"expected errors up to {HALF_ERROR:g}, got {max(errors):.2e}"]
            again = tpkernels.attention(*qkv, key_size=key_size, backend="triton", need_significance=True)
            if not (torch.equal(out, again[0]) and torch.equal(received, again[1])):
                red.append("other bits the next time")
            names = ("out", "dq", "dk", "dv", "received")
            found = {name: float(f"{error:.2e}") for name, error in zip(names, errors, strict=True)}
            run.journal.tell(
                what=f"attention {shape}{'' if key_size is None else ', sizes'}", **found, red="; ".join(red)
            )


def means(run: Run) -> None:
    """`cluster_mean` and its gradients to tokens and weights, against float64."""
    _poison()
    b, n, d, k = TINY_LONG if rehearsing() else AVERAGED
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, k, (b, n), generator=generator).to(device())
    x, weight = _normal((b, n, d), generator), torch.rand(b, n, generator=generator).to(device())

    def solve(dtype: torch.dtype, backend: str) -> list[Tensor]:
        own, share = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight))
        mean, _ = cluster_mean(own, label, k, share, backend)
        return [mean, *torch.autograd.grad(mean.square().sum(), (own, share))]

    _compare("cluster_mean", ("mean", "dx", "dw"), solve, run.journal)


def pool(run: Run) -> None:
    """A `TokenPool` forward and backward, against the means of its own clusters in float64."""
    _poison()
    b, n, d, k = TINY_VIT if rehearsing() else POOLED
    x = make_inputs(Case("ward", b, n, d, k, iters=0, weighted=False, dtype="bfloat16"), device()).x
    grad = _normal((b, k, d), torch.Generator().manual_seed(1))
    layer = tpkernels.TokenPool(k, num_prefix_tokens=0, backend="triton")
    label = layer(x, return_info=True)[1].assignment

    def solve(dtype: torch.dtype, backend: str) -> list[Tensor]:
        tokens = (x.clone() if backend == "triton" else x.to(dtype)).requires_grad_()
        out = layer(tokens) if backend == "triton" else cluster_mean(tokens, label, k, None, backend)[0]
        return [out, *torch.autograd.grad(out, tokens, grad.to(out.dtype))]

    _compare("TokenPool", ("tokens", "dx"), solve, run.journal, HALF_ERROR)


def _compare(
    name: str,
    parts: Sequence[str],
    solve: Callable[[torch.dtype, str], list[Tensor]],
    journal: Journal,
    bound: float = FULL_ERROR,
) -> None:
    found, exact = solve(torch.float32, "triton"), solve(torch.float64, "torch")
    errors = {
        part: float(f"{relative_error(mine, its):.2e}") for part, mine, its in zip(parts, found, exact, strict=True)
    }
    red = [] if max(errors.values()) <= bound else [f"expected errors up to {bound:g}, got {max(errors.values()):g}"]
    if not all(torch.equal(one, other) for one, other in zip(found, solve(torch.float32, "triton"), strict=True)):
        red.append("other bits the next time")
    journal.tell(what=name, **errors, red="; ".join(red))


def _poison() -> None:
    """Makes torch fill the memory that it allocates with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator).to(device())


def _wait() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()
