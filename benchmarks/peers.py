"""What snnkern is compared with: each builds a neuron as its library offers it, with tau = 2, ATan, threshold 1, hard reset.

A peer that is not installed is left out. SpikingJelly has one package name for its versions: point
SNNKERN_SPIKINGJELLY_CUPY at a folder that holds spikingjelly 0.0.0.0.14 (pip install --target), to compare with its CuPy
kernels too.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from codegen.specification.neurons import NEURONS as SPECIFICATION

COMPARED = ("if", "lif", "plif")  # what others have too
# Other forms of a neuron: a parameter that is learned, with a value for each of 64 channels; a convention of other libraries.
FORMS = ("lif-tau", "plif-decay", "lif-strict")
NEURONS = (*(n.name for n in SPECIFICATION), *FORMS)
CHANNELS = 64
TAU = 2.0
DECAY = 1 / TAU


class Unavailable(Exception):
    """This peer cannot do that here; the text says why."""


@dataclass
class Built:
    """A neuron layer: x_seq -> spike_seq, and the parameters that it learns."""

    run: Callable[[Tensor], Tensor]
    learned: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Peer:
    """How to build a neuron, for a device and dtype; and the environment that its process needs."""

    build: Callable[[str, torch.device, torch.dtype], Built]
    environment: dict[str, str] = field(default_factory=dict)
    path: str | None = None  # a variable that names a folder with the package
    devices: tuple[str, ...] = ("cpu", "cuda")
    longest: int = 10**9  # the most time steps worth measuring


class Spike(torch.autograd.Function):
    """The step function with the gradient of ATan(alpha=2), as one writes it by hand."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad / (1 + (math.pi * u) ** 2)


def parameter(device: torch.device) -> Tensor:
    return torch.tensor(DECAY, device=device, requires_grad=True)


