"""How many kernels the tests of a GPU make it compile, counted where there is none.

    python -m tests.support.compilations [arguments of pytest]

The tests are chosen and sized as on a GPU, the launchers choose as on an H100, and a launch is noted instead of made:
its results are the torch backend's. Arguments are handed on to pytest, which loads this file as a plugin.
"""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

from tests.support.programs import ROOT

PLUGIN = "tests.support.compilations"
# The kernels that take a compiler 5 to 20 s; the others take it one or two.
LARGE = ("resident_kernel", "cluster_kernel")


def count(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs pytest with these arguments and this plugin."""
    env = {**os.environ, "TPKERNELS_TESTS_FOR_GPU": "1", "TRITON_INTERPRET": "1"}
    env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    # Without assertions a test goes on where no kernel wrote what it looks at.
    command = [sys.executable, "-O", "-m", "pytest", "--assert=plain", "-p", PLUGIN, "-m", "gpu", "-q", "-n0"]
    return subprocess.run([*command, *arguments], env=env, cwd=ROOT, capture_output=True, text=True)


@functools.cache
def compiled(kernel: Any) -> SimpleNamespace:
    """What an interpreted kernel would say of its parameters if it were compiled."""
    from triton.runtime.jit import KernelParam

    def named(where: str, place: int, name: str) -> bool:
        return bool({place, name} & set(kernel.kwargs[where] or ()))

    params = [
        KernelParam(i, one, *(named(f"do_not_specialize{what}", i, one.name) for what in ("", "_on_alignment")))
        for i, one in enumerate(inspect.signature(kernel.fn).parameters.values())
    ]
    return SimpleNamespace(__name__=kernel.__name__, arg_names=kernel.arg_names, params=params)


class Compilations:
    """The kernels that launches would compile, and the tests that were the first to."""

    def __init__(self) -> None:
        self.first: dict[tuple[Any, ...], str] = {}
        self.test = ""

    def install(self) -> None:
        """Makes launches note their key, and launchers choose as on an H100 and answer as the torch backend does."""
        import torch
        from torch.utils._python_dispatch import _disable_current_modes
        from triton.runtime.interpreter import InterpretedFunction

        from tools.compile_gate.launches import Launch, key
        from tools.compile_gate.targets import TARGETS
        from tpkernels.ops import cluster
        from tpkernels.ops.cluster import run
        from tpkernels.ops.eager import means as eager_means
        from tpkernels.ops.eager.attention import attention_torch
        from tpkernels.ops.eager.primitives import EAGER
        from tpkernels.ops.eager.segments import segment_sum
        from tpkernels.ops.gpu import attention as gpu_attention
        from tpkernels.ops.gpu import limits, linkage, resident, streaming
        from tpkernels.ops.gpu import means as gpu_means

        def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            self.first.setdefault(key(Launch(compiled(kernel), args, kwargs, "")), self.test)

        InterpretedFunction.run = note
        limits.INTERPRETER = TARGETS["sm_90"].limits
        resident.resident_config = functools.partial(_not_interpreted, resident.resident_config)
        for name in ("token_tile", "mean_config"):
            choice = functools.partial(_last_is_true, getattr(gpu_means, name))
            setattr(gpu_means, name, choice)
            setattr(streaming, name, choice)

        def twin(launcher: Any, tensors: Any, spec: Any, *using: Any) -> Any:
            launched = launcher(tensors, spec, *using)
            if using and not using[0].kernels:
                return launched
            start = tensors.start
            # A test may start from tokens that there are not.
            start = None if start is None else start.clamp(0, max(tensors.x.shape[1] - 1, 0))
            with _disable_current_modes():
                found = run(tensors._replace(start=start), spec, EAGER)
            return found._replace(total=totals(found.source, spec.k, tensors.pool_weight))

        def means(launcher: Any, x: Any, label: Any, k: int, weight: Any) -> Any:
            launcher(x, label, k, weight)
            return eager_means.cluster_mean(x, label, k, weight), totals(label, k, weight)

        def totals(label: Any, k: int, weight: Any) -> Any:
            weight = torch.ones_like(label) if weight is None else weight
            return segment_sum(torch.where(label < 0, 0, weight).float(), label, k)

        def chain(launcher: Any, x: Any, weight: Any, mask: Any, metric: str) -> Any:
            tree = launcher(x, weight, mask, metric)
            # One token after another joins the first.
            row = torch.arange(tree.shape[1], dtype=tree.dtype)
            first = torch.where(row > 0, row + tree.shape[1], 0)
            tree.copy_(torch.stack([row + 1, first, row, row + 2], 1))
            tree[..., :2] = tree[..., :2].sort(-1).values
            return tree

        def attention(launcher: Any, *given: Any) -> Any:
            launched = launcher(*given)
            with torch.no_grad():
                out, significance = attention_torch(*given)
            return launched[0].copy_(out), launched[1] if significance is None else significance, launched[2].zero_()

        for module, name, stand_in in (
            (resident, "cluster", twin), (cluster, "run", twin), (gpu_means, "cluster_mean", means),
            (streaming, "cluster_mean", means), (gpu_attention, "attend", attention), (linkage, "linkage", chain),
        ):  # fmt: skip
            setattr(module, name, functools.partial(stand_in, getattr(module, name)))

        torch.testing.assert_close = lambda *given, **more: None
        to = torch.Tensor.to

        def to_another_device(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            # A copy to another device is aligned, and dense where the tensor was not.
            moved = to(tensor, *args, **kwargs)
            return moved.clone() if moved is tensor else moved

        torch.Tensor.to = to_another_device

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.test = nodeid

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        kernels = Counter(key[0] for key in self.first)
        files = Counter(test.split("::")[0] for test in self.first.values())
        tests = Counter(test.split("[")[0] for test in self.first.values())
        for title, found in (("kernels", kernels), ("files", files), ("tests", tests)):
            terminalreporter.section(f"compilations by {title}")
            for name, number in found.most_common():
                terminalreporter.line(f"{number:5d} {name}")
        large = sum(kernels[name] for name in LARGE)
        terminalreporter.line(f"compilations: {large} large, {sum(kernels.values())} in all")


def _not_interpreted(choice: Any, *given: Any, interpreted: bool, **more: Any) -> Any:
    return choice(*given, interpreted=False, **more)


def _last_is_true(choice: Any, *given: Any) -> Any:
    return choice(*given[:-1], True)


def pytest_configure(config: Any) -> None:
    """As a plugin: begins to count."""
    found = Compilations()
    found.install()
    config.pluginmanager.register(found)


if __name__ == "__main__":
    done = count(sys.argv[1:])
    print(done.stdout + done.stderr)
    raise SystemExit(done.returncode)
