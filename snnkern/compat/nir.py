"""NIR, the exchange format of neuromorphic libraries: networks out to it, and in from it.

NIR states a neuron as a differential equation with time in seconds; a step of length dt of Euler's method makes an equation of
snnkern of it, and export() writes the equation of which that is true. What NIR has no word for (a soft reset, the surrogate,
whether h = v_threshold spikes) goes into the metadata of a node, where load() finds it.
"""

from __future__ import annotations

import json
import keyword
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import nn, surrogate
from .._networks import Foreign
from .._nn import MultiStep
from .._per_step import samples_to_steps, steps_to_samples
from .._recurrent import Recurrent
from .._surrogate import Surrogate

__all__ = ["Drive", "Driven", "Network", "Recurrence", "export", "load"]

_METADATA = "snnkern"  # the key of what only snnkern reads


def _nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise ImportError(f"snnkern.compat.nir needs the package nir: pip install nir ({error})") from error
    return nir


# ---- modules that NIR's nodes need beside those of PyTorch and snnkern -------------------------------------------------


class Drive(torch.nn.Module):
    """The current of a neuron of NIR: ``x * scale + shift``, with a value for each neuron or one for all.

    Args:
        scale: factor of the input
        shift: what is added

    Example:
        >>> snnkern.compat.nir.Drive(2.0, 1.0)(torch.ones(3))
        tensor([3., 3., 3.])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()).clone())
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.get_default_dtype()).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def extra_repr(self) -> str:
        shown = [t.item() if t.numel() == 1 else list(t.shape) for t in (self.scale, self.shift)]
        return f"scale={shown[0]}, shift={shown[1]}"


class Driven(torch.nn.Sequential):
    """A neuron behind its Drive: one node of NIR.

    Example:
        >>> snnkern.compat.nir.Driven(snnkern.compat.nir.Drive(2.0), snnkern.nn.LI())(torch.ones(1, 3))
        tensor([[1., 1., 1.]])
    """

    def __init__(self, drive: Drive, neuron: MultiStep) -> None:
        super().__init__()
        self.drive, self.neuron = drive, neuron


class Network(torch.nn.Module):
    """A graph without cycles: each module gets the sum of what comes in at its edges.

    Args:
        modules: by the names of NIR's nodes, in an order in which they can run
        sources: for each module, where its input comes from: names of modules, or "" for the input of the network
        output: the module that gives the result

    Example:
        >>> modules = {"one": torch.nn.Identity(), "two": torch.nn.Identity()}
        >>> net = snnkern.compat.nir.Network(modules, {"one": [""], "two": ["", "one"]}, "two")
        >>> net(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, modules: dict[str, torch.nn.Module], sources: dict[str, list[str]], output: str) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.sources, self.output = sources, output

    def forward(self, x_seq: Tensor) -> Tensor:
        values = {"": x_seq}
        for name, sources in self.sources.items():
            values[name] = self.get_submodule(name)(_sum(values[source] for source in sources))
        return values[self.output]

    def extra_repr(self) -> str:
        return ", ".join(
            f"{' + '.join(s or 'input' for s in sources)} -> {name}" for name, sources in self.sources.items()
        )


