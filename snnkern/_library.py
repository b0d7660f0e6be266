"""Loads the compiled library, once, and explains a failure."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_LIBRARY = Path(__file__).parent / "lib" / "libsnnkern.so"
_REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _built_for() -> str:
    """The torch requirement that the build wrote into the metadata, as torch==2.13.*"""
    try:
        needs = metadata.requires("snnkern") or []
    except metadata.PackageNotFoundError:
        return "another torch"
    return next((r for r in needs if r.startswith("torch")), "another torch")


def _check_release() -> None:
    """Before anything of the library runs: some of its functions may be other ones in this torch, and it loads all the same."""
    built = re.fullmatch(r"torch==(\d+\.\d+)\.\*", _built_for())
    if built and not re.match(rf"{re.escape(built[1])}(?!\d)", torch.__version__):
        raise ImportError(
            f"snnkern: this snnkern was built for torch {built[1]}, and this is torch {torch.__version__}. "
            f"Rebuild it with this torch: `{_REINSTALL}` in the source folder, or install torch=={built[1]}.*"
        )


def _load() -> Any:
    if not _LIBRARY.exists():
        raise ImportError(
            f"snnkern: {_LIBRARY} is missing. Python found the source folder, or a build that did not finish: install with "
            f"`{_REINSTALL}` in the source folder and import from elsewhere."
        )
    _check_release()
    try:
        torch.ops.load_library(_LIBRARY)  # type: ignore[no-untyped-call]
        return importlib.import_module("snnkern._C")
    except (OSError, ImportError) as error:
        raise ImportError(
            f"snnkern: the library was built for {_built_for()} and does not load with torch {torch.__version__}. "
            f"Rebuild it with this torch: `{_REINSTALL}` in the source folder. ({error})"
        ) from error


_C = _load()


def build_info() -> dict[str, Any]:
    """How this snnkern was built: torch, CUDA (None without it), architectures, compiler; and the CPU instruction set in use.

    `only` is what SNNKERN_ONLY restricted the build to, or None.

    Example:
        >>> snnkern.build_info()["snnkern"] == snnkern.__version__
        True
    """
    return {"snnkern": metadata.version("snnkern"), **_C.build_info()}


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
    names: list[str] = _C.kernels(device)
    return names
