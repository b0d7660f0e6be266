"""Modules that have a step mode, and modules that have a memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..._networks import Foreign

__all__ = ["MemoryModule", "MultiStepModule", "SingleStepModule", "StepModule", "memories", "named_memories"]


class StepModule:
    """A module with a step mode: "s" takes the input of one step, "m" that of all steps, [T, N, ...]."""

    _step_mode = "s"

    def supported_step_mode(self) -> tuple[str, ...]:
        return ("s", "m")

    @property
    def step_mode(self) -> str:
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        if value not in self.supported_step_mode():
            raise ValueError(f"{type(self).__name__}: step_mode must be in {self.supported_step_mode()}, got {value!r}")
        self._step_mode = value


class SingleStepModule(StepModule):
    """A module for single steps only."""

    def supported_step_mode(self) -> tuple[str, ...]:
        return ("s",)


class MultiStepModule(StepModule):
    """A module for whole sequences only."""

    _step_mode = "m"

    def supported_step_mode(self) -> tuple[str, ...]:
        return ("m",)


class MemoryModule(torch.nn.Module, StepModule, Foreign):
    """A module with memories: attributes that live between calls, outside the state_dict, until reset() sets them back.

    A derived class has single_step_forward, and multi_step_forward if it can do better than one step after another.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memories_rv: dict[str, Any] = {}
        self.backend = "torch"

    def register_memory(self, name: str, value: Any) -> None:
        """A memory that begins, and begins again after reset(), with a value."""
        if hasattr(self, name):
            raise ValueError(f"{type(self).__name__}: {name} is an attribute already")
        self.set_reset_value(name, value)
        setattr(self, name, copy.deepcopy(value))

    def set_reset_value(self, name: str, value: Any) -> None:
        self._memories_rv[name] = copy.deepcopy(value)

    def reset(self) -> None:
        """Sets the memories back."""
        for name, value in self._memories_rv.items():
            setattr(self, name, copy.deepcopy(value))

    def detach(self) -> None:
        """Keeps the values of the memories and cuts their gradient."""
        for name, value in self.named_memories():
            if isinstance(value, Tensor):
                setattr(self, name, value.detach())

    def _reset_states(self) -> None:
        self.reset()

    def _detach_states(self) -> None:
        self.detach()

    def named_memories(self) -> Iterator[tuple[str, Any]]:
        for name in self._memories_rv:
            yield name, getattr(self, name)

    def memories(self) -> Iterator[Any]:
        for _, value in self.named_memories():
            yield value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        step = self.single_step_forward if self.step_mode == "s" else self.multi_step_forward
        return step(*args, **kwargs)

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no single_step_forward")

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        return torch.stack([self.single_step_forward(x, *args, **kwargs) for x in x_seq])

    def extra_repr(self) -> str:
        return f"step_mode={self.step_mode}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryModule:
        super()._apply(fn, recurse)
        for name, value in self.named_memories():
            if isinstance(value, Tensor):
                setattr(self, name, fn(value))
        return self


def named_memories(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The memories in a network by their names."""
    for name, child in module.named_modules(prefix=prefix):
        if isinstance(child, MemoryModule):
            for memory, value in child.named_memories():
                yield f"{name}.{memory}" if name else memory, value


def memories(module: torch.nn.Module) -> Iterator[Any]:
    """The memories in a network."""
    for _, value in named_memories(module):
        yield value
