"""snnkern's neurons and surrogates beside the code of snnTorch, Norse, Sinabs and SpikingJelly, in float64.

Where a library's conventions can be written as our arguments, spikes, states and gradients agree to the last digits. What
belongs to a library that is not installed is skipped; `pip install .[peers]` installs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import functional, surrogate

from support import SURROGATE_CLASSES, error, noise

EXACT = 1e-12  # relative: the equations are the same, the order of the operations is not
SHAPE = (16, 64)
Outputs = list[Tensor]
Run = Callable[..., Outputs]


@pytest.fixture(autouse=True)
def in_double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """snnTorch and Sinabs make their spikes with .float(), and all of them constants of the default dtype."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def library(name: str) -> Any:
    """A library's module, or a skip that says which library is missing."""
    distribution = name.partition(".")[0]
    try:
        found = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed (pip install .[peers])")
    if distribution == "spikingjelly" and not found.startswith("2."):
        pytest.skip(f"spikingjelly {found} is installed, not 2")
    return pytest.importorskip(name, reason=f"{distribution} is installed, but {name} cannot be imported")


@dataclass(frozen=True)
class Case:
    """Our neuron and another library's, from the same leaves: x_seq, `<state>_init` for each state, tensor parameters.

    Both return the spikes, then the last states; the other may leave out the last of these, where it has none alike.
    """

    ours: Run
    other: Run
    states: tuple[str, ...] = ("v",)
    tensors: dict[str, float] = field(default_factory=dict)
    same_gradients: bool = True


def leaves(case: Case) -> dict[str, Tensor]:
    """Inputs within (-2.5, 2.5), states within (-1, 1)."""
    out = {"x_seq": 2.5 * noise(SHAPE, torch.float64, 0).tanh()}
    out |= {f"{s}_init": noise(SHAPE[1:], torch.float64, 1 + i).tanh() for i, s in enumerate(case.states)}
    out |= {name: torch.tensor(value) for name, value in case.tensors.items()}
    return {name: t.requires_grad_() for name, t in out.items()}


