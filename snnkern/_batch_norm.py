"""BatchNorm and neuron in one module."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _NormBase

from ._networks import Foreign
from ._nn import MultiStep, call_in
from ._norm import check_group, norm_of
from ._parameters import check_is_tensor, number, switch


class BatchNormNeuron(_NormBase):
    """A BatchNorm and a neuron, as one operator: what lies between them is not stored.

    Input and output are [T, N, C, ...]. Statistics are those of each channel, over time, batch and space, M values in all:

        mean = sum x / M,  var = sum (x - mean)^2 / M
        y = (x - mean) / sqrt(var + eps) * weight + bias + residual
        s = neuron(y)
        running = (1 - momentum) * running + momentum * (mean, var * M / (M - 1))

    In evaluation, running_mean and running_var take the place of mean and var. Autograd keeps x, the residual and the
    statistics; sums are added up in a fixed order, so that gradients are the same bits on every run.

    Parameters and buffers have the names of torch.nn.BatchNorm2d: weight, bias, running_mean, running_var and
    num_batches_tracked; the neuron is the submodule `neuron`, with its own state (`layer.neuron.v`), which
    `snnkern.nn.reset` and `detach` reach. To put the two into one where a network has them already, see `snnkern.fuse`.

    A recomputation of torch.utils.checkpoint leaves the running statistics alone; torch's BatchNorm counts the batch twice.
    TorchScript cannot compile it.

    Args:
        num_features: channels, C
        neuron: one of snnkern.nn, or of SpikingJelly after snnkern.convert, with step_mode='m'; its batch_first counts for all
            sequences: [N, T, C, ...]
        eps: added to var, > 0
        momentum: how far the running statistics move in a call; None: they are the mean of all batches
        affine: weight and bias are learned; False: 1 and 0
        track_running_stats: keep running statistics; False: those of x_seq, in evaluation as well
        process_group: processes of torch.distributed that share their statistics in training, as in torch.nn.SyncBatchNorm (whose
            convert_sync_batchnorm leaves this module as it is): M is the number of values of all; None: this process alone

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: neuron is none that can run behind a BatchNorm, and why not.
        RuntimeError: a call with another number of channels, or a residual of another shape; or a hook was registered on the
            neuron, which would not be called.

    Example:
        >>> layer = snnkern.nn.BatchNormNeuron(8, snnkern.nn.LIF(tau=3.0))
        >>> net = torch.nn.Sequential(snnkern.nn.PerStep(torch.nn.Conv2d(3, 8, 3, bias=False)), layer)
        >>> net(torch.rand(4, 2, 3, 6, 6)).shape  # [T, N, C, H, W]
        torch.Size([4, 2, 8, 4, 4])
        >>> layer.neuron.v.shape
        torch.Size([2, 8, 4, 4])
        >>> spike_seq, sum_seq = layer(torch.rand(4, 2, 8, 4, 4), torch.rand(4, 2, 8, 4, 4), with_sum=True)

    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """

    def __init__(
        self,
        num_features: int,
        neuron: torch.nn.Module,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
    ) -> None:
        if isinstance(num_features, bool) or not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"{_NAME}: num_features must be a positive integer, got {num_features!r}")
        if not isinstance(neuron, (MultiStep, Foreign)) or not hasattr(neuron, "_refuses_norm"):
            raise TypeError(f"{_NAME}: neuron must be a neuron of snnkern, got {type(neuron).__name__}")
        if why := neuron._refuses_norm():
            raise TypeError(f"{_NAME}: neuron cannot run behind a BatchNorm: {why}")
        if not number(_NAME, "eps", eps) > 0:
            raise ValueError(f"{_NAME}: eps must be > 0, got {eps!r}")
        if momentum is not None:
            momentum = number(_NAME, "momentum", momentum, "a number or None")
        super().__init__(
            num_features,
            eps,
            momentum,
            switch(_NAME, "affine", affine),
            switch(_NAME, "track_running_stats", track_running_stats),
        )
        check_group(_NAME, process_group)
        self.neuron = neuron
        self.process_group = process_group

    @property
    def batch_first(self) -> bool:
        """Whether sequences are [N, T, C, ...]: the neuron's."""
        return bool(getattr(self.neuron, "batch_first", False))

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(f"{_NAME}: TorchScript cannot compile it; torch.compile and torch.export can")

    def forward(
        self, x_seq: Tensor, residual_seq: Tensor | None = None, with_sum: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The spikes, and the neuron's state is kept.

        Args:
            x_seq: [T, N, C, ...], T >= 1; float32, float64, float16 or bfloat16
            residual_seq: added behind the BatchNorm, with the shape of x_seq
            with_sum: return y as well, what the neuron gets

        Returns:
            spikes with the shape and dtype of x_seq; with_sum: (spikes, y)
        """
        if isinstance(x_seq, Proxy):
            return call_in(self, type(self).forward is not BatchNormNeuron.forward, x_seq, residual_seq, with_sum)
        for name, value in (("x_seq", x_seq), ("residual_seq", residual_seq)):
            if name == "x_seq" or value is not None:
                check_is_tensor(_NAME, name, value)
        if x_seq.dim() < 3 or x_seq.shape[2] != self.num_features:
            axes = "[N, T, C, ...]" if self.batch_first else "[T, N, C, ...]"
            raise RuntimeError(
                f"{_NAME}: x_seq must be {axes} with C = num_features = {self.num_features}, got shape {list(x_seq.shape)}"
            )
        neuron: Any = self.neuron
        if has_hooks(neuron):
            raise RuntimeError(
                f"{_NAME}: a hook on its neuron would not be called: register it on the {type(self).__name__}"
            )
        norm = norm_of(self)._replace(residual_seq=residual_seq, with_sum=switch(_NAME, "with_sum", with_sum))
        spike_seq, sum_seq = neuron._normed(x_seq, norm)
        return (spike_seq, sum_seq) if norm.with_sum else spike_seq


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


_NAME = "snnkern.nn.BatchNormNeuron"
