"""SpikingJelly's neurons: those of both namings, each on an operator of snnkern."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import surrogate
from ._fused import NODES, Fused
from .base import MemoryModule

Arguments = Mapping[str, Any]

# What else the versions take, which has no effect here.
_IGNORED = {"backend", "cupy_fp32_inference", "single_step_cupy_fp32_inference", "lava_s_cale", "monitor_state"}
_FLAGS = {"decay_input", "scale_reset", "detach_reset", "store_v_seq", "store_state_seqs"}


def _fits(name: str, value: Any) -> bool:
    """Whether a value may be the argument of this name."""
    if name in _FLAGS:
        return isinstance(value, bool)
    if name == "step_mode":
        return value in ("s", "m")
    if name == "backend":
        return isinstance(value, str)
    if name == "surrogate_function":
        return callable(value) or isinstance(value, str)
    return value is None or (isinstance(value, (int, float, Tensor)) and not isinstance(value, bool))


def bound(node: str, arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name. The versions differ in their order: one that a value cannot be is left out."""
    names = iter([*arguments, *(name for name in ("step_mode", "backend", "store_v_seq") if name not in arguments)])
    given: dict[str, Any] = {}
    for value in args:
        name = next((name for name in names if _fits(name, value)), None)
        if name is None:
            raise TypeError(f"{node}: {value!r} is one argument too many, or in the wrong place")
        given[name] = value
    if twice := given.keys() & kwargs.keys():
        raise TypeError(f"{node}: {', '.join(sorted(twice))} is given twice")
    given |= kwargs
    if unknown := given.keys() - arguments.keys() - _IGNORED - {"step_mode", "store_v_seq"}:
        raise TypeError(f"{node} has no argument {', '.join(sorted(unknown))}")
    return {**arguments, **given}


