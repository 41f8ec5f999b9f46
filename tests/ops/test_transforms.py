"""`torch.func`: vmap, grad and the two together give what a loop over the samples gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tpkernels
from tpkernels import TokenPool

METHODS = ("ward", "kmeans", "kmedoids", "topk", "importance", "random", "grid", "bipartite")
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"TokenPool {method}": lambda x, m=method: TokenPool(0.5, m)(x, x[..., 0].abs()) for method in METHODS},
    "TokenPool weighted": lambda x: TokenPool(0.5, weighted=True)(x, x[..., 0].abs(), sizes=x[..., 1].abs())[0],
    "ward": lambda x: tpkernels.ward(x, 4, x[..., 0].abs()).centers,
    "kmeans": lambda x: tpkernels.kmeans(x, 4, init="strided").centers,
    "kmedoids": lambda x: tpkernels.kmedoids(x, 4, refine="swap").centers,
    "cluster_mean": lambda x: tpkernels.cluster_mean(x, (x[..., 0] > 0).long(), 2, x[..., 1].abs()),
    "unpool": lambda x: tpkernels.unpool(x[:, :2], (x[..., 0] > 0).long()),
    "pairwise_sqdist": tpkernels.pairwise_sqdist,
    "chamfer_loss": lambda x: tpkernels.chamfer_loss(x, x[:, :3] + 1),
    "attention": lambda x: tpkernels.attention(x[:, None], 2 * x[:, None], x[:, None])[0],
}
LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "assign": lambda x: tpkernels.assign(x, x[:, :3] + 1),
    "medoid_update": lambda x: tpkernels.medoid_update(x, (x[..., 0] > 0).long(), 2),
    "significance": lambda x: tpkernels.attention(x[:, None], 2 * x[:, None], x[:, None])[1],
}
X = torch.randn(3, 2, 10, 4, generator=torch.Generator().manual_seed(0))


def loss_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x).square().sum()


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss_of(function)(x), x)[0]


@pytest.mark.parametrize("name", [*FUNCTIONS, *LABELS])
def test_vmap_is_a_loop(name: str) -> None:
    function = {**FUNCTIONS, **LABELS}[name]
    torch.testing.assert_close(torch.func.vmap(function)(X), torch.stack([function(x) for x in X]))
    moved = torch.func.vmap(function, in_dims=1)(X.transpose(0, 1))
    torch.testing.assert_close(moved, torch.stack([function(x) for x in X]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad_is_autograds(name: str) -> None:
    function = FUNCTIONS[name]
    torch.testing.assert_close(torch.func.grad(loss_of(function))(X[0]), gradient(function, X[0]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_every_sample(name: str) -> None:
    """What differential privacy asks for: vmap over grad."""
    function = FUNCTIONS[name]
    found = torch.func.vmap(torch.func.grad(loss_of(function)))(X)
    torch.testing.assert_close(found, torch.stack([gradient(function, x) for x in X]))


def test_a_pooled_models_gradients_of_every_sample() -> None:
    """`functional_call` over the parameters of a layer with pooling behind it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), TokenPool(0.5), torch.nn.Linear(6, 1))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X)
    for i, x in enumerate(X):
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        for (name, each), one in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(each[i], one, msg=name)


def test_jacobians() -> None:
    function = FUNCTIONS["ward"]
    expected = torch.autograd.functional.jacobian(lambda x: tpkernels.ward(x, 4, X[0][..., 0].abs()).centers, X[0])
    found = torch.func.jacrev(lambda x: tpkernels.ward(x, 4, X[0][..., 0].abs()).centers)(X[0])
    torch.testing.assert_close(found, expected)
    assert function(X[0]).shape == found.shape[:3]
