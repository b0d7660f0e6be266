"""Where the states of a neuron live: in its module, and in a copy while torch.utils.checkpoint recomputes.

A checkpointed region runs in the forward pass, and again in the backward pass to compute anew what it did not keep. Its
second run must start from the states from which the first one started, and must leave those of the module alone. So the
first touch of a module within a region notes its states; a recomputation reads and writes a copy of them, which belongs to
the region. What a region is:

* use_reentrant=False: torch's `_CheckpointFrame`. The hooks for saved tensors that are active in its first run hold it, and
  so do those of a recomputation.
* use_reentrant=True: the context of torch's `CheckpointFunction`, which is found on the stack of Python.

Notes and copies belong to that object and go with it. They hold no graph of an earlier region: where gradients flow through
a state from region to region, they flow in the graph of the first runs.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.utils.checkpoint
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled
from torch._C import _current_graph_task_id as graph_task
from torch._C import _is_fwd_grad_enabled as is_forward_ad_enabled
from torch._C._autograd import _pop_saved_tensors_default_hooks as pop_hooks
from torch._C._autograd import _push_saved_tensors_default_hooks as push_hooks
from torch._C._autograd import _top_saved_tensors_default_hooks as top_hooks
from torch._compile import _disable_dynamo
from torch.utils.weak import WeakTensorKeyDictionary

_FORWARD = torch.utils.checkpoint.CheckpointFunction.forward.__code__
_BACKWARD = torch.utils.checkpoint.CheckpointFunction.backward.__code__
_FILE = _FORWARD.co_filename
_here: Any = sys.modules[__name__]
_States = dict[str, Any]
_OfModules = WeakKeyDictionary[Any, _States]


class _Region:
    """What belongs to one checkpointed region."""

    def __init__(self) -> None:
        self.start: _OfModules = WeakKeyDictionary()  # the states before the first run
        self.run: Any = None  # the recomputation to which `now` belongs
        self.now: _OfModules = WeakKeyDictionary()  # the states within it


class _Open(NamedTuple):
    """The regions in which a call is: those in their first run, innermost first, and the recomputation around them."""

    first: list[Any]
    recomputed: Any
    run: Any


_regions: WeakKeyDictionary[Any, _Region] = WeakKeyDictionary()
# Of a state that a reentrant region made, which autograd cannot follow outside it: the region.
_made_in = WeakTensorKeyDictionary()


def in_no_region() -> bool:
    """Whether no checkpointed region is around."""
    return _here.in_no_region_now if torch.compiler.is_compiling() else _in_no_region()


def __getattr__(name: str) -> bool:
    # torch.compile guards attributes of modules: it asks again at every call, and compiles anew for another answer.
    if name == "in_no_region_now":
        return _in_no_region()
    if name == "in_backward_now":
        return graph_task() != -1
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _in_no_region() -> bool:
    # Quick where autograd has no hook, no backward pass, and no forward of a Function.
    if (
        top_hooks(True) is None
        and graph_task() == -1
        and (is_grad_enabled() or is_forward_ad_enabled() or is_inference_mode_enabled())
    ):
        return True
    around = _open_regions()
    return not around.first and around.recomputed is None


def recomputes() -> bool:
    """Whether torch.utils.checkpoint computes anew what a forward pass computed."""
    return not in_no_region() and _recomputes()


@_disable_dynamo
def _recomputes() -> bool:
    return _open_regions().recomputed is not None


def is_start_to_check() -> bool:
    """Whether `check_start` has something to do."""
    if torch.compiler.is_compiling():  # which cannot know what made a state
        return _here.in_backward_now or not _here.in_no_region_now
    return bool(_regions or _made_in) or graph_task() != -1


def _open_regions() -> _Open:
    hooks = []
    while (pair := top_hooks(True)) is not None:
        hooks.append(pair)
        pop_hooks()
    for pair in reversed(hooks):
        push_hooks(*pair)
    first: list[Any] = []
    recomputed, run = None, None
    for pack, _ in hooks:  # innermost first
        closure = _closure(pack)
        if "frame" in closure:
            first.append(closure["frame"])
        elif "target_frame_ref" in closure:
            recomputed, run = closure["target_frame_ref"](), closure["gid"]
            break
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code is _FORWARD:
            context = frame.f_locals["ctx"]
            if context.next_functions:  # a graph is recorded around it
                first.append(context)
        elif code is _BACKWARD:
            recomputed, run = frame.f_locals["ctx"], graph_task()
            break
        elif recomputed is not None and code.co_filename == _FILE and code.co_name == "recompute_fn":
            break
        frame = frame.f_back
    return _Open(first, recomputed, run)


def _closure(hook: Any) -> dict[str, Any]:
    """What a hook of torch.utils.checkpoint holds; nothing of any other."""
    hook = inspect.unwrap(hook)
    code = getattr(hook, "__code__", None)
    if code is None or code.co_filename != _FILE:
        return {}
    return {name: cell.cell_contents for name, cell in zip(code.co_freevars, hook.__closure__ or (), strict=True)}


def _is_reentrant(region: Any) -> bool:
    return isinstance(region, torch.autograd.function.BackwardCFunction)


def _noted(states: _States, names: list[str]) -> _States:
    """The values of states, which tensors want a gradient, and the version of each, but no graph."""
    out: _States = {}
    for name in names:
        value = states[name]
        if isinstance(value, Tensor):
            value = (value.detach().requires_grad_(value.requires_grad), value._version)
        out[name] = value
    return out


def _restored(name: str, noted: Any) -> Any:
    if not isinstance(noted, tuple):
        return noted
    value, version = noted
    if value._version != version:
        raise RuntimeError(f"{name} was changed in place after a checkpointed region started from it")
    return value


@_disable_dynamo  # where torch.compile traces in a region, it leaves the states to Python
def in_checkpointed_region(module: Any) -> tuple[_States, _Open]:
    """The states of a module at this place, in the checkpointed regions around it."""
    around = _open_regions()
    states: _States = module._kept
    if around.recomputed is not None:
        region = _regions.get(around.recomputed)
        if region is None or module not in region.start:
            raise RuntimeError(
                f"{_name(module)}: torch.utils.checkpoint calls it in its recomputation, but did not in the forward pass, so "
                "the state to start from is not known: a checkpointed function must do the same both times"
            )
        if region.run != around.run:
            region.run, region.now = around.run, WeakKeyDictionary()
        if module not in region.now:
            region.now[module] = {n: _restored(f"{_name(module)}.{n}", v) for n, v in region.start[module].items()}
        states = region.now[module]
    for key in around.first:
        if key not in _regions:
            _regions[key] = _Region()
        if module not in _regions[key].start:
            _regions[key].start[module] = _noted(states, module._kept_names())
    return states, around


def _name(module: Any) -> str:
    return f"snnkern.nn.{type(module).__name__}"


def states_of(module: Any) -> _States:
    """What holds the states of a module just now."""
    return module._kept if in_no_region() else in_checkpointed_region(module)[0]


class State:
    """An attribute of a module for a state, which lies in `module._kept`: torch.compile of torch 2.11 cannot tell an attribute
    from an entry of the module's `__dict__` of the same name. That entry is None, and says to TorchScript that there is one.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        return self if module is None else states_of(module)[self.name]

    def __set__(self, module: Any, value: Any) -> None:
        if in_no_region():
            module._kept[self.name] = value
        else:
            _assign(module, self.name, value)


