"""The numbers and the surrogate of a module as attributes: reading gives the value in use, and assigning sets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ._parameters import check_range, number
from ._surrogate import Surrogate, check_surrogate
from .codegen.specification.base import Neuron

if TYPE_CHECKING:
    from ._nn import MultiStep


class Number:
    """A number of a neuron. It is one of these:

    a number    `_tau`, which the operator takes as it is
    a tensor    `tau_value`, a buffer, or the parameter that the user gave
    learned     `decay_logit` or `k_log`, a parameter that may be any number, from which a value within the limits is made;
                without limits, `v_c_value`

    So a key of a state_dict says what it holds, and a module can read what another one has saved.
    """

    name: str = ""

    def __set_name__(self, module: type[MultiStep], name: str) -> None:
        if not self.name or name.startswith("init_"):  # tau is another name of init_tau
            self.name = name

    def bind(self, neuron: type[Neuron]) -> None:
        """Takes what the specification says of it."""
        learned = {t.argument.name: t for t in neuron.learned}.get(self.name)
        every = (*neuron.numbers(), *(s.init for s in neuron.states))
        p = learned.argument if learned else next(p for p in every if p.name == self.name)
        self.spec = p
        self.is_inverse = bool(learned or p.inverse)  # the equations get 1 / value
        self.transform = (learned.range if learned else p.tensor_range).transform
        self.value_key = p.value_key
        self.weight_key = learned.weight if learned else p.weight_key
        self.is_always_learned = learned is not None

    # ---- the attribute

    def __get__(self, module: MultiStep | None, owner: type[MultiStep]) -> Any:
        if module is None:
            return self
        held: Tensor | None = getattr(module, self.value_key)
        if held is not None:
            return held
        weight: Tensor | None = getattr(module, self.weight_key)
        return getattr(module, f"_{self.name}") if weight is None else self._from_weight(weight)

    def __set__(self, module: MultiStep, value: float | Tensor | None) -> None:
        self._check(module, value)
        weight, held = getattr(module, self.weight_key), getattr(module, self.value_key)
        if isinstance(value, Parameter):
            self._hold(module, value)
        elif weight is not None and isinstance(weight, Parameter):
            self._overwrite(module, weight, value, self._to_weight)
        elif isinstance(held, Parameter):
            self._overwrite(module, held, value, lambda t: t)
        elif isinstance(value, Tensor):
            self._hold(module, value)
        elif held is not None and value is not None:
            # It stays a tensor: the state_dict keeps its keys, and a compiled graph its inputs.
            self._hold(module, torch.full_like(held.detach(), float(value)))
        else:
            self._set_number(module, value)
            now = None if value is None else torch.tensor(float(value), dtype=torch.float64)
            setattr(module, f"_{self.name}_now", now)

    def start(self, module: MultiStep, value: float | Tensor | None, learn: bool = False) -> None:
        """Takes the constructor's argument."""
        for key in (self.value_key, self.weight_key, f"_{self.name}_now"):
            setattr(module, key, None)
        self._check(module, value)
        if not isinstance(value, Parameter) and (learn or self.is_always_learned):
            self._learn(module, value)
        elif isinstance(value, Tensor):
            self._hold(module, value)
        else:
            self._set_number(module, value)

    def is_learned(self, module: MultiStep) -> bool:
        """Whether an optimizer changes it."""
        return isinstance(getattr(module, self.weight_key), Parameter) or isinstance(
            getattr(module, self.value_key), Parameter
        )

    def show(self, module: MultiStep) -> str:
        """The value in use, and what it is."""
        value = self.__get__(module, type(module))
        if not isinstance(value, Tensor):
            return repr(value)
        values = value.detach()
        if values.is_meta or values.numel() == 0:
            text = "..."
        else:
            low, high = float(values.min()), float(values.max())
            text = f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"
        kind = "learned" if self.is_learned(module) else "a tensor"
        return f"{text} ({kind})" if value.numel() == 1 else f"{text} ({kind}, {list(value.shape)})"

    # ---- how it gets there

    def _check(self, module: MultiStep, value: Any) -> None:
        where = _of(module)
        if value is None and self.spec.none is not None:
            return
        if not isinstance(value, Tensor):
            check_range(where, self.name, number(where, self.name, value, self.spec.kind), self.spec.range)
            return
        if not value.is_floating_point():
            raise TypeError(f"{where}: {self.name} must be a tensor of floating-point values, got {value.dtype}")
        if value.is_meta or value.numel() == 0:
            return
        for extreme in value.detach().aminmax():  # NaN is both
            if not self.spec.range.holds(extreme.item()):
                raise ValueError(
                    f"{where}: each value of {self.name} must be {self.spec.range}, got {extreme.item():g}"
                )

    def _set_number(self, module: MultiStep, value: float | None) -> None:
        _put(module, self.value_key, None)
        _put(module, self.weight_key, None)
        setattr(module, f"_{self.name}", None if value is None else float(value))

    def _hold(self, module: MultiStep, value: Tensor) -> None:
        """Holds the value itself. A tensor that wants a gradient is used as it is."""
        self._set_number(module, self.spec.default)  # what the operator takes beside a tensor
        setattr(module, f"_{self.name}_now", None)
        _put(module, self.value_key, value if value.requires_grad else value.detach().clone())

    def _learn(self, module: MultiStep, value: float | Tensor | None) -> None:
        where, name = _of(module), self.name
        if value is None:
            raise ValueError(f"{where}: learn_{name} needs a value of {name} to start from, got None")
        start = torch.as_tensor(value, dtype=torch.float64).detach()
        channels = module._channels
        if channels is not None:
            if start.numel() not in (1, channels):
                raise ValueError(
                    f"{where}: {name} must be one value or have shape [{channels}] for channels={channels}, got shape "
                    f"{list(start.shape)}"
                )
            start = start.reshape(-1).expand(channels)
        weight = self._to_weight(start)
        if not weight.isfinite().all():
            raise ValueError(f"{where}: learn_{name} needs {name} within its limits, not at one, got {value!r}")
        self._set_number(module, self.spec.default)
        # Of shape [1] and not [], since FSDP does not shard scalars.
        _put(module, self.weight_key, Parameter(weight.clone().reshape(weight.shape or (1,)).float()))

    def _overwrite(self, module: MultiStep, learned: Parameter, value: Any, to_weight: Any) -> None:
        """Gives what is learned another value, from which learning goes on."""
        where = _of(module)
        if value is None:
            raise ValueError(f"{where}: {self.name} is learned, and cannot become None: make a new layer")
        given = torch.as_tensor(value, dtype=torch.float64)
        if given.requires_grad:
            raise TypeError(
                f"{where}: {self.name} is learned, and takes numbers, a tensor without a gradient, or a torch.nn.Parameter"
            )
        new = to_weight(given.to(learned.device))
        if not new.isfinite().all():
            raise ValueError(
                f"{where}: {self.name} is learned, and must be within its limits, not at one, got {value!r}"
            )
        if new.numel() == learned.numel():
            new = new.reshape(learned.shape)
        elif new.numel() != 1:
            raise ValueError(
                f"{where}: {self.name} is learned with shape {list(learned.shape)}, got shape {list(given.shape)}"
            )
        with torch.no_grad():
            learned.copy_(new)

    def _from_weight(self, weight: Tensor) -> Tensor:
        value = weight.sigmoid() if self.transform == "sigmoid" else weight.exp() if self.transform == "exp" else weight
        return 1 / value if self.is_inverse else value

    def _to_weight(self, value: Tensor) -> Tensor:
        value = 1 / value if self.is_inverse else value
        return value.logit() if self.transform == "sigmoid" else value.log() if self.transform == "exp" else value

    # ---- state_dict

    def translate(self, module: MultiStep, state: dict[str, Any], prefix: str) -> None:
        """Makes what another form of this number has saved into what this module holds."""
        held, weight = prefix + self.value_key, prefix + self.weight_key
        learns = getattr(module, self.weight_key) is not None
        mine = getattr(module, self.weight_key if learns else self.value_key)
        if mine is None:
            return
        key, other = (weight, held) if learns else (held, weight)
        older = prefix + f"{self.name}_weight"  # version 0.1 had one key for the weight and for 1 / value
        if older in state:
            saved = state.pop(older)
            state[key] = 1 / saved if self.is_inverse and not learns else saved
        elif key not in state and other in state:
            saved = state.pop(other)
            state[key] = self._to_weight(saved) if learns else self._from_weight(saved)
        if key in state and state[key].shape != mine.shape and state[key].numel() == mine.numel():
            state[key] = state[key].reshape(mine.shape)  # [C, 1, 1] and [C], or a scalar of another library


