"""Compiles and runs the text of a CUDA kernel: through NVRTC on a GPU, through the host's C++ compiler on the CPU.

What is compiled is kept in memory, and on disk in $SNNKERN_CACHE, by default snnkern below the user's cache folder. Files
there are named by a hash of all that they depend on, and appear whole or not at all, so that any number of processes and
machines may share the folder; it may be deleted at any time. When it holds more than 256 MiB, what was not used for longest
is deleted.

On CUDA a kernel needs `pip install snnkern[jit]`. It runs on torch's current stream; after its first call, that call can
be captured in a CUDA graph. On the CPU it needs a C++17 compiler: $CXX, which may have arguments (ccache g++), or c++, g++
or clang++ on the PATH. There, threads run one after another, so a kernel cannot have barriers, shared memory or atomics.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .codegen import build

Argument = int | tuple[str, float]
"""An address, for a pointer or a reference; or (float, int or half2, number), passed by value."""

_HEADERS = Path(__file__).parent / "csrc" / "kernels"
# As the library's own kernels are compiled.
_CXX_FLAGS = (build.KERNELS_STANDARD, "-O3", *build.ARITHMETIC, "-fPIC", "-shared", "-w")
_CUDA_ONLY = re.compile(
    r"\b(?:__shared__|__sync\w+|__shfl\w*|__ballot\w*|__activemask|atomic[A-Z]\w*|cooperative_groups)\b"
)

# Of the cache. What was used within the last hour stays: another process may be about to load it.
_MOST_BYTES = 256 * 2**20
_KEPT_SECONDS = 3600

_lock = threading.Lock()
_kernels: dict[tuple[str, str, int], Any] = {}


def cache_folder() -> Path:
    """Where compiled kernels are kept.

    Example:
        >>> snnkern.jit.cache_folder().name  # unless SNNKERN_CACHE or XDG_CACHE_HOME names another
        'snnkern'
    """
    if chosen := os.environ.get("SNNKERN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snnkern"


def launch(
    name: str,
    codes: str,
    arguments: Sequence[Argument],
    device: int,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared_mem: int = 0,
) -> None:
    """Runs the kernel `name` of a text, compiled once for each text and device.

    Args:
        name: the kernel, declared extern "C" __global__
        codes: the text
        arguments: one for each parameter of the kernel
        device: the number of a CUDA device, or -1 for the CPU
        grid: how many blocks, three numbers
        block: how many threads a block has, three numbers
        shared_mem: bytes of dynamic shared memory

    Raises:
        RuntimeError: what compiles it is not installed, or it does not compile; the message has the compiler's words.
        NotImplementedError: on the CPU, a kernel with barriers, shared memory or atomics.
        ValueError, TypeError: an argument is of no such form; on the CPU also another number of them than the kernel has.

    Example:
        >>> x = torch.zeros(3)
        >>> codes = '''#include <cuda_fp16.h>
        ... extern "C" __global__ void count(float * x) { x[threadIdx.x] = threadIdx.x; }'''
        >>> snnkern.jit.launch("count", codes, [x.data_ptr()], -1, (1, 1, 1), (3, 1, 1))
        >>> x
        tensor([0., 1., 2.])
    """
    _check(arguments, device, grid, block)
    key = (name, codes, device)
    run = _kernels.get(key)
    if run is None:
        with _lock:
            run = _kernels.get(key)
            if run is None:
                run = _cpu_kernel(name, codes) if device < 0 else _cuda_kernel(name, codes, device)
                _kernels[key] = run
    run(arguments, grid, block, shared_mem)


def _check(arguments: Sequence[Argument], device: int, grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    """What would be read as something else, or from beyond an array."""
    if device < -1:
        raise ValueError(f"snnkern.jit: device must be the number of a CUDA device, or -1 for the CPU, got {device}")
    for what, size in (("grid", grid), ("block", block)):
        if len(size) != 3:
            raise ValueError(f"snnkern.jit: {what} must have three numbers, got {size}")
    for argument in arguments:
        if not isinstance(argument, int) and not (isinstance(argument, tuple) and argument[0] in _VALUES):
            raise TypeError(
                f"snnkern.jit: an argument must be an address or ({' | '.join(_VALUES)}, number), got {argument!r}"
            )


def _cached(suffix: str, parts: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The file made from these parts: from the cache, or made now. `make` writes it under the name that it gets."""
    path = cache_folder() / (hashlib.sha256("\0".join(parts).encode()).hexdigest() + suffix)
    with contextlib.suppress(OSError):  # it is not there, or in a folder that others own
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used now
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=path.parent))
        except OSError as error:
            raise RuntimeError(
                f"snnkern.jit: the cache folder {path.parent} cannot be written: set SNNKERN_CACHE to one that can ({error})"
            ) from error
        try:
            make(scratch / path.name)
            (scratch / path.name).replace(path)  # at once: no other process sees half a file
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _make_room(path.parent)
    return path


