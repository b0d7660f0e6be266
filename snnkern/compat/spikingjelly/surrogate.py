"""SpikingJelly's surrogate functions: modules whose parameters may change, on the surrogates of snnkern.surrogate."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import surrogate as _ours
from ..._reference import _Fire
from ._fused import SURROGATES, spike_surrogate


def heaviside(x: Tensor) -> Tensor:
    """1 where x >= 0, else 0."""
    return (x >= 0).to(x)


class SurrogateFunctionBase(torch.nn.Module):
    """Base of the surrogate functions: its parameters, and `spiking`, are attributes."""

    arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, spiking: bool = True, **kwargs: Any) -> None:
        super().__init__()
        names = list(self.arguments)
        if len(args) == len(names) + 1:  # spiking comes last
            *args, spiking = args  # type: ignore[assignment]
        if len(args) > len(names) or not kwargs.keys() <= set(names[len(args) :]):
            raise TypeError(
                f"surrogate.{type(self).__name__} takes {', '.join([*names, 'spiking'])}, got {args} {kwargs}"
            )
        for name, value in {**self.arguments, **dict(zip(names, args, strict=False)), **kwargs}.items():
            setattr(self, name, value)
        self.spiking = spiking

    def set_spiking_mode(self, spiking: bool) -> None:
        self.spiking = spiking

    def forward(self, x: Tensor) -> Tensor:
        return _Fire.apply(x, spike_surrogate(self))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in [*self.arguments, "spiking"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # In old checkpoints the parameters are tensors.
        for name in self.arguments:
            saved = state_dict.pop(prefix + name, None)
            if saved is not None:
                setattr(self, name, saved.item())
        super()._load_from_state_dict(state_dict, prefix, *args)


class MultiLevelSpikeCount(SurrogateFunctionBase):
    """The whole number of spikes up to a largest one, for ILIFNode."""

    arguments: ClassVar[dict[str, Any]] = {"max_spike_count": 4}


_NAMES = (
    *("ATan", "Erf", "FakeNumericalGradient", "LeakyKReLU", "LogTailedReLU", "NonzeroSignLogAbs", "PiecewiseExp"),
    *("PiecewiseLeakyReLU", "PiecewiseQuadratic", "QPseudoSpike", "Rect", "S2NN", "Sigmoid", "SoftSign"),
    *("SquarewaveFourierSeries", "SuperSpike", *SURROGATES),
)


def _functional(name: str, cls: type[SurrogateFunctionBase]) -> SimpleNamespace:
    """The old way to call it: surrogate.atan.apply(x, alpha)."""
    return SimpleNamespace(apply=lambda x, *values: cls(*values)(x), __name__=name)


for _name in _NAMES:
    _surrogate = getattr(_ours, SURROGATES.get(_name, _name))
    _values = {f.name: f.default for f in fields(_surrogate) if f.name != "spiking"}
    _class = type(_name, (SurrogateFunctionBase,), {"__module__": __name__, "__doc__": _surrogate.__doc__})
    _class.arguments = _values  # type: ignore[attr-defined]
    globals()[_name] = _class
    _key = "deterministic_pass" if _name in SURROGATES else _surrogate.name
    globals()[_key] = _functional(_key, _class)
