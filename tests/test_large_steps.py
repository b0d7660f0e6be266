"""A step with several coupled states: the generator makes its kernels at once, and they compute.

The example is the neuron of Hodgkin and Huxley (Journal of Physiology 117, 1952): a potential and three gates, each of which
depends on the potential by exponentials.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from snnkern import surrogate
from snnkern.codegen.emit.step import kinds, neuron_header, trace
from snnkern.codegen.graph.evaluate import evaluate
from snnkern.codegen.graph.expr import backward, smallest_cut, value, var
from snnkern.codegen.specification.base import V_THRESHOLD, Float, Neuron, State, Step, blend
from snnkern.codegen.specification.surrogates import ATan


def rate(u: Any) -> Any:
    """u / (1 - e^-u)"""
    return u / (1 - (-u).exp())


class HodgkinHuxley(Neuron):
    """Neuron of Hodgkin and Huxley: a potential that sodium and potassium drive, and three gates."""

    name = "hodgkin_huxley"
    module = "HodgkinHuxley"
    source = "Hodgkin and Huxley, Journal of Physiology 117, 1952"
    equations = (
        "i = g_na * m^3 * inactive * (v - e_na) + g_k * n^4 * (v - e_k) + g_l * (v - e_l)",
        "v = v + dt * (x - i)",
    )
    firing_equations = ("s = 1 if v >= v_threshold else 0",)
    states = (
        State("v", "potential, in mV", "rest"),
        State("m", "activation of sodium"),
        State("inactive", "what is not inactivated of sodium"),
        State("n", "activation of potassium"),
    )
    parameters = (
        Float("dt", 0.02, "time step, in ms"),
        Float("rest", -65.0, "potential at the start, in mV"),
        Float("g_na", 120.0, "sodium"),
        Float("g_k", 36.0, "potassium"),
        Float("g_l", 0.3, "leak"),
        Float("e_na", 50.0, "sodium"),
        Float("e_k", -77.0, "potassium"),
        Float("e_l", -54.4, "leak"),
    )
    firing = (V_THRESHOLD,)

    @classmethod
    def step(cls, x: Any, states: Any, p: Any, step: Step) -> Any:
        v, m, inactive, n = states
        current = p.g_na * m**3 * inactive * (v - p.e_na) + p.g_k * n**4 * (v - p.e_k) + p.g_l * (v - p.e_l)
        m = m + p.dt * (rate((v + 40) * 0.1) * (1 - m) - 4 * (-(v + 65) / 18).exp() * m)
        inactive = inactive + p.dt * (
            0.07 * (-(v + 65) / 20).exp() * (1 - inactive) - (0.1 * v + 3.5).sigmoid() * inactive
        )
        n = n + p.dt * (0.1 * rate((v + 55) * 0.1) * (1 - n) - 0.125 * (-(v + 65) / 80).exp() * n)
        v = v + p.dt * (x - current)
        return step.spike(v - p.v_threshold), [v, m, inactive, n]


SCOPE = {f"p.{p.name}": p.default for p in HodgkinHuxley.numbers()}
STATES = [s.name for s in HodgkinHuxley.states]
START = {"v": -60.0, "m": 0.1, "inactive": 0.5, "n": 0.35}
INPUTS = [10.0, 40.0, -5.0, 80.0, 0.5, 20.0]


def test_it_is_generated_in_less_than_a_second() -> None:
    start = time.process_time()
    header = neuron_header(HodgkinHuxley)
    assert time.process_time() - start < 1
    # One value is enough for each state: the tape holds no more than a step is computed from.
    assert header.count("kTape = 5") == header.count("kTape =") == len(kinds(HodgkinHuxley))


def test_the_derived_bptt_is_the_derivative() -> None:
    """Beside autograd in float64, with the surrogate's primitive in place of the spike, over several steps."""
    parameters = {name.removeprefix("p."): torch.tensor(number, dtype=torch.float64) for name, number in SCOPE.items()}
    leaves = {name: torch.tensor(number, dtype=torch.float64) for name, number in START.items()}
    leaves |= {f"x{t}": torch.tensor(x, dtype=torch.float64) for t, x in enumerate(INPUTS)}
    leaves |= {f"p.{name}": number for name, number in parameters.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    states: list[Tensor] = [leaves[name] for name in STATES]
    atan = surrogate.ATan(0.05)
    step = Step(atan.primitive, blend, "soft")
    values = [{name: float(s) for name, s in zip(STATES, states, strict=True)}]
    loss = torch.zeros((), dtype=torch.float64)
    p = SimpleNamespace(**{name: leaves[f"p.{name}"] for name in parameters})
    for t in range(len(INPUTS)):
        s, states = HodgkinHuxley.step(leaves[f"x{t}"], states, p, step)
        loss = loss + (t + 1) * s
        values.append({name: float(s) for name, s in zip(STATES, states, strict=True)})
    loss = loss + sum(weight * s for weight, s in zip((0.3, -2.0, 1.5, 0.7), states, strict=True))
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True), strict=True))

    traced = trace(HodgkinHuxley, "soft", "smooth")
    incoming = [(traced.spike, var("gs")), *((e, var(f"g_{n}")) for n, e in zip(STATES, traced.new, strict=True))]
    inputs = [traced.x, *traced.old, *traced.floats]
    grads = value(backward(incoming, inputs))
    # As in a kernel: all that the backward step has of the forward one is its tape.
    tape = smallest_cut(grads, inputs[:5], [d for _, d in incoming])
    from_tape = value(grads, {e: var(f"tape{i}") for i, e in enumerate(tape)})
    known = SimpleNamespace(alpha=0.05)
    functions = (
        lambda u: evaluate([ATan.gradient(var("u"), known)], {"u": u})[0],
        lambda u: evaluate([ATan.primitive(var("u"), known)], {"u": u})[0],
    )
    carried = dict(zip(STATES, (0.3, -2.0, 1.5, 0.7), strict=True))
    found = dict.fromkeys(SCOPE, 0.0)
    for t in reversed(range(len(INPUTS))):
        scope = {**SCOPE, **values[t], "x": INPUTS[t]}
        noted = {f"tape{i}": number for i, number in enumerate(evaluate(tape, scope, *functions))}
        scope = {**SCOPE, **noted, "gs": t + 1.0, **{f"g_{name}": g for name, g in carried.items()}}
        gx, *rest = evaluate(from_tape, scope, *functions)
        found[f"x{t}"] = gx
        carried = dict(zip(STATES, rest[:4], strict=True))
        for name, g in zip(SCOPE, rest[4:], strict=True):
            found[name] += g
    found |= carried
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        torch.testing.assert_close(torch.tensor(found[name], dtype=torch.float64), g, rtol=1e-10, atol=1e-12, msg=name)