def _make_room(folder: Path) -> None:
    """Deletes what was not used for longest, down to the bound."""
    files = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process deleted it
            about = file.stat()
            if file.suffix in (".so", ".cubin"):
                files.append((about.st_atime, about.st_size, file))
    total, now = sum(size for _, size, _ in files), time.time()
    for used, size, file in sorted(files):
        if total <= _MOST_BYTES or now - used < _KEPT_SECONDS:
            break
        with contextlib.suppress(OSError):
            file.unlink()
        total -= size


def _failed(compiler: str, name: str, message: str, codes: str) -> RuntimeError:
    numbered = "\n".join(f"{i:4} {line}" for i, line in enumerate(codes.splitlines(), 1))  # as the message counts them
    return RuntimeError(
        f"snnkern.jit: {compiler} does not compile the kernel {name}:\n{message}\nThe kernel is:\n{numbered}"
    )


# ---- CPU --------------------------------------------------------------------------------------------------------------

_VALUES: dict[str, Callable[[float], Any]] = {
    "int": lambda value: ctypes.c_int32(int(value)),
    "float": ctypes.c_float,
    "half2": lambda value: ctypes.c_uint32(int.from_bytes(struct.pack("=2e", value, value), "little")),
}


@functools.cache
def _compiler(chosen: str | None) -> tuple[tuple[str, ...], str]:
    """The command of the C++ compiler, and what it says about itself."""
    for candidate in (chosen,) if chosen else ("c++", "g++", "clang++"):
        program, *arguments = shlex.split(candidate) or [candidate]
        if path := shutil.which(program):
            command = (path, *arguments)
            about = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
            return command, about
    raise RuntimeError(
        f"snnkern.jit: a kernel on CPU tensors needs a C++17 compiler, and {chosen or 'c++, g++ or clang++'} was not found: "
        "install g++ or clang, or set CXX to your compiler"
    )


@functools.cache
def _header_texts() -> tuple[str, ...]:
    return tuple(p.read_text(encoding="utf-8") for p in sorted(_HEADERS.rglob("*.h")))


