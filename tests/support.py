"""What the tests share: the specification's combinations, samples, and comparison with the reference."""

from __future__ import annotations

import contextlib
import functools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import pytest
import torch
from torch import Tensor

import snnkern
from snnkern import functional, nn, reference, surrogate
from snnkern.codegen.emit.kernels import Selection
from snnkern.codegen.emit.step import is_exact
from snnkern.codegen.graph.evaluate import evaluate as evaluate_all
from snnkern.codegen.graph.expr import Expr
from snnkern.codegen.specification.neurons import NEURONS, Neuron
from snnkern.codegen.specification.surrogates import SURROGATES

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
# Relative to the largest value of the compared tensor. Both sides evaluate the same expressions; they differ by the last
# bits of exp and the like, and by the order in which autograd adds gradients.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# The gradient of a learned parameter is a sum over neurons and steps, in which terms cancel.
PARAMETER_TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}

COMBINATIONS = Selection().combinations()
NEURON_NAMES = [n.name for n in NEURONS]
SURROGATE_CLASSES = {s.name: getattr(surrogate, s.__name__) for s in SURROGATES}
NEURON_RESET_DTYPES = [f"{n.name}:{r}:{d}" for n in NEURONS for r in n.resets() for d in DTYPES]


def _kind(neuron: type[Neuron]) -> tuple[Any, ...]:
    return len(neuron.states) > 1, bool(neuron.learned), neuron.has_surrogate, neuron.resets(), bool(neuron.firing)


KINDS = [
    n.name
    for i, n in enumerate(NEURONS)
    if n.name == "lif" or (_kind(n) not in map(_kind, NEURONS[:i]) and n.name != "if")
]
"""One neuron of each kind of schema, for what depends on nothing else: learned parameters, states, surrogate, resets."""


DEFINED: dict[str, type[Neuron]] = {}
"""Neurons that a test defined at run time, by name: what is tested of a built-in neuron can be tested of them."""


def twin(name: str) -> str:
    """A built-in neuron, defined again under another name at run time."""
    mine = f"twin_{name}"
    if mine not in DEFINED:
        base = neuron_class(name)
        made = type(
            f"Twin{base.module}", (base,), {"name": mine, "module": f"Twin{base.module}", "__doc__": base.__doc__}
        )
        DEFINED[mine] = snnkern.define_neuron(made)
    return mine


def neuron_class(name: str) -> type[Neuron]:
    return DEFINED.get(name) or next(n for n in NEURONS if n.name == name)


def function(module: Any, neuron: str) -> Any:
    """The function of a neuron in snnkern.functional or snnkern.reference."""
    return getattr(module, "if_" if neuron == "if" else neuron)


def operator(neuron: str, role: str = "{}_forward") -> Any:
    """An operator of a neuron: "{}_forward", "_{}_train" or "{}_backward"."""
    return getattr(torch.ops.snnkern, role.format(neuron))


def eighths(t: Tensor) -> Tensor:
    """The nearest multiples of 1/8."""
    return (t * 8).round() / 8


def network(
    neuron: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any
) -> torch.nn.Sequential:
    """Two layers of 6 and 4 neurons for 5 inputs, the same on every call, that do spike.

    The weights are whole eighths: with inputs of eighths, the order in which a library sums products changes no bit, and
    so no spike.
    """
    module = getattr(nn, neuron_class(neuron).module)
    scale = calm(neuron, "soft" if options.get("v_reset", 0.0) is None else "hard")  # a power of 2
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), module(**options), torch.nn.Linear(6, 4), module(**options))
    for i, p in enumerate(p for layer in net if isinstance(layer, torch.nn.Linear) for p in layer.parameters()):
        p.data = eighths(noise(tuple(p.shape), torch.float32, 50 + i)) * scale
    return net.to(device, dtype)