class BaseNode(MemoryModule):
    """Base of the neurons, and of one of your own: neuronal_charge(x) sets self.v to the potential before the spike."""

    arguments: ClassVar[Arguments] = {
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "surrogate_function": None,
        "detach_reset": False,
    }
    usual_surrogate: ClassVar[str] = "Sigmoid"
    v: Any
    v_threshold: Any
    v_reset: Any
    detach_reset: bool
    surrogate_function: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = bound(type(self).__name__, self.arguments, args, kwargs)
        self.backend = given.pop("backend", "torch")
        self.step_mode = given.pop("step_mode", "s")
        self.store_v_seq = given.pop("store_v_seq", False)
        self.v_seq: Tensor | None = None
        for name, value in given.items():
            if name not in _IGNORED:
                self._set_argument(name, value)
        if self.surrogate_function is None:
            self.surrogate_function = getattr(surrogate, self.usual_surrogate)()
        self.register_memory("v", self.v_reset or 0.0)

    def _set_argument(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def reset(self) -> None:
        super().reset()
        self.v_seq = None

    def detach(self) -> None:
        super().detach()
        if self.v_seq is not None:
            self.v_seq = self.v_seq.detach()

    def v_float_to_tensor(self, x: Tensor) -> None:
        if not isinstance(self.v, Tensor):
            self.v = torch.full_like(x, self.v, requires_grad=False)

    def neuronal_charge(self, x: Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no neuronal_charge")

    def neuronal_fire(self) -> Tensor:
        return self.surrogate_function(self.v - self.v_threshold)

    def neuronal_reset(self, spike: Tensor) -> None:
        s = spike.detach() if self.detach_reset else spike
        self.v = self.v - s * self.v_threshold if self.v_reset is None else (1 - s) * self.v + s * self.v_reset

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.v_float_to_tensor(x)
        self.neuronal_charge(x)
        spike = self.neuronal_fire()
        self.neuronal_reset(spike)
        return spike

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        spikes, potentials = [], []
        for x in x_seq:
            spikes.append(self.single_step_forward(x))
            potentials.append(self.v)
        if self.store_v_seq:
            self.v_seq = torch.stack(potentials)
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        shown = [name for name in self.arguments if name not in {"surrogate_function", "init_tau"}]
        return ", ".join(f"{name}={getattr(self, name)}" for name in [*shown, "step_mode"])


_FIRING = BaseNode.arguments
_LEAK: Arguments = {"tau": 2.0, "decay_input": True}
_OWN = ("neuronal_charge", "neuronal_fire", "neuronal_reset")


class _Node(Fused, BaseNode):
    """A neuron whose steps run on an operator."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__name__ in NODES:
            cls.fused = NODES[cls.__name__]
        if own := [name for name in _OWN if name in vars(cls)]:
            raise TypeError(f"{cls.__name__}: derive a neuron with its own {', '.join(own)} from BaseNode")


class IFNode(_Node):
    """Integrate-and-fire."""


class LIFNode(_Node):
    """Leaky integrate-and-fire."""

    arguments: ClassVar[Arguments] = {**_LEAK, **_FIRING}


class ParametricLIFNode(_Node):
    """Leaky integrate-and-fire with a learned decay, sigmoid(w)."""

    arguments: ClassVar[Arguments] = {"init_tau": 2.0, "decay_input": True, **_FIRING}

    def _set_argument(self, name: str, value: Any) -> None:
        if name == "init_tau":
            self.w = torch.nn.Parameter(torch.as_tensor(-math.log(value - 1)))
        else:
            super()._set_argument(name, value)


class QIFNode(_Node):
    """Quadratic integrate-and-fire."""

    arguments: ClassVar[Arguments] = {
        "tau": 2.0,
        "v_c": 0.8,
        "a0": 1.0,
        "v_threshold": 1.0,
        "v_rest": 0.0,
        "v_reset": -0.1,
        "surrogate_function": None,
        "detach_reset": False,
    }


class EIFNode(_Node):
    """Exponential integrate-and-fire."""

    arguments: ClassVar[Arguments] = {
        "tau": 2.0,
        "delta_T": 1.0,
        "theta_rh": 0.8,
        "v_threshold": 1.0,
        "v_rest": 0.0,
        "v_reset": -0.1,
        "surrogate_function": None,
        "detach_reset": False,
    }


class IzhikevichNode(_Node):
    """Izhikevich's neuron."""

    arguments: ClassVar[Arguments] = {
        "tau": 2.0,
        "v_c": 0.8,
        "a0": 1.0,
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "v_rest": -0.1,
        "w_rest": 0.0,
        "tau_w": 2.0,
        "a": 0.0,
        "b": 0.0,
        "surrogate_function": None,
        "detach_reset": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_memory("w", self.w_rest)


class KLIFNode(_Node):
    """Leaky integrate-and-fire, scaled by a learned k and never negative."""

    arguments: ClassVar[Arguments] = {"scale_reset": False, **_LEAK, **_FIRING}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.k = torch.nn.Parameter(torch.as_tensor(1.0))


class ILIFNode(_Node):
    """Leaky integrate-and-fire with a whole number of spikes a step."""

    arguments: ClassVar[Arguments] = {
        "tau": 4.0 / 3.0,
        "v_threshold": 1.0,
        "surrogate_function": None,
        "detach_reset": False,
    }
    usual_surrogate = "MultiLevelSpikeCount"
    v_reset = None


class ComplementaryLIFNode(_Node):
    """Leaky integrate-and-fire with a trace of its spikes that deepens the reset."""

    arguments: ClassVar[Arguments] = {
        "tau": 2.0,
        "v_threshold": 1.0,
        "surrogate_function": None,
        "store_state_seqs": False,
    }
    usual_surrogate = "Rect"
    v_reset = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_memory("m", 0.0)


class CUBALIFNode(_Node):
    """Leaky integrate-and-fire with a current."""

    arguments: ClassVar[Arguments] = {
        "c_decay": 0.5,
        "v_decay": 0.75,
        "v_threshold": 0.5,
        "v_reset": 0.0,
        "surrogate_function": None,
        "detach_reset": False,
    }
    usual_surrogate = "Rect"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_memory("c", 0.0)


class MultiStep:
    """The old way to name a neuron for whole sequences."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"step_mode": "m", **kwargs})


class MultiStepIFNode(MultiStep, IFNode):
    """IFNode for whole sequences."""


class MultiStepLIFNode(MultiStep, LIFNode):
    """LIFNode for whole sequences."""


class MultiStepParametricLIFNode(MultiStep, ParametricLIFNode):
    """ParametricLIFNode for whole sequences."""


class MultiStepEIFNode(MultiStep, EIFNode):
    """EIFNode for whole sequences."""
