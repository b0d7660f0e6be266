"""The graph of a module's forward by torch.fx, or why there is none that can be relied on.

Beyond torch.fx.symbolic_trace, which follows one way through a forward and does not see all that it depends on:

* A test that only refuses an input (`if x.ndim != 4: raise`, `assert`) becomes a node of the graph. A test with two ways to go
  on is an error.
* What is traced in training and in evaluation must be the same.
* A forward that keeps something in its module, draws random numbers or makes tensors while it is traced, or asks whether
  something is a tensor, is an error.
* So is one that sets a mode which no node of a graph has: autocast, no_grad, a checkpoint.
* `x += y` changes x in place, as it does outside of torch.fx. `*x.shape[1:]` of what a BatchNorm2d or 3d returns has a length.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import importlib
import operator
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks as top_hooks
from torch.fx import Graph, Node, Proxy
from torch.nn.modules.batchnorm import _BatchNorm

_TORCH = str(Path(torch.__file__).parent)
_MOST_TESTS = 32


class Untraceable(Exception):
    """Why there is no graph."""


@dataclass(frozen=True)
class Traced:
    """A graph, and for each node the modules into which the trace went to make it, from the outermost, without the root."""

    graph: Graph
    inside: dict[Node, tuple[str, ...]]


def traced(root: torch.nn.Module, is_leaf: Callable[[torch.nn.Module], bool]) -> Traced:
    """The graph of the forward of `root`, in which modules that are leaves are calls.

    Raises:
        Untraceable: there is none, and why.
    """
    # What a forward calls may import it, as a checkpoint does. It lists Python's functions then, and so for as long as the
    # process lives, and must not find those that a trace has in their places: here isinstance, in torch.fx those of math.
    importlib.import_module("torch._dynamo")
    was = {module: module.training for module in root.modules()}
    found = []
    try:
        for training in (True, False):
            for module in was:
                module.training = training
            with _unusual_modes(grad=training):
                found.append(_one_way(root, is_leaf))
    finally:
        for module, training in was.items():
            module.training = training
    if _text(found[0].graph) != _text(found[1].graph):
        raise Untraceable("its forward does something else in training than in evaluation")
    return found[0]


_DEVICES = ("cpu", "cuda")


@contextlib.contextmanager
def _unusual_modes(grad: bool) -> Iterator[None]:
    """Modes that a forward which sets them will change."""
    was = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES]
    try:
        for device in _DEVICES:
            torch.set_autocast_enabled(device, True)
            torch.set_autocast_dtype(device, torch.float64)
        with torch.set_grad_enabled(grad):
            yield
    finally:
        for device, (enabled, dtype) in zip(_DEVICES, was, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


def _modes() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, top_hooks(True) is None


def _text(graph: Graph) -> list[str]:
    return [repr((node.op, node.target, node.args, node.kwargs)) for node in graph.nodes]


def require(condition: Any, wanted: bool, place: str) -> None:
    """In the graph: what the forward refuses is refused."""
    if bool(condition) != wanted:
        raise ValueError(f"the network refuses this input, in {place}")


def _one_way(root: torch.nn.Module, is_leaf: Callable[[torch.nn.Module], bool]) -> Traced:
    """The only way through the forward on which it raises nothing."""
    plan: list[bool] = []
    refused: set[int] = set()  # the tests whose other outcome is known to raise
    while True:
        tracer = _Tracer(is_leaf, plan)
        raised = _run(tracer, root)
        if raised is None:
            break
        last = len(tracer.tests) - 1
        if last < 0 or last in refused:
            raise Untraceable(f"its forward raises {raised}")
        refused.add(last)
        plan = [outcome for outcome, _ in tracer.tests]
        plan[last] = not plan[last]
    outcomes = [outcome for outcome, _ in tracer.tests]
    for i, (outcome, place) in enumerate(tracer.tests):
        if i in refused:
            continue
        other = _Tracer(is_leaf, [*outcomes[:i], not outcome])
        if _run(other, root) is None or len(other.tests) != i + 1:
            raise Untraceable(f"its forward goes one way or another, in {place}")
    return Traced(tracer.graph, tracer.inside)


def _run(tracer: _Tracer, root: torch.nn.Module) -> str | None:
    """Traces; or says what the forward itself raises."""
    before = _disturb(root)
    drawn = (torch.get_rng_state(), random.getstate())
    try:
        with _tensors_in_question():
            tracer.trace(root)
    except Untraceable:
        raise
    except Exception as error:
        if _is_raised_by_user(error.__traceback__):
            return f"{type(error).__name__}: {error}"
        sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise Untraceable(f"{type(error).__name__}: {sentence}") from None
    finally:
        changed = _restore(before)
    if changed:
        raise Untraceable(f"its forward keeps something in {changed}, or makes tensors of its own")
    if not torch.equal(torch.get_rng_state(), drawn[0]) or random.getstate() != drawn[1]:
        torch.set_rng_state(drawn[0])
        random.setstate(drawn[1])
        raise Untraceable("its forward draws random numbers that torch.fx does not see")
    return None


def _is_raised_by_user(traceback: TracebackType | None) -> bool:
    """Whether a `raise` or `assert` outside of torch ended it."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return not code.co_filename.startswith(_TORCH) and dis.opname[code.co_code[traceback.tb_lasti]] == "RAISE_VARARGS"


_UNTOUCHED = object()
_STATES = ("_kept", "_memories")  # attributes that hold the states of our neurons, and of SpikingJelly's


def _disturb(root: torch.nn.Module) -> dict[torch.nn.Module, dict[str, Any]]:
    """What modules hold; in the place of states is something that a reset would replace."""
    before = {module: {name: _copied(value) for name, value in vars(module).items()} for module in root.modules()}
    for module in before:
        for name in _STATES:
            states = vars(module).get(name, {})
            states.update(dict.fromkeys(states, _UNTOUCHED))
    return before


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (dict, list) else value


