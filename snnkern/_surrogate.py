"""The base of the surrogates in snnkern.surrogate. The equations stand in codegen/specification/surrogates.py."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _torch_ops  # noqa: F401  teaches the equations to choose by a tensor
from ._parameters import check_range, number, switch
from ._specification import SURROGATES
from .codegen.specification.base import Surrogate as Equations


def check_surrogate(where: str, surrogate: Any) -> None:
    """What a neuron takes as its surrogate: a value of a class in snnkern.surrogate, not its name."""
    if not isinstance(surrogate, Surrogate):
        raise TypeError(
            f"{where}: surrogate must be a surrogate of snnkern.surrogate, such as snnkern.surrogate.ATan(), "
            f"got {reprlib.repr(surrogate)}"
        )


@dataclass(frozen=True)
class Surrogate:
    """What stands for the derivative of a spike in back-propagation.

    Args:
        spiking: True emits spikes and uses the gradient alone; False emits the smooth primitive in place of the spike, in
            forward and backward, for surrogates that have one

    Example:
        >>> smooth = snnkern.surrogate.Sigmoid(alpha=2.0, spiking=False)
        >>> smooth.primitive(torch.zeros(2))
        tensor([0.5000, 0.5000])
        >>> isinstance(smooth, snnkern.surrogate.Surrogate)
        True
    """

    spiking: bool = field(default=True, kw_only=True)

    name: ClassVar[str]
    key: ClassVar[str]  # what operators call it
    equations: ClassVar[type[Equations]]

    def __init_subclass__(cls, key: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.key, cls.equations = key, SURROGATES[key]
        cls.name = cls.equations.name

    def __post_init__(self) -> None:
        where = type(self).__name__
        for p in self.equations.parameters:
            value = number(where, p.name, getattr(self, p.name))
            check_range(where, p.name, value, p.range)
            object.__setattr__(self, p.name, int(value) if p.range.integer else value)  # the class is frozen
        object.__setattr__(self, "spiking", switch(where, "spiking", self.spiking))
        if not self.spiking and not self.equations.has_primitive():
            raise ValueError(f"{type(self).__name__}: spiking must be True: this surrogate has no smooth primitive")

    @property
    def params(self) -> list[float]:
        """The parameters in the order of the operator's `surrogate_params`."""
        return [float(getattr(self, p.name)) for p in self.equations.parameters]

    def gradient(self, x: Tensor) -> Tensor:
        """The surrogate gradient at x = h - v_threshold, with the shape and dtype of x."""
        return self._evaluate(self.equations.gradient, x)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth function whose derivative is `gradient`, with the shape and dtype of x."""
        if not self.equations.has_primitive():
            raise ValueError(f"{type(self).__name__} has no smooth primitive")
        return self._evaluate(self.equations.primitive, x)

    def cuda_codes(self, y: str | None, x: str, dtype: str) -> str:
        """Code for the gradient at x, as the kernels of snnkern.auto_cuda.neuron_kernel call it; see snnkern.auto_cuda.cfunction."""
        from .auto_cuda.cfunction import surrogate_backward

        values = dict(zip((p.name for p in self.equations.parameters), self.params, strict=True))
        return surrogate_backward(self.equations, y, x, dtype, **values)

    def _evaluate(self, function: Any, x: Tensor) -> Tensor:
        # Parameters are 0-dim tensors: rounded to the dtype of x, as in the kernels, and never promoting it.
        p = SimpleNamespace()
        for param in self.equations.parameters:
            value = getattr(self, param.name)
            setattr(
                p, param.name, value if param.range.integer else torch.tensor(value, dtype=x.dtype, device=x.device)
            )
        out = function(x, p)
        if not isinstance(out, Tensor):  # the same for every x
            return torch.full_like(x, out)
        return out if out.shape == x.shape else out.expand_as(x)
