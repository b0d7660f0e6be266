"""The neurons of SpikingJelly's old C++ extension: a surrogate is given by its name and alpha, and is ATan if none is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import neuron, surrogate

__all__ = [
    "IFNode",
    "LIFNode",
    "MultiStepIFNode",
    "MultiStepLIFNode",
    "MultiStepParametricLIFNode",
    "ParametricLIFNode",
]

_FIRING = {"v_threshold": 1.0, "v_reset": 0.0, "surrogate_function": "ATan", "alpha": 2.0, "detach_reset": False}


class _Named:
    """Makes the surrogate from its name."""

    named: ClassVar[Mapping[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = neuron.bound(type(self).__name__, self.named, args, kwargs)
        function, alpha = given.pop("surrogate_function"), given.pop("alpha")
        if isinstance(function, str):
            function = getattr(surrogate, function)(alpha)
        super().__init__(**given, surrogate_function=function)  # type: ignore[call-arg]


class IFNode(_Named, neuron.IFNode):
    named = _FIRING


class LIFNode(_Named, neuron.LIFNode):
    named: ClassVar[Mapping[str, Any]] = {"tau": 100.0, **_FIRING}


class ParametricLIFNode(_Named, neuron.ParametricLIFNode):
    named: ClassVar[Mapping[str, Any]] = {"init_tau": 2.0, **_FIRING}


class MultiStepIFNode(neuron.MultiStep, IFNode):
    pass


class MultiStepLIFNode(neuron.MultiStep, LIFNode):
    pass


class MultiStepParametricLIFNode(neuron.MultiStep, ParametricLIFNode):
    pass
