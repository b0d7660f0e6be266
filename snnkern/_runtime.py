"""Kernels that are compiled at run time, when the host first asks for one: on the CPU by the machine's compiler, on CUDA by NVRTC.

The host asks for the kernels of neurons that a user defined, of built-in neurons with a surrogate that a user defined, on
CUDA, and with parameters that change from step to step. What compiles them is imported then.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from . import _library, _specification

LOCK = threading.RLock()
ALIVE: list[Any] = []
"""What C++ points to. Operators are never taken back, since a graph may hold them."""


class Wanted(ctypes.Structure):
    """Wanted of csrc/torch/spec.h."""

    _fields_ = (
        ("neuron", ctypes.c_char_p),
        ("surrogate", ctypes.c_int),
        ("pass_", ctypes.c_int),
        ("reset", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("in_time", ctypes.c_uint32),
        ("like_x", ctypes.c_uint32),
        ("V", ctypes.c_int),
        ("steps", ctypes.c_int),
        ("architecture", ctypes.c_int),
    )


def reporting(make: Callable[..., None]) -> Callable[..., int | None]:
    """Under one lock; an exception becomes the error text that C++ takes."""

    def run(*which: Any) -> int | None:
        try:
            with LOCK:
                make(*which)
            return None
        except BaseException as error:  # an interrupted compiler too must not look like one that had nothing to do
            text = ctypes.create_string_buffer((str(error) or type(error).__name__).encode())
            ALIVE.append(text)
            return ctypes.addressof(text)

    return run


def compiled(name: str, text: str) -> int:
    """The address of what a text for the CPU defines, for the host."""
    from . import jit
    from .codegen.emit.kernels import SYMBOL

    library = jit.compile_cpu(name, text, native=True)
    ALIVE.append(library)
    return ctypes.addressof(ctypes.c_char.in_dll(library, SYMBOL))


def _make_kernel(pointer: Any, made: Any) -> None:
    from .codegen.emit import kernels
    from .codegen.emit.schema import DTYPES
    from .codegen.specification.base import RESETS

    wanted: Wanted = pointer.contents
    neuron = _specification.NEURONS[wanted.neuron.decode()]
    kernel = (list(kernels.PASSES)[wanted.pass_], RESETS[wanted.reset], list(DTYPES)[wanted.dtype])
    name, changing = ":".join((neuron.name, *kernel)), (wanted.in_time, wanted.like_x)
    if wanted.architecture == 0:
        made[0] = compiled(name, kernels.runtime_cpu_kernel(neuron, kernel, *changing))
        return
    surrogate = list(_specification.SURROGATES.values())[wanted.surrogate] if wanted.surrogate >= 0 else None
    text = kernels.runtime_cuda_kernel(neuron, surrogate, kernel, wanted.V, wanted.steps, *changing)
    if text is None:
        return
    from . import _nvrtc

    cubin = ctypes.create_string_buffer(_nvrtc.compile_cuda(name, text, f"sm_{wanted.architecture}"))
    ALIVE.append(cubin)
    made[0] = ctypes.addressof(cubin)


_MakeKernel = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Wanted), ctypes.POINTER(ctypes.c_void_p))


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_library.HOST))  # which is loaded already
    library.snnkern_define_neuron.restype = ctypes.c_char_p
    library.snnkern_define_surrogate.restype = ctypes.c_char_p
    make = _MakeKernel(reporting(_make_kernel))
    ALIVE.append(make)
    library.snnkern_set_compiler(make)
    return library


LIBRARY = _load()