@_disable_dynamo
def _assign(module: Any, name: str, value: Any) -> None:
    states, around = in_checkpointed_region(module)
    states[name] = value
    reentrant = [key for key in around.first if _is_reentrant(key)]
    if reentrant and isinstance(value, Tensor):
        _made_in[value] = weakref.ref(reentrant[0])


@_disable_dynamo
def check_start(module: Any, state: Tensor | float | None) -> None:
    """Raises where a call that starts from this state cannot have the gradients of a plain call."""
    around = _open_regions()
    if graph_task() != -1 and around.recomputed is None:
        raise RuntimeError(
            f"{_name(module)} was called in a backward pass, but not by torch.utils.checkpoint, so the state from which this "
            "call should start is not known: use torch.utils.checkpoint, or snnkern.functional with the states as arguments"
        )
    reentrant = [key for key in around.first if _is_reentrant(key)]
    if not isinstance(state, Tensor) or not (reentrant or is_grad_enabled()):
        return
    maker = _made_in.get(state)  # type: ignore[no-untyped-call]
    if (reentrant and state.requires_grad) or (maker is not None and all(maker() is not key for key in reentrant)):
        raise RuntimeError(
            f"{_name(module)}: checkpoint(..., use_reentrant=True) has no gradient through a state that is kept from one "
            "call to the next: pass use_reentrant=False, or call snnkern.nn.detach(net) or reset(net) between the calls"
        )


def call_with_states(module: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call of a module that keeps its states where another library wants them: `module._kept` reads and sets all of them."""
    if in_no_region() and not is_start_to_check():
        return call(*args, **kwargs)
    return _call_in_region(module, call, *args, **kwargs)


@_disable_dynamo
def _call_in_region(module: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    own: _States = module._kept
    states, around = in_checkpointed_region(module)
    for value in states.values():
        check_start(module, value)
    if around.recomputed is not None:
        module._kept = states
    try:
        return call(*args, **kwargs)
    finally:  # torch ends a recomputation by an exception as soon as it has what it needs
        after: _States = module._kept
        reentrant = [key for key in around.first if _is_reentrant(key)]
        for name, value in after.items() if reentrant else ():
            if isinstance(value, Tensor) and value is not states.get(name):
                _made_in[value] = weakref.ref(reentrant[0])
        if around.recomputed is not None:
            states.update(after)
            module._kept = own
