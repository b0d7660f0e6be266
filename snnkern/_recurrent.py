"""What the recurrent modules of snnkern.nn have beside a neuron: the weights through which its spikes come back."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from ._parameters import switch
from .codegen.specification.base import Neuron


class Recurrent(torch.nn.Module):
    """Stands before MultiStep in the bases of a recurrent neuron."""

    _fed_back: ClassVar[tuple[str, ...]] = ("spike",)
    _usual: ClassVar[dict[str, Any]] = {}
    size: int
    weight_hh: torch.Tensor
    bias_hh: torch.Tensor | None

    @classmethod
    def _bind(cls, neuron: type[Neuron]) -> None:
        super()._bind(neuron)  # type: ignore[misc]
        cls._usual |= {"bias": True, "diagonal": False, "detach_recurrent": False}

    def _refuses_norm(self) -> str:
        """Why it cannot run behind a BatchNorm as one operator."""
        return f"{type(self).__name__} feeds its spikes back"

    def _connect(self, size: int, bias: bool, diagonal: bool, detach_recurrent: bool) -> None:
        """Takes the arguments of the constructor, and makes the weights."""
        where = f"snnkern.nn.{type(self).__name__}"
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{where}: size must be a positive integer, got {size!r}")
        self.size = size
        self.bias = switch(where, "bias", bias)
        self.diagonal = switch(where, "diagonal", diagonal)
        self.detach_recurrent = switch(where, "detach_recurrent", detach_recurrent)
        self.weight_hh = torch.nn.Parameter(torch.empty((size,) if self.diagonal else (size, size)))
        self.register_parameter("bias_hh", torch.nn.Parameter(torch.empty(size)) if self.bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew, as torch.nn.RNN does."""
        bound = 1 / math.sqrt(self.size)
        for weight in (self.weight_hh, self.bias_hh):
            if weight is not None:
                torch.nn.init.uniform_(weight, -bound, bound)
