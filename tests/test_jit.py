"""How kernels of one's own are compiled: once, kept on disk for every process, with errors that say what to install."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from snnkern import jit, surrogate
from snnkern.auto_cuda import base, cfunction, neuron_kernel

from support import SURROGATE_CLASSES


def kernel(number: float = 1.0) -> base.CKernel1D:
    made = base.CKernel1D("plus")
    made.add_param("float *", "y")
    made.core = f"y[index] += {number}f;"
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on disk and in memory."""
    monkeypatch.setenv("SNNKERN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_kernels", {})
    return tmp_path / "cache"


def call(number: float = 1.0, device: str = "cpu") -> list[float]:
    y = torch.zeros(3, device=device)
    kernel(number).simple_call(y=y)
    return y.tolist()


def no_compiler(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("compiled again")


def test_is_imported_when_it_is_asked_for() -> None:
    """A network needs neither, so `import snnkern` does not wait for them."""
    program = """
import sys, snnkern
assert not {"snnkern.auto_cuda", "snnkern.jit"} & set(sys.modules) and {"auto_cuda", "jit"} <= set(dir(snnkern))
print(snnkern.auto_cuda.base.CKernel1D.__name__, snnkern.auto_cuda.neuron_kernel.__name__, snnkern.jit.__name__)
snnkern.no_such_name
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["CKernel1D", "snnkern.auto_cuda.neuron_kernel", "snnkern.jit"]
    assert "module 'snnkern' has no attribute 'no_such_name'" in done.stderr


def test_compiled_once(cache: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(1.0, device) == [1.0] * 3 and call(2.0, device) == [2.0] * 3
    files = sorted(cache.iterdir())
    assert [f.suffix for f in files] == [".so" if device == "cpu" else ".cubin"] * 2
    monkeypatch.setattr(jit, "_cached", no_compiler)
    assert call(1.0, device) == [1.0] * 3  # from memory
    monkeypatch.undo()
    monkeypatch.setenv("SNNKERN_CACHE", str(cache))
    jit._kernels.clear()
    monkeypatch.setattr(jit, "_failed", no_compiler)
    before = [f.stat().st_mtime_ns for f in files]
    assert call(2.0, device) == [2.0] * 3  # from disk
    assert sorted(cache.iterdir()) == files and [f.stat().st_mtime_ns for f in files] == before


def test_the_cache_knows_the_flags(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call()
    monkeypatch.setattr(jit, "_CXX_FLAGS", (*jit._CXX_FLAGS, "-O1"))
    monkeypatch.setattr(jit, "_kernels", {})
    call()
    assert len(list(cache.iterdir())) == 2


PROGRAM = """
import sys, torch
from snnkern.auto_cuda import base
kernel = base.CKernel1D("plus")
kernel.add_param("float *", "y")
kernel.core = "y[index] += 3.0f;"
y = torch.zeros(3, device=sys.argv[1])
kernel.simple_call(y=y)
assert y.tolist() == [3.0] * 3
"""


def test_several_processes_at_once(cache: Path, device: str) -> None:
    running = [subprocess.Popen([sys.executable, "-P", "-c", PROGRAM, device]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(list(cache.iterdir())) == 1  # and nothing half-made is left


def test_several_threads_at_once(cache: Path, device: str) -> None:
    results: list[list[float]] = []
    running = [threading.Thread(target=lambda: results.append(call(5.0, device))) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert results == [[5.0] * 3] * 8 and len(list(cache.iterdir())) == 1


def test_a_failed_compilation_leaves_nothing_and_can_be_repeated(cache: Path, device: str) -> None:
    for _ in range(2):
        broken = kernel()
        broken.core = "this is no code;"
        with pytest.raises(RuntimeError, match=r"(?s)does not compile the kernel plus.*\n +\d+ .*this is no code;"):
            broken.simple_call(y=torch.zeros(3, device=device))
    assert list(cache.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNNKERN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert jit.cache_folder() == Path("/somewhere/snnkern")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert jit.cache_folder() == Path("/home/me/.cache/snnkern")


def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    with pytest.raises(RuntimeError, match=r"the cache folder .* cannot be written: set SNNKERN_CACHE"):
        call()


def test_a_compiler_with_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX="ccache g++", say: the program and what it is called with."""
    monkeypatch.setenv("CXX", f"env SNNKERN_UNUSED=1 {shutil.which('c++') or 'g++'} -O1")
    call()
    assert any(cache.glob("*.so"))


ONE = '#include <cuda_fp16.h>\nextern "C" __global__ void {}(float * x, int n) {{ x[threadIdx.x] = n; }}'


@pytest.mark.parametrize("name", ["one", "size", "arguments", "count", "kernel", "indices"])
def test_a_kernel_may_have_any_name(name: str) -> None:
    x = torch.zeros(3)
    jit.launch(name, ONE.format(name), [x.data_ptr(), ("int", 7)], -1, (1, 1, 1), (3, 1, 1))
    assert x.tolist() == [7.0] * 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_arguments_as_parameters(count: int) -> None:
    """What is missing would be read from beyond the array."""
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=f"the kernel one has 2 parameters, got {count} arguments"):
        jit.launch("one", ONE.format("one"), [x.data_ptr(), *[("int", 7)] * 2][:count], -1, (1, 1, 1), (3, 1, 1))
    assert x.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (TypeError, "an argument must be an address or (int | float | half2, number), got ('double', 1.0)", {"arguments": [("double", 1.0)]}),
        (TypeError, "an argument must be an address or (int | float | half2, number), got 1.5", {"arguments": [1.5]}),
        (ValueError, "device must be the number of a CUDA device, or -1 for the CPU, got -2", {"device": -2}),
        (ValueError, "grid must have three numbers, got (1,)", {"grid": (1,)}),
        (ValueError, "block must have three numbers, got (3, 1)", {"block": (3, 1)}),
    ],
)  # fmt: skip
def test_wrong_launches(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"arguments": [], "device": -1, "grid": (1, 1, 1), "block": (3, 1, 1)}
    with pytest.raises(error, match=re.escape(message)):
        jit.launch("one", ONE.format("one"), **{**usual, **changed})


