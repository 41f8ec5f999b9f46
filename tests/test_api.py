"""The public face: names, signatures, fields and docstrings that users build on."""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tpkernels

SIGNATURES = {
    "kmeans": "(x, k=None, weight=None, *, init='auto', max_iter=5, k_max=None, distance_threshold=None, "
    "max_error=None, mask=None, backend='auto')",
    "kmedoids": "(x, k=None, weight=None, *, init='auto', max_iter=5, k_max=None, distance_threshold=None, "
    "max_error=None, mask=None, backend='auto', refine=None)",
    "ward": "(x, k=None, weight=None, *, k_max=None, distance_threshold=None, max_error=None, metric='euclidean', "
    "mask=None, backend='auto')",
    "linkage": "(x, weight=None, mask=None, *, metric='euclidean', backend='auto')",
    "pairwise_sqdist": "(x, y=None, *, mask=None, y_mask=None)",
    "assign": "(x, centers, mask=None, *, center_mask=None)",
    "medoid_update": "(x, assignment, k, weight=None)",
    "cluster_mean": "(x, assignment, k, weight=None)",
    "unpool": "(y, assignment)",
    "chamfer_loss": "(x, centers, weight=None, *, mask=None, center_mask=None)",
    "attention": "(q, k, v, *, key_size=None, mask=None, scale=None, need_significance=True, backend='auto')",
    "patch": "(model, keep=None, *, distance=None, layers=None, budget=None, method='ward', init='ward', "
    "output='mean', weighted=None, proportional=True, position='attention', restore=None, max_iter=5, refine=None, "
    "min_tokens=0, seed=0, num_prefix_tokens=None, tower=None, backend='auto')",
    "unpatch": "(model, *, tower=None)",
    "schedule_of": "(model, *, tower=None)",
    "summary": "(model, *, tower=None)",
    "trace": "(model, *, tower=None)",
    "count_macs": "(model_or_shape, schedule=None, *, method='ward', init='ward', max_iter=5, position='attention')",
    "tokens_kept": "(keep, n)",
    "resolve_keep": "(keep, depth, num_patches, layers=None)",
    "reconstruction_errors": "(model, batches, *, relative=True, tower=None, backend='auto')",
    "solve_schedule": "(errors, model_or_shape, budget, *, layers=None, method='ward', init='ward', max_iter=5, "
    "position='attention', adaptive=False, tower=None, backend='auto')",
    "save_schedule": "(path, tokens, *, num_patches=None, distance=None, **facts)",
    "load_schedule": "(path)",
}
TOKEN_POOL = (
    "(keep, method='ward', *, init='ward', output='mean', max_iter=5, refine=None, distance_threshold=None, "
    "metric='euclidean', weighted=False, num_prefix_tokens=1, grid_size=None, seed=0, min_tokens=0, backend='auto')"
)
FORWARD = "(self, x, significance=None, *, sizes=None, mask=None, metric=None, k=None, return_info=False)"
FIELDS = {
    "Clusters": ("assignment", "centers", "medoids", "loss", "n_iter", "merge_heights", "n_clusters"),
    "PoolInfo": ("assignment", "sizes", "medoids", "loss", "n_iter", "n_clusters"),
}
# Functions of tensors: their docstrings owe the reader shapes.
TENSOR_FUNCTIONS = (
    "kmeans",
    "kmedoids",
    "ward",
    "linkage",
    "pairwise_sqdist",
    "assign",
    "medoid_update",
    "cluster_mean",
    "unpool",
    "chamfer_loss",
    "attention",
)
FUNCTIONS = sorted(name for name in tpkernels.__all__ if isinstance(getattr(tpkernels, name), types.FunctionType))


def signature(function: Callable) -> str:
    """The signature without annotations."""
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signature(name: str) -> None:
    assert signature(getattr(tpkernels, name)) == SIGNATURES[name]


def test_token_pool_takes_these_arguments() -> None:
    assert signature(tpkernels.TokenPool) == TOKEN_POOL
    assert signature(tpkernels.TokenPool.forward) == FORWARD


def test_token_pool_keeps_its_arguments_and_has_no_state() -> None:
    pool = tpkernels.TokenPool(0.7)
    assert isinstance(pool, nn.Module)
    assert not list(pool.parameters()) and not list(pool.buffers()) and not pool.state_dict()
    given = inspect.signature(tpkernels.TokenPool).parameters
    kept = {name: getattr(pool, name) for name in given if name != "keep"}
    assert kept == {name: p.default for name, p in given.items() if name != "keep"}
    assert pool.keep == 0.7


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_fields(name: str) -> None:
    assert getattr(tpkernels, name)._fields == FIELDS[name]


