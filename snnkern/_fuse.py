"""snnkern.fuse: BatchNorm and neuron as one operator, in a network that has both as modules.

The modules stay as they are, where they are. What changes is the forward of the module in which a norm's output reaches a
neuron: it is replaced by what torch.fx traced of it (_trace.py), in which the two calls have become one of `batch_norm_neuron`.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import linecache
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.fx import Graph, Node, Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from ._batch_norm import has_hooks
from ._library import build_info
from ._networks import Foreign
from ._nn import MultiStep
from ._norm import norm_of
from ._parameters import switch
from ._per_step import samples_to_steps
from ._trace import IN_PLACE, Traced, Untraceable, traced
from .compat.convert import _copy

_TORCHS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
# Dimensions of [T, N, C, ...], at least; those behind a SyncBatchNorm are known when it is called.
_RANKS = {"BatchNorm1d": 3, "BatchNorm2d": 5, "BatchNorm3d": 6}
_WRAPPERS = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel, torch.jit.ScriptModule)


# ---- when the network runs -------------------------------------------------------------------------------------------


def batch_norm_neuron(
    norm: Any, neuron: Any, samples: Tensor, x_seq: Tensor, residual_seq: Tensor | None, with_sum: bool, exchanged: str
) -> Any:
    """neuron(norm(samples) in the shape of x_seq + residual_seq), as one operator where it can be.

    Args:
        norm, neuron: the modules
        samples: what the norm gets
        x_seq: the same, in the shape that the neuron gets
        with_sum: return what the neuron gets as well
        exchanged: of Match
    """
    dim = _channel_dimension_behind(norm, neuron, samples, x_seq, residual_seq, exchanged)
    if dim is not None:
        given = norm_of(norm)._replace(residual_seq=residual_seq, with_sum=with_sum, channel_dim=dim)
        out = neuron._normed(x_seq, given)
    else:
        y = norm(samples)
        if exchanged == "channels":
            y = y.transpose(1, 2)
        y = y.reshape(x_seq.transpose(0, 1).shape).transpose(0, 1) if exchanged == "time" else y.reshape(x_seq.shape)
        y = y if residual_seq is None else y + residual_seq
        out = neuron(y), y
    return out if with_sum else out[0]


def _channel_dimension_behind(
    norm: Any, neuron: Any, samples: Tensor, x_seq: Tensor, residual_seq: Tensor | None, exchanged: str
) -> int | None:
    """The dimension of x_seq that has the norm's channels; None: the two cannot be one operator, if only now."""
    if isinstance(samples, Proxy) or (x_seq.is_cuda and not _BUILT_FOR_CUDA):
        return None
    if _refused(norm) or not _is_neuron(neuron) or _refused_behind(neuron, x_seq.dim()):
        return None
    if residual_seq is not None and (residual_seq.shape != x_seq.shape or residual_seq.dtype != x_seq.dtype):
        return None
    shape, dim = list(samples.shape), _channel_dimension(norm)
    if exchanged == "channels":
        if len(shape) != 3:
            return None
        shape, dim = [shape[0], shape[2], shape[1]], 2
    if shape[dim] != norm.num_features:
        return None
    inner = math.prod(shape[dim + 1 :])
    for k in range(2, x_seq.dim()):  # elements are in the same order, so this tells where channels have gone
        if x_seq.shape[k] == norm.num_features and math.prod(x_seq.shape[k + 1 :]) == inner:
            return k
    return None


def _channel_dimension(norm: Any) -> int:
    """1 for [samples, C, ...]; 2 for SpikingJelly's layers on [T, N, C, ...]."""
    return 2 if getattr(norm, "step_mode", "s") == "m" else 1


