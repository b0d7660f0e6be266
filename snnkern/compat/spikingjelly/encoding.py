"""SpikingJelly's encoders: numbers as spikes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .base import MemoryModule, StepModule


class StatelessEncoder(torch.nn.Module, StepModule):
    """Base of the encoders that do not know what came before."""

    def __init__(self, step_mode: str = "s") -> None:
        super().__init__()
        self.step_mode = step_mode


class PoissonEncoder(StatelessEncoder):
    """A spike with probability x, for x in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.rand_like(x) <= x).to(x)


class StatefulEncoder(MemoryModule):
    """Base of the encoders that turn one input into T steps of spikes, and give one of them at each call."""

    def __init__(self, T: int, step_mode: str = "s") -> None:
        super().__init__()
        self.T, self.step_mode = T, step_mode
        self.spike: Any
        self.t: int
        self.register_memory("spike", None)
        self.register_memory("t", 0)

    def single_step_forward(self, x: Tensor | None = None) -> Tensor:
        if self.spike is None:
            self.spike = self.single_step_encode(x)
        t, self.t = self.t, (self.t + 1) % self.T
        return self.spike[t]

    def single_step_encode(self, x: Any) -> Tensor:
        """The spikes of x, [T, ...]."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"T={self.T}"


class PeriodicEncoder(StatefulEncoder):
    """Given spikes, over and over again."""

    def __init__(self, spike: Tensor, step_mode: str = "s") -> None:
        super().__init__(spike.shape[0], step_mode)
        self.set_reset_value("spike", spike)
        self.reset()

    def single_step_encode(self, x: Any) -> Tensor:
        return x


class LatencyEncoder(StatefulEncoder):
    """One spike in T steps, the earlier the larger x is, for x in [0, 1]."""

    def __init__(self, T: int, enc_function: str = "linear", step_mode: str = "s") -> None:
        super().__init__(T, step_mode)
        if enc_function not in ("linear", "log"):
            raise ValueError(f"LatencyEncoder: enc_function must be 'linear' or 'log', got {enc_function!r}")
        self.enc_function = enc_function

    def single_step_encode(self, x: Any) -> Tensor:
        last = self.T - 1.0
        at = last - torch.log1p(math.expm1(last) * x) if self.enc_function == "log" else last * (1 - x)
        return torch.nn.functional.one_hot(at.round().long(), self.T).to(x).movedim(-1, 0)


class WeightedPhaseEncoder(StatefulEncoder):
    """The binary digits of x after the point, for x in [0, 1 - 2^-K]."""

    def __init__(self, K: int, step_mode: str = "s") -> None:
        super().__init__(K, step_mode)

    def single_step_encode(self, x: Any) -> Tensor:
        digits = torch.arange(1, self.T + 1, dtype=x.dtype, device=x.device).reshape(-1, *[1] * x.dim())
        return (x * 2**digits).floor() % 2
