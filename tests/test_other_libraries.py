"""snnkern's neurons and surrogates beside the code of snnTorch, Norse, Sinabs and SpikingJelly, in float64.

Where a library's conventions can be written as our arguments, spikes, states and gradients agree to the last digits. What
belongs to a library that is not installed is skipped; `pip install .[peers]` installs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import functional, surrogate

from support import SURROGATE_CLASSES, double_precision, error, library, noise

EXACT = 1e-12  # relative: the equations are the same, the order of the operations is not
SHAPE = (16, 64)
Outputs = list[Tensor]
Run = Callable[..., Outputs]


@pytest.fixture(autouse=True)
def in_double_precision() -> Iterator[None]:
    with double_precision():
        yield


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
    ties: bool = False  # potentials are at the threshold now and then


def leaves(case: Case) -> dict[str, Tensor]:
    """Inputs within (-2.5, 2.5), states within (-1, 1); for ties, halves, of which every sum is exact."""
    out = {"x_seq": 2.5 * noise(SHAPE, torch.float64, 0).tanh()}
    out |= {f"{s}_init": noise(SHAPE[1:], torch.float64, 1 + i).tanh() for i, s in enumerate(case.states)}
    out = {name: (t * 2).round() / 2 if case.ties else t for name, t in out.items()}
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


SNNTORCH = {"strict": True, "surrogate": surrogate.ATan(2.0)}


def snntorch(reset: str, delay: bool) -> dict[str, Any]:
    """Our firing, as theirs; their delayed reset takes no gradient.

    Without delay the threshold must be so high that no potential is left above it after a subtraction: theirs would take it
    off a second time for the decision about the next spike.
    """
    return {**SNNTORCH, "v_reset": None if reset == "subtract" else 0.0, "delay_reset": delay}


def snntorch_leaky(reset: str, delay: bool, beta: float = 0.75) -> Case:
    threshold = 0.75 if delay else 2.0

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        theirs = library("snntorch")
        atan = theirs.surrogate.atan(2.0)
        neuron = theirs.Leaky(beta, threshold=threshold, spike_grad=atan, reset_mechanism=reset, reset_delay=delay)
        spikes, (v,) = stepwise(neuron, x_seq, v_init)
        return [spikes, v]

    tau = 1 / (1 - beta) if beta < 1 else math.inf
    ours = partial(functional.lif, tau=tau, decay_input=False, v_threshold=threshold, **snntorch(reset, delay))
    return Case(ours, other, ties=0 < beta < 1)


def snntorch_synaptic(reset: str, delay: bool) -> Case:
    """Their delayed reset to zero comes after the charge, and takes the input with it: we have no such reset."""
    threshold = 1.0 if delay else 4.0

    def other(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Outputs:
        theirs = library("snntorch")
        arguments = {"spike_grad": theirs.surrogate.atan(2.0), "reset_mechanism": reset, "reset_delay": delay}
        neuron = theirs.Synaptic(0.5, 0.75, threshold=threshold, **arguments)
        spikes, (i, v) = stepwise(neuron, x_seq, i_init, v_init)
        return [spikes, v, i]

    ours = partial(functional.cuba, alpha=0.5, beta=0.75, v_threshold=threshold, **snntorch(reset, delay))
    return Case(ours, other, ("v", "i"), ties=delay)


def snntorch_lapicque() -> Case:
    """Always delayed."""

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        theirs = library("snntorch")
        atan = theirs.surrogate.atan(2.0)
        neuron = theirs.Lapicque(R=2.0, C=4.0, time_step=2.0, threshold=0.75, spike_grad=atan)
        spikes, (v,) = stepwise(neuron, x_seq, v_init)
        return [spikes, v]

    ours = partial(functional.lapicque, resistance=2.0, capacitance=4.0, dt=2.0, v_threshold=0.75)
    return Case(partial(ours, **snntorch("subtract", True)), other, ties=True)


# ---- Norse: Euler steps of dt with rates; a potential at the threshold does not spike -----------------------------------

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

    ours = partial(functional.lif, tau=4.0, v_threshold=0.5, v_reset=None if soft else rest, strict=True)
    return Case(partial(ours, surrogate=surrogate.SuperSpike()), other, ties=True)


def norse_iaf() -> Case:
    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        iaf = library("norse.torch.functional.iaf")
        step = partial(iaf.iaf_feed_forward_step, p=iaf.IAFParameters(v_reset=torch.tensor(-0.25)))
        spikes, (state,) = stepwise(step, x_seq, iaf.IAFFeedForwardState(v_init))
        return [spikes, state.v]

    return Case(partial(functional.if_, v_reset=-0.25, strict=True, surrogate=surrogate.SuperSpike()), other, ties=True)


def norse_lif(detach: bool) -> Case:
    """Their current decays after the membrane has seen it, and their membrane takes 1/4 of it; `lif_step` detaches."""

    def other(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Outputs:
        lif = library("norse.torch.functional.lif")
        p = lif.LIFParameters(
            tau_syn_inv=torch.tensor(2 * RATE), tau_mem_inv=torch.tensor(RATE), v_th=torch.tensor(0.5)
        )
        if detach:
            one, none = torch.eye(SHAPE[1]), torch.zeros(SHAPE[1], SHAPE[1])
            step = partial(lif.lif_step, input_weights=one, recurrent_weights=none, p=p, dt=DT)
            start: Any = lif.LIFState(torch.zeros_like(v_init), v_init, i_init)
        else:
            step = partial(lif.lif_feed_forward_step, p=p, dt=DT)
            start = lif.LIFFeedForwardState(v_init, i_init)
        spikes, (state,) = stepwise(step, x_seq, start)
        return [spikes, state.v, state.i]

    def ours(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Outputs:
        options: dict[str, Any] = {"v_threshold": 0.5, "detach_reset": detach, "surrogate": surrogate.SuperSpike()}
        s, v, i = functional.cuba(x_seq / 4, v_init, i_init / 2, alpha=0.5, beta=0.75, **options)
        return [s, v, 2 * i]

    return Case(ours, other, ("v", "i"))


def norse_refractory() -> Case:
    """Their gradient also goes through the number of steps that are left. A current that decays at once is none."""

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        lif, refractory = library("norse.torch.functional.lif"), library("norse.torch.functional.lif_refrac")
        rates = {"tau_syn_inv": torch.tensor(4 * RATE), "tau_mem_inv": torch.tensor(RATE)}
        p = refractory.LIFRefracParameters(lif.LIFParameters(**rates, v_th=torch.tensor(0.5)), torch.tensor(3.0))
        none = torch.zeros_like(v_init)
        start = refractory.LIFRefracFeedForwardState(lif.LIFFeedForwardState(v_init, none), none)
        step = partial(refractory.lif_refrac_feed_forward_step, p=p, dt=DT)
        spikes, (state,) = stepwise(step, x_seq, start)
        return [spikes, state.lif.v]

    return Case(partial(functional.refractory_lif, tau=4.0, period=3.0, v_threshold=0.5), other, same_gradients=False)


def norse_li() -> Case:
    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        li = library("norse.torch.functional.leaky_integrator_box")
        step = partial(li.li_box_feed_forward_step, p=li.LIBoxParameters(tau_mem_inv=torch.tensor(RATE)), dt=DT)
        v_seq, (state,) = stepwise(step, x_seq, li.LIBoxState(v_init))
        return [v_seq, state.v]

    return Case(partial(functional.li, tau=4.0), other)


def norse_cuba_li() -> Case:
    """Their current decays after the membrane has seen it, and their membrane takes 1/4 of it."""

    def other(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Outputs:
        li = library("norse.torch.functional.leaky_integrator")
        p = li.LIParameters(tau_syn_inv=torch.tensor(2 * RATE), tau_mem_inv=torch.tensor(RATE))
        v_seq, (state,) = stepwise(partial(li.li_feed_forward_step, p=p, dt=DT), x_seq, li.LIState(v_init, i_init))
        return [v_seq, state.v, state.i]

    def ours(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Outputs:
        v_seq, v, i = functional.cuba_li(x_seq / 4, v_init, i_init / 2, alpha=0.5, beta=0.75)
        return [v_seq, v, 2 * i]

    return Case(ours, other, ("v", "i"))


# ---- Sinabs: tensors are [batch, time, ...]; the reset to zero is detached, the subtraction is not ----------------------


def keep(tau: float) -> float:
    """What Sinabs keeps in a step."""
    return math.exp(-1 / tau)


def sinabs_layer(layer: str, arguments: dict[str, Any], x_seq: Tensor, **states: Tensor) -> Outputs:
    """The spikes of a layer that starts from these states, and its last states."""
    library("sinabs")
    arguments = dict(arguments)
    activation, layers = library("sinabs.activation"), library("sinabs.layers")
    if "reset_fn" in arguments:
        arguments = {**arguments, "reset_fn": getattr(activation, arguments["reset_fn"])()}
    if layer != "ExpLeak":
        most = arguments.pop("max_spikes", 1)
        spike = activation.SingleSpike if most == 1 else activation.MaxSpike(most) if most else activation.MultiSpike
        arguments = {**arguments, "spike_fn": spike}
    made = getattr(layers, layer)(**arguments).double()
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


def sinabs_bounded_lif(soft: bool, most: int | None) -> Case:
    arguments = {"tau_mem": 4.0, "reset_fn": "MembraneSubtract" if soft else "MembraneReset", "norm_input": False}

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        return sinabs_layer("LIF", {**arguments, "max_spikes": most, "min_v_mem": -0.5}, x_seq, v_mem=v_init)

    ours = partial(functional.lif, tau=1 / (1 - keep(4.0)), decay_input=False, max_spikes=most, v_min=-0.5)
    v_reset, detach = (None, False) if soft else (0.0, True)
    return Case(partial(ours, v_reset=v_reset, detach_reset=detach, surrogate=surrogate.SingleExponential()), other)


def sinabs_several_iaf() -> Case:
    """Integrate-and-fire by their defaults: as many spikes as the potential holds thresholds."""

    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        return sinabs_layer("IAF", {"max_spikes": None, "min_v_mem": -1.0}, x_seq, v_mem=v_init)

    ours = partial(functional.if_, v_reset=None, max_spikes=None, v_min=-1.0)
    return Case(partial(ours, surrogate=surrogate.SingleExponential()), other)


def sinabs_synaptic_lif() -> Case:
    """Their current decays after the input has come."""

    def other(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Outputs:
        arguments = {"tau_mem": 4.0, "tau_syn": 2.0, "norm_input": False, "reset_fn": "MembraneSubtract"}
        return sinabs_layer("LIF", arguments, x_seq, v_mem=v_init, i_syn=i_init)

    def ours(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Any:
        options: dict[str, Any] = {"v_reset": None, "surrogate": surrogate.SingleExponential()}
        return functional.cuba(keep(2.0) * x_seq, v_init, i_init, alpha=keep(2.0), beta=keep(4.0), **options)

    return Case(ours, other, ("v", "i"))


def sinabs_alif(most: int | None, v_min: float | None) -> Case:
    """Their gradient does not go through the threshold of the spike."""

    def other(x_seq: Tensor, v_init: Tensor, b_init: Tensor) -> Outputs:
        arguments: dict[str, Any] = {"tau_mem": 4.0, "tau_adapt": 8.0, "adapt_scale": 0.5}
        arguments |= {"spike_threshold": torch.tensor(0.5), "max_spikes": most, "min_v_mem": v_min}
        return sinabs_layer("ALIF", {**arguments, "reset_fn": "MembraneSubtract"}, x_seq, v_mem=v_init, b=b_init)

    ours = partial(functional.alif, tau=1 / (1 - keep(4.0)), rho=keep(8.0), adapt=0.5, v_threshold=0.5, v_reset=None)
    return Case(partial(ours, max_spikes=most, v_min=v_min), other, ("v", "b"), same_gradients=False)


def sinabs_leak(norm_input: bool) -> Case:
    def other(x_seq: Tensor, v_init: Tensor) -> Outputs:
        return sinabs_layer("ExpLeak", {"tau_mem": 4.0, "norm_input": norm_input}, x_seq, v_mem=v_init)

    return Case(partial(functional.li, tau=1 / (1 - keep(4.0)), decay_input=norm_input), other)


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


def spikingjelly_cuba(v_reset: float | None) -> Case:
    """Under their names; never detached."""

    def other(x_seq: Tensor, v_init: Tensor, i_init: Tensor) -> Outputs:
        nodes = library("spikingjelly.activation_based.neuron")
        atan = library("spikingjelly.activation_based.surrogate").ATan(2.0)
        module = nodes.CUBALIFNode(0.5, 0.75, v_reset=v_reset, surrogate_function=atan)
        module.step_mode, module.v, module.c = "m", v_init, i_init
        return [module(x_seq), module.v, module.c]

    ours = partial(functional.cuba, alpha=0.5, beta=0.75, v_threshold=0.5, v_reset=v_reset)
    return Case(partial(ours, surrogate=surrogate.ATan(2.0)), other, ("v", "i"))


def plif(x_seq: Tensor, w: Tensor, **arguments: Any) -> Any:
    return functional.plif(x_seq, w.sigmoid(), **arguments)


FIRING = {
    f"{reset}-{'detached' if detach else 'attached'}": {"v_threshold": 0.8, "v_reset": v_reset, "detach_reset": detach}
    for reset, v_reset in (("hard", -0.25), ("soft", None))
    for detach in (False, True)
}

CASES: dict[str, Case] = {
    **{
        f"snntorch-leaky-{reset}-{'delayed' if delay else 'at_once'}": snntorch_leaky(reset, delay)
        for reset in ("subtract", "zero")
        for delay in (False, True)
    },
    **{
        f"snntorch-leaky-{reset}-beta{beta}": snntorch_leaky(reset, True, beta)
        for reset in ("subtract", "zero")
        for beta in (0, 1)
    },
    **{f"snntorch-synaptic-{reset}-at_once": snntorch_synaptic(reset, False) for reset in ("subtract", "zero")},
    "snntorch-synaptic-subtract-delayed": snntorch_synaptic("subtract", True),
    "snntorch-lapicque": snntorch_lapicque(),
    **{f"norse-lif_box-{reset}": norse_lif_box(reset == "soft") for reset in ("hard", "soft")},
    **{f"norse-lif-{reset}": norse_lif(reset == "detached") for reset in ("attached", "detached")},
    "norse-iaf": norse_iaf(),
    "norse-lif_refrac": norse_refractory(),
    "norse-li_box": norse_li(),
    "norse-li": norse_cuba_li(),
    **{
        f"sinabs-lif-{reset}-{norm}": sinabs_lif(reset == "soft", norm == "normalised")
        for reset in ("hard", "soft")
        for norm in ("normalised", "whole")
    },
    "sinabs-lif-synaptic": sinabs_synaptic_lif(),
    "sinabs-iaf": sinabs_iaf(),
    "sinabs-iaf-several": sinabs_several_iaf(),
    **{
        f"sinabs-lif-bounded-{reset}-{most or 'any'}": sinabs_bounded_lif(reset == "soft", most)
        for reset in ("hard", "soft")
        for most in (1, 2, None)
    },
    "sinabs-alif": sinabs_alif(1, None),
    "sinabs-alif-several": sinabs_alif(None, -0.25),
    **{f"sinabs-exp_leak-{norm}": sinabs_leak(norm == "normalised") for norm in ("normalised", "whole")},
    **{f"spikingjelly-cuba-{reset}": spikingjelly_cuba(v) for reset, v in (("hard", -0.25), ("soft", None))},
}
for _key, _firing in FIRING.items():
    _recovery = {"v_rest": -0.125, "a": 0.25, "b": 0.5, "tau_w": 3.0}
    _nodes: dict[str, Case] = {
        "if": spikingjelly(functional.if_, "IFNode", _firing),
        "qif": spikingjelly(functional.qif, "QIFNode", {"tau": 3.0, **_firing}),
        "eif": spikingjelly(functional.eif, "EIFNode", {"tau": 3.0, **_firing}),
        "izhikevich": spikingjelly(
            functional.izhikevich, "IzhikevichNode", {"tau": 3.0, **_recovery, **_firing}, ("v", "w")
        ),
    }
    for _decay_input in (True, False):
        _rest = {"decay_input": _decay_input, **_firing}
        _input = "decayed" if _decay_input else "whole"
        _nodes[f"lif-{_input}"] = spikingjelly(functional.lif, "LIFNode", {"tau": 3.0, **_rest})
        _nodes[f"plif-{_input}"] = spikingjelly(plif, "ParametricLIFNode", _rest, tensors={"w": -0.8})
        for _scale in (False, True):
            _arguments = {"tau": 3.0, "scale_reset": _scale, **_rest}
            _nodes[f"klif-{_input}-{'scaled' if _scale else 'plain'}"] = spikingjelly(
                functional.klif, "KLIFNode", _arguments, tensors={"k": 1.25}
            )
    CASES |= {f"spikingjelly-{name}-{_key}": case for name, case in _nodes.items()}
CASES["spikingjelly-clif"] = spikingjelly(
    functional.clif, "ComplementaryLIFNode", {"tau": 3.0, "v_threshold": 0.8}, ("v", "m")
)
for _detach in (False, True):
    _arguments = {"tau": 1.5, "v_threshold": 0.8, "detach_reset": _detach}
    CASES[f"spikingjelly-ilif-{'detached' if _detach else 'attached'}"] = spikingjelly(
        functional.ilif, "ILIFNode", _arguments, has_surrogate=False
    )


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_neuron_is_the_other_librarys(case: Case) -> None:
    tensors = leaves(case)
    expected = case.other(**tensors)
    values = list(case.ours(**tensors))[: len(expected)]
    assert len(values) == len(expected)
    assert 0.02 < (expected[0] > 0).double().mean() < 0.9  # there is something to compare
    for name, value, other in zip(("spikes", *case.states), values, expected, strict=False):
        assert error(value.detach(), other.detach()) <= EXACT, name
    if case.same_gradients:
        theirs = gradients(expected, tensors)
        for name, gradient in gradients(values, tensors).items():
            assert error(gradient, theirs[name]) <= EXACT, name
    if case.ties:  # which the comparison decides
        assert not torch.equal(partial(case.ours, strict=False)(**tensors)[0], expected[0])


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
    "PeriodicExponential": (
        surrogate.PeriodicExponential(0.75, 1.0, 2.0),
        {"grad_width": 0.75, "grad_scale": 2.0},
    ),
}
SPIKINGJELLY = {name: cls for name, cls in SURROGATE_CLASSES.items() if name not in (
    "fast_sigmoid", "triangle", "gaussian", "multi_gaussian", "single_exponential", "periodic_exponential",
    "straight_through",
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


def test_the_period_of_periodic_exponential_is_their_threshold() -> None:
    theirs = library("sinabs.activation").PeriodicExponential(0.75)
    ours = surrogate.PeriodicExponential(0.75, period=0.625)
    torch.testing.assert_close(ours.gradient(GRID), theirs(GRID + 0.625, 0.625), rtol=EXACT, atol=ROUNDED)


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