def _refused(norm: Any) -> str:
    """Why a norm cannot be part of an operator, or nothing."""
    kind = type(norm)
    is_steps = kind.__name__ in _RANKS and kind.__module__.startswith(_LAYERS)
    if kind not in _TORCHS and not is_steps:
        return f"a {kind.__name__} is no BatchNorm of torch's or SpikingJelly's"
    if norm.eps <= 0:
        return f"its eps is {norm.eps}"
    return "it has hooks" if has_hooks(norm) else ""


_BUILT_FOR_CUDA = build_info()["cuda"] is not None
_LAYERS = ("spikingjelly.activation_based.layer", "snnkern.compat.spikingjelly.layer")


def _refused_behind(neuron: Any, dimensions: float) -> str:
    """Why a neuron cannot run behind a norm as one operator, or nothing; `dimensions` of x_seq."""
    if why := neuron._refuses_norm():
        return str(why)
    if has_hooks(neuron):
        return "the neuron has hooks"
    tensors = itertools.chain(neuron._parameters.values(), neuron._buffers.values())
    if any(t is not None and t.dim() >= dimensions for t in tensors):
        return "a number of the neuron changes from step to step"
    return ""


def _is_neuron(module: Any) -> bool:
    return isinstance(module, (MultiStep, Foreign)) and hasattr(module, "_refuses_norm")


# ---- pairs in a graph --------------------------------------------------------------------------------------------------


@dataclass
class Match:
    """A norm whose output reaches a neuron: the nodes between, and what is added."""

    norm: Node
    neuron: Node
    between: list[Node] = field(default_factory=list)  # they change the shape: before the addition
    add: Node | None = None
    residual: Node | None = None
    after: list[Node] = field(default_factory=list)  # behind the addition
    # Behind the norm: "time" and batch, or the "channels" [samples, C, L] with what follows them.
    exchanged: str = ""
    sum_is_read: bool = False  # elsewhere, too

    @property
    def sums(self) -> list[Node]:
        return [] if self.add is None else [self.add, *self.after]

    @property
    def nodes(self) -> list[Node]:
        return [self.norm, *self.between, *self.sums, self.neuron]


class _Left(Exception):
    """Why a norm is left as it is."""


_OUT, _IN = "<the module that was traced>", "<its name>."  # in a reason
_SIGNS = {"add": "+", "iadd": "+=", "mul": "*"}
_SHAPE_READS = ("shape", "ndim", "dtype", "device")
_ROW_MAJOR = ("reshape", "view", "unflatten", "flatten")
_ADDS = (operator.add, operator.iadd, torch.add)


def _match(node: Node, modules: dict[str, torch.nn.Module]) -> Match:
    """What becomes one operator with the norm that a node calls."""
    norm = modules[str(node.target)]
    if len(node.args) != 1 or node.kwargs:
        raise _Left("it is called with more than one argument")
    found = Match(node, node)
    cur, has_time = node, _channel_dimension(norm) == 2
    while True:
        user = _reader(cur, found, modules)
        if user.op == "call_module" and _is_neuron(modules[str(user.target)]):
            dimensions = _RANKS.get(type(norm).__name__, math.inf)
            if why := _refused(norm) or _refused_behind(modules[str(user.target)], dimensions):
                raise _Left(why)
            if user.args != (cur,) or user.kwargs:
                raise _Left("its neuron is called with more than one argument")
            if not has_time:
                raise _Left("it sees no time: the neuron takes its samples for steps; see snnkern.nn.PerStep")
            found.neuron = user
            break
        if user.op == "call_method" and user.target == "contiguous":
            (found.between if found.add is None else found.after).append(user)
        elif _is_addition(user, cur):
            if found.add is not None:
                raise _Left("more than one thing is added to its output")
            found.add, found.residual = user, _other(user, cur)
        elif found.add is None and (user.op, user.target) == ("call_function", samples_to_steps):
            found.exchanged = "time" if user.args[2] else ""
            if user.args[0] is not cur or any(b.target != "contiguous" for b in found.between):
                raise _Left(f"its output goes to {_called(user, modules)}")
            found.between.append(user)
            has_time = True
        elif not found.between and found.add is None and not has_time and _exchanges_channels(user, cur):
            found.exchanged = "channels"
            found.between.append(user)
        elif found.add is None and found.exchanged != "time" and _keeps_order(user, cur):
            found.between.append(user)
            has_time = has_time or _name(user) != "flatten"
        else:
            raise _Left(f"its output goes to {_called(user, modules)}")
        cur = user
    _check_in_place(found, node.graph, modules)
    return found