@functools.cache
def _processor() -> str:
    """What -march=native stands for here: machines of several kinds may share the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    return "\n".join(line for line in lines if line.startswith(("vendor", "cpu family", "model", "stepping", "flags")))


def compile_cpu(name: str, text: str, *, native: bool = False) -> ctypes.CDLL:
    """The shared library that the host's compiler makes of C++ text.

    Args:
        name: what it is, for messages
        text: it may include the headers of csrc/kernels and of csrc/kernels/on_cpu
        native: for the instruction set of this machine

    Example:
        >>> library = snnkern.jit.compile_cpu("one", 'extern "C" int one() { return 1; }')
        >>> library.one()
        1
    """
    compiler, about = _compiler(os.environ.get("CXX"))
    flags = [*_CXX_FLAGS]
    if native and platform.machine() == "x86_64":
        # Tuned as the library's own clones are: for its own kind, GCC takes narrower vectors.
        flags += ["-march=native", "-mtune=generic", "-DSNNKERN_NO_CLONES"]

    def make(path: Path) -> None:
        done = subprocess.run(
            [*compiler, *flags, f"-I{_HEADERS}", f"-I{_HEADERS / 'on_cpu'}", "-x", "c++", "-", "-o", str(path)],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise _failed(shlex.join(compiler), name, done.stderr, text)

    processor = _processor() if native else ""
    parts = [text, *compiler, about, *flags, *_header_texts(), platform.machine(), processor]
    return ctypes.CDLL(str(_cached(".so", parts, make)))


def _cpu_kernel(name: str, codes: str) -> Callable[..., None]:
    without_comments = re.sub(r"//[^\n]*|/\*.*?\*/", " ", codes, flags=re.DOTALL)
    if found := _CUDA_ONLY.search(without_comments):
        raise NotImplementedError(
            f"snnkern.jit: the kernel {name} uses {found[0]}, which works on CUDA only: on the CPU, threads run one after "
            "another. Let each thread write its own result and combine them afterwards, or move the tensors to a GPU."
        )
    function = compile_cpu(name, f"{codes}\nSNNKERN_LAUNCHER({name})\n").snnkern_launch
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_size_t

    def run(arguments: Sequence[Argument], grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        count = len(arguments)
        # A pointer is passed like a number: by the address of where it stands.
        values = [ctypes.c_void_p(a) if isinstance(a, int) else _VALUES[a[0]](a[1]) for a in arguments]
        addresses = (ctypes.c_void_p * count)(*(ctypes.addressof(v) for v in values))
        wanted = function((ctypes.c_uint32 * 6)(*grid, *block), addresses, count)
        if wanted != count:
            raise ValueError(f"snnkern.jit: the kernel {name} has {wanted} parameters, got {count} arguments")

    return run


# ---- CUDA -------------------------------------------------------------------------------------------------------------


def _cuda_core() -> tuple[Any, Any]:
    """(cuda.core, cuda.bindings.nvrtc)"""
    try:
        core, nvrtc = importlib.import_module("cuda.core"), importlib.import_module("cuda.bindings.nvrtc")
        return core if hasattr(core, "Program") else importlib.import_module("cuda.core.experimental"), nvrtc
    except ImportError as error:
        raise RuntimeError(
            f"snnkern.jit: a kernel on CUDA tensors needs cuda-core ({error}): pip install 'snnkern[jit]'"
        ) from error


@functools.cache
def _include_paths() -> tuple[str, ...]:
    """Where cuda_fp16.h is."""
    found: list[str | None] = []
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        found.append(pathfinder.find_nvidia_header_directory("cudart"))
    except (ImportError, AttributeError, RuntimeError):  # none, an old one, or one that does not find them
        pass
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found += [str(Path(home) / "include") for home in homes if home]
    paths = [path for path in dict.fromkeys(found) if path and Path(path).is_dir()]
    if not any((Path(path) / "cuda_fp16.h").exists() for path in paths):
        raise RuntimeError(
            "snnkern.jit: a kernel on CUDA tensors needs CUDA's header cuda_fp16.h, which was not found: "
            "pip install nvidia-cuda-runtime, or install the CUDA toolkit and set CUDA_HOME to it"
        )
    return tuple(paths)


def compile_cuda(name: str, codes: str, architecture: str) -> Path:
    """The cubin of a text for an architecture; it needs `pip install snnkern[jit]`, and no GPU.

    Args:
        name: the kernel, declared extern "C" __global__
        codes: the text
        architecture: e.g. sm_90

    Example:
        >>> codes = 'extern "C" __global__ void nothing() {}'
        >>> snnkern.jit.compile_cuda("nothing", codes, "sm_90").suffix  # doctest: +SKIP
        '.cubin'
    """
    core, nvrtc = _cuda_core()
    try:
        _, *version = nvrtc.nvrtcVersion()
    except RuntimeError as error:
        raise RuntimeError(
            "snnkern.jit: a kernel on CUDA tensors needs NVRTC, which comes with a CUDA build of torch, and was not found: "
            f"pip install nvidia-cuda-nvrtc ({error})"
        ) from error
    # As the library's own kernels: no contraction to fused multiply-add, and no other liberty with arithmetic.
    options = core.ProgramOptions(arch=architecture, std="c++17", fma=False, include_path=list(_include_paths()))

    def make(path: Path) -> None:
        try:
            compiled = core.Program(codes, "c++", options).compile("cubin")
        except Exception as error:  # the class depends on the version of cuda-core
            raise _failed("NVRTC", name, str(error).replace("\0", ""), codes) from error
        path.write_bytes(bytes(compiled.code))

    return _cached(".cubin", [codes, architecture, "fma=False", *map(str, version)], make)


def _cuda_kernel(name: str, codes: str, device: int) -> Callable[..., None]:
    core, _ = _cuda_core()
    major, minor = torch.cuda.get_device_capability(device)
    cubin = compile_cuda(name, codes, f"sm_{major}{minor}").read_bytes()
    with torch.cuda.device(device):
        core.Device(device).set_current()
        kernel = core.ObjectCode.from_cubin(cubin).get_kernel(name)

    def run(arguments: Sequence[Argument], grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        values = [a if isinstance(a, int) else _VALUES[a[0]](a[1]) for a in arguments]
        with torch.cuda.device(device):
            core.Device(device).set_current()  # the backward pass runs in a thread of its own
            stream = core.Stream.from_handle(torch.cuda.current_stream().cuda_stream)
            config = core.LaunchConfig(grid=grid, block=block, shmem_size=shared_mem)
            core.launch(stream, config, kernel, *values)

    return run