def gradients(net: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """The gradients of all parameters, and of x, for a fixed loss; the state is forgotten before."""
    nn.reset(net)
    leaves = [*net.parameters(), x]
    out = net(x)
    return list(torch.autograd.grad((out * noise(tuple(out.shape), out.dtype, 77, str(out.device))).sum(), leaves))


def run_fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A new Python that runs this code, in which nothing is imported or loaded yet."""
    command = [sys.executable, "-X", "faulthandler", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def fresh_process(code: str, *arguments: str) -> str:
    """What a new Python prints that runs this code."""
    out = run_fresh(code, *arguments)
    assert out.returncode == 0, f"exit status {out.returncode}\n{out.stdout}{out.stderr}"
    return out.stdout


def resets(neuron: str, v_reset: float = -0.25) -> list[dict[str, float | None]]:
    """The options for each reset that a neuron can have: hard and soft, or nothing to choose."""
    both: list[dict[str, float | None]] = [{"v_reset": v_reset}, {"v_reset": None}]
    return both if "hard" in neuron_class(neuron).resets() else [{}]


def reset_options(neuron: str, reset: str, v_reset: float = -0.25) -> dict[str, float | None]:
    """The options that choose a reset by name."""
    return {"v_reset": v_reset if reset == "hard" else None} if len(resets(neuron)) > 1 else {}


def options_of(neuron: str, **options: Any) -> dict[str, Any]:
    """Those options that the neuron has."""
    n = neuron_class(neuron)
    names = {p.name for p in n.all_parameters()} | {"store_v_seq"} | ({"surrogate"} if n.has_surrogate else set())
    return {name: value for name, value in options.items() if name in names}


def surrogates(neuron: str, smooth: bool = False) -> list[dict[str, Any]]:
    """The options for each surrogate of a neuron; in smooth mode, for each that has a primitive."""
    if not neuron_class(neuron).has_surrogate:
        return [] if smooth else [{}]
    if smooth:
        return [{"surrogate": c(spiking=False)} for c in SURROGATE_CLASSES.values() if c.equations.has_primitive()]
    return [{"surrogate": c()} for c in SURROGATE_CLASSES.values()]


def flag_settings(neuron: str) -> list[dict[str, bool]]:
    """Every setting of a neuron's flags."""
    settings: list[dict[str, bool]] = [{}]
    for p in neuron_class(neuron).all_parameters():
        if isinstance(p.default, bool):
            settings = [{**s, p.name: value} for s in settings for value in (False, True)]
    return settings


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int, device: str = "cpu", scale: float = 1.0) -> Tensor:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).to(device)


def _inputs(
    neuron: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int, scale: float
) -> dict[str, Tensor]:
    state = state_dtype(dtype)
    out = {"x_seq": noise(shape, dtype, seed, device, 2.0 * scale)}
    for i, t in enumerate(neuron_class(neuron).learned):
        out[t.name] = torch.tensor(0.3 + 0.1 * i, dtype=state, device=device)
    for i, q in enumerate(neuron_class(neuron).inputs):
        out[q.name] = noise(shape, state, seed + 20 + i, device).sigmoid()
    for i, s in enumerate(neuron_class(neuron).states):
        out[f"{s.name}_init"] = noise(shape[1:], state, seed + 1 + i, device, scale)
    return {name: t.requires_grad_() for name, t in out.items()}


@functools.cache
def calm(neuron: str, reset: str) -> float:
    """How strong an input the neuron bears: 1, or less where states or gradients would grow without bound.

    Above a threshold of their own, some neurons rise by themselves: with a soft reset, to infinity.
    """
    scale = 1.0
    while True:
        tensors = _inputs(neuron, (60, 400), torch.float64, "cpu", 0, 1.5 * scale)
        outputs = function(reference, neuron)(**tensors, **reset_options(neuron, reset), store_v_seq=True)
        grads = torch.autograd.grad(sum(o.sum() for o in outputs), list(tensors.values()))
        if all(float(t.detach().abs().nan_to_num(math.inf).max()) < 1000 for t in (*outputs, grads[0])):
            return scale
        scale /= 2


