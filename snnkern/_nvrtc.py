"""NVRTC, CUDA's compiler as a library: it makes kernels of csrc/kernels for a GPU, without CUDA's toolkit and headers."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import jit
from .codegen import build

# As the library's own kernels are compiled. Functions without an annotation are for the device.
_OPTIONS = (build.KERNELS_STANDARD, *build.NVCC_ARITHMETIC, "-default-device")
# What csrc/kernels includes of the toolkit and of C++: as much of it as is used.
_STAND_INS = {
    "cuda_runtime.h": "",
    "cstring": "",
    "cmath": "#define INFINITY __int_as_float(0x7f800000)\n",
    "cstdint": """
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long long;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;
#define INT32_MAX 2147483647
""",
    "type_traits": """
namespace std {
template <bool B, class T, class F>
struct conditional { using type = T; };
template <class T, class F>
struct conditional<false, T, F> { using type = F; };
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;
template <class T, class U>
constexpr bool is_same_v = false;
template <class T>
constexpr bool is_same_v<T, T> = true;
}
""",
}


def compile_cuda(name: str, text: str, architecture: str) -> bytes:
    """The machine code of a text that includes csrc/kernels, from the cache of snnkern.jit or made now. It needs no GPU.

    Args:
        name: what it is, for messages
        text: CUDA C++
        architecture: e.g. sm_90

    Raises:
        RuntimeError: NVRTC was not found, or does not compile it; the message has its words and the text.
    """
    place = _find(torch.version.cuda)

    def make(path: Path) -> None:
        path.write_bytes(_compile(_library(place), name, text, architecture))

    # Loading the library only to ask for its version would take longer than to load the kernel.
    parts = [text, architecture, *_OPTIONS, *_headers(), *_headers().values(), place.name, str(place.stat().st_size)]
    return jit._cached(".cubin", parts, make).read_bytes()


@functools.cache
def _headers() -> dict[str, str]:
    written = [p for p in sorted(jit._HEADERS.iterdir()) if p.suffix in (".h", ".cuh") and p.stem != "multistep_cpu"]
    return {**{p.name: p.read_text(encoding="utf-8") for p in written}, **_STAND_INS}


@functools.cache
def _find(cuda: str | None) -> Path:
    """libnvrtc of torch's CUDA: it comes with a CUDA build of torch, with the toolkit, and as a package of its own."""
    major = (cuda or "13").partition(".")[0]
    for folder in _folders():
        place = Path(folder) / f"libnvrtc.so.{major}"
        if place.exists():
            return place.resolve()
    package = "nvidia-cuda-nvrtc" if int(major) >= 13 else f"nvidia-cuda-nvrtc-cu{major}"
    raise RuntimeError(
        f"a kernel on CUDA tensors that is compiled at run time needs NVRTC {major}, which comes with a CUDA build of torch, "
        f"and was not found: pip install '{package}=={major}.*', or install the CUDA toolkit and set CUDA_HOME to it"
    )


def _folders() -> Iterator[str]:
    """Where it may be: in the packages that torch brings, in a toolkit, where the system looks."""
    found = importlib.util.find_spec("nvidia")
    for root in (found.submodule_search_locations if found else None) or ():
        for library in sorted(Path(root).glob("*/lib")):
            yield str(library)
    yield str(Path(torch.__file__).parent / "lib")
    yield str(Path(sys.prefix) / "lib")  # conda's
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home:
            yield str(Path(home) / "lib64")
    yield from os.environ.get("LD_LIBRARY_PATH", "").split(":")
    yield from ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


@functools.cache
def _library(place: Path) -> Any:
    # NVRTC itself looks for this one where the system does.
    for builtins in sorted(place.parent.glob(f"libnvrtc-builtins.so.{place.name.split('.so.')[-1].split('.')[0]}*")):
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(place))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _compile(library: Any, name: str, text: str, architecture: str) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def call(function: str, *arguments: Any) -> None:
        if status := getattr(library, function)(*arguments):
            raise RuntimeError(f"NVRTC: {function}: {library.nvrtcGetErrorString(status).decode()}")

    def strings(values: Any) -> Any:
        values = [v.encode() for v in values]
        return (ctypes.c_char_p * len(values))(*values)

    def output(kind: str) -> bytes:
        call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{kind}", program, buffer)
        return buffer.raw

    headers, options = _headers(), [*_OPTIONS, f"-arch={architecture}"]
    call(
        "nvrtcCreateProgram",
        ctypes.byref(program),
        text.encode(),
        b"kernel.cu",
        len(headers),
        strings(headers.values()),
        strings(headers),
    )
    try:
        if library.nvrtcCompileProgram(program, len(options), strings(options)):
            log = output("ProgramLog").rstrip(b"\0").decode()
            raise jit._failed("NVRTC", name, log, text)
        return output("CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