class Recurrence(Foreign, torch.nn.Module):
    """Modules in a cycle, step by step: what a neuron gives back into the cycle arrives in the next step.

    Args:
        modules: by name, in the order in which they run within a step
        sources: for each module, where its input comes from: names of modules, or "" for the input of the cycle
        delayed: the edges (from, to) that take a step
        shapes: of a step of each module that a delayed edge starts from, without the batch; () for that of the input
        output: the module that gives the result

    Example:
        >>> modules = {"back": torch.nn.Linear(3, 3), "lif": snnkern.nn.LIF()}
        >>> loop = snnkern.compat.nir.Recurrence(
        ...     modules, {"back": ["lif"], "lif": ["", "back"]}, [("lif", "back")], {"lif": (3,)}, "lif")
        >>> loop(torch.zeros(5, 2, 3)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        modules: dict[str, torch.nn.Module],
        sources: dict[str, list[str]],
        delayed: list[tuple[str, str]],
        shapes: dict[str, tuple[int, ...]],
        output: str,
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.sources, self.delayed, self.shapes, self.output = sources, set(delayed), shapes, output
        self._memories: dict[str, Tensor] = {}

    def forward(self, x_seq: Tensor) -> Tensor:
        before = self._memories or {
            name: x_seq.new_zeros(1, x_seq.shape[1], *(shape or x_seq.shape[2:])) for name, shape in self.shapes.items()
        }
        steps = []
        for x in x_seq.unbind(0):
            now = {"": x.unsqueeze(0)}
            for name, sources in self.sources.items():
                parts = (before[s] if (s, name) in self.delayed else now[s] for s in sources)
                now[name] = self.get_submodule(name)(_sum(parts))
            before = {name: now[name] for name in self.shapes}
            steps.append(now[self.output])
        self._memories = before
        return torch.cat(steps)

    def _reset_states(self) -> None:
        self._memories = {}

    def _detach_states(self) -> None:
        self._memories = {name: t.detach() for name, t in self._memories.items()}

    extra_repr = Network.extra_repr


def _sum(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    for other in others:
        first = first + other
    return first


# ---- neurons -----------------------------------------------------------------------------------------------------------


class _Values:
    """The numbers of a module, each as an array with a value for each neuron."""

    def __init__(self, module: MultiStep, shape: tuple[int, ...]) -> None:
        self.module, self.shape = module, shape

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        if isinstance(value, Tensor):
            value = self.module._spread(value.detach().double().cpu(), torch.empty(1, 1, *self.shape, device="meta"))
        return torch.as_tensor(value, dtype=torch.float64).expand(self.shape).numpy().copy()


def _refuse(where: str, text: str) -> None:
    raise ValueError(f"snnkern.compat.nir: {where}: {text}")


def _metadata(name: str, module: MultiStep) -> dict[str, Any]:
    """What NIR has no word for."""
    about: dict[str, Any] = {"module": type(module).__name__}
    for key in module._shown:
        value = getattr(module, key)
        if key.endswith("_init") and value is not None:
            _refuse(name, f"NIR has no word for {key}: leave it out")
        if key in ("strict", "delay_reset", "detach_reset", "detach_recurrent"):
            about[key] = value
        if key in ("max_spikes", "v_min") and value != module._usual[key]:
            if isinstance(value, Tensor):
                _refuse(name, f"NIR has no word for {key}, and only a number can be kept beside it, got a tensor")
            about[key] = value
    if module.surrogate is not None:
        used = module.surrogate
        about["surrogate"] = [used.name, list(used.params), used.spiking]
    if "v_reset" in module._shown:
        about["reset"] = "soft" if module.v_reset is None else "hard"
        if module.v_reset is None:
            warnings.warn(
                f"snnkern.compat.nir: {name}: NIR has no word for a soft reset (v_reset=None); it is in the metadata, which only "
                "snnkern reads: to others the neuron resets to 0",
                stacklevel=2,
            )
    return {_METADATA: json.dumps(about)}


def _export_neuron(name: str, module: torch.nn.Module, shape: tuple[int, ...], dt: float) -> Any:
    """The node of a neuron, or of one behind its Drive."""
    nir = _nir()
    drive = module.drive if isinstance(module, Driven) else Drive()
    neuron: Any = module.neuron if isinstance(module, Driven) else module
    kind = type(neuron).__name__.removeprefix("Recurrent")
    if kind not in ("IF", "LIF", "ParametricLIF", "CuBaLIF", "LI", "CuBaLI"):
        _refuse(name, f"NIR has no neuron like {kind}; it has IF, LIF, CubaLIF, LI and CubaLI")
    p = _Values(neuron, shape)
    scale, shift = (t.double().cpu().expand(shape).numpy() for t in (drive.scale, drive.shift))
    about: dict[str, Any] = {"metadata": _metadata(name, neuron)}
    if kind not in ("LI", "CuBaLI"):
        rest = p.v_reset if neuron.v_reset is not None else 0 * scale
        about |= {"v_threshold": p.v_threshold, "v_reset": rest}
    if kind == "IF":
        if shift.any():
            _refuse(name, "NIR's IF has no v_leak, and the Drive before it adds a constant")
        return nir.IF(r=scale / dt, **about)
    if kind in ("CuBaLIF", "CuBaLI"):
        if shift.any():
            _refuse(name, "a constant that is added before the synapse has no word in NIR")
        for key in ("alpha", "beta"):
            if (getattr(p, key) >= 1).any():
                _refuse(name, f"{key}=1 is an infinite time constant, which NIR has not")
        syn, mem = dt / (1 - p.alpha), dt / (1 - p.beta)
        values = {"tau_syn": syn, "tau_mem": mem, "r": mem / dt, "w_in": scale * syn / dt, "v_leak": 0 * scale}
        return (nir.CubaLIF if kind == "CuBaLIF" else nir.CubaLI)(**values, **about)
    tau = p.init_tau if kind == "ParametricLIF" else p.tau
    if kind == "LI" and (tau == math.inf).all() and not neuron.decay_input and not shift.any():
        return nir.I(r=scale / dt, **about)
    if not (tau < math.inf).all():
        _refuse(
            name,
            "an infinite tau has no word in NIR; IF has, and LI with decay_input=False and tau=inf for all neurons",
        )
    gain = 1 if neuron.decay_input else tau
    rest = about["v_reset"] if kind != "LI" else 0
    values = {"tau": tau * dt, "r": scale * gain, "v_leak": rest + shift * gain}
    return (nir.LI if kind == "LI" else nir.LIF)(**values, **about)


def _plain(values: Any) -> Any:
    """An array as a number where all neurons have the same, else as a tensor."""
    array = torch.as_tensor(values, dtype=torch.float64)
    if array.numel() and bool((array == array.reshape(-1)[0]).all()):
        return float(array.reshape(-1)[0])
    return array.to(torch.get_default_dtype())


def _near(a: Any, b: Any) -> bool:
    return bool(torch.isclose(torch.as_tensor(a), torch.as_tensor(b, dtype=torch.float64), rtol=1e-6, atol=0).all())


def _load_neuron(name: str, node: Any, dt: float, strict: bool, back: torch.nn.Module | None = None) -> torch.nn.Module:
    """The module of a neuron; that of a recurrent layer, with what its spikes come back through."""
    nir = _nir()
    v = {key: torch.as_tensor(value, dtype=torch.float64) for key, value in vars(node).items() if _is_array(value)}
    text = node.metadata.get(_METADATA, "{}")
    about = json.loads(text.decode() if isinstance(text, bytes) else text)
    options: dict[str, Any] = {}
    soft = about.get("reset") == "soft"
    if isinstance(node, (nir.IF, nir.LIF, nir.CubaLIF)):
        options["v_threshold"] = _plain(v["v_threshold"])
        options["v_reset"] = None if soft else _plain(v["v_reset"])
        options["strict"] = strict
        for key in ("strict", "delay_reset", "max_spikes", "v_min", "detach_reset"):
            if key in about:
                options[key] = about[key]
        if "surrogate" in about:
            options["surrogate"] = _surrogate(*about["surrogate"])
    zero = torch.zeros((), dtype=torch.float64)
    scale, shift = zero + 1, zero
    make: Callable[..., MultiStep]
    if isinstance(node, (nir.IF, nir.I)):
        scale = v["r"] * dt
        if isinstance(node, nir.IF):
            make = nn.IF
        else:
            make, options = nn.LI, {"tau": math.inf, "decay_input": False}
    elif isinstance(node, (nir.LIF, nir.LI)):
        tau = _steps(name, "tau", v["tau"], dt)
        rest = v["v_reset"] if isinstance(node, nir.LIF) and not soft else zero
        decay_input = not _near(v["r"], tau) or _near(tau, 1)
        options |= {"tau": _plain(tau), "decay_input": decay_input}
        scale, shift = (v["r"], v["v_leak"] - rest) if decay_input else (v["r"] / tau, (v["v_leak"] - rest) / tau)
        make = nn.LIF if isinstance(node, nir.LIF) else nn.LI
    else:
        syn, mem = (_steps(name, key, v[key], dt) for key in ("tau_syn", "tau_mem"))
        options |= {"alpha": _plain(1 - 1 / syn), "beta": _plain(1 - 1 / mem)}
        scale = v["w_in"] / syn * v["r"] / mem
        if v["v_leak"].any():
            _refuse(name, "v_leak of a neuron with a synapse must be 0: there is no equation for another here")
        make = nn.CuBaLIF if isinstance(node, nir.CubaLIF) else nn.CuBaLI
    neuron = make(**options) if back is None else _load_fed_back(make, options, about, back, scale)
    if _near(scale, 1) and not shift.any():
        return neuron
    return Driven(Drive(_plain(scale), _plain(shift)), neuron)


def _load_fed_back(
    make: Callable[..., MultiStep], options: dict[str, Any], about: dict[str, Any], back: Any, scale: Tensor
) -> MultiStep:
    """The recurrent layer of a neuron; what comes back through its weights passes the neuron's Drive, too."""
    weight, bias = (back.scale, None) if isinstance(back, Drive) else (back.weight, back.bias)
    detach = {"detach_recurrent": about["detach_recurrent"]} if "detach_recurrent" in about else {}
    made = getattr(nn, f"Recurrent{make.__name__}")
    layer = made(weight.shape[0], bias=bias is not None, diagonal=weight.dim() == 1, **options, **detach)
    share = scale.to(weight).expand(weight.shape[:1])
    with torch.no_grad():
        layer.weight_hh.copy_((share if weight.dim() == 1 else share.unsqueeze(-1)) * weight)
        if bias is not None:
            layer.bias_hh.copy_(share * bias)
    return layer  # type: ignore[no-any-return]


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or isinstance(value, (int, float))