def _reader(cur: Node, found: Match, modules: dict[str, torch.nn.Module]) -> Node:
    """What reads a value; other than its shape, and for a sum, other than what reads it elsewhere."""
    readers = [user for user in cur.users if not _reads_shape(user)]
    if found.add is not None and len(readers) > 1:
        found.sum_is_read = True
        readers = [user for user in readers if user.op == "call_module" and _is_neuron(modules[str(user.target)])]
        if len(readers) != 1:
            raise _Left(
                "the sum with its output goes to no neuron" if not readers else "the sum goes to several neurons"
            )
    if len(readers) > 1:
        raise _Left("its output is read more than once")
    if not readers or readers[0].op == "output":
        raise _Left(f"its output leaves {_OUT}" if readers else "its output is not used")
    return readers[0]


def _reads_shape(user: Node) -> bool:
    is_attribute = user.op == "call_function" and user.target is getattr and user.args[1] in _SHAPE_READS
    return is_attribute or (user.op == "call_method" and user.target in ("size", "dim"))


def _keeps_order(user: Node, cur: Node) -> bool:
    """Whether it gives the same elements in the same order another shape."""
    name = _name(user)
    is_torchs = user.op == "call_method" or getattr(torch, name, None) is user.target
    return is_torchs and name in _ROW_MAJOR and user.args[0] is cur and cur not in user.args[1:]


def _exchanges_channels(user: Node, cur: Node) -> bool:
    """Whether it makes [samples, C, L] [samples, L, C]."""
    is_transpose = user.target == "transpose" if user.op == "call_method" else user.target is torch.transpose
    return is_transpose and user.args[0] is cur and set(user.args[1:]) in ({1, 2}, {-1, -2}) and not user.kwargs


def _is_addition(user: Node, cur: Node) -> bool:
    if user.kwargs or len(user.args) != 2:
        return False
    in_place = user.target is operator.iadd or user.target == "add_"
    is_add = user.target in _ADDS if user.op == "call_function" else user.target in ("add", "add_")
    other = user.args[1] if user.args[0] is cur else user.args[0]
    return is_add and isinstance(other, Node) and other is not cur and (user.args[0] is cur or not in_place)


def _other(add: Node, cur: Node) -> Node:
    other = add.args[1] if add.args[0] is cur else add.args[0]
    assert isinstance(other, Node)
    return other


def _called(node: Node, modules: dict[str, torch.nn.Module]) -> str:
    if node.op == "call_module":
        return f"{_IN}{node.target} ({type(modules[str(node.target)]).__name__})"
    return _SIGNS.get(_name(node), _name(node))


def _name(node: Node) -> str:
    """What a node calls: of a method its name."""
    return str(getattr(node.target, "__name__", node.target))


def _check_in_place(found: Match, graph: Graph, modules: dict[str, torch.nn.Module]) -> None:
    """The norm is computed later than it was, and autograd keeps what is added: nothing may change in place."""
    order = list(graph.nodes)
    first, last = order.index(found.norm), order.index(found.neuron)
    for node in order[first:]:
        if node in found.nodes or not _is_in_place(node, modules):
            continue
        if order.index(node) < last:
            raise _Left(f"{_called(node, modules)} changes something in place between it and the neuron")
        if found.residual is not None and node.args[:1] == (found.residual,):
            raise _Left(f"{_called(node, modules)} changes in place what is added to its output")


