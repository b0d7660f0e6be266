"""A BatchNorm in front of a neuron, as one call of the operator `<neuron>_norm_forward` has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ._parameters import check_is_tensor, number, switch
from ._states import recomputes


class Norm(NamedTuple):
    """What torch.nn.functional.batch_norm takes, and what is added to its result before the neuron."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float | Tensor = 0.1
    eps: float = 1e-5
    residual_seq: Tensor | None = None
    with_sum: bool = False
    process_group: Any = None  # whose processes share the statistics
    channel_dim: int = 2  # of x_seq

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments beside those of the neuron. Without mean and var it takes those of x_seq."""
        group: Any = self.process_group if self.training else None
        size = 1 if group is None else group.size()
        return {
            "weight": self.weight,
            "bias": self.bias,
            "mean": None if self.training else self.running_mean,
            "var": None if self.training else self.running_var,
            "residual_seq": self.residual_seq,
            "eps": self.eps,
            "with_sum": self.with_sum,
            "group": None if size == 1 else group.group_name,
            "group_size": size,
            "channel_dim": self.channel_dim,
        }

    def swapped(self, swap: Callable[[Tensor], Tensor]) -> Norm:
        """The same for sequences that lie the other way round."""
        return self if self.residual_seq is None else self._replace(residual_seq=swap(self.residual_seq))

    def track(self, statistics: Tensor) -> None:
        """Moves the running statistics towards those of x_seq: mean, var and unbiased var, [3, C]."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return
        with torch.no_grad():
            for running, value in ((self.running_mean, statistics[0]), (self.running_var, statistics[2])):
                momentum = self.momentum
                if isinstance(momentum, Tensor):
                    momentum = momentum.to(running.dtype)
                running.lerp_(value.to(running.dtype), momentum)


def checked(where: str, norm: Norm) -> Norm:
    """What a user gave, for the operator, which checks shapes, dtypes and devices.

    Raises:
        TypeError: of another type.
        ValueError: no running statistics in evaluation, or one of the two alone.
    """
    for name in ("running_mean", "running_var", "weight", "bias", "residual_seq"):
        value = getattr(norm, name)
        if value is not None and not isinstance(value, Tensor):
            check_is_tensor(where, name, value)
    if (norm.running_mean is None) != (norm.running_var is None):
        raise ValueError(f"{where}: running_mean and running_var must be given together, or neither")
    if norm.running_mean is None and not norm.training:
        raise ValueError(f"{where}: running_mean and running_var must be given with training=False, got None")
    check_group(where, norm.process_group)
    if isinstance(norm.channel_dim, bool) or not isinstance(norm.channel_dim, int):
        raise TypeError(f"{where}: channel_dim must be an integer, got {norm.channel_dim!r}")
    momentum = norm.momentum if isinstance(norm.momentum, Tensor) else number(where, "momentum", norm.momentum)
    return norm._replace(
        training=switch(where, "training", norm.training),
        momentum=momentum,
        eps=number(where, "eps", norm.eps),
        with_sum=switch(where, "with_sum", norm.with_sum),
    )


def check_group(where: str, group: Any) -> None:
    """A process group, or None."""
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"{where}: process_group must be a torch.distributed.ProcessGroup or None, got {group!r}")


def _group_of(layer: _NormBase) -> Any:
    """The processes that share the layer's statistics in training: torch.nn.SyncBatchNorm has all of them by default."""
    group = getattr(layer, "process_group", None)
    if group is None and isinstance(layer, torch.nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group


def norm_of(layer: _NormBase) -> Norm:
    """What a call of the layer normalises with, as torch.nn.BatchNorm2d has it, and counts the call.

    A recomputation of torch.utils.checkpoint takes the same statistics, but neither counts nor moves those that are kept.
    """
    norm = Norm(layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
    if not layer.training:
        return norm._replace(training=layer.running_mean is None)
    norm = norm._replace(training=True, process_group=_group_of(layer))
    if not layer.track_running_stats or layer.running_mean is None or recomputes():
        return norm._replace(running_mean=None, running_var=None)
    momentum: float | Tensor = 0.0 if layer.momentum is None else layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:  # the mean of all batches
            momentum = layer.num_batches_tracked.to(layer.running_mean.dtype).reciprocal()
    return norm._replace(momentum=momentum)