def _steps(name: str, key: str, tau: Tensor, dt: float) -> Tensor:
    """A time constant in steps."""
    if not bool((tau >= dt * (1 - 1e-9)).all()):
        _refuse(name, f"{key} must be at least dt, {dt:g}, got {float(tau.min()):g}: give load() the dt of the network")
    return (tau / dt).clamp(min=1)


def _surrogate(name: str, params: list[float], spiking: bool) -> Surrogate:
    for value in vars(surrogate).values():
        if isinstance(value, type) and issubclass(value, Surrogate) and value is not Surrogate and value.name == name:
            made: Surrogate = value(*params, spiking=spiking)
            return made
    raise ValueError(f"snnkern.compat.nir: there is no surrogate {name!r}: define it before the network is loaded")


# ---- layers without time ------------------------------------------------------------------------------------------------


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _export_layer(name: str, layer: Any, shape: tuple[int, ...], lead: int) -> Any:
    """The node of a layer; `shape` is that of its input without batch and time, which are `lead` dimensions."""
    nir = _nir()

    def array(t: Tensor | None, *size: int) -> Any:
        return torch.zeros(size).numpy() if t is None else t.detach().cpu().numpy().copy()

    kind = type(layer)
    if kind is torch.nn.Linear:
        if layer.bias is None:
            return nir.Linear(array(layer.weight))
        return nir.Affine(array(layer.weight), array(layer.bias))
    if kind in (torch.nn.Conv1d, torch.nn.Conv2d):
        if layer.padding_mode != "zeros":
            _refuse(name, f"NIR pads with zeros, got padding_mode={layer.padding_mode!r}")
        settings = [layer.stride, layer.padding, layer.dilation]
        if kind is torch.nn.Conv1d:
            settings = [s[0] if isinstance(s, tuple) else s for s in settings]
        size = shape[-1] if kind is torch.nn.Conv1d else tuple(shape[-2:])
        weight, bias = array(layer.weight), array(layer.bias, layer.out_channels)
        make = nir.Conv1d if kind is torch.nn.Conv1d else nir.Conv2d
        return make(size, weight, *settings, layer.groups, bias)
    if kind is torch.nn.AvgPool2d:
        kernel, stride, padding = (
            torch.tensor(_pair(v)).numpy() for v in (layer.kernel_size, layer.stride, layer.padding)
        )
        if (
            layer.divisor_override not in (None, 1)
            or layer.ceil_mode
            or (padding.any() and not layer.count_include_pad)
        ):
            _refuse(name, "NIR has no word for divisor_override, ceil_mode and count_include_pad=False")
        return (nir.SumPool2d if layer.divisor_override == 1 else nir.AvgPool2d)(kernel, stride, padding)
    if kind is torch.nn.Flatten:
        start, end = (d - lead if d >= 0 else d for d in (layer.start_dim, layer.end_dim))
        if start < -len(shape) or (layer.start_dim >= 0 and start < 0):
            _refuse(name, f"it flattens the batch or the time: start_dim={layer.start_dim}")
        return nir.Flatten({"input": torch.tensor(shape).numpy()}, start, end)
    if kind is Drive:
        if layer.shift.any():
            _refuse(name, "NIR has no word for a constant that is added, outside of a neuron")
        return nir.Scale(layer.scale.cpu().double().expand(shape).numpy().copy())
    raise ValueError(_no_word(name, layer))


