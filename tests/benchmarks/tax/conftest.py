"""The tax's model and images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from benchmarks.tax import models as tax_models
from benchmarks.tax.models import NANO, DeiT


@pytest.fixture(autouse=True)
def inference():
    """As the command runs."""
    with torch.inference_mode():
        yield


@pytest.fixture
def model() -> DeiT:
    torch.manual_seed(0)
    return DeiT(dataclasses.replace(NANO, depth=4)).eval()


@pytest.fixture
def images() -> Tensor:
    return tax_models.fields(3, 3, 32)
