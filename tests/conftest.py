"""What all tests share: the device, the backends, hypothesis' settings, and a switch for what takes long."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings

# Before whatever imports a kernel: it says where they run.
from tests.support.marks import DEVICE, FOR_GPU, KERNELS, RUNS_TRITON
from tests.support.sanitizer import Watch, watched
from tools.quick_interpreter import quickened
from tools.torchvision_on_cpu import load_torchvision

# The problems are small: threads would wait for each other longer than they compute.
torch.set_num_threads(1)

settings.register_profile(
    "tpkernels",
    deadline=None,
    # Found examples are kept and replayed at a desk; in CI every run is the same.
    derandomize=bool(os.environ.get("CI")),
    max_examples=40,
    print_blob=True,
    # The backend is a fixture that all examples share on purpose.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Every run draws the same, and finds its kernels compiled. The strategies draw sizes that share kernels.
settings.register_profile("gpu", settings.get_profile("tpkernels"), max_examples=10, derandomize=True)
settings.load_profile("gpu" if FOR_GPU else "tpkernels")


@pytest.fixture(params=["torch", pytest.param("triton", marks=KERNELS)])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend by its name."""
    return request.param


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device(DEVICE)


@pytest.fixture(scope="session", autouse=True)
def sanitizer() -> Iterator[Watch | None]:
    """Every access of every kernel that the interpreter runs is looked at, in all tests."""
    if not RUNS_TRITON or FOR_GPU:
        yield None
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    with quickened(interpreter), watched(interpreter) as watch:
        yield watch


@pytest.fixture
def poisoned():
    """Fills buffers that nobody has written yet with NaN and the largest integers."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def pytest_configure(config: pytest.Config) -> None:
    # Lanes that a mask leaves out compute too, with whatever stands in the buffers.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run what takes long")
    parser.addoption("--thorough", action="store_true", help="also run what takes many minutes in Triton's interpreter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what is slow unless --slow, --thorough, any -m or its node id asks for it."""
    if config.getoption("--slow") or config.getoption("--thorough") or config.getoption("markexpr"):
        return
    named = [argument.split("::", 1) for argument in config.args if "::" in argument]
    named = [(config.invocation_params.dir.joinpath(file).resolve(), test) for file, test in named]
    skip = pytest.mark.skip(reason="slow: ask for it with --slow, -m slow, or its node id")
    for item in items:
        here = item.nodeid.split("::", 1)[-1]
        if item.get_closest_marker("slow") and not any(
            item.path == file and here.startswith(test) for file, test in named
        ):
            item.add_marker(skip)


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> None:
    """Skips a test that was not asked for by --thorough."""
    if not request.config.getoption("--thorough"):
        pytest.skip("takes many minutes: ask for it with --thorough")


@pytest.fixture(scope="session")
def torchvision() -> ModuleType | None:
    """The package torchvision, None where it is not installed. timm and transformers load it if it is there."""
    return load_torchvision()


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType | None) -> ModuleType:
    """The package timm; skips where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return importlib.import_module("timm")


@pytest.fixture(scope="session")
def transformers(torchvision: ModuleType | None) -> ModuleType:
    """The package transformers; skips where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    return importlib.import_module("transformers")