def _restore(before: dict[torch.nn.Module, dict[str, Any]]) -> str:
    """Undoes what a trace did to modules; the class of the first that it changed, or nothing."""
    changed = ""
    for module, was in before.items():
        now = vars(module)
        for name in was.keys() | now.keys():
            old, new = was.get(name, _UNTOUCHED), now.get(name, _UNTOUCHED)
            wanted = dict.fromkeys(old, _UNTOUCHED) if name in _STATES else old
            if not _is_same(wanted, new):
                changed = changed or type(module).__name__
            if name not in was:
                del now[name]
            elif type(old) is type(new) is dict:
                new.clear()
                new.update(old)
            elif type(old) is type(new) is list:
                new[:] = old
            else:
                now[name] = old
    return changed


def _is_same(old: Any, new: Any) -> bool:
    if type(old) is dict and type(new) is dict:
        return old.keys() == new.keys() and all(old[k] is new[k] for k in old)
    if type(old) is list and type(new) is list:
        return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
    return old is new


@contextlib.contextmanager
def _tensors_in_question() -> Iterator[None]:
    """A Proxy stands for a tensor, but is none to isinstance: a forward that asks would go the wrong way."""
    plain = builtins.isinstance

    def asked(value: Any, kinds: Any) -> bool:
        answer = plain(value, kinds)
        frame = sys._getframe(1)
        is_users = frame.f_globals.get("__name__", "").partition(".")[0] != "torch"
        if (
            is_users
            and type(value) is _Value
            and not answer
            and plain(kinds, (type, tuple))
            and issubclass(Tensor, kinds)
        ):
            raise Untraceable(f"its forward asks whether something is a tensor, in {_place(frame)}")
        return answer

    builtins.isinstance = asked
    try:
        yield
    finally:
        builtins.isinstance = plain


def _place(frame: Any) -> str:
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_TORCH):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_qualname if hasattr(code, 'co_qualname') else code.co_name}, line {frame.f_lineno}"


class _Value(Proxy):
    """A Proxy that knows x += y."""


class _Sizes(_Value):
    """A part of a shape of which the length is known: *x.shape[1:]."""

    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Proxy]:
        get = operator.getitem
        return iter([self.tracer.create_proxy("call_function", get, (self, i), {}) for i in range(self.length)])


_DIMENSIONS = {"BatchNorm2d": 4, "BatchNorm3d": 5}  # of what these get, or they raise


def _length(node: Node, root: torch.nn.Module) -> int | None:
    """How many dimensions a part of the shape of a norm's output has, where the norm's class tells."""
    if node.target is not operator.getitem or not isinstance(node.args[1], slice):
        return None
    shape = node.args[0]
    if not isinstance(shape, Node) or shape.target is not getattr or shape.args[1] != "shape":
        return None
    owner = shape.args[0]
    if not isinstance(owner, Node) or owner.op != "call_module":
        return None
    norm = root.get_submodule(str(owner.target))
    is_known = isinstance(norm, _BatchNorm) and getattr(norm, "step_mode", "s") == "s"
    dimensions = _DIMENSIONS.get(type(norm).__name__) if is_known else None
    return None if dimensions is None else len(range(*node.args[1].indices(dimensions)))


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


IN_PLACE = tuple(getattr(operator, f"i{n}") for n in "add sub mul truediv floordiv mod pow and or xor matmul".split())  # noqa: SIM905
for _function in IN_PLACE:
    setattr(_Value, f"__{_function.__name__}__", _in_place(_function))


class _Tracer(torch.fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, is_leaf: Callable[[torch.nn.Module], bool], plan: list[bool]) -> None:
        super().__init__()
        self.leaf, self.plan = is_leaf, plan
        self.tests: list[tuple[bool, str]] = []
        self.inside: dict[Node, tuple[str, ...]] = {}
        self.stack: list[str] = []
        self.modes = _modes()

    def proxy(self, node: Node) -> Proxy:
        length = _length(node, self.root)
        if length is None:
            return _Value(node, self)
        sizes = _Sizes(node, self)
        sizes.length = length
        return sizes

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return self.leaf(m)

    def call_module(self, m: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.leaf(m):
            return super().call_module(m, forward, args, kwargs)
        self.stack.append(self.path_of_module(m))
        try:
            return super().call_module(m, _steps_as_samples(m) or forward, args, kwargs)
        finally:
            self.stack.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _modes() != self.modes:
            raise Untraceable("its forward sets a mode, such as autocast, no_grad or a checkpoint")
        node = super().create_node(*args, **kwargs)
        self.inside[node] = tuple(self.stack)
        return node

    def to_bool(self, obj: Proxy) -> bool:
        place = _place(sys._getframe(1))
        if len(self.tests) >= _MOST_TESTS:
            raise Untraceable(f"its forward makes too many tests, in {place}")
        i = len(self.tests)
        outcome = self.plan[i] if i < len(self.plan) else False
        self.tests.append((outcome, place))
        self.create_node("call_function", require, (obj.node, outcome, place), {})
        return outcome


def _steps_as_samples(m: torch.nn.Module) -> Callable[..., Any] | None:
    """The forward of SpikingJelly's SeqToANNContainer, whose own torch.fx cannot trace."""
    if type(m).__name__ != "SeqToANNContainer" or "spikingjelly" not in type(m).__module__:
        return None

    def forward(x_seq: Any) -> Any:
        x = x_seq.flatten(0, 1)
        for layer in m.children():
            x = layer(x)
        return x.unflatten(0, x_seq.shape[:2])

    return forward
