from __future__ import annotations

import pytest
import torch

import snnkern

from compatibility import Recorder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", action="store_true", help="write the outcomes to docs/compatibility.md")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--compatibility") and not hasattr(config, "workerinput"):  # not in a process of pytest-xdist
        config.pluginmanager.register(Recorder())


def pytest_report_header() -> str:
    build = snnkern.build_info()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return f"snnkern {build['snnkern']}, torch {torch.__version__}, CUDA {build['cuda']}, GPU: {gpu}, CPU: {build['cpu_instruction_set']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        reason = "no NVIDIA GPU here"
    elif snnkern.build_info()["cuda"] is None:
        reason = "snnkern was built without CUDA"
    else:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device: a test that takes it runs on the CPU, and on the GPU where there is one."""
    return str(request.param)


@pytest.fixture
def fresh_dynamo() -> None:
    """torch.compile without what earlier tests compiled: it gives up after 8 variants of one function."""
    import torch._dynamo  # here, since it takes seconds

    torch._dynamo.reset()