def gradients(outputs: Outputs, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In all tensors, for fixed gradients in all outputs."""
    incoming = [noise(tuple(o.shape), o.dtype, 100 + i) for i, o in enumerate(outputs)]
    return dict(zip(tensors, torch.autograd.grad(outputs, list(tensors.values()), incoming), strict=True))


def stepwise(step: Callable[..., Any], x_seq: Tensor, *states: Any) -> tuple[Tensor, Any]:
    """The spikes of a step function (x, *states) -> (spike, *states), and its last states."""
    spikes = []
    for x in x_seq:
        s, *states = step(x, *states)
        spikes.append(s)
    return torch.stack(spikes), states


# ---- snnTorch: the potential decays by a factor, and the input comes whole ---------------------------------------------


def snntorch_leaky(reset: str, delay: bool) -> Case:
    """With their delay, the state that they return is not reset yet. Their delayed reset to zero is ours, detached.

    The threshold is 2, so that no potential is left above it after a subtraction: theirs would take it off a second time
    before it decides about the next spike.
    """

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        theirs = library("snntorch")
        atan = theirs.surrogate.atan(2.0)
        neuron = theirs.Leaky(0.75, threshold=2.0, spike_grad=atan, reset_mechanism=reset, reset_delay=delay)
        spikes, (v,) = stepwise(neuron, x_seq, v_init)
        return [spikes] if delay else [spikes, v]

    v_reset = None if reset == "subtract" else 0.0
    ours = partial(functional.lif, tau=4.0, decay_input=False, v_threshold=2.0, v_reset=v_reset, detach_reset=delay)
    return Case(partial(ours, surrogate=surrogate.ATan(2.0)), other)


# ---- Norse: Euler steps of dt with rates ------------------------------------------------------------------------------

DT, RATE = 1e-3, 250.0  # a decay of 1/4


def norse_lif_box(soft: bool) -> Case:
    rest = 0.0 if soft else -0.25  # ours rests at v_reset

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        box, reset = library("norse.torch.functional.lif_box"), library("norse.torch.functional.reset")
        p = box.LIFBoxParameters(
            tau_mem_inv=torch.tensor(RATE),
            v_leak=torch.tensor(rest),
            v_th=torch.tensor(0.5),
            v_reset=torch.tensor(rest),
            reset_method=reset.reset_subtract if soft else reset.reset_value,
        )
        step = partial(box.lif_box_feed_forward_step, p=p, dt=DT)
        spikes, (state,) = stepwise(step, x_seq, box.LIFBoxFeedForwardState(v_init))
        return [spikes, state.v]

    ours = partial(functional.lif, tau=4.0, v_threshold=0.5, v_reset=None if soft else rest)
    return Case(partial(ours, surrogate=surrogate.SuperSpike()), other)


def norse_iaf() -> Case:
    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        iaf = library("norse.torch.functional.iaf")
        step = partial(iaf.iaf_feed_forward_step, p=iaf.IAFParameters(v_reset=torch.tensor(-0.25)))
        spikes, (state,) = stepwise(step, x_seq, iaf.IAFFeedForwardState(v_init))
        return [spikes, state.v]

    return Case(partial(functional.if_, v_reset=-0.25, surrogate=surrogate.SuperSpike()), other)


# ---- Sinabs: tensors are [batch, time, ...]; the reset to zero is detached, the subtraction is not ----------------------


def keep(tau: float) -> float:
    """What Sinabs keeps in a step."""
    return math.exp(-1 / tau)


def sinabs_layer(layer: str, arguments: dict[str, Any], x_seq: Tensor, **states: Tensor) -> Outputs:
    """The spikes of a layer that starts from these states, and its last states."""
    library("sinabs")
    activation, layers = library("sinabs.activation"), library("sinabs.layers")
    if "reset_fn" in arguments:
        arguments = {**arguments, "reset_fn": getattr(activation, arguments["reset_fn"])()}
    made = getattr(layers, layer)(spike_fn=activation.SingleSpike, **arguments).double()
    made.init_state_with_shape((1, *x_seq.shape[1:]))
    for name, state in states.items():
        setattr(made, name, state[None])
    spikes = made(x_seq[None])
    return [spikes[0], *(getattr(made, name)[0] for name in states)]


def sinabs_lif(soft: bool, norm_input: bool) -> Case:
    arguments = {
        "tau_mem": 4.0, "reset_fn": "MembraneSubtract" if soft else "MembraneReset", "norm_input": norm_input
    }  # fmt: skip

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        return sinabs_layer("LIF", arguments, x_seq, v_mem=v_init)

    ours = partial(functional.lif, tau=1 / (1 - keep(4.0)), decay_input=norm_input)
    v_reset, detach = (None, False) if soft else (0.0, True)
    return Case(partial(ours, v_reset=v_reset, detach_reset=detach, surrogate=surrogate.SingleExponential()), other)


def sinabs_iaf() -> Case:
    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        return sinabs_layer("IAF", {}, x_seq, v_mem=v_init)

    return Case(partial(functional.if_, v_reset=None, surrogate=surrogate.SingleExponential()), other)


# ---- SpikingJelly: our conventions ------------------------------------------------------------------------------------


def spikingjelly(
    ours: Run,
    node: str,
    arguments: dict[str, Any],
    states: tuple[str, ...] = ("v",),
    tensors: dict[str, float] | None = None,
    has_surrogate: bool = True,
) -> Case:
    """A node that has our arguments, states and tensors under our names."""
    spike = surrogate.ATan(2.0)

    def other(x_seq: Tensor, **leaves: Tensor) -> Outputs:
        nodes = library("spikingjelly.activation_based.neuron")
        theirs = library("spikingjelly.activation_based.surrogate")
        options = {"surrogate_function": theirs.ATan(*spike.params)} if has_surrogate else {}
        module = getattr(nodes, node)(**arguments, **options)
        module.step_mode = "m"
        for leaf, tensor in leaves.items():
            name = leaf.removesuffix("_init")
            if name in dict(module.named_parameters()):
                delattr(module, name)  # a leaf takes the place of their Parameter
            setattr(module, name, tensor)
        spikes = module(x_seq)
        return [spikes, *(getattr(module, name) for name in states)]

    ours = partial(ours, **arguments, **({"surrogate": spike} if has_surrogate else {}))
    return Case(ours, other, states, tensors or {})


def plif(x_seq: Tensor, w: Tensor, **arguments: Any) -> Any:
    return functional.plif(x_seq, w.sigmoid(), **arguments)


FIRING = {
    f"{reset}-{'detached' if detach else 'attached'}": {"v_threshold": 0.8, "v_reset": v_reset, "detach_reset": detach}
    for reset, v_reset in (("hard", -0.25), ("soft", None))
    for detach in (False, True)
}

CASES: dict[str, Case] = {
    **{f"snntorch-leaky-{reset}": snntorch_leaky(reset, False) for reset in ("subtract", "zero")},
    "snntorch-leaky-zero-delayed": snntorch_leaky("zero", True),
    **{f"norse-lif-{reset}": norse_lif_box(reset == "soft") for reset in ("hard", "soft")},
    "norse-iaf": norse_iaf(),
    **{
        f"sinabs-lif-{reset}-{norm}": sinabs_lif(reset == "soft", norm == "normalised")
        for reset in ("hard", "soft")
        for norm in ("normalised", "whole")
    },
    "sinabs-iaf": sinabs_iaf(),
    **{f"spikingjelly-if-{key}": spikingjelly(functional.if_, "IFNode", firing) for key, firing in FIRING.items()},
}
for _key, _firing in FIRING.items():
    for _decay_input in (True, False):
        _rest = {"decay_input": _decay_input, **_firing}
        _name = f"{_key}-{'decayed' if _decay_input else 'whole'}"
        CASES[f"spikingjelly-lif-{_name}"] = spikingjelly(functional.lif, "LIFNode", {"tau": 3.0, **_rest})
        CASES[f"spikingjelly-plif-{_name}"] = spikingjelly(plif, "ParametricLIFNode", _rest, tensors={"w": -0.8})


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_neuron_is_the_other_librarys(case: Case) -> None:
    tensors = leaves(case)
    expected = case.other(**tensors)
    values = list(case.ours(**tensors))[: len(expected)]
    assert 0.02 < expected[0].mean() < 0.9  # there is something to compare
    assert torch.equal(values[0], expected[0]), "spikes differ"
    for value, state in zip(values[1:], expected[1:], strict=True):
        assert error(value.detach(), state.detach()) <= EXACT
    if case.same_gradients:
        other = gradients(expected, tensors)
        for name, gradient in gradients(values, tensors).items():
            assert error(gradient, other[name]) <= EXACT, name


# ---- surrogates ---------------------------------------------------------------------------------------------------------

ROUNDED = 1e-14  # some of their forms cancel far from 0: 1 - L(x)
GRID = torch.arange(-512, 513, dtype=torch.float64) / 64  # -8 to 8, with 0 and the edges of the windows


def their_gradient(spike: Callable[[Tensor], Tensor], x: Tensor = GRID) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(spike(leaf).sum(), leaf)
    return gradient


def snntorch_spike(name: str, *arguments: float) -> Callable[[], Callable[[Tensor], Tensor]]:
    return lambda: getattr(library("snntorch").surrogate, name)(*arguments)


def norse_spike(method: str, alpha: float) -> Callable[[], Callable[[Tensor], Tensor]]:
    return lambda: partial(library("norse.torch.functional.threshold").threshold, method=method, alpha=alpha)


# Ours, a factor on it, and their spike function.
SPIKES: dict[str, tuple[surrogate.Surrogate, float, Callable[[], Callable[[Tensor], Tensor]]]] = {
    "snntorch-atan": (surrogate.ATan(3.0), 1.0, snntorch_spike("atan", 3.0)),
    "snntorch-fast_sigmoid": (surrogate.FastSigmoid(10.0), 1.0, snntorch_spike("fast_sigmoid", 10.0)),
    "snntorch-sigmoid": (surrogate.Sigmoid(5.0), 1.0, snntorch_spike("sigmoid", 5.0)),
    "snntorch-straight_through": (surrogate.StraightThrough(), 1.0, snntorch_spike("straight_through_estimator")),
    "norse-super": (surrogate.SuperSpike(1.0), 1.0, norse_spike("super", 100.0)),  # their alpha has no effect
    "norse-triangle": (surrogate.Triangle(0.3), 1.0, norse_spike("triangle", 0.3)),
    "norse-tanh": (surrogate.Sigmoid(6.0), 2 / 3.0, norse_spike("tanh", 3.0)),  # theirs is 1 at 0
    "norse-heavi_erfc": (surrogate.Erf(3.0), 2 / 3.0, norse_spike("heavi_erfc", 3.0)),  # theirs is 2/sqrt(pi) at 0
}
# Ours, and the name and arguments of theirs.
SINABS: dict[str, tuple[surrogate.Surrogate, dict[str, float]]] = {
    "SingleExponential": (surrogate.SingleExponential(0.75), {"grad_width": 0.75}),
    "Gaussian": (surrogate.Gaussian(0.7, 2.0), {"sigma": 0.7, "grad_scale": 2.0}),
    "MultiGaussian": (
        surrogate.MultiGaussian(0.7, 0.2, 5.0, 2.0),
        {"sigma": 0.7, "h": 0.2, "s": 5.0, "grad_scale": 2.0},
    ),
}
SPIKINGJELLY = {name: cls for name, cls in SURROGATE_CLASSES.items() if name not in (
    "fast_sigmoid", "triangle", "gaussian", "multi_gaussian", "single_exponential", "straight_through"
)}  # fmt: skip


@pytest.mark.parametrize("key", SPIKES)
def test_a_surrogate_is_the_other_librarys(key: str) -> None:
    ours, factor, spike = SPIKES[key]
    torch.testing.assert_close(factor * ours.gradient(GRID), their_gradient(spike()), rtol=EXACT, atol=ROUNDED)


@pytest.mark.parametrize("name", SINABS)
def test_a_surrogate_is_that_of_sinabs(name: str) -> None:
    ours, arguments = SINABS[name]
    theirs = getattr(library("sinabs.activation"), name)(**arguments)
    torch.testing.assert_close(ours.gradient(GRID), theirs(GRID + 1, 1.0), rtol=EXACT, atol=ROUNDED)


@pytest.mark.parametrize("changed", [False, True], ids=["default", "changed"])
@pytest.mark.parametrize("name", SPIKINGJELLY)
def test_a_surrogate_is_that_of_spikingjelly(name: str, changed: bool) -> None:
    """By the same names and arguments, gradient and primitive, at the defaults and with other values."""
    theirs = getattr(library("spikingjelly.activation_based.surrogate"), SPIKINGJELLY[name].__name__)
    arguments: dict[str, float] = {}
    if changed:
        parameters = SPIKINGJELLY[name].equations.parameters
        arguments = {p.name: 3 if p.range.integer else 1.5 * p.default + 0.25 for p in parameters}
    ours = SPIKINGJELLY[name](**arguments)
    torch.testing.assert_close(ours.gradient(GRID), their_gradient(theirs(**arguments)), rtol=EXACT, atol=ROUNDED)
    if ours.equations.has_primitive():
        smooth = theirs(**arguments, spiking=False)(GRID)
        torch.testing.assert_close(ours.primitive(GRID), smooth, rtol=EXACT, atol=ROUNDED)