def _no_word(name: str, layer: torch.nn.Module) -> str:
    kind = type(layer).__name__
    hint = ""
    if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
        hint = "; fold it into the layer before it: torch.nn.utils.fusion.fuse_conv_bn_eval or fuse_linear_bn_eval"
    elif "MaxPool" in kind:
        hint = "; it has AvgPool2d and SumPool2d"
    return f"snnkern.compat.nir: {name}: NIR has no node like {kind}{hint}"


def _load_layer(name: str, node: Any) -> torch.nn.Module:
    nir = _nir()

    def tensor(value: Any) -> Tensor:
        return torch.as_tensor(value).to(torch.get_default_dtype()).clone()

    def number(value: Any) -> Any:
        value = value.tolist() if hasattr(value, "tolist") else value
        return value.decode() if isinstance(value, bytes) else tuple(value) if isinstance(value, list) else value

    if isinstance(node, (nir.Affine, nir.Linear)):
        weight = tensor(node.weight)
        if weight.dim() != 2:
            _refuse(name, f"weight must have 2 dimensions, got shape {list(weight.shape)}")
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=isinstance(node, nir.Affine))
        linear.weight.data = weight
        if isinstance(node, nir.Affine):
            linear.bias.data = tensor(node.bias).reshape(-1)
        return linear
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        weight = tensor(node.weight)
        groups = int(node.groups)
        settings = (number(node.stride), number(node.padding), number(node.dilation), groups)
        kind: Any = torch.nn.Conv1d if isinstance(node, nir.Conv1d) else torch.nn.Conv2d
        convolution = kind(weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), *settings)
        convolution.weight.data = weight
        convolution.bias.data = tensor(node.bias)
        return nn.PerStep(convolution)
    if isinstance(node, (nir.AvgPool2d, nir.SumPool2d)):
        divisor = 1 if isinstance(node, nir.SumPool2d) else None
        kernel, stride, padding = (number(v) for v in (node.kernel_size, node.stride, node.padding))
        return nn.PerStep(torch.nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor))
    if isinstance(node, nir.Flatten):
        start, end = (int(d) + (1 if d >= 0 else 0) for d in (node.start_dim, node.end_dim))
        return nn.PerStep(torch.nn.Flatten(start, end))
    if isinstance(node, nir.Scale):
        return Drive(tensor(node.scale))
    raise ValueError(f"snnkern.compat.nir: {name}: there is no layer here for NIR's {type(node).__name__}")


