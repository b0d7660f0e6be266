"""What the modules of snnkern.nn share: the state that they keep between calls."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor

from ._states import check_start, is_start_to_check, states_of
from ._surrogate import Surrogate
from .codegen.specification.neurons import Range


def check(module: str, name: str, value: Any, limits: Range) -> None:
    """An argument of a module must be a number within its limits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not limits.holds(value):
        raise ValueError(f"snnkern.nn.{module}: {name} must be {limits}, got {value!r}")


def recorder() -> str:
    """What records this call in a graph that has no place for a state, or nothing."""
    # What is_exporting() returns; under torch.compile, that function says True in torch 2.11.
    if torch.compiler._is_exporting_flag:
        return "an exported program"
    if torch._C._get_tracing_state() is not None:
        _traced.add(True)
        return "torch.jit.trace"
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return "make_fx"
    if _traced:  # torch.jit.trace then calls the module once more, to compare
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code is _CHECK_OF_TRACE:
                return "torch.jit.trace"
            frame = frame.f_back
        _traced.clear()
    return ""


recorder._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile calls it while it traces
_CHECK_OF_TRACE = inspect.unwrap(torch.jit._trace._check_trace).__code__
_traced: set[bool] = set()  # not empty from a torch.jit.trace to the first call after it


def _weight(value: Tensor, transform: str) -> Tensor:
    """The weight from which `MultiStep._value` makes this value."""
    if transform == "sigmoid":
        return -(1 / value - 1).log()
    return value.log() if transform == "exp" else value


class MultiStep(torch.nn.Module):
    """Base of the neurons: input [T, N, ...], a state that lives between calls and outside the state_dict."""

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
        for name in self._kept_names():
            setattr(self, name, None)

    def _set_surrogate(self, surrogate: Surrogate) -> None:
        if not isinstance(surrogate, Surrogate):
            name = type(self).__name__
            raise TypeError(f"snnkern.nn.{name}: surrogate must be one of snnkern.surrogate, got {surrogate!r}")
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
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            pass
        else:  # TorchScript reads one branch only, and cannot read this one
            if state is not None and recorder():
                raise RuntimeError(f"{recorder()} cannot keep the state of this module: call reset() before")
            if is_start_to_check() and not torch.compiler.is_compiling():
                check_start(self, state)
        if state is not None and state.shape != x_seq.shape[1:]:
            raise RuntimeError(
                "the kept state has shape "
                + str(list(state.shape))
                + ", but x_seq[0] has shape "
                + str(list(x_seq.shape[1:]))
                + ": call reset() before a batch of another shape"
            )

    def _keeps_state(self) -> bool:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return True
        else:
            by = recorder()
            if by == "torch.jit.trace":
                text = f"{type(self).__name__}: a trace keeps no state, each of its calls starts afresh"
                warnings.warn(f"{text}; torch.jit.script keeps it", torch.jit._trace.TracerWarning, stacklevel=2)
            return not by

    def _call_in(self, x_seq: Any) -> Any:
        """What torch.fx records: a call of this module, which so keeps its state."""
        owner = next(c for c in type(self).__mro__ if "forward" in c.__dict__)
        tracer = x_seq.tracer
        if self is getattr(tracer, "root", None) or "_state_names" not in owner.__dict__:
            raise RuntimeError(
                f"torch.fx cannot look into {type(self).__name__}: trace a network that contains it, as in "
                "torch.nn.Sequential, and a class with a forward of its own with a torch.fx.Tracer whose is_leaf_module takes it"
            )
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x_seq,), {})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiStep:
        # .to(device) takes the state along; .half() and the like leave its dtype: states are float32 or float64.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for key in self._kept_names():
            state = getattr(self, key)
            if state is not None:
                setattr(self, key, state.to(fn(state).device))
        return self

    @classmethod
    def _kept_names(cls) -> list[str]:
        """The names of the attributes for states."""
        return [key for name in cls._state_names for key in (name, f"{name}_seq")]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, weight in self._parameters.items():
            saved = state_dict.get(prefix + name)
            if saved is not None and weight is not None and saved.dim() == 0:  # other libraries have scalars
                state_dict[prefix + name] = saved.reshape(weight.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the module has the values of the state, not the graph that made them.
        own = dict(self.__dict__)
        for key in self._kept_names():
            if own.get(key) is not None:
                own[key] = own[key].detach()
        return own

    def _replicate_for_data_parallel(self) -> MultiStep:
        # torch.nn.DataParallel makes its replicas anew for every call, and lets them go with their states.
        if any(self.__dict__[key] is not None for key in self._kept_names()):
            raise RuntimeError("torch.nn.DataParallel cannot keep the state of this module: call reset() before")
        text = f"{type(self).__name__}: torch.nn.DataParallel keeps no state, each of its calls starts afresh"
        warnings.warn(f"{text}; torch.nn.parallel.DistributedDataParallel keeps it", stacklevel=2)
        return super()._replicate_for_data_parallel()  # type: ignore[no-any-return, no-untyped-call]

    def reset(self) -> None:
        """Forgets the state; each neuron has its own, which TorchScript can compile."""
        raise NotImplementedError

    def _detach(self) -> None:
        states = states_of(self)
        for name in self._kept_names():
            if states[name] is not None:
                states[name] = states[name].detach()

    def extra_repr(self) -> str:
        values = {name: getattr(self, name) for name in self._shown}
        shown = [f"{name}={v}" for name, v in values.items() if name not in self._usual or v != self._usual[name]]
        surrogate = getattr(self, "surrogate", None)  # a neuron may have none
        return ", ".join(shown if surrogate is None else [*shown, f"surrogate={surrogate}"])
