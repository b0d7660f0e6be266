"""What the modules of snnkern.nn share: the state that they keep between calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._surrogate import Surrogate, check_surrogate
from .codegen.specification.neurons import Range


def check(module: str, name: str, value: Any, limits: Range) -> None:
    """An argument of a module must be a number within its limits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not limits.holds(value):
        raise ValueError(f"snnkern.nn.{module}: {name} must be {limits}, got {value!r}")


def _weight(value: Tensor, transform: str) -> Tensor:
    """The weight from which `MultiStep._value` makes this value."""
    if transform == "sigmoid":
        return -(1 / value - 1).log()
    return value.log() if transform == "exp" else value


class MultiStep(torch.nn.Module):
    """Base of the neurons: input [T, N, ...], a state that lives between calls and outside the state_dict.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snnkern.nn.LIF(), torch.nn.Linear(3, 1), snnkern.nn.LI())
        >>> [type(m).__name__ for m in net.modules() if isinstance(m, snnkern.nn.MultiStep)]
        ['LIF', 'LI']
    """

    _state_names: tuple[str, ...] = ()
    _shown: tuple[str, ...] = ()
    _usual: ClassVar[dict[str, Any]] = {}  # values that are not worth showing
    _channels: int | None

    def __init__(self, store_v_seq: bool, channels: int | None) -> None:
        super().__init__()
        name = type(self).__name__
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            raise ValueError(f"snnkern.nn.{name}: channels must be a positive integer or None, got {channels!r}")
        self.store_v_seq = store_v_seq
        self._channels = channels
        for state in self._state_names:
            setattr(self, state, None)
            setattr(self, f"{state}_seq", None)

    def _set_surrogate(self, surrogate: Surrogate) -> None:
        check_surrogate(f"snnkern.nn.{type(self).__name__}", surrogate)
        self.surrogate = surrogate
        self._surrogate_name = surrogate.name
        self._surrogate_params = surrogate.params
        self._spiking = surrogate.spiking

    def _set(
        self,
        name: str,
        value: float | Tensor | None,
        limits: Range,
        *,
        learn: bool,
        inverse: bool,
        transform: str,
        weight: str,
        default: float | None = None,
        has_number: bool = True,
    ) -> None:
        """Stores a parameter: a number, a fixed tensor, or a weight that is learned. The operator may take no number."""
        module = f"snnkern.nn.{type(self).__name__}"
        setattr(self, f"_{name}_transform", transform if learn else "")
        if isinstance(value, Tensor):
            if not value.is_floating_point() or not all(limits.holds(v) for v in value.detach().flatten().tolist()):
                raise ValueError(f"{module}: {name} must be a tensor of floating-point values, each {limits}")
        elif value is not None:
            check(type(self).__name__, name, value, limits)
        elif learn:
            raise ValueError(f"{module}: learn_{name} needs a value of {name} to start from, got None")
        if learn:
            start = torch.as_tensor(value, dtype=torch.float64).detach()
            if self._channels is not None:
                start = start.expand(self._channels)
            start = _weight(1 / start if inverse else start, transform)
            if not start.isfinite().all():
                raise ValueError(f"{module}: learn_{name} needs {name} within its limits, not at one, got {value!r}")
            # Of shape [1] and not [], since FSDP does not shard scalars.
            self.register_parameter(weight, torch.nn.Parameter(start.clone().reshape(start.shape or (1,)).float()))
        elif isinstance(value, Tensor):
            self.register_buffer(weight, (1 / value if inverse else value).detach().clone())
        else:
            self.register_parameter(weight, None)
        if has_number:
            setattr(self, name, default if isinstance(value, Tensor) else None if value is None else float(value))

    def _value(self, weight: torch.Tensor | None, transform: str, x_seq: torch.Tensor) -> torch.Tensor | None:
        """A parameter as the operator takes it, or None where it is a number."""
        if weight is None:
            return None
        return self._spread(weight, transform, x_seq)

    def _spread(self, weight: torch.Tensor, transform: str, x_seq: torch.Tensor) -> torch.Tensor:
        if transform == "sigmoid":
            weight = weight.sigmoid()
        elif transform == "exp":
            weight = weight.exp()
        if transform != "" and self._channels is not None:
            shape = [-1]
            for _ in range(x_seq.dim() - 3):
                shape.append(1)
            weight = weight.reshape(shape)
        return weight

    def _check_state(self, state: torch.Tensor | None, x_seq: torch.Tensor) -> None:
        if state is not None and state.shape != x_seq.shape[1:]:
            raise RuntimeError(
                "the kept state has shape "
                + str(list(state.shape))
                + ", but x_seq[0] has shape "
                + str(list(x_seq.shape[1:]))
                + ": call reset() before a batch of another shape"
            )
        if state is not None and not self._keeps_state():
            raise RuntimeError(
                "an exported program cannot keep the state of this module: call reset() before torch.export"
            )

    def _keeps_state(self) -> bool:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return True
        else:  # TorchScript reads one branch only, and cannot read this one
            # What is_exporting() returns; under torch.compile, that function says True in torch 2.11.
            return not torch.compiler._is_exporting_flag

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiStep:
        # .to(device) takes the state along; .half() and the like leave its dtype: states are float32 or float64.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._state_names:
            for key in (name, f"{name}_seq"):
                state = getattr(self, key)
                if state is not None:
                    setattr(self, key, state.to(fn(state).device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, weight in self._parameters.items():
            saved = state_dict.get(prefix + name)
            if saved is not None and weight is not None and saved.dim() == 0:  # other libraries have scalars
                state_dict[prefix + name] = saved.reshape(weight.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the module has the values of the state, not the graph that made them.
        own = dict(self.__dict__)
        for name in self._state_names:
            for key in (name, f"{name}_seq"):
                if own.get(key) is not None:
                    own[key] = own[key].detach()
        return own

    def reset(self) -> None:
        """Forgets the state; each neuron has its own, which TorchScript can compile."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        values = {name: getattr(self, name) for name in self._shown}
        shown = [f"{name}={v}" for name, v in values.items() if name not in self._usual or v != self._usual[name]]
        surrogate = getattr(self, "surrogate", None)  # a neuron may have none
        return ", ".join(shown if surrogate is None else [*shown, f"surrogate={surrogate}"])