def _is_in_place(node: Node, modules: dict[str, torch.nn.Module]) -> bool:
    if node.op == "call_module":
        return any(getattr(m, "inplace", False) for m in modules[str(node.target)].modules())
    return (
        (_name(node).endswith("_") and not _name(node).endswith("__"))
        or node.target in IN_PLACE
        or bool(node.kwargs.get("inplace"))
        or node.kwargs.get("out") is not None
    )


# ---- a new forward ------------------------------------------------------------------------------------------------------


def _rewrite(graph: Graph, found: Match) -> None:
    """Makes one call of the two, where the norm's output is added to something, or else the neuron was called."""
    samples = found.norm.args[0]
    assert isinstance(samples, Node)
    without = {found.norm: samples}  # for a node, the same without the norm and the addition
    for node in found.between:
        with graph.inserting_before(node):
            without[node] = graph.node_copy(node, lambda n: without.get(n, n))
    last = found.between[-1] if found.between else found.norm
    with graph.inserting_before(found.add or found.neuron):
        if found.add is not None:
            without[found.add] = without[last]
            last = found.add
        for node in found.after:
            without[node] = graph.node_copy(node, lambda n: without.get(n, n))
            last = node
        norm, neuron = (graph.create_node("get_attr", str(n.target)) for n in (found.norm, found.neuron))
        flags = found.sum_is_read, found.exchanged
        spikes = graph.call_function(batch_norm_neuron, (norm, neuron, samples, without[last], found.residual, *flags))
        if found.sum_is_read:
            both = spikes
            spikes, total = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
            for node in found.sums:
                node.replace_all_uses_with(total, delete_user_cb=lambda user: user not in found.nodes)
    found.neuron.replace_all_uses_with(spikes)
    for node in reversed(found.nodes):
        if node is not found.neuron:  # its shape may still be read
            node.replace_all_uses_with(without[node])
        graph.erase_node(node)


# Of a new forward, the modules that it goes through: the name, whether it is called all the same, its children's names.
_Parts = tuple[tuple[str, bool, tuple[str, ...]], ...]


class Fused:
    """Base of the classes of modules with a new forward; a class is made anew where a module is loaded elsewhere."""

    _fused: tuple[type[torch.nn.Module], str, dict[str, Any], _Parts]
    _parts: _Parts

    def _check_parts(self: Any) -> None:
        """The new forward begins with this: it would not see what was changed in the modules that it goes through."""
        for name, is_called, children in self._parts:
            module = self.get_submodule(name)
            if tuple(module._modules) != children:
                raise RuntimeError(
                    f"snnkern.fuse: this {type(module).__name__} has other layers than when it was fused, {list(children)}, got "
                    f"{list(module._modules)}: add and remove layers before"
                )
            if not is_called and has_hooks(module):
                raise RuntimeError(
                    f"snnkern.fuse: a hook on this {type(module).__name__} would not be called, since the BatchNorm in it is one "
                    "operator with a neuron outside of it: register the hook before, and the two are left as they are"
                )

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind, text, names, parts = self._fused
        as_names = {name: _ByName(v.__name__) if isinstance(v, ModuleType) else v for name, v in names.items()}
        reduced: Any = super().__reduce_ex__(protocol)
        return _remade, (kind, text, as_names, parts), *reduced[2:]


@dataclass(frozen=True)
class _ByName:
    """A module of Python, which cannot be pickled."""

    name: str


def _remade(kind: type[torch.nn.Module], text: str, names: dict[str, Any], parts: _Parts) -> torch.nn.Module:
    names = {name: importlib.import_module(v.name) if isinstance(v, _ByName) else v for name, v in names.items()}
    made = _class_with(kind, text, names, parts)
    return made.__new__(made)


_classes: dict[tuple[Any, ...], type[torch.nn.Module]] = {}


