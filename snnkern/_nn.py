"""What the modules of snnkern.nn share: the state that they keep between calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._surrogate import Surrogate
from .codegen.neurons import Range


def check(module: str, name: str, value: Any, limits: Range) -> None:
    """An argument of a module must be a number within its limits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not limits.holds(value):
        raise ValueError(f"snnkern.nn.{module}: {name} must be {limits}, got {value!r}")


def initial_weight(inverse: float) -> Tensor:
    """The weight w for which sigmoid(w) = 1 / inverse. Of shape [1], since FSDP does not shard scalars."""
    return torch.tensor([-math.log(inverse - 1)])


class MultiStep(torch.nn.Module):
    """Base of the neurons: input [T, N, ...], a state that lives between calls and outside the state_dict."""

    _state_names: tuple[str, ...] = ()
    _shown: tuple[str, ...] = ()

    def __init__(self, store_v_seq: bool) -> None:
        super().__init__()
        self.store_v_seq = store_v_seq
        for state in self._state_names:
            setattr(self, state, None)
            setattr(self, f"{state}_seq", None)

    def _set_surrogate(self, surrogate: Surrogate) -> None:
        if not isinstance(surrogate, Surrogate):
            name = type(self).__name__
            raise TypeError(f"snnkern.nn.{name}: surrogate must be one of snnkern.surrogate, got {surrogate!r}")
        self.surrogate = surrogate
        self._surrogate_name = surrogate.name
        self._surrogate_params = surrogate.params
        self._spiking = surrogate.spiking

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
        shown = [f"{name}={getattr(self, name)}" for name in self._shown]
        surrogate = getattr(self, "surrogate", None)  # a neuron may have none
        return ", ".join(shown if surrogate is None else [*shown, f"surrogate={surrogate}"])