# ---- networks out --------------------------------------------------------------------------------------------------------


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (Network, Recurrence, nn.PerStep)):
            return isinstance(m, Recurrence)
        return isinstance(m, (Drive, Driven)) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(torch.fx.Interpreter):
    """Runs a graph, and notes the shape of every value."""

    def run_node(self, n: torch.fx.Node) -> Any:
        out = super().run_node(n)
        n.meta["shape"] = tuple(out.shape) if isinstance(out, Tensor) else None
        return out


def export(net: torch.nn.Module, sample: Tensor, *, dt: float = 1e-4) -> Any:
    """A network as a graph of NIR.

    Neurons: IF, LIF, ParametricLIF, CuBaLIF, LI, CuBaLI, with a value for each neuron, and the recurrent layers of these. Layers:
    Linear, Conv1d, Conv2d, AvgPool2d, Flatten, PerStep, Sequential, sums of branches; Dropout and Identity are left out. The states of the network are left alone.

    Args:
        net: a network of snnkern.nn that torch.fx can trace
        sample: an input, [T, N, ...]; what it holds does not matter, its shape does
        dt: seconds in a step; the time constants of NIR are tau * dt

    Returns:
        nir.NIRGraph, which nir.write() saves.

    Raises:
        ValueError: NIR has no word for a layer, or a value of one; the message names all of them.
        ImportError: the package nir is not installed.

    Warns:
        A soft reset is in the metadata alone, so that other readers reset to 0.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snnkern.nn.LIF(tau=2.0))
        >>> graph = snnkern.compat.nir.export(net, torch.zeros(1, 1, 4))  # doctest: +SKIP
        >>> list(graph.nodes)  # doctest: +SKIP
        ['input', '0', '1', 'output']
    """
    nir = _nir()
    _check_dt("export", dt)
    if not isinstance(sample, Tensor) or sample.dim() < 3:
        shape = list(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise ValueError(f"snnkern.compat.nir.export: sample must be a tensor [T, N, ...], got {shape}")
    traced = _traced(net, sample)
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    value: dict[torch.fx.Node, list[str]] = {}  # the nodes of NIR whose sum it is
    lead: dict[torch.fx.Node, int] = {}  # how many dimensions of time and batch it has
    refused = []
    for n in traced.graph.nodes:
        before = [a for a in n.all_input_nodes if a in value]
        if n.op == "placeholder":
            nodes["input"] = nir.Input({"input": torch.tensor(sample.shape[2:]).numpy()})
            value[n], lead[n] = ["input"], 2
        elif n.op == "call_module" and len(before) == 1:
            layer = traced.get_submodule(n.target)
            (source,) = before
            lead[n] = lead[source]
            if isinstance(layer, (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Identity)):
                value[n] = value[source]
                continue
            shape = source.meta["shape"][lead[source] :]
            value[n] = [n.target]
            try:
                nodes[n.target] = _export_module(n.target, layer, shape, lead[source], dt)
            except ValueError as error:
                refused.append(str(error).removeprefix("snnkern.compat.nir: "))
                continue
            nodes[n.target].input_type = {"input": torch.tensor(shape).numpy()}
            nodes[n.target].output_type = {"output": torch.tensor(n.meta["shape"][lead[n] :]).numpy()}
            edges += [(s, n.target) for s in value[source]]
        elif n.op == "call_function" and n.target in _SUMS and len(before) == 2 and not n.kwargs:
            value[n], lead[n] = [s for source in before for s in value[source]], lead[before[0]]
        elif n.op == "call_function" and n.target in (steps_to_samples, samples_to_steps):
            value[n] = value[before[0]]
            lead[n] = 1 if n.target is steps_to_samples else 2
        elif n.op == "output":
            result = before[0].meta["shape"][lead[before[0]] :] if before else ()
            nodes["output"] = nir.Output({"output": torch.tensor(result).numpy()})
            edges += [(s, "output") for source in before for s in value[source]]
        elif before or n.op not in ("get_attr",):
            refused.append(f"{n.name}: NIR has no word for {n.op} {getattr(n.target, '__name__', n.target)}")
    if refused:
        raise ValueError("snnkern.compat.nir.export: " + "; ".join(refused))
    return nir.NIRGraph(nodes, edges, type_check=False)  # which does not know grouped convolutions


def _check_dt(where: str, dt: float) -> None:
    if isinstance(dt, bool) or not isinstance(dt, (int, float)) or not 0 < dt < math.inf:
        raise ValueError(f"snnkern.compat.nir.{where}: dt must be a finite number > 0, got {dt!r}")


def _traced(net: torch.nn.Module, sample: Tensor) -> torch.fx.GraphModule:
    """The network as a graph with the shape of every value."""
    if isinstance(net, (MultiStep, Driven)) or not list(net.children()):
        net = torch.nn.Sequential(net)
    traced = torch.fx.GraphModule(net, _Tracer().trace(net))
    kept = [(m, dict(m._kept)) for m in net.modules() if isinstance(m, MultiStep)]
    training = [(m, m.training) for m in net.modules()]
    try:
        for module, _ in kept:
            module.reset()
        net.eval()
        with torch.no_grad():
            _Shapes(traced).run(sample)
    finally:
        for module, states in kept:
            for key, state in states.items():
                setattr(module, key, state)
        for part, mode in training:
            part.training = mode
    return traced


_SUMS = (torch.add, operator.add, operator.iadd)


def _export_module(name: str, layer: torch.nn.Module, shape: tuple[int, ...], lead: int, dt: float) -> Any:
    if isinstance(layer, Recurrence):
        return _export_recurrence(name, layer, shape, dt)
    if isinstance(layer, (MultiStep, Driven)):
        if lead != 2:
            _refuse(name, "a neuron needs to see the time steps, [T, N, ...]")
        if isinstance(layer.neuron if isinstance(layer, Driven) else layer, Recurrent):
            return _export_fed_back(name, layer, shape, dt)
        return _export_neuron(name, layer, shape, dt)
    return _export_layer(name, layer, shape, lead)


def _export_recurrence(name: str, loop: Recurrence, shape: tuple[int, ...], dt: float) -> Any:
    nir = _nir()
    size = {"": shape, **loop.shapes}
    nodes = {"input": nir.Input({"input": torch.tensor(shape).numpy()})}
    for key in loop.sources:
        module = loop.get_submodule(key)
        own = size.get(key, shape)
        nodes[key] = _export_module(
            f"{name}.{key}", _unwrapped(module), own, 1 if isinstance(module, nn.PerStep) else 2, dt
        )
    nodes["output"] = nir.Output({"output": torch.tensor(size.get(loop.output, shape)).numpy()})
    edges = [(s or "input", key) for key, sources in loop.sources.items() for s in sources]
    return nir.NIRGraph(nodes, [*edges, (loop.output, "output")], type_check=False)


def _export_fed_back(name: str, layer: torch.nn.Module, shape: tuple[int, ...], dt: float) -> Any:
    """A recurrent layer, as snnTorch writes its own: a graph of the neuron and of what its spikes come back through."""
    nir = _nir()
    neuron: Any = layer.neuron if isinstance(layer, Driven) else layer
    if shape != (neuron.size,):
        _refuse(name, f"in NIR, spikes come back to all neurons of a layer: its input must be [T, N, {neuron.size}]")
    share = layer.drive.scale if isinstance(layer, Driven) else torch.ones(())  # what comes back passes the Drive too
    if not bool((share != 0).all()):
        _refuse(name, "its Drive has a scale of 0, which in NIR would stop the spikes that come back")
    share = share.detach().to(neuron.weight_hh).expand(shape)
    weight = neuron.weight_hh.detach() / (share if neuron.diagonal else share.unsqueeze(-1))
    if neuron.bias:
        matrix = torch.diag(weight) if neuron.diagonal else weight
        back = nir.Affine(matrix.cpu().numpy(), (neuron.bias_hh.detach() / share).cpu().numpy())
    else:
        back = (nir.Scale if neuron.diagonal else nir.Linear)(weight.cpu().numpy())
    size = torch.tensor(shape).numpy()
    nodes = {
        "input": nir.Input({"input": size}),
        "lif": _export_neuron(f"{name}.lif", layer, shape, dt),
        "w_rec": back,
        "output": nir.Output({"output": size}),
    }
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    return nir.NIRGraph(nodes, edges, type_check=False)


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    return module[0] if isinstance(module, nn.PerStep) and len(module) == 1 else module


# ---- networks in ---------------------------------------------------------------------------------------------------------


def load(graph: Any, *, dt: float = 1e-4, strict: bool = True) -> torch.nn.Module:
    """A network of snnkern from a graph of NIR.

    A chain of nodes becomes a torch.nn.Sequential, another graph a Network. A neuron whose spikes come back through weights becomes a
    recurrent layer, as RecurrentLIF, and another cycle a Recurrence, which runs step by step. Input and output are [T, N, ...]. A
    neuron with a resistance or a leak that its module has no argument for gets a Drive.

    Args:
        graph: nir.NIRGraph, or the path of a file of it
        dt: seconds in a step: that of the library that wrote it. snnTorch and SpikingJelly take 1e-4, Norse 1e-3, Sinabs 1
        strict: spike above the threshold only, as NIR defines it, or False for at the threshold as well; what snnkern wrote
            says so itself

    Returns:
        The network.

    Raises:
        ValueError: a node that has no layer here; the message names all of them.
        ImportError: the package nir is not installed.

    Example:
        >>> net = snnkern.compat.nir.load("network.nir")  # doctest: +SKIP
    """
    nir = _nir()
    _check_dt("load", dt)
    if isinstance(graph, (str, Path)):
        graph = nir.read(graph, type_check=False)  # which does not know grouped convolutions
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"snnkern.compat.nir.load: graph must be a nir.NIRGraph or a path, got {type(graph).__name__}")
    return _load_graph(graph, dt, strict)


