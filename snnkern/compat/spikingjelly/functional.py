"""SpikingJelly's functions for networks and for sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A module, a function, or a list of such.
Layers = Any


def reset_net(net: torch.nn.Module) -> None:
    """Resets every module in a network that can be."""
    for module in net.modules():
        if callable(reset := getattr(module, "reset", None)):
            reset()


def detach_net(net: torch.nn.Module) -> None:
    """Cuts the gradient of the memories of every module in a network."""
    for module in net.modules():
        if callable(detach := getattr(module, "detach", None)):
            detach()


def set_step_mode(net: torch.nn.Module, step_mode: str) -> None:
    """Sets the step mode of a network, but not within containers that have one of their own."""
    from .layer import CONTAINERS

    modules: list[Any] = [net]
    while modules:
        module = modules.pop()
        if hasattr(module, "step_mode"):
            module.step_mode = step_mode
        if not isinstance(module, CONTAINERS):
            modules.extend(module.children())


def set_backend(net: torch.nn.Module, backend: str, instance: Any = torch.nn.Module) -> None:
    """Notes a backend, which has no effect: the operator is the same for all."""
    for module in net.modules():
        if isinstance(module, instance) and hasattr(module, "backend"):
            module.backend = backend


def _call(x: Any, layers: Layers) -> Any:
    for layer in layers if isinstance(layers, (list, tuple)) else [layers]:
        x = layer(x)
    return x


def multi_step_forward(x_seq: Tensor, single_step_module: Layers) -> Tensor:
    """Layers for a step on each step after the other."""
    return torch.stack([_call(x, single_step_module) for x in x_seq])


def seq_to_ann_forward(x_seq: Tensor, stateless_module: Layers) -> Tensor:
    """Layers without time on all steps, as one batch."""
    out: Tensor = _call(x_seq.flatten(0, 1), stateless_module)
    return out.unflatten(0, x_seq.shape[:2])


def chunk_multi_step_forward(split_size: int, x_seq: Tensor, multi_step_module: Layers) -> Tensor:
    """Layers for a sequence on so many steps at a time."""
    return torch.cat([_call(x, multi_step_module) for x in x_seq.split(split_size)])


def redundant_one_hot(labels: Tensor, num_classes: int, n: int) -> Tensor:
    """One-hot labels with n places a class."""
    return torch.nn.functional.one_hot(labels, num_classes).repeat_interleave(n, 1).to(torch.get_default_dtype())


def temporal_efficient_training_cross_entropy(x_seq: Tensor, target: Tensor) -> Tensor:
    """The cross entropy of every step, on average: Deng et al., ICLR 2022."""
    return torch.nn.functional.cross_entropy(x_seq.flatten(0, 1), target.repeat(x_seq.shape[0]))
