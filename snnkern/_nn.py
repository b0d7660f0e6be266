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
from torch._C import _get_dispatch_mode as dispatch_mode
from torch._C import _get_tracing_state as tracing_state

from ._parameters import switch
from ._specification import NEURONS
from ._states import State, check_start, is_start_to_check, states_of
from ._surrogate import Surrogate
from ._values import Chosen, Number, TheSurrogate
from .codegen.specification.base import Neuron


def recorder() -> str:
    """What records this call in a graph that has no place for a state, or nothing."""
    # What is_exporting() returns; under torch.compile, that function says True in torch 2.11.
    if torch.compiler._is_exporting_flag:
        return "an exported program"
    if tracing_state() is not None:
        _traced.add(True)
        return "torch.jit.trace"
    if dispatch_mode(_PROXY) is not None:
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
_PROXY = torch._C._TorchDispatchModeKey.PROXY
_CHECK_OF_TRACE = inspect.unwrap(torch.jit._trace._check_trace).__code__
_traced: set[bool] = set()  # not empty from a torch.jit.trace to the first call after it


def call_in(module: torch.nn.Module, is_own: bool, x_seq: Any, *inputs: Any) -> Any:
    """What torch.fx records: a call of the module, which so keeps its state. Of a class of a user's own it would look inside."""
    tracer = x_seq.tracer
    if module is getattr(tracer, "root", None) or is_own:
        raise RuntimeError(
            f"torch.fx cannot look into {type(module).__name__}: trace a network that contains it, as in "
            "torch.nn.Sequential, and a class with a forward of its own with a torch.fx.Tracer whose is_leaf_module takes it"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x_seq, *inputs), {})