def snnkern(neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    import snnkern as library

    library.build_info()  # the library is loaded
    if "-" in neuron:
        return form(library.functional, library.surrogate.ATan(), neuron, device)
    op, options = getattr(torch.ops.snnkern, f"{neuron}_forward"), {"surrogate": "atan"}
    if neuron == "plif":
        decay = parameter(device)
        return Built(lambda x: op(x, decay, **options)[0], [decay])
    options = options if has_surrogate(neuron) else {}
    return Built(lambda x: op(x, **options)[0])


def reference(neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    import snnkern as library

    return form(library.reference, library.surrogate.ATan(), neuron, device)


def has_surrogate(neuron: str) -> bool:
    return next(n for n in SPECIFICATION if n.name == neuron).has_surrogate


def form(functions: Any, surrogate: Any, neuron: str, device: torch.device) -> Built:
    """A neuron of snnkern.functional, or of its reference."""
    name, _, variant = neuron.partition("-")
    function = getattr(functions, "if_" if name == "if" else name)
    options: dict[str, Any] = {"surrogate": surrogate} if has_surrogate(name) else {}
    if variant == "strict":
        return Built(lambda x: function(x, strict=True, **options)[0])
    if not variant:
        learned = [parameter(device)] if name == "plif" else []
        return Built(lambda x: function(x, *learned, **options)[0], learned)
    value = TAU if variant == "tau" else DECAY
    own = torch.full((CHANNELS, 1), value, device=device, requires_grad=True)
    return Built(lambda x: function(x.unflatten(1, (CHANNELS, -1)), **{variant: own}, **options)[0].flatten(1), [own])


def plain_loop(neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    """The equations as one writes them by hand, states in float32."""
    decay = parameter(device) if neuron == "plif" else DECAY

    def run(x_seq: Tensor) -> Tensor:
        v = torch.zeros_like(x_seq[0], dtype=torch.float32)
        spikes = []
        for x in x_seq:
            h = v + x if neuron == "if" else v + (x - v) * decay
            s = Spike.apply(h - 1.0)
            v = (1 - s) * h
            spikes.append(s.to(x_seq.dtype))
        return torch.stack(spikes)

    return Built(run, [decay] if isinstance(decay, Tensor) else [])


def compiled_loop(neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    loop = plain_loop(neuron, device, dtype)
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # so that the backward can be timed alone, several times
    compiled = torch.compile(loop.run, fullgraph=True)

    def run(x_seq: Tensor) -> Tensor:
        torch._dynamo.mark_dynamic(x_seq, 1)
        return compiled(x_seq)

    return Built(run, loop.learned)


def spikingjelly(neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    try:
        found = metadata.version("spikingjelly")
        import spikingjelly.activation_based.neuron as nodes
        from spikingjelly.activation_based import functional, surrogate
    except ImportError as error:  # PackageNotFoundError is one
        raise Unavailable(f"spikingjelly 2 is not installed ({error})") from error
    if not found.startswith("2."):
        raise Unavailable(f"spikingjelly {found} is installed, not 2")
    if dtype != torch.float32:
        # Its module falls to a Python loop in half precision; its operator does not.
        if neuron != "lif":
            raise Unavailable("fused in half precision for lif alone")
        from spikingjelly._ops.lif import _forward

        def operator(x: Tensor) -> Tensor:
            v = torch.zeros(x.shape[1:], dtype=torch.float32, device=x.device)
            return _forward(x, v, TAU, True, 1.0, 0.0, False, 2.0, False, 1)[0]

        return Built(operator)
    return node(nodes, functional, surrogate, neuron, device, {})


def spikingjelly_cupy(neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    if dtype == torch.bfloat16:
        raise Unavailable("no bfloat16")
    try:
        import cupy  # noqa: F401
        import numpy

        numpy.int = int  # its code is older than NumPy 1.24
        import spikingjelly.activation_based.neuron as nodes
        from spikingjelly.activation_based import functional, surrogate
    except ImportError as error:
        raise Unavailable(f"spikingjelly 0.0.0.0.14 or cupy is not installed ({error})") from error
    return node(nodes, functional, surrogate, neuron, device, {"backend": "cupy"})


def node(
    nodes: Any, functional: Any, surrogate: Any, neuron: str, device: torch.device, options: dict[str, Any]
) -> Built:
    """A node of either SpikingJelly; reset before each call, as a training loop does."""
    name, argument = {
        "if": ("IFNode", {}),
        "lif": ("LIFNode", {"tau": TAU}),
        "plif": ("ParametricLIFNode", {"init_tau": TAU}),
    }[neuron]
    module = getattr(nodes, name)(surrogate_function=surrogate.ATan(), step_mode="m", **argument, **options).to(device)

    def run(x: Tensor) -> Tensor:
        functional.reset_net(module)
        return module(x)

    return Built(run, list(module.parameters()))


def snntorch(neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    if neuron != "lif":
        raise Unavailable("lif alone")
    try:
        from snntorch import Leaky
    except ImportError as error:
        raise Unavailable(f"snntorch is not installed ({error})") from error
    leaky = Leaky(beta=DECAY, reset_mechanism="zero", reset_delay=False).to(device)

    def run(x_seq: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x_seq[0]), []
        for x in x_seq:
            s, v = leaky(x * DECAY, v)
            spikes.append(s)
        return torch.stack(spikes)

    return Built(run)


PEERS: dict[str, Peer] = {
    "snnkern": Peer(snnkern),
    "spikingjelly-cuda": Peer(spikingjelly, {"SJ_LIF_CUDA_IMPLEMENTATION": "cuda"}, devices=("cuda",)),
    "spikingjelly-triton": Peer(spikingjelly, {"SJ_LIF_CUDA_IMPLEMENTATION": "triton"}, devices=("cuda",)),
    "spikingjelly-cupy": Peer(spikingjelly_cupy, path="SNNKERN_SPIKINGJELLY_CUPY", devices=("cuda",)),
    "snntorch": Peer(snntorch, longest=128),
    "compiled-loop": Peer(compiled_loop, longest=16),
    "plain-loop": Peer(plain_loop, longest=128),
    "reference": Peer(reference, longest=128),
}


def build(name: str, neuron: str, device: torch.device, dtype: torch.dtype) -> Built:
    """A peer's neuron; Unavailable says why there is none."""
    peer = PEERS[name]
    if device.type not in peer.devices:
        raise Unavailable(f"does not run on {device.type}")
    if neuron not in COMPARED and name not in ("snnkern", "reference"):
        raise Unavailable(f"compared with {', '.join(COMPARED)} alone")
    if peer.path and peer.path not in os.environ:
        raise Unavailable(f"{peer.path} is not set")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer.build(neuron, device, dtype)
