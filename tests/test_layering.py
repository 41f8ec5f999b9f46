"""Who may know whom, and that importing runs nothing."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.programs import ROOT, run

PACKAGE = ROOT / "tpkernels"
# Each room with the rooms that it may import besides itself; imports point one way.
MAY_IMPORT = {
    "files": set(),
    "reference": set(),
    "kernels": set(),
    "schedule/__init__": set(),
    "schedule/shapes": set(),
    "schedule/macs": {"names", "schedule/shapes"},
    "schedule/keep": {"schedule/shapes", "schedule/macs"},
    "schedule/distance": {"schedule/keep"},
    "schedule/file": {"schedule/shapes", "schedule/distance", "files"},
    "schedule/paths": {"schedule/shapes", "schedule/macs"},
    "schedule/search": {"schedule/shapes", "schedule/keep", "schedule/paths"},
    "names": set(),
    # What the three rooms below share.
    "ops/__init__": set(),
    "ops/context": set(),
    "ops/problem": {"ops/context"},
    "ops/registry": {"ops/context"},
    # Where the code runs: eager knows no other room, cpu and gpu do not know each other.
    "ops/eager": {"ops/context", "ops/problem"},
    "ops/cpu": {"names", "ops/eager", "ops/problem"},
    "ops/gpu": {"ops/eager", "ops/problem", "kernels", "files"},
    "ops/batches": {"ops/context", "ops/problem", "ops/eager"},
    "ops/labelling": {"ops/batches", "ops/problem", "ops/eager"},
    "ops/backends": {"names", "ops/context", "ops/problem", "ops/eager", "ops/cpu", "ops/gpu"},
    "ops/cluster_mean": {"ops/backends", "ops/context", "ops/registry", "ops/eager", "ops/gpu"},
    "ops/cluster": {
        "ops/backends",
        "ops/batches",
        "ops/cluster_mean",
        "ops/context",
        "ops/labelling",
        "ops/problem",
        "ops/registry",
        "ops/eager",
        "ops/gpu",
    },
    "ops/linkage": {
        "ops/backends",
        "ops/batches",
        "ops/context",
        "ops/problem",
        "ops/registry",
        "ops/eager",
        "ops/gpu",
    },
    "ops/assign": {"ops/backends", "ops/context", "ops/registry", "ops/eager"},
    "ops/attention": {"ops/context", "ops/registry", "ops/eager", "ops/gpu"},
    "checks": {"names", "ops/backends", "ops/context"},
    "functional": {
        "names",
        "checks",
        "ops/assign",
        "ops/attention",
        "ops/backends",
        "ops/cluster",
        "ops/cluster_mean",
        "ops/context",
        "ops/linkage",
        "ops/problem",
        "ops/eager",
    },
    "modules": {
        "names",
        "checks",
        "schedule/keep",
        "ops/backends",
        "ops/cluster",
        "ops/cluster_mean",
        "ops/context",
        "ops/problem",
        "ops/eager",
    },
    "integrations": {
        "names",
        "schedule/shapes",
        "schedule/macs",
        "schedule/keep",
        "schedule/distance",
        "schedule/file",
        "schedule/search",
        "checks",
        "functional",
        "modules",
        "ops/context",
    },
    "retrieval": {"names", "files", "checks", "functional", "ops/context"},
    "env": {"ops/backends"},
    "__init__": {
        "schedule/shapes",
        "schedule/macs",
        "schedule/keep",
        "schedule/file",
        "functional",
        "modules",
        "integrations",
        "retrieval",
    },
}
# Folders whose own folders and files are rooms.
PARTED = {"schedule", "ops"}
# Packages from elsewhere that a room may import; every room may import the standard library.
FOREIGN = {
    "names": set(),
    "kernels": {"triton"},
    # Bars and files; and the packages whose classes it stands in for.
    "retrieval": {
        "torch",
        "filelock",
        "tqdm",
        "numpy",
        "safetensors",
        "colpali_engine",
        "pylate",
        "sentence_transformers",
    },
    # filelock comes with torch.
    "ops/cpu": {"torch", "numpy", "numba", "filelock"},
    "schedule/__init__": set(),
    "schedule/shapes": set(),
    "schedule/macs": set(),
    "schedule/keep": set(),
    "schedule/distance": set(),
    "schedule/file": set(),
    "files": set(),
}


class Import(NamedTuple):
    """An import: its room, what it names (as "tpkernels.ops.eager.ward"), and whether importing the file runs it."""

    room: str
    file: str
    target: str
    at_import: bool


def room_of(path: Path) -> str:
    return _room(path.relative_to(PACKAGE).with_suffix("").parts)


def _room(parts: tuple[str, ...]) -> str:
    """The folder or file that parts of a path or of a module's name stand in."""
    return "/".join(parts[:2]) if parts[0] in PARTED and len(parts) > 1 else parts[0]


def imports_of(path: Path) -> Iterator[Import]:
    relative = path.relative_to(PACKAGE)
    package = ["tpkernels", *relative.parts[:-1]]

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = at_import and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.Import):
                targets = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                # `from . import checks` and `from .ops import distances` name modules too.
                targets = [f"{module}.{alias.name}" for alias in child.names]
            else:
                targets = []
            for target in targets:
                yield Import(room_of(path), str(relative), target, at_import)
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text()), True)


IMPORTS = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]


def own(found: Import) -> str | None:
    """The room that an import of the package names; None for other packages."""
    parts = found.target.split(".")
    if parts[0] != "tpkernels":
        return None
    assert len(parts) > 1, f"{found.file} imports the package itself"
    return _room(tuple(parts[1:]))