class TheSurrogate:
    """The surrogate of a module."""

    def __get__(self, module: MultiStep | None, owner: type[MultiStep]) -> Any:
        return self if module is None else module._surrogate

    def __set__(self, module: MultiStep, value: Surrogate) -> None:
        check_surrogate(_of(module), value)
        before = getattr(module, "_surrogate", value)
        module._surrogate = value
        module._surrogate_name, module._surrogate_params, module._spiking = value.key, value.params, value.spiking
        # For torch.compile, as for numbers: a steepness that changes is an input of the graph.
        changes = value.params and (value.key, value.params) != (before.key, before.params)
        module._surrogate_now = torch.tensor(value.params, dtype=torch.float64) if changes else None


class Chosen:
    """What is settled when a layer is made."""

    def __init__(self, name: str, read: Any) -> None:
        self.name, self.read = name, read

    def __get__(self, module: MultiStep | None, owner: type[MultiStep]) -> Any:
        return self if module is None else self.read(module)

    def __set__(self, module: MultiStep, value: Any) -> None:
        kind = type(module).__name__
        raise AttributeError(
            f"snnkern.nn.{kind}: {self.name} is settled when the layer is made: snnkern.nn.{kind}({self.name}={value!r})"
        )


def _of(module: MultiStep) -> str:
    return f"snnkern.nn.{type(module).__name__}"


def _put(module: MultiStep, key: str, value: Tensor | None) -> None:
    """Sets an attribute that is a parameter, a buffer, or None; None as a plain attribute, which is found quickest."""
    for place in (module._parameters, module._buffers, module.__dict__):
        place.pop(key, None)
    if isinstance(value, Parameter):
        torch.nn.Module.register_parameter(module, key, value)
    elif value is not None:
        module.register_buffer(key, value)
    else:
        setattr(module, key, None)