def test_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RuntimeError, match=r"compiler, and no-such-compiler was not found: install g\+\+ or clang, or set CXX"
    ):
        call()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(cache))
    jit._compiler.cache_clear()
    with pytest.raises(
        RuntimeError, match=r"needs a C\+\+17 compiler, and c\+\+, g\+\+ or clang\+\+ was not found: install g\+\+"
    ):
        call()


def test_no_cuda_core(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        RuntimeError, match=r"needs cuda-core \(No module named 'cuda.core'\): pip install 'snnkern\[jit\]'"
    ):
        jit.compile_cuda("k", "", "sm_90")


# ---- every text compiles for CUDA, here where there may be no GPU -------------------------------------------------------


def texts() -> dict[str, str]:
    """Every neuron kernel, and every function of cfunction, as whole CUDA files."""
    made: list[base.CKernel] = []
    for dtype in ("float", "half2"):
        for hard in (True, False):
            for node, flags in (
                ("IF", ()),
                *(("LIF", (f,)) for f in (True, False)),
                *(("ParametricLIF", (f,)) for f in (True, False)),
            ):
                made.append(getattr(neuron_kernel, f"{node}NodeFPTTKernel")(*flags, hard, dtype))
                for detach in (True, False):
                    backward = getattr(neuron_kernel, f"{node}NodeBPTTKernel")(
                        *flags, surrogate.ATan(), hard, detach, dtype
                    )
                    backward.kernel_name += "_detached" if detach else ""
                    made.append(backward)
        x, y, z, m, n = (f"{name}[index]" for name in "xyzmn")
        calls = {
            "constant": (0.1,), "power": (x, y), "if_else": (x, y, m), "if_else_else": (x, y, z, m, n), "greater_equal": (x, y),
            "greater_than": (x, y), "minimal": (x, y), "maximum": (x, y), "add": (x, y), "sub": (x, y), "mul": (x, y), "div": (x, y),
            "heaviside": (x,), "neg": (x,), "abs": (x,), "exp": (x,), "sigmoid": (x, 2.0), "sigmoid_backward": (x, 2.0),
            "piecewise_leaky_relu_backward": (x, 1.0, 0.01),
        }  # fmt: skip
        codes = {name: (getattr(cfunction, name), values) for name, values in calls.items()}
        functions = base.CKernel1D(f"functions_{dtype}")
        for name in "xyzmnw":
            functions.add_param(f"{dtype} *", name)
        typer = base.CodeTyper(0)
        for function, values in codes.values():
            typer.append(function("w[index]", *values, dtype=dtype))
            typer.append(f"w[index] = {function(None, *values, dtype=dtype)};")
        for cls in SURROGATE_CLASSES.values():
            typer.append(cls().cuda_codes(y="w[index]", x=x, dtype=dtype))
        if dtype == "half2":
            typer.append(cfunction.float2half2("w[index]", "1.0f"))
        functions.core = typer.codes
        made.append(functions)
    return {k.kernel_name: k.full_codes for k in made}


def test_every_text_compiles_with_nvcc(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc", path=f"{os.environ['PATH']}:{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")
    if nvcc is None:
        pytest.skip("nvcc is not here")
    source = tmp_path / "all.cu"
    source.write_text("\n".join(texts().values()))
    done = subprocess.run(
        [nvcc, "-arch=sm_90", "-Ofc=max", "-cubin", "-o", tmp_path / "all.cubin", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_text_compiles_with_nvrtc(architecture: str, cache: Path) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not here")
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not here")
    for name, text in texts().items():
        assert jit.compile_cuda(name, text, architecture).stat().st_size > 0
