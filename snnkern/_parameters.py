"""Arguments: numbers and switches as users give them, tensors in their place, and what is wrong with any other.

A wrong type is a TypeError, also of a tensor's elements; a value out of its range is a ValueError; a wrong shape or device
is a RuntimeError, as with PyTorch's own operators. The operators (csrc/torch/host.cpp) raise the same, in the same words.
"""

from __future__ import annotations

import reprlib
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .codegen.specification.base import Range

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_DTYPE_NAMES = "float32, float64, float16 or bfloat16"


def inverse(value: Tensor, x_seq: Tensor) -> Tensor:
    """1 / value in the state dtype; of a time constant, the decay in a step."""
    if not value.is_floating_point():
        return value  # which the operator refuses by name
    return 1 / value.to(torch.float64 if x_seq.dtype == torch.float64 else torch.float32)


def _plain(value: Any) -> Any:
    """What a NumPy scalar, or an array without a dimension, holds; anything else as it is."""
    is_scalar = getattr(value, "shape", None) == () and not isinstance(value, Tensor) and hasattr(value, "item")
    return value.item() if is_scalar else value


def number(where: str, name: str, value: Any, kind: str = "a number") -> Any:
    """The value as a Python number. True and '2' are none; numbers of NumPy and of a traced program are.

    Args:
        where: what was called, e.g. snnkern.functional.lif
        name: the argument
        kind: what it may be, in words
    """
    if isinstance(value, (float, int, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool):
        return value
    plain = _plain(value)
    if not isinstance(plain, Real) or isinstance(plain, bool):
        raise TypeError(f"{where}: {name} must be {kind}, got {reprlib.repr(value)}")
    return plain if isinstance(plain, (float, int)) else float(plain)


def switch(where: str, name: str, value: Any) -> Any:
    """The value as a bool; nothing else is taken for one."""
    plain = _plain(value)
    if not isinstance(plain, (bool, torch.SymBool)):
        raise TypeError(f"{where}: {name} must be True or False, got {reprlib.repr(value)}")
    return plain


def check_range(where: str, name: str, value: float, limits: Range) -> None:
    """The value is within the limits."""
    if not limits.holds(value):
        raise ValueError(f"{where}: {name} must be {limits}, got {value:g}")


def check_is_tensor(where: str, name: str, value: Any) -> None:
    """The value is a tensor, or takes part in PyTorch's functions as one."""
    if not isinstance(value, Tensor) and not hasattr(type(value), "__torch_function__"):
        raise TypeError(f"{where}: {name} must be a tensor, got {reprlib.repr(value)}")


def check_tensor(where: str, name: str, value: Tensor, x_seq: Tensor) -> None:
    """A tensor beside x_seq."""
    if value.device != x_seq.device:
        raise RuntimeError(f"{where}: {name} must be on the device of x_seq, {x_seq.device}, got {value.device}")
    check_dtype(where, name, value)


def check_dtype(where: str, name: str, value: Tensor) -> None:
    """A tensor of a floating dtype that kernels compute with."""
    if value.dtype not in DTYPES:
        raise TypeError(f"{where}: {name} must be {_DTYPE_NAMES}, got {value.dtype}")


def check_tensor_parameter(where: str, name: str, value: Tensor, limits: Range, x_seq: Tensor) -> None:
    """A tensor in the place of a number: it broadcasts against x_seq[0], or with time against x_seq, and is in range.

    The range is looked at where that costs nothing, on the CPU.
    """
    check_tensor(where, name, value, x_seq)
    want, got = list(x_seq.shape), list(value.shape)
    pairs = zip(reversed(got), reversed(want), strict=False)
    if len(got) > len(want) or any(size not in (1, wanted) for size, wanted in pairs):
        raise RuntimeError(
            f"{where}: {name} must broadcast against x_seq[0], {want[1:]}, or with time against x_seq, {want}; got shape {got}"
        )
    if limits == Range(infinite=limits.infinite) or value.device.type != "cpu" or value.numel() == 0:
        return
    value = value.detach()
    check_range(where, name, float(value.min()), limits)
    check_range(where, name, float(value.max()), limits)
    if limits.integer:
        for broken in value[value != value.floor()][:1]:
            check_range(where, name, float(broken), limits)
