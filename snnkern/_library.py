"""Loads the kernels and the host that fits this torch, once, and explains a failure."""

from __future__ import annotations

import ctypes
import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .codegen import build

_FOLDER = Path(__file__).parent / "lib"
_REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _releases() -> list[str]:
    """What there is a host for."""
    found = [p.stem.removeprefix(f"lib{build.host_name('')}") for p in _FOLDER.glob(f"lib{build.host_name('')}*.so")]
    return sorted(found, key=lambda r: [int(n) if n.isdigit() else 0 for n in r.split(".")])


def _load() -> Path:
    """Where the host is that was loaded."""
    kernels = _FOLDER / f"lib{build.KERNELS}.so"
    if not kernels.exists():
        raise ImportError(
            f"snnkern: {kernels} is missing. Python found the source folder, or a build that did not finish: install with "
            f"`{_REINSTALL}` in the source folder and import from elsewhere."
        )
    host = _FOLDER / f"lib{build.host_name(torch.__version__)}.so"
    releases = " and ".join(_releases())
    if not host.exists():
        raise ImportError(
            f"snnkern: this snnkern was built for torch {releases}, and this is torch {torch.__version__}. "
            f"Rebuild it with this torch: `{_REINSTALL}` in the source folder, or install one of these."
        )
    try:
        ctypes.CDLL(str(kernels))
        torch.ops.load_library(host)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"snnkern: the library was built for torch {releases} and does not load with torch {torch.__version__}. "
            f"Rebuild it with this torch: `{_REINSTALL}` in the source folder. ({error})"
        ) from error
    return host


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