def _class_with(kind: type[torch.nn.Module], text: str, names: dict[str, Any], parts: _Parts) -> type[torch.nn.Module]:
    """The class of modules like `kind` whose forward is this text; one for all copies."""
    key = (kind, text, parts, *map(id, names.values()))
    if key not in _classes:
        file = f"<snnkern.fuse: {kind.__name__} {len(_classes)}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        scope = dict(names)
        exec(compile(text, file, "exec", dont_inherit=True), scope)
        own = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
        own |= {"forward": scope["forward"], "_fused": (kind, text, names, parts), "_parts": parts}
        _classes[key] = type(kind.__name__, (Fused, kind), own)
    return _classes[key]


def _parts_of(owner: torch.nn.Module, around: set[torch.nn.Module]) -> _Parts:
    parts: list[tuple[str, bool, tuple[str, ...]]] = [("", True, tuple(owner._modules))]
    todo = [("", owner)]
    while todo:
        prefix, module = todo.pop()
        for name, child in module.named_children():
            is_list = type(child).forward is torch.nn.Module.forward  # it has none
            if is_list or child in around:
                parts.append((prefix + name, is_list, tuple(child._modules)))
                todo.append((f"{prefix}{name}.", child))
    return tuple(parts)


# ---- the network ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A norm and a neuron that are one operator, by their names in the network."""

    norm: str
    neuron: str
    adds: bool  # a residual is added between them
    sum_is_read: bool  # and the sum read elsewhere

    def __str__(self) -> str:
        middle = f" -> {'+, read elsewhere' if self.sum_is_read else '+'}" if self.adds else ""
        return f"{self.norm}{middle} -> {self.neuron}"


@dataclass(frozen=True)
class FusionReport:
    """What snnkern.fuse found: the pairs that it made one operator, and why the other norms were left, by name."""

    pairs: list[Pair]
    left: dict[str, str]

    def __str__(self) -> str:
        count = len(self.pairs)
        lines = [
            f"{count} pair{'s' * (count != 1)} of BatchNorm and neuron {'is' if count == 1 else 'are'} one operator"
        ]
        lines += [f"  {pair}" for pair in self.pairs]
        if self.left:
            lines += [f"left: {len(self.left)}", *(f"  {name}: {why}" for name, why in self.left.items())]
        return "\n".join(lines)