def inputs(
    neuron: str, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", seed: int = 0, reset: str = "hard"
) -> dict[str, Tensor]:
    """x_seq, learned parameters and initial states of a neuron, leaves that want a gradient; calm with that reset."""
    return _inputs(neuron, shape, dtype, device, seed, calm(neuron, reset))


def results(
    module: Any, neuron: str, tensors: dict[str, Tensor], **options: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradients in all tensors for fixed gradients in all outputs."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = function(module, neuron)(**leaves, **options)
    incoming = [noise(tuple(o.shape), o.dtype, 100 + i, str(o.device)) for i, o in enumerate(outputs)]
    # A parameter of which nothing depends here has the gradient 0.
    grads = torch.autograd.grad(outputs, list(leaves.values()), incoming, materialize_grads=True)
    return [o.detach() for o in outputs], dict(zip(leaves, grads, strict=True))


def error(actual: Tensor, expected: Tensor, over_time: bool = False) -> float:
    """The largest difference, relative to the largest expected value.

    Over time, to the largest of the same neuron at that step or later, since BPTT carries those errors back, but at least
    to 0.1, since the incoming gradients are of order 1 and may cancel. Where a gradient grows beyond a 16-bit format, both
    must be the same infinity.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    a, e = actual.double().cpu(), expected.double().cpu()
    assert not e.isnan().any()
    finite = e.isfinite()
    assert finite.all() or expected.dtype == torch.float16
    assert torch.equal(a[~finite], e[~finite])
    if a.numel() == 0:
        return 0.0
    a, e = (torch.where(finite, t, 0.0) for t in (a, e))
    scale = e.abs().flip(0).cummax(0).values.flip(0) if over_time else e.abs().max()
    return float(((a - e).abs() / scale.clamp(min=0.1)).max())


def check_same(
    neuron: str, tensors: dict[str, Tensor], parameter_tolerance: float | None = None, **options: Any
) -> None:
    """The fused operator gives what the reference gives: values and every gradient.

    To the bit, where every operation of the forward pass is correctly rounded.
    """
    smooth = "surrogate" in options and not options["surrogate"].spiking
    exact = not smooth and is_exact(neuron_class(neuron))
    values, grads = results(functional, neuron, tensors, **options)
    expected_values, expected_grads = results(reference, neuron, tensors, **options)
    dtype = tensors["x_seq"].dtype
    if not smooth:
        assert torch.equal(values[0], expected_values[0]), "spikes differ"
    else:
        assert error(values[0], expected_values[0]) <= TOLERANCE[dtype]
    for value, expected in zip(values[1:], expected_values[1:], strict=True):
        if exact:
            assert torch.equal(value, expected), "states differ"
        else:
            assert error(value, expected) <= TOLERANCE[state_dtype(dtype)]
    for name, expected in expected_grads.items():
        is_parameter = name != "x_seq" and not name.endswith("_init")
        limit = parameter_tolerance or PARAMETER_TOLERANCE[expected.dtype] if is_parameter else TOLERANCE[dtype]
        if name.endswith("_init"):
            limit = max(TOLERANCE[expected.dtype], TOLERANCE[dtype] if dtype == torch.float64 else 0)
        found = error(grads[name], expected, over_time=name == "x_seq")
        assert found <= limit, f"gradient in {name}: relative error {found:.2e} > {limit:.0e}"


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate(e: Expr, scope: dict[str, float], gradient: Callable[[float], float] = lambda u: 1.0) -> float:
    """What a traced expression computes, for a surrogate gradient."""
    return evaluate_all([e], scope, gradient)[0]


def library(name: str) -> Any:
    """A library's module, or a skip that says which library is missing."""
    distribution = name.partition(".")[0]
    try:
        found = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed (pip install .[peers])")
    if distribution == "spikingjelly" and not found.startswith("2."):
        pytest.skip(f"spikingjelly {found} is installed, but the tests are beside its version 2 (pip install .[peers])")
    return pytest.importorskip(name, reason=f"{distribution} is installed, but {name} cannot be imported")


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """For other libraries: snnTorch and Sinabs make their spikes with .float(), and all of them constants of the default dtype."""
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
