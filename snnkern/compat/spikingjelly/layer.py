"""SpikingJelly's layers: PyTorch's with a step mode, containers, and some with a memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .base import MemoryModule, MultiStepModule, StepModule


def _stepped(torchs: type[nn.Module]) -> type[nn.Module]:
    """A layer of PyTorch with a step mode."""

    def __init__(self: Any, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        torchs.__init__(self, *args, **kwargs)
        self.step_mode = step_mode

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return torchs.forward(self, x)
        return functional.seq_to_ann_forward(x, lambda y: torchs.forward(self, y))

    def extra_repr(self: Any) -> str:
        return ", ".join(part for part in (torchs.extra_repr(self), f"step_mode={self.step_mode}") if part)

    own = {"__init__": __init__, "forward": forward, "extra_repr": extra_repr, "__module__": __name__}
    return type(
        torchs.__name__, (torchs, StepModule), {**own, "__doc__": f"torch.nn.{torchs.__name__} with a step mode."}
    )


STEPPED = (
    *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "Linear", "Flatten", "Upsample"),
    *("MaxPool1d", "MaxPool2d", "MaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d"),
    *("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d"),
)
globals().update({name: _stepped(getattr(nn, name)) for name in STEPPED})


class SeqToANNContainer(nn.Sequential, MultiStepModule):
    """Layers without time, on all steps as one batch."""

    def forward(self, x_seq: Tensor) -> Tensor:
        return functional.seq_to_ann_forward(x_seq, super().forward)


class MultiStepContainer(nn.Sequential, MultiStepModule):
    """Layers for a step, on one step after the other."""

    def forward(self, x_seq: Tensor) -> Tensor:
        return functional.multi_step_forward(x_seq, super().forward)


class StepModeContainer(nn.Sequential, StepModule):
    """Layers for a step, in either step mode; with a state, one step after the other."""

    def __init__(self, stateful: bool, step_mode: str = "s", *args: nn.Module) -> None:
        super().__init__(*args)
        self.stateful, self.step_mode = stateful, step_mode

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return super().forward(x)
        run = functional.multi_step_forward if self.stateful else functional.seq_to_ann_forward
        return run(x, super().forward)


class ElementWiseRecurrentContainer(MemoryModule):
    """A layer whose last output enters its input, by a function of both."""

    def __init__(
        self, sub_module: nn.Module, element_wise_function: Callable[..., Tensor], step_mode: str = "s"
    ) -> None:
        super().__init__()
        self.step_mode = step_mode
        self.sub_module, self.element_wise_function = sub_module, element_wise_function
        self.register_memory("y", None)

    def single_step_forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x) if self.y is None else self.y
        self.y: Any = self.sub_module(self.element_wise_function(y, x))
        return self.y


class LinearRecurrentContainer(MemoryModule):
    """A layer whose last output enters its input, through a linear layer."""

    def __init__(
        self, sub_module: nn.Module, in_features: int, out_features: int, bias: bool = True, step_mode: str = "s"
    ) -> None:
        super().__init__()
        self.step_mode = step_mode
        self.sub_module_out_features = out_features
        self.rc = nn.Linear(in_features + out_features, in_features, bias)
        self.sub_module = sub_module
        self.register_memory("y", None)

    def single_step_forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(*x.shape[:-1], self.sub_module_out_features) if self.y is None else self.y
        self.y: Any = self.sub_module(self.rc(torch.cat((x, y), dim=-1)))
        return self.y


CONTAINERS = (
    SeqToANNContainer,
    MultiStepContainer,
    StepModeContainer,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
)


class Dropout(MemoryModule):
    """Drops the same elements at every step, until reset()."""

    def __init__(self, p: float = 0.5, step_mode: str = "s") -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"{type(self).__name__}: p must be at least 0 and below 1, got {p!r}")
        self.step_mode, self.p = step_mode, p
        self.register_memory("mask", None)

    def create_mask(self, x: Tensor) -> None:
        self.mask: Any = nn.functional.dropout(torch.ones_like(x), self.p, training=True)

    def single_step_forward(self, x: Tensor) -> Tensor:
        return self._drop(x, x)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        return self._drop(x_seq, x_seq[0])

    def _drop(self, x: Tensor, step: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.mask is None:
            self.create_mask(step.detach())
        return x * self.mask

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """Drops the same channels at every step, until reset()."""

    def __init__(self, p: float = 0.2, step_mode: str = "s") -> None:
        super().__init__(p, step_mode)

    def create_mask(self, x: Tensor) -> None:
        self.mask = nn.functional.dropout2d(torch.ones_like(x), self.p, training=True)


class MultiStepDropout(Dropout):
    """Dropout for whole sequences."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p, "m")


class MultiStepDropout2d(Dropout2d):
    """Dropout2d for whole sequences."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p, "m")


class SynapseFilter(MemoryModule):
    """A current that a spike sets up by one and that decays between spikes."""

    def __init__(self, tau: float = 100.0, learnable: bool = False, step_mode: str = "s") -> None:
        super().__init__()
        if not tau > 1:
            raise ValueError(f"SynapseFilter: tau must be above 1, got {tau!r}")
        self.step_mode, self.learnable = step_mode, learnable
        if learnable:
            self.w = nn.Parameter(torch.as_tensor(-math.log(tau - 1)))
        else:
            self.tau = tau
        self.register_memory("out_i", 0.0)

    def single_step_forward(self, x: Tensor) -> Tensor:
        decay = self.w.sigmoid() if self.learnable else 1 / self.tau
        self.out_i: Any = self.out_i - (1 - x) * self.out_i * decay + x
        return self.out_i


class VotingLayer(nn.Module, StepModule):
    """The average of so many neurons that vote for the same class."""

    def __init__(self, voting_size: int = 10, step_mode: str = "s") -> None:
        super().__init__()
        self.voting_size, self.step_mode = voting_size, step_mode

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.voting_size)).mean(-1)
