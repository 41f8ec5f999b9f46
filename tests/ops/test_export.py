"""`torch.export` of pooled models, and ONNX for what needs no loop of unknown length: the same answers there."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from deit.model import DeiT, DeiTConfig
from torch import Tensor

import tpkernels
from tpkernels.names import METHODS

BATCH = ({0: torch.export.Dim("batch", min=1, max=64)},)
# Each with at most a few steps: loops are written out in the graph.
ONNX = {
    "topk": {"method": "topk"},
    "importance": {"method": "importance"},
    "random": {"method": "random"},
    "grid": {"method": "grid"},
    "bipartite": {"method": "bipartite"},
    "kmeans": {"method": "kmeans", "init": "topk", "max_iter": 1},
    "kmedoids": {"method": "kmedoids", "init": "topk", "max_iter": 1},
    "kmedoids-medoid": {"method": "kmedoids", "init": "farthest", "max_iter": 1, "output": "medoid"},
}
REFUSED = {
    "Ward": {"method": "ward"},
    'init="ward"': {"method": "kmedoids"},
    'refine="swap"': {"method": "kmedoids", "init": "topk", "refine": "swap"},
}


def pooled(**options: Any) -> DeiT:
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return tpkernels.patch(model, 0.5, layers=[0], **options)


def images(batch: int) -> Tensor:
    return torch.randn(batch, 1, 16, 16, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize(
    "method",
    [
        "ward",
        *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "ward"),
    ],
)
def test_an_exported_model_answers_alike(method: str) -> None:
    """For any batch, and after it was written and read again."""
    model = pooled(method=method)
    stream = io.BytesIO()
    torch.export.save(torch.export.export(model, (images(2),), dynamic_shapes=BATCH), stream)
    stream.seek(0)
    again = torch.export.load(stream).module()
    for batch in (1, 2, 7):
        torch.testing.assert_close(again(images(batch)), model(images(batch)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ONNX))
def test_onnx_answers_alike(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, stream = pooled(**ONNX[name]), io.BytesIO()
    torch.onnx.export(model, (images(2),), dynamo=True, dynamic_shapes=BATCH, verbose=False).save(stream)
    session = onnxruntime.InferenceSession(stream.getvalue())
    for batch in (1, 2, 7):
        (found,) = session.run(None, {session.get_inputs()[0].name: images(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(images(batch)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_onnx_cannot_hold_is_refused_with_the_reason(what: str) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(Exception, match="Failed to export the model") as refused:
        torch.onnx.export(pooled(**REFUSED[what]), (images(2),), dynamo=True, verbose=False)
    assert f"{what} cannot be exported to ONNX" in str(refused.value)