def test_all_is_sorted_complete_and_true() -> None:
    assert tpkernels.__all__ == sorted(set(tpkernels.__all__))
    promised = {*SIGNATURES, *FIELDS, "TokenPool", "Macs", "ViTShape", "Schedule", "resolve_budget"}
    assert promised <= set(tpkernels.__all__)
    bound = {
        name
        for name, value in vars(tpkernels).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and value.__module__ != "importlib.metadata"
    }
    # What the package binds besides its rooms is public, and nothing that is public is missing.
    assert bound - {"PackageNotFoundError", "version"} == set(tpkernels.__all__)


def test_star_import_and_version() -> None:
    scope: dict[str, object] = {}
    exec("from tpkernels import *", scope)
    assert set(tpkernels.__all__) <= set(scope)
    assert re.match(r"\d+\.\d+", tpkernels.__version__) or tpkernels.__version__ == "0+unknown"


def test_clusters_have_the_documented_shapes_and_dtypes() -> None:
    x = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    for method in ("kmeans", "kmedoids", "ward"):
        found = getattr(tpkernels, method)(x, 3)
        assert isinstance(found, tpkernels.Clusters)
        assert (found.assignment.shape, found.assignment.dtype) == ((2, 7), torch.int64)
        assert (found.centers.shape, found.centers.dtype) == ((2, 3, 3), torch.float32)
        assert (found.loss.shape, found.loss.dtype) == ((2,), torch.float32)
        assert (found.n_iter.shape, found.n_iter.dtype) == ((2,), torch.int64)
        assert (found.n_clusters.tolist(), found.n_clusters.dtype) == ([3, 3], torch.int64)
        if method == "kmedoids":
            assert (found.medoids.shape, found.medoids.dtype) == ((2, 3), torch.int64)
        else:
            assert found.medoids is None
        if method == "ward":
            assert found.merge_heights.shape == (2, 6)
        else:
            assert found.merge_heights is None
        # Half types come back as they went in; float64 stays float64 throughout.
        assert getattr(tpkernels, method)(x.bfloat16(), 3).centers.dtype == torch.bfloat16
        double = getattr(tpkernels, method)(x.double(), 3)
        assert double.centers.dtype == double.loss.dtype == torch.float64


def test_pool_results_follow_what_was_asked() -> None:
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(2, 9)
    pool = tpkernels.TokenPool(4)
    assert pool(x).shape == (2, 5, 3)
    tokens, sizes = pool(x, sizes=ones)
    assert (tokens.shape, sizes.shape) == ((2, 5, 3), (2, 5))
    tokens, info = pool(x, return_info=True)
    assert isinstance(info, tpkernels.PoolInfo)
    tokens, sizes, info = pool(x, sizes=ones, return_info=True)
    assert torch.equal(info.sizes, sizes) and info.assignment.shape == (2, 9)
    assert pool.output_len(9) == 5


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_docstring(name: str) -> None:
    doc = inspect.getdoc(getattr(tpkernels, name))
    assert doc, f"{name} has no docstring"
    summary = doc.split("\n\n")[0]
    assert summary.rstrip().endswith((".", ":")) or ". " in summary or ": " in summary
    if name in TENSOR_FUNCTIONS:
        assert re.search(r"\[B, |those of `kmeans`", doc), f"{name} names no shapes"
    assert re.search(r"Raises:|errors are those of `kmeans`", doc), f"{name} does not say what it raises"


@pytest.mark.parametrize("name", ["TokenPool", "Clusters", "PoolInfo"])
def test_class_docstring_names_every_field(name: str) -> None:
    cls = getattr(tpkernels, name)
    doc = inspect.getdoc(cls)
    fields = getattr(cls, "_fields", None) or tuple(inspect.signature(cls).parameters)
    missing = [field for field in fields if not re.search(rf"\b{field}\b", doc)]
    assert not missing
    if name == "TokenPool":
        forward = inspect.getdoc(cls.forward)
        assert "Raises:" in forward
        absent = [p for p in list(inspect.signature(cls.forward).parameters)[1:] if not re.search(rf"\b{p}\b", forward)]
        assert not absent


def test_every_module_and_public_definition_has_a_docstring() -> None:
    package = Path(tpkernels.__file__).parent
    public = [*(package / "functional").glob("*.py"), *(package / "modules").glob("*.py"), package / "reference.py"]
    public += [package / "schedule" / f"{name}.py" for name in ("keep", "macs", "search", "shapes", "file")]
    missing = [path.name for path in public if not path.is_file()]
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(path.name)
        if path in public:
            definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            bare = [n.name for n in definitions if not n.name.startswith("_") and not ast.get_docstring(n)]
            missing += [f"{path.name}: {name}" for name in bare]
    assert not missing


def test_types_are_shipped() -> None:
    assert (Path(tpkernels.__file__).parent / "py.typed").exists()
    for name in FUNCTIONS:
        found = inspect.signature(getattr(tpkernels, name))
        assert found.return_annotation is not inspect.Signature.empty, name
        assert all(p.annotation is not inspect.Parameter.empty for p in found.parameters.values()), name
