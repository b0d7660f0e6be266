from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

import pytest
import torch

import snnkern

from compatibility import Recorder
from support import COMBINATIONS

IS_WHOLE = snnkern.build_info()["only"] is None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", action="store_true", help="write the outcomes to docs/compatibility.md")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--compatibility") and not hasattr(config, "workerinput"):  # not in a process of pytest-xdist
        config.pluginmanager.register(Recorder())


def pytest_report_header() -> str:
    build = snnkern.build_info()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    part = "" if IS_WHOLE else f" ({len(snnkern.kernels())} of {len(COMBINATIONS)} combinations)"
    return f"snnkern {build['snnkern']}{part}, torch {torch.__version__}, CUDA {build['cuda']}, GPU: {gpu}, CPU: {build['cpu_instruction_set']}"


@contextlib.contextmanager
def _skip_what_is_left_out() -> Iterator[None]:
    """A build with SNNKERN_ONLY has a part of the kernels: a test that calls another skips, and says which.

    The call may be far below: in a process of its own, say, of whose output the error is a part.
    """
    try:
        yield
    except Exception as error:
        found = re.search(r"this build of snnkern leaves out [\w:]+", "".join(traceback.format_exception(error)))
        if found is None or IS_WHOLE:
            raise
        pytest.skip(found[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with _skip_what_is_left_out():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with _skip_what_is_left_out():
        return (yield)


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
