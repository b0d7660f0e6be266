"""Loads the kernels and the host that fits this torch, once, and explains a failure."""

from __future__ import annotations

import ctypes
import importlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .codegen import build

_FOLDER = Path(__file__).parent / "lib"
KERNELS = _FOLDER / f"lib{build.KERNELS}.so"
_REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _releases() -> list[str]:
    """What there is a host for."""
    prefix = f"lib{build.HOST}"
    found = [p.stem.removeprefix(prefix).replace("_", ".") for p in _FOLDER.glob(f"{prefix}*.so")]
    return sorted(found, key=lambda r: [int(n) if n.isdigit() else 0 for n in r.split(".")])


def _load() -> Path:
    """Where the host is that was loaded."""
    if not KERNELS.exists():
        raise ImportError(
            f"snnkern: {KERNELS} is missing. Python found the source folder, or a build that did not finish: install with "
            f"`{_REINSTALL}` in the source folder and import from elsewhere."
        )
    host = _FOLDER / f"lib{build.host_name(torch.__version__)}.so"
    if not host.exists():
        host = _compile(host.stem.removeprefix("lib"))
    try:
        ctypes.CDLL(str(KERNELS))  # a host in the cache finds it by its name, since it is loaded
        torch.ops.load_library(host)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"snnkern: {host} does not load with torch {torch.__version__}. "
            f"Build snnkern for this torch: `{_REINSTALL}` in the source folder. ({error})"
        ) from error
    return host


def _compile(library: str) -> Path:
    """The host for a torch that the package has none for: from the cache of snnkern.jit, or compiled now."""
    from . import jit

    csrc, home = Path(__file__).parent / "csrc", Path(torch.__file__).parent
    sources = build.host_sources(csrc)
    read = [*sources, *(p for room in ("generated", "kernels", "torch") for p in sorted((csrc / room).glob("*.h")))]
    try:
        compiler, about = jit._compiler(os.environ.get("CXX"))
    except RuntimeError as error:
        raise ImportError(_no_host("compiling them here needs a C++ compiler, and none was found")) from error
    compile_it = [*compiler, *build.HOST_CXX, *build.CXX, "-fPIC", f"-I{home / 'include'}"]
    link = [f"-L{_FOLDER}", f"-L{home / 'lib'}", *build.host_link_flags(library)]

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImportError(_no_host(f"compiling them here failed: {shlex.join(command)}\n{done.stderr}"))

    def make(path: Path) -> None:
        print(
            f"snnkern: compiling its operators for torch {torch.__version__}, once: about a minute",
            file=sys.stderr,
            flush=True,
        )
        objects = [str(path.with_name(f"{source.stem}.o")) for source in sources]
        with ThreadPoolExecutor() as pool:
            list(pool.map(run, [[*compile_it, "-c", str(s), "-o", o] for s, o in zip(sources, objects, strict=True)]))
        run([*compiler, "-shared", *objects, *link, "-o", str(path)])

    parts = [torch.__version__, str(home), *compile_it, about, *(p.read_text(encoding="utf-8") for p in read)]
    try:
        return jit._cached(".so", parts, make)
    except RuntimeError as error:  # the cache cannot be written
        raise ImportError(_no_host(str(error))) from error


def _no_host(reason: str) -> str:
    return (
        f"snnkern: this is torch {torch.__version__}, and this snnkern has operators for torch {' and '.join(_releases())}; "
        f"{reason}. Install one of these torch, or build snnkern for yours: `{_REINSTALL}` in the source folder."
    )


HOST = _load()
_C: Any = importlib.import_module("snnkern._C")


def build_info() -> dict[str, Any]:
    """How this snnkern was built: torch, CUDA (None without it), architectures, compiler; and the CPU instruction set in use.

    `only` is what SNNKERN_ONLY restricted the build to, or None.

    Example:
        >>> snnkern.build_info()["snnkern"] == snnkern.__version__
        True
    """
    return {"snnkern": metadata.version("snnkern"), **_C.build_info(str(HOST))}


def kernels(device: str = "cpu") -> list[str]:
    """The combinations compiled for "cpu" or "cuda", as 'lif:atan:hard:f32': neuron, surrogate, reset, dtype.

    A build has the same for both, or none for "cuda".

    Args:
        device: "cpu" or "cuda"

    Example:
        >>> "lif:sigmoid:hard:f32" in snnkern.kernels("cpu")
        True
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f'snnkern.kernels: device must be "cpu" or "cuda", got {device!r}')
    names: list[str] = _C.kernels(str(HOST), device)
    return names