def test_the_parser_sees_the_imports() -> None:
    # The rules below hold for a list that is empty, too.
    assert len(IMPORTS) > 80
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} == set(MAY_IMPORT)
    files = {(found.file, own(found)) for found in IMPORTS}
    assert ("functional/clustering.py", "ops/cluster") in files
    assert ("ops/gpu/resident.py", "kernels") in files
    assert ("modules/token_pool.py", "schedule/keep") in files
    assert ("__init__.py", "integrations") in files


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_point_one_way(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    wrong = [(f.file, f.target) for f in IMPORTS if f.room == room and own(f) not in {None, *allowed}]
    assert not wrong


def test_the_order_of_the_rooms_has_no_circle() -> None:
    left = dict(MAY_IMPORT)
    while left:
        free = [room for room, needs in left.items() if not needs & set(left)]
        assert free, f"{sorted(left)} import each other"
        for room in free:
            del left[room]


def test_nothing_at_runtime_imports_the_reference() -> None:
    assert not [f.file for f in IMPORTS if f.room != "reference" and own(f) == "reference"]


def test_the_reference_imports_torch_alone() -> None:
    foreign = {f.target.split(".")[0] for f in IMPORTS if f.room == "reference"}
    assert foreign - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_packages_from_elsewhere(room: str) -> None:
    allowed = FOREIGN.get(room, {"torch"})
    names = {f.target.split(".")[0] for f in IMPORTS if f.room == room}
    assert names - set(sys.stdlib_module_names) - {"tpkernels"} <= allowed


def test_what_need_not_be_installed_is_not_imported_early() -> None:
    """The room of compiled loops is nothing without numba: what imports it does so late."""
    early = [f for f in IMPORTS if f.at_import and f.room not in ("kernels", "ops/cpu")]
    assert "ops/cpu" not in {own(found) for found in early}
    assert {f.target.split(".")[0] for f in early} - set(sys.stdlib_module_names) == {"tpkernels", "torch"}


def test_triton_is_imported_by_kernels_alone_and_kernels_only_at_a_launch() -> None:
    triton = {f.room for f in IMPORTS if f.target.split(".")[0] == "triton"}
    assert triton == {"kernels"}
    early = [(f.file, f.target) for f in IMPORTS if f.room != "kernels" and own(f) == "kernels" and f.at_import]
    assert not early


def test_rooms_of_kernels_share_how_tokens_are_read_and_nothing_else() -> None:
    inside = [f for f in IMPORTS if f.room == "kernels" and own(f) == "kernels"]
    assert {Path(f.file).parts[1] for f in inside} == {"resident", "streaming", "attention"}
    assert not [(f.file, f.target) for f in inside if f.target.split(".")[2] not in {Path(f.file).parts[1], "tokens"}]


INERT = """
import builtins, os, random, sys, threading, warnings

class Without:
    # Finds what another finder finds, as if Triton were not installed.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "triton" else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

BLOCKED = sys.argv[1] == "without-triton"
if BLOCKED:
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch

def forbidden(name):
    def call(*args, **kwargs):
        raise AssertionError(f"importing tpkernels called {name}")
    return call

watched = [(module, name, getattr(module, name)) for module, names in {
    torch.cuda: ("is_available", "device_count", "_lazy_init", "init", "current_device", "get_device_properties",
                 "get_device_capability", "is_initialized"),
    torch: ("manual_seed", "set_num_threads", "set_default_dtype", "set_float32_matmul_precision"),
    builtins: ("print",),
}.items() for name in names]
for module, name, _ in watched:
    setattr(module, name, forbidden(name))

def tasks():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0

environment, threads, native = dict(os.environ), threading.enumerate(), tasks()
seed, state = random.getstate(), torch.get_rng_state().clone()
loaded = set(sys.modules)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    import tpkernels

for module, name, function in watched:
    setattr(module, name, function)
assert dict(os.environ) == environment, "the environment changed"
assert threading.enumerate() == threads and tasks() == native, "a thread was started"
assert random.getstate() == seed and torch.equal(torch.get_rng_state(), state), "the global generator was used"
fresh = set(sys.modules) - loaded
optional = ("triton", "numba", "numpy", "scipy", "timm", "transformers", "torchvision")
assert not {name for name in fresh if name.split(".")[0] in optional}, fresh
assert not {name for name in fresh if name.startswith("tpkernels.kernels")}, fresh
if BLOCKED:
    assert "triton" not in sys.modules
    x = torch.randn(2, 8, 3)
    assert tpkernels.kmeans(x, 3).assignment.shape == (2, 8)
    assert tpkernels.TokenPool(0.5)(x).shape == (2, 5, 3)
    # Its compiler takes seconds to load.
    assert "torch._dynamo" in loaded or "torch._dynamo" not in sys.modules
    try:
        tpkernels.kmeans(x, 3, backend="triton")
    except RuntimeError as error:
        assert "Triton is not installed" in str(error), error
    else:
        raise AssertionError("backend='triton' ran without Triton")
sys.stdout.write("inert")
"""


@pytest.mark.parametrize("triton", ["without-triton", "as-installed"])
def test_importing_runs_nothing(triton: str) -> None:
    if triton == "as-installed" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    done = run("-c", INERT, triton)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "inert"


def test_kernels_call_no_min_and_max_of_pythons() -> None:
    """Triton 3.5 makes values of what they return, and `tl.arange` wants constants: `a if a < b else b` stays one."""
    files = sorted((PACKAGE / "kernels").rglob("*.py"))
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max")
    ]
    assert len({path.parent for path in files}) == 4 and not found
