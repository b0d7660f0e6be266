"""Every public function and class has a docstring with an example, and the examples show what happens."""

from __future__ import annotations

import doctest
import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch

import snnkern

MODULES = ["", "compat.spikingjelly", "functional", "nn", "reference", "surrogate", "jit"]
MODULES += [f"auto_cuda.{name}" for name in snnkern.auto_cuda.__all__]
# What an example may use without an import.
KNOWN = {
    "snnkern": snnkern,
    "torch": torch,
    **{name: getattr(snnkern.auto_cuda, name) for name in snnkern.auto_cuda.__all__},
}


def public(module: ModuleType) -> dict[str, Any]:
    """The functions and classes of a module that users call: what __all__ names, else what it defines without an underscore."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    members = {name: getattr(module, name) for name in getattr(module, "__all__", defined) if not name.startswith("_")}
    return {name: value for name, value in members.items() if inspect.isroutine(value) or inspect.isclass(value)}


def members(value: Any) -> dict[str, Any]:
    """What a class itself defines for users: its public methods and properties."""
    defined = vars(value).items() if inspect.isclass(value) else ()
    kinds = (staticmethod, classmethod, property)
    return {k: v for k, v in defined if not k.startswith("_") and (inspect.isroutine(v) or isinstance(v, kinds))}


def names() -> list[str]:
    modules = [f"snnkern.{module}".rstrip(".") for module in MODULES]
    return [f"{module}:{name}" for module in modules for name in public(importlib.import_module(module))]


def run(test: doctest.DocTest) -> None:
    try:
        doctest.DebugRunner().run(test, clear_globs=False)
    except doctest.DocTestFailure as failure:
        told = f"{test.name}: {failure.example.source}expected {failure.example.want}got {failure.got}"
        raise AssertionError(told) from None
    except doctest.UnexpectedException as unexpected:
        raise unexpected.exc_info[1] from None  # what the example raised


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernels of the examples are compiled once a session, into a folder that is called as the user's would be."""
    monkeypatch.delenv("SNNKERN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "examples"))


@pytest.mark.parametrize("name", names())
def test_the_example_of_a_docstring_runs(name: str) -> None:
    module, _, member = name.partition(":")
    value = getattr(importlib.import_module(module), member)
    assert value.__doc__, f"{name} has no docstring"
    (test,) = doctest.DocTestFinder(recurse=False).find(value, name, globs=dict(KNOWN))
    assert test.examples, f"the docstring of {name} has no example"
    assert any(e.want or doctest.SKIP in e.options for e in test.examples), f"the example of {name} shows no result"
    run(test)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module: str) -> None:
    name = f"snnkern.{module}".rstrip(".")
    for test in doctest.DocTestFinder(recurse=False).find(importlib.import_module(name), name, globs=dict(KNOWN)):
        run(test)


def test_every_method_has_a_docstring() -> None:
    for name in names():
        module, _, member = name.partition(":")
        value = getattr(importlib.import_module(module), member)
        bare = [k for k, v in members(value).items() if not inspect.getdoc(getattr(value, k)) and k != "forward"]
        assert not bare, f"{name}: {bare} have no docstring"