class MultiStep(torch.nn.Module):
    """Base of the neurons: input [T, N, ...], a state that lives between calls and outside the state_dict.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snnkern.nn.LIF())
        >>> [isinstance(layer, snnkern.nn.MultiStep) for layer in net]
        [False, True]
    """

    _state_names: tuple[str, ...] = ()
    _fed_back: ClassVar[tuple[str, ...]] = ()  # what is kept beside the states of the neuron
    _shown: tuple[str, ...] = ()
    _usual: ClassVar[dict[str, Any]] = {}  # values that are not worth showing
    _numbers: ClassVar[dict[str, Number]] = {}
    _channels: int | None
    _surrogate: Surrogate
    _surrogate_name: str
    _surrogate_params: list[float]
    _surrogate_now: Tensor | None
    _spiking: bool
    _kept: dict[str, Any]

    channels = Chosen("channels", lambda module: module._channels)
    surrogate = TheSurrogate()

    def __init_subclass__(cls, neuron: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if neuron:
            cls._bind(NEURONS[neuron])

    @classmethod
    def _bind(cls, neuron: type[Neuron]) -> None:
        """Gives the attributes what the specification says of them."""
        cls._state_names = (*(s.name for s in neuron.states), *cls._fed_back)
        for key in cls._kept_names():
            setattr(cls, key, State(key))
        cls._usual = {p.name: p.default for p in (*neuron.conventions, *(s.init for s in neuron.states))}
        cls._usual["batch_first"] = False
        cls._numbers = {name: n for name, n in vars(cls).items() if isinstance(n, Number) and n.name == name}
        if not neuron.has_surrogate:
            cls.surrogate = None  # type: ignore[assignment]
        for name, number in cls._numbers.items():
            number.bind(neuron)
            if not number.is_always_learned and not number.spec.range.integer:
                setattr(cls, f"learn_{name}", Chosen(f"learn_{name}", number.is_learned))

    def __init__(self, store_v_seq: bool, channels: int | None, batch_first: bool) -> None:
        super().__init__()
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            name = type(self).__name__
            raise ValueError(f"snnkern.nn.{name}: channels must be a positive integer or None, got {channels!r}")
        self.store_v_seq = store_v_seq
        self._channels = channels
        self.batch_first = self._flag("batch_first", batch_first)
        self._kept = dict.fromkeys(self._kept_names())
        self.__dict__.update(self._kept)  # for TorchScript: see State

    def _start(self, values: dict[str, Any]) -> None:
        """Takes the constructor's arguments by name."""
        for name, number in self._numbers.items():
            number.start(self, values[name], bool(values.get(f"learn_{name}", False)))
        tensors = [t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None]
        if self._channels is not None and not any(list(t.shape) == [self._channels] for t in tensors):
            name = type(self).__name__
            learn = next(n for n in self._numbers if f"learn_{n}" in values)
            raise ValueError(
                f"snnkern.nn.{name}: channels={self._channels} needs a number that has a value for each channel: "
                f"learn_{learn}=True, or {learn}=torch.full(({self._channels},), ...)"
            )

    def _flag(self, name: str, value: Any) -> bool:
        return bool(switch(f"snnkern.nn.{type(self).__name__}", name, value))

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        # torch.nn.Module comes here when a parameter is assigned to an attribute.
        number = getattr(type(self), name, None)
        if isinstance(number, Number):
            number.__set__(self, param)
        else:
            super().register_parameter(name, param)

    def _tensor(
        self,
        value: torch.Tensor | None,
        weight: torch.Tensor | None,
        now: torch.Tensor | None,
        transform: str,
        inverse: bool,
        x_seq: torch.Tensor,
    ) -> torch.Tensor | None:
        """A number as the tensor that the operator takes, or None where it is a number."""
        if value is not None:
            if inverse:
                value = 1 / value.to(torch.float64 if x_seq.dtype == torch.float64 else torch.float32)
            return self._spread(value, x_seq)
        if weight is not None:
            return self._spread(weight.sigmoid() if transform == "sigmoid" else weight.exp(), x_seq)
        if now is not None and self._changes(now):
            return (1 / now if inverse else now).to(x_seq.device)
        return None

    def _learned(
        self,
        value: torch.Tensor | None,
        weight: torch.Tensor | None,
        now: torch.Tensor | None,
        transform: str,
        inverse: bool,
        x_seq: torch.Tensor,
    ) -> torch.Tensor:
        """A number that the operator takes as a tensor alone."""
        tensor = self._tensor(value, weight, now, transform, inverse, x_seq)
        assert tensor is not None
        return tensor

    def _changes(self, now: torch.Tensor | None) -> bool:
        """Whether a number that was assigned is an input of the graph that is being compiled."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return False
        else:  # TorchScript reads one branch only, and cannot read this one
            return now is not None and torch.compiler.is_compiling()

    def _swapped(self, seq: torch.Tensor) -> torch.Tensor:
        """With batch_first, [N, T, ...] as [T, N, ...] and back: a view, which the operator works on where it lies."""
        return seq.transpose(0, 1) if self.batch_first and seq.dim() > 1 else seq

    def _input(self, value: torch.Tensor, x_seq: torch.Tensor) -> torch.Tensor:
        """An input beside x_seq, which lies as that does; one without time is the same in every step."""
        return value.transpose(0, 1) if self.batch_first and value.dim() == x_seq.dim() else value

    def _surrogate_tensor(self, i: int) -> torch.Tensor | None:
        """A parameter of a surrogate that was assigned, as an input of the graph that is being compiled."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return None
        else:  # TorchScript reads one branch only, and cannot read this one
            now = self._surrogate_now
            return now[i] if now is not None and i < len(now) and torch.compiler.is_compiling() else None

    def _spread(self, value: torch.Tensor, x_seq: torch.Tensor) -> torch.Tensor:
        """A value for each channel as a tensor that broadcasts against x_seq[0], [N, C, ...]."""
        channels = self._channels
        if channels is None or value.dim() != 1 or value.shape[0] != channels:
            return value
        if x_seq.dim() < 3 or x_seq.shape[2] != channels:
            raise ValueError(
                "channels=" + str(channels) + ", but x_seq [T, N, C, ...] has shape " + str(list(x_seq.shape))
            )
        shape = [-1]
        for _ in range(x_seq.dim() - 3):
            shape.append(1)
        return value.reshape(shape)

    def _enter(
        self,
        state: torch.Tensor | None,
        number: float | None,
        value: torch.Tensor | None,
        now: torch.Tensor | None,
        x_seq: torch.Tensor,
    ) -> torch.Tensor | None:
        """The state that the call starts from: the kept one, the one that was set, or None where the operator knows."""
        dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            if torch.ops.snnkern._in_backward():
                raise RuntimeError(
                    "a scripted module cannot recompute in a backward pass, since the state from which it started is gone: "
                    "call torch.utils.checkpoint with the module that is not scripted"
                )
        else:  # TorchScript reads one branch only, and cannot read this one
            if state is not None and recorder():
                raise RuntimeError(f"{recorder()} cannot keep the state of this module: call reset() before")
            if is_start_to_check():
                check_start(self, state)
            if isinstance(state, (int, float)):  # layer.v = 0.5
                return torch.full_like(x_seq[0], state, dtype=dtype)
        self._check_state(state, x_seq)
        if state is not None:
            return state
        tensor = self._tensor(value, None, now, "", False, x_seq)
        if tensor is not None:
            return tensor.expand(x_seq.shape[1:])
        return None if number is None else torch.full_like(x_seq[0], number, dtype=dtype)

    def _check_state(self, state: torch.Tensor | None, x_seq: torch.Tensor) -> None:
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

    def _call_in(self, x_seq: Any, *inputs: Any) -> Any:
        """What torch.fx records."""
        return call_in(self, self._has_forward_of_its_own(), x_seq, *inputs)

    def _has_forward_of_its_own(self) -> bool:
        """Whether it is of a user's class that does something else than the neuron."""
        return "_state_names" not in next(c for c in type(self).__mro__ if "forward" in c.__dict__).__dict__

    def _refuses_norm(self) -> str:
        """Why it cannot run behind a BatchNorm as one operator, or nothing."""
        if self._has_forward_of_its_own():
            return f"{type(self).__name__} has a forward of its own"
        return "" if hasattr(self, "_normed") else f"{type(self).__name__} takes more inputs than x_seq"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiStep:
        # .to(device) takes the state along; .half() and the like leave its dtype: states are float32 or float64.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for key in self._kept_names():
            state = getattr(self, key)
            if isinstance(state, Tensor):
                setattr(self, key, state.to(fn(state).device))
        return self

    @classmethod
    def _kept_names(cls) -> list[str]:
        """The names of the attributes for states."""
        return [key for name in cls._state_names for key in (name, f"{name}_seq")]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for number in self._numbers.values():
            number.translate(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the module has the values of the state, not the graph that made them.
        own = dict(self.__dict__)
        own["_buffers"] = {key: t if t is None or t.is_leaf else t.detach() for key, t in self._buffers.items()}
        own["_kept"] = {key: t.detach() if isinstance(t, Tensor) else t for key, t in self._kept.items()}
        return own

    def _replicate_for_data_parallel(self) -> MultiStep:
        # torch.nn.DataParallel makes its replicas anew for every call, and lets them go with their states.
        if any(state is not None for state in self._kept.values()):
            raise RuntimeError("torch.nn.DataParallel cannot keep the state of this module: call reset() before")
        text = f"{type(self).__name__}: torch.nn.DataParallel keeps no state, each of its calls starts afresh"
        warnings.warn(f"{text}; torch.nn.parallel.DistributedDataParallel keeps it", stacklevel=2)
        replica: MultiStep = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._kept = dict(self._kept)
        return replica

    def reset(self) -> None:
        """Forgets the state; each neuron has its own, which TorchScript can compile."""
        raise NotImplementedError

    def _detach(self) -> None:
        states = states_of(self)
        for name in self._kept_names():
            if isinstance(states[name], Tensor):
                states[name] = states[name].detach()

    def extra_repr(self) -> str:
        shown = []
        for name in self._shown:
            number = self._numbers.get(name)
            value = getattr(self, name)
            if isinstance(value, torch.Tensor) or name not in self._usual or value != self._usual[name]:
                shown.append(f"{name.removeprefix('init_')}={number.show(self) if number else repr(value)}")
        if self._channels is not None:
            shown.append(f"channels={self._channels}")
        if self.surrogate is not None:  # a neuron may have none
            shown.append(f"surrogate={self.surrogate}")
        return ", ".join(shown)