class _Network:
    """Which modules can be traced, and the pairs in them."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.names: dict[torch.nn.Module, list[str]] = {}
        for name, module in net.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        self.closed: dict[torch.nn.Module, str] = {}  # no trace of what is around goes into these, and why
        self.graphs: dict[torch.nn.Module, Traced] = {}
        self.left: dict[torch.nn.Module, str] = {}
        # The innermost first, so that it is known into which a trace can go.
        for module in reversed(list(self.names)):
            if isinstance(module, Fused):
                self.closed[module] = f"{self.title(module)} is fused already"
            elif not _is_single(module):
                self._look_into(module)

    def _look_into(self, module: torch.nn.Module) -> None:
        title = self.title(module)
        if has_hooks(module):
            self.closed[module] = f"{title} has hooks"
        elif len(self.names[module]) > 1:
            self.closed[module] = f"{title} is used under several names: {', '.join(self.names[module])}"
        kind = type(module)
        if kind.forward is torch.nn.Module.forward:  # it has none: a ModuleList and the like
            return
        if "forward" in vars(module) or kind.__reduce__ is not object.__reduce__:
            what = "a forward of its own object" if "forward" in vars(module) else "a way of its own to be pickled"
            self.closed[module] = f"{title} has {what}"
            return
        try:
            self.graphs[module] = traced(module, self.is_leaf)
        except Untraceable as error:
            self.closed[module] = f"torch.fx cannot trace {title}: {error}"

    def name(self, module: torch.nn.Module) -> str:
        return self.names[module][0] or "the network"

    def title(self, module: torch.nn.Module) -> str:
        return f"{self.name(module)} ({type(module).__name__})"

    def is_leaf(self, module: torch.nn.Module) -> bool:
        return _is_single(module) or module in self.closed

    def outermost(self) -> Iterator[torch.nn.Module]:
        """The modules with a graph that are in no other's."""
        inside = {m for root in self.graphs for m in self._inside(root)}
        return (module for module in self.graphs if module not in inside)

    def _inside(self, root: torch.nn.Module) -> Iterator[torch.nn.Module]:
        for module in root.children():
            if not self.is_leaf(module):
                yield module
                yield from self._inside(module)

    def owners(self) -> dict[torch.nn.Module, set[torch.nn.Module]]:
        """Whose forward is replaced, and into which modules its new one goes. Why other norms are left is noted."""
        owners: dict[torch.nn.Module, set[torch.nn.Module]] = {}
        for root in self.outermost():
            modules = dict(root.named_modules())
            inside = self.graphs[root].inside
            for found in self._matches(root):
                stacks = [inside[node] for node in found.nodes]
                common = [names[0] for names in zip(*stacks, strict=False) if len(set(names)) == 1]
                owner = modules[common[-1]] if common else root
                around = {modules[name] for stack in stacks for name in stack[len(common) :]}
                owners.setdefault(owner, set()).update(around)
        for owner in [module for module in self.names if module in owners]:  # the outermost first
            todo = list(owners.get(owner, ()))
            while todo:  # a forward that goes into another one with pairs takes those over
                more = owners.pop(todo.pop(), set()) - owners[owner]
                owners[owner] |= more
                todo += more
        return owners

    def _matches(self, root: torch.nn.Module) -> Iterator[Match]:
        modules = dict(root.named_modules())
        graph = self.graphs[root].graph
        calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        taken: set[Node] = set()
        for node in _norms(graph, modules):
            norm = modules[str(node.target)]
            try:
                found = _match(node, modules)
                if found.add in taken:
                    raise _Left("it is added to the output of a norm that is one operator with the neuron")
                for call in (found.norm, found.neuron):
                    called = modules[str(call.target)]
                    if calls.count(str(call.target)) > 1 or len(self.names[called]) > 1:
                        raise _Left(f"{self.name(called)} is used more than once")
            except _Left as left:
                prefix = f"{self.names[root][0]}." if self.names[root][0] else ""
                self.left[norm] = str(left).replace(_OUT, self._border(root)).replace(_IN, prefix)
                continue
            taken.update(found.nodes)
            yield found

    def _border(self, root: torch.nn.Module) -> str:
        """Where a graph ends, and why."""
        why = next((self.closed[m] for m in (root, *self._parents(root)) if m in self.closed), "")
        return self.name(root) + (f", and {why}" if why else "")

    def unseen(self, norm: torch.nn.Module) -> str:
        """Why no graph has a call of a norm."""
        return next(
            (self.closed[m] for m in self._parents(norm) if m in self.closed), "nothing that torch.fx traces calls it"
        )

    def _parents(self, module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        return (
            m for m in reversed(list(self.names)) if any(child is module for child in m.modules()) and m is not module
        )


def _is_single(module: torch.nn.Module) -> bool:
    """Whether there is nothing to look for within a module."""
    if isinstance(module, (_BatchNorm, Fused)) or _is_neuron(module):
        return True
    return not any(isinstance(m, _BatchNorm) or _is_neuron(m) for m in module.modules())


def _norms(graph: Graph, modules: dict[str, torch.nn.Module]) -> list[Node]:
    return [n for n in graph.nodes if n.op == "call_module" and isinstance(modules[str(n.target)], _BatchNorm)]


def _replaced(
    owner: torch.nn.Module, around: set[torch.nn.Module]
) -> list[tuple[torch.nn.Module, torch.nn.Module, Match]]:
    """Gives a module its new forward, which goes into those `around`; the norms and neurons that are one operator in it."""
    graph = traced(owner, lambda module: module not in around).graph
    modules = dict(owner.named_modules())
    done = []
    for node in _norms(graph, modules):
        with contextlib.suppress(_Left):
            found = _match(node, modules)
            pair = modules[str(node.target)], modules[str(found.neuron.target)]
            _rewrite(graph, found)
            done.append((*pair, found))
    code = graph.python_code("self")
    text = re.sub(r"^def forward\(.*:$", r"\g<0>\n    self._check_parts()", code.src, flags=re.MULTILINE)
    owner.__class__ = _class_with(type(owner), text, code.globals, _parts_of(owner, around))
    return done


def fuse(
    net: torch.nn.Module, *, inplace: bool = False, report: Callable[[FusionReport], Any] | None = None
) -> torch.nn.Module:
    """The network with every BatchNorm and the neuron behind it as one operator: what lies between them is not stored.

    Outputs, gradients and running statistics are the same up to rounding, in training and in evaluation. Modules stay where they
    are, with their parameters, buffers, states and the keys of the state_dict. Load before or after it; wrap in
    DistributedDataParallel, compile and checkpoint after it.

    A pair is a torch.nn.BatchNorm1d, 2d or 3d (or SpikingJelly's) whose output reaches one neuron of snnkern.nn, or of
    SpikingJelly after `snnkern.convert`. Between them may lie what gives samples their time back, as snnkern.nn.PerStep does
    (unflatten, reshape), and the addition of a residual, whose sum may be read elsewhere, too. The forward in which they meet is
    replaced by what torch.fx traced of it, so what it decides by attributes of its module is decided now. What cannot be shown to
    be the same is left as it is:

    * a norm or neuron with hooks, or that is used twice; a norm whose output is read twice
    * a forward that torch.fx cannot trace, or that does something else in training than in evaluation
    * something that changes in place between the two

    Where a hook is registered later, or shapes turn out to be others, the two run one after the other.

    Args:
        net: a network; best after loading, and before it is wrapped
        inplace: change this network itself; else a copy
        report: called with what was found: .pairs, .left (why each other norm was left) and a text, as in report=print

    Raises:
        TypeError: net is no module, or is wrapped already.

    Example:
        >>> layers = snnkern.nn.PerStep(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8))
        >>> net = torch.nn.Sequential(layers, snnkern.nn.LIF())
        >>> net = snnkern.fuse(net, report=print)
        1 pair of BatchNorm and neuron is one operator
          0.1 -> 1
        >>> net(torch.rand(4, 2, 3, 6, 6)).shape
        torch.Size([4, 2, 8, 4, 4])
    """
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"snnkern.fuse: net must be a torch.nn.Module, got {type(net).__name__}")
    if isinstance(net, _WRAPPERS) or hasattr(net, "_orig_mod"):
        raise TypeError(f"snnkern.fuse: net must not be wrapped yet, got {type(net).__name__}: fuse what is in it")
    if not switch("snnkern.fuse", "inplace", inplace):
        net = _copy(net)
    network = _Network(net)
    done = []
    for owner, around in network.owners().items():
        try:
            done += _replaced(owner, around)
        except Untraceable as error:
            network.closed[owner] = f"torch.fx cannot trace {network.title(owner)} around its parts: {error}"
    order = {module: i for i, module in enumerate(network.names)}
    done.sort(key=lambda pair: order[pair[0]])
    pairs = [
        Pair(network.name(norm), network.name(neuron), found.add is not None, found.sum_is_read)
        for norm, neuron, found in done
    ]
    fused = {norm for norm, *_ in done}
    left = {
        network.name(m): network.left.get(m) or network.unseen(m)
        for m in network.names
        if isinstance(m, _BatchNorm) and m not in fused
    }
    found = FusionReport(pairs, left)
    if not pairs:
        warnings.warn(f"snnkern.fuse: {found}", stacklevel=2)
    if report is not None:
        report(found)
    return net
