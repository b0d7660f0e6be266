"""What the equations of codegen need from torch beyond operators and methods: a choice by a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .codegen.graph.expr import where


@where.register(Tensor)
def _(condition: Tensor, a: Any, b: Any) -> Tensor:
    # Two Python numbers would be taken as float32, whatever the dtype of the equation.
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        raise TypeError("where: at least one of the branches must be a tensor")
    return torch.where(condition, a, b)