def _load_graph(graph: Any, dt: float, strict: bool) -> torch.nn.Module:
    import networkx  # type: ignore[import-untyped]  # which takes longer to import than all the rest

    nir = _nir()
    ends = [n for n, node in graph.nodes.items() if isinstance(node, nir.Output)]
    starts = [n for n, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(starts) != 1 or len(ends) != 1:
        raise ValueError(
            f"snnkern.compat.nir.load: the graph must have one input and one output, got {len(starts)} and {len(ends)}"
        )
    modules, refused = {}, []
    for name, node in graph.nodes.items():
        if name in (*starts, *ends):
            continue
        try:
            modules[name] = _load_node(name, node, dt, strict)
        except ValueError as error:
            refused.append(str(error).removeprefix("snnkern.compat.nir: "))
    if refused:
        raise ValueError("snnkern.compat.nir.load: " + "; ".join(refused))
    whole = networkx.DiGraph(list(dict.fromkeys(graph.edges)))
    for cycle in [c for c in networkx.strongly_connected_components(whole) if len(c) > 1 or whole.has_edge(*[*c] * 2)]:
        layer = _recurrent_layer(whole, modules, graph, cycle, dt, strict)
        modules, whole = layer or _contracted(whole, modules, graph, cycle)
    order = [n for n in networkx.topological_sort(whole) if n in modules]
    sources = {n: ["" if s in starts else s for s in whole.predecessors(n)] for n in order}
    last = list(whole.predecessors(ends[0]))
    names = _names(order)
    if len(last) > 1:  # what comes in at the output is added up
        order, sources, names = [*order, "sum"], {**sources, "sum": last}, {**names, "sum": "sum"}
        modules["sum"] = torch.nn.Identity()
        last = ["sum"]
    chain = [[""], *([n] for n in order[:-1])] == list(sources.values()) and last == order[-1:]
    named = {names[n]: modules[n] for n in order}
    if chain:
        net = torch.nn.Sequential()
        for name, module in named.items():
            net.add_module(name, module)
        return net
    renamed = {names[n]: [names.get(s, s) for s in sources[n]] for n in order}
    return Network(named, renamed, names.get(last[0], ""))


def _names(nodes: list[str]) -> dict[str, str]:
    """Names for modules: NIR's may have dots, or be words of Python."""
    plain = {n: re.sub(r"\W", "_", n) for n in nodes}
    return {n: f"{name}_" if keyword.iskeyword(name) else name for n, name in plain.items()}


def _load_node(name: str, node: Any, dt: float, strict: bool) -> torch.nn.Module:
    nir = _nir()
    if isinstance(node, nir.NIRGraph):
        return _load_graph(node, dt, strict)
    if isinstance(node, (nir.IF, nir.I, nir.LIF, nir.LI, nir.CubaLIF, nir.CubaLI)):
        return _load_neuron(name, node, dt, strict)
    return _load_layer(name, node)


def _recurrent_layer(
    whole: Any, modules: dict[str, torch.nn.Module], graph: Any, cycle: set[str], dt: float, strict: bool
) -> tuple[dict[str, torch.nn.Module], Any] | None:
    """The graph with a neuron and the weights in a cycle with it as one recurrent layer, if that is what the cycle is."""
    nir = _nir()
    neurons = [n for n in cycle if isinstance(graph.nodes[n], (nir.IF, nir.LIF, nir.CubaLIF))]
    weights = [n for n in cycle if isinstance(modules[n], (torch.nn.Linear, Drive))]
    if not len(cycle) - 1 == len(neurons) == len(weights) == 1:
        return None
    (neuron,), (back,) = neurons, weights
    ends = [list(whole.predecessors(back)), list(whole.successors(back))]
    shape = [int(d) for d in graph.nodes[neuron].output_type["output"]]
    through: Any = modules[back]
    inside = through.weight.shape if isinstance(through, torch.nn.Linear) else 2 * through.scale.shape
    if ends != [[neuron], [neuron]] or whole.has_edge(neuron, neuron) or len(shape) != 1 or [*inside] != 2 * shape:
        return None
    layer = _load_neuron(neuron, graph.nodes[neuron], dt, strict, through)
    rest = whole.copy()
    rest.remove_node(back)
    return {**{n: m for n, m in modules.items() if n != back}, neuron: layer}, rest


def _contracted(
    whole: Any, modules: dict[str, torch.nn.Module], graph: Any, cycle: set[str]
) -> tuple[dict[str, torch.nn.Module], Any]:
    """The graph with a cycle as one node, a Recurrence."""
    import networkx

    entries = [n for n in cycle if any(p not in cycle for p in whole.predecessors(n))]
    exits = [n for n in cycle if any(s not in cycle for s in whole.successors(n))]
    name = min(cycle, key=list(graph.nodes).index)
    if len(exits) != 1:
        _refuse(name, f"a cycle must be left from one node, got {', '.join(exits) or 'none'}")
    into = {p for n in entries for p in whole.predecessors(n) if p not in cycle}
    if len(entries) != 1:
        _refuse(name, f"a cycle must be entered at one node, got {', '.join(entries)}")
    inner = whole.subgraph(cycle).copy()
    neurons = [n for n in networkx.dfs_preorder_nodes(inner, entries[0]) if isinstance(modules[n], (MultiStep, Driven))]
    delayed = []
    for u in neurons:
        for first in list(inner.successors(u)):
            reached = _neurons_behind(inner, modules, first)
            if all(neurons.index(v) <= neurons.index(u) for v in reached):
                delayed.append((u, first))
    inner.remove_edges_from(delayed)
    try:
        order = list(networkx.topological_sort(inner))
    except networkx.NetworkXUnfeasible:
        _refuse(name, "a cycle must pass a neuron, from which what goes round is one step old")
    sources = {n: [s for s in whole.predecessors(n) if s in cycle] + ([""] if n in entries else []) for n in order}
    shapes = {u: tuple(int(d) for d in graph.nodes[u].output_type["output"]) for u in dict(delayed)}
    names = _names(order)
    loop = Recurrence(
        {names[n]: modules[n] for n in order},
        {names[n]: [names.get(s, s) for s in sources[n]] for n in order},
        [(names[a], names[b]) for a, b in delayed],
        {names[n]: shape for n, shape in shapes.items()},
        names[exits[0]],
    )
    out = [s for s in whole.successors(exits[0]) if s not in cycle]
    whole = whole.copy()
    whole.remove_nodes_from(cycle)
    whole.add_edges_from([(p, name) for p in into] + [(name, s) for s in out])
    return {**{n: m for n, m in modules.items() if n not in cycle}, name: loop}, whole


def _neurons_behind(inner: Any, modules: dict[str, torch.nn.Module], first: str) -> set[str]:
    """The neurons that a value reaches before it passes one."""
    found, seen, ahead = set(), set(), [first]
    while ahead:
        n = ahead.pop()
        if n in seen:
            continue
        seen.add(n)
        if isinstance(modules[n], (MultiStep, Driven)):
            found.add(n)
        else:
            ahead += inner.successors(n)
    return found
