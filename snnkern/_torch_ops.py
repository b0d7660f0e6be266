"""What the equations of codegen need from torch beyond operators and methods: their functions, for tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .codegen.graph.expr import SOFTPLUS_LINEAR, call, where

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "clamp": torch.clamp,
    "softplus": lambda a: torch.nn.functional.softplus(a, threshold=SOFTPLUS_LINEAR),
}


@where.register(Tensor)
def _(condition: Tensor, a: Any, b: Any) -> Tensor:
    # Two Python numbers would be taken as float32, whatever the dtype of the equation.
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        raise TypeError("where: at least one of the branches must be a tensor")
    return torch.where(condition, a, b)


@call.register(Tensor)
def _(kind: Tensor, name: str, *args: Any) -> Tensor:
    # PyTorch's own take tensors or numbers, but not both.
    return _FUNCTIONS[name](*(a if isinstance(a, Tensor) else kind.new_tensor(a) for a in args))
