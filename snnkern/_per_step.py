"""Layers without time inside a network with time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._jit_internal import _copy_to_script_wrapper

from ._nn import MultiStep


def steps_to_samples(x_seq: Tensor, batch_first: bool) -> Tensor:
    """[T, N, ...] -> [T * N, ...], without a copy where time is outermost in memory."""
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"snnkern.nn.PerStep: x_seq must be a Tensor, got {type(x_seq).__name__}")
    if x_seq.dim() < 2 or x_seq.shape[1 if batch_first else 0] == 0:
        axes = "[N, T, ...]" if batch_first else "[T, N, ...]"
        raise ValueError(f"snnkern.nn.PerStep: x_seq must be {axes} with T >= 1, got shape {list(x_seq.shape)}")
    steps = x_seq.transpose(0, 1) if batch_first else x_seq
    if steps.stride(0) != steps.shape[1] * steps.stride(1) and steps.shape[0] > 1 and steps.shape[1] > 1:
        # A copy, then, in which each step keeps its layout, such as channels_last, and which no layer after this one repeats.
        steps = torch.empty_like(steps[:1].expand(steps.shape)).copy_(steps)
    return steps.flatten(0, 1)


def samples_to_steps(samples: Tensor, x_seq: Tensor, batch_first: bool) -> Tensor:
    """[T * N, ...] -> [T, N, ...], with T and N of x_seq."""
    if not isinstance(samples, Tensor):
        raise TypeError(f"snnkern.nn.PerStep: the layers must return one Tensor, got {type(samples).__name__}")
    T, N = x_seq.shape[1 if batch_first else 0], x_seq.shape[0 if batch_first else 1]
    if samples.dim() == 0 or samples.shape[0] != T * N:
        raise ValueError(
            f"snnkern.nn.PerStep: the layers must keep the first axis, all samples of all steps: "
            f"they got {T * N} and returned shape {list(samples.shape)}"
        )
    x_seq = samples.unflatten(0, (T, N))  # type: ignore[no-untyped-call]
    return x_seq.transpose(0, 1) if batch_first else x_seq


# torch.fx takes each as one call: it cannot trace checks of shapes.
torch.fx.wrap("steps_to_samples")
torch.fx.wrap("samples_to_steps")


class PerStep(torch.nn.Sequential):
    """Layers without time, applied to all steps as one batch: [T, N, ...] -> [T, N, ...].

    Convolutions, linear layers, normalisation, pooling and the like know no time. To them, T steps of N samples are T * N
    samples, which is also how BatchNorm takes its statistics: over all steps.

    It is a torch.nn.Sequential, and its state_dict has the same keys. Nothing is copied where time is outermost in memory, as
    it is in what a neuron returns; else the input is copied once, and each step keeps its layout (channels_last).

    Args:
        layers: modules, called one after the other, or one OrderedDict of them. Each takes and returns one tensor whose
            first axis is the samples. Neurons belong beside a PerStep, not into it.
        batch_first: input and output are [N, T, ...]; computed is the same.

    Raises:
        TypeError: a neuron, or another PerStep, among the layers; input or output that is not one tensor.
        ValueError: an input without T and N or with T = 0; layers that change the number of samples.

    Example:
        >>> layers = snnkern.nn.PerStep(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8))
        >>> net = torch.nn.Sequential(layers, snnkern.nn.LIF())
        >>> net(torch.rand(4, 2, 1, 8, 8)).shape  # [T, N, C, H, W]
        torch.Size([4, 2, 8, 6, 6])
    """

    def __init__(self, *layers: Any, batch_first: bool = False) -> None:
        super().__init__(*layers)
        self.batch_first = batch_first
        self._check_layers()

    def _check_layers(self) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, (MultiStep, PerStep)) and layer is not self:
                kind = type(layer).__name__
                raise TypeError(
                    f"snnkern.nn.PerStep: layer {name} is a {kind}, which needs to see the time steps, and inside PerStep they are "
                    f"samples of one batch: put the {kind} after the PerStep, and what follows it into another PerStep"
                )

    @_copy_to_script_wrapper
    def __getitem__(self, index: Any) -> Any:
        part: Any = torch.nn.Sequential.__getitem__(self, index)  # without super(), since a scripted module gets a copy
        if isinstance(index, slice):
            part.batch_first = self.batch_first
        return part

    def forward(self, x_seq: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check_layers()  # layers may be put in at any time
        x = steps_to_samples(x_seq, self.batch_first)
        for layer in self:
            x = layer(x)
        return samples_to_steps(x, x_seq, self.batch_first)

    def extra_repr(self) -> str:
        return "batch_first=True" if self.batch_first else ""
