"""Pure: the example in the docstring of every function, module and surrogate. What it prints is computed from the equations."""

from __future__ import annotations

import struct
from types import SimpleNamespace

from ..graph.evaluate import evaluate
from ..graph.expr import lift, select, spike
from ..specification.base import CONVENTIONS, Flag, Float, Neuron, Step, Surrogate

STEPS = 6
AMPLITUDES = (1.5, 1.0, 0.75, 0.5, 0.25)
"""A neuron's example takes the first of these constant inputs to which its output is not constant."""
SELF = -0.5
"""The weight of each neuron to itself in the example of a recurrent layer."""
POINTS = (-0.5, 0.0, 0.5)
"""Where the example of a surrogate takes its gradient."""


def _results(neuron: type[Neuron]) -> str:
    return ", ".join([neuron.output, *(s.name for s in neuron.states)])


def _learned(neuron: type[Neuron]) -> str:
    return "".join(f", {t.name}=torch.tensor({1 / t.argument.number!r})" for t in neuron.learned)


def function_example(neuron: type[Neuron], function: str) -> list[str]:
    amplitude, outputs = response(neuron)
    return [
        f">>> x_seq = torch.full(({STEPS}, 2), {amplitude!r})  # {STEPS} steps of 2 neurons",
        f">>> {_results(neuron)} = snnkern.{function}(x_seq{_learned(neuron)})",
        *_listed(f"{neuron.output}[:, 0].tolist()", outputs),
        f">>> {neuron.output}.shape, v.shape",
        f"(torch.Size([{STEPS}, 2]), torch.Size([2]))",
    ]


def recurrent_example(neuron: type[Neuron], function: str) -> list[str]:
    amplitude, outputs = response(neuron, SELF)
    return [
        f">>> x_seq = torch.full(({STEPS}, 2, 3), {amplitude!r})  # {STEPS} steps of 2 samples and 3 neurons",
        f">>> weight_hh = torch.full((3,), {SELF!r})  # each neuron inhibits itself",
        f">>> {_results(neuron)} = snnkern.{function}(x_seq, weight_hh{_learned(neuron)})",
        *_listed(f"{neuron.output}[:, 0, 0].tolist()", outputs),
        ">>> weight_hh = torch.randn(3, 3)  # each neuron feeds all",
        f">>> {neuron.output}, *_ = snnkern.{function}(x_seq, weight_hh{_learned(neuron)})",
        f">>> {neuron.output}.shape, v.shape",
        f"(torch.Size([{STEPS}, 2, 3]), torch.Size([2, 3]))",
    ]


def recurrent_module_example(neuron: type[Neuron]) -> list[str]:
    return [
        f">>> layer = snnkern.nn.Recurrent{neuron.module}(3)",
        f">>> spike_seq = layer(torch.rand({STEPS}, 2, 3))  # {STEPS} steps of 2 samples and 3 neurons",
        ">>> layer.weight_hh.shape, layer.v.shape, layer.spike.shape  # the last two: where the next call goes on",
        "(torch.Size([3, 3]), torch.Size([2, 3]), torch.Size([2, 3]))",
        ">>> layer.reset()",
    ]


def batch_norm_example(neuron: type[Neuron], function: str) -> list[str]:
    learned = "".join(f"torch.tensor({1 / t.argument.number!r}), " for t in neuron.learned)
    return [
        f">>> x_seq = torch.randn({STEPS}, 2, 3)  # {STEPS} steps of 2 samples with 3 channels",
        ">>> running_mean, running_var = torch.zeros(3), torch.ones(3)",
        f">>> {_results(neuron)}, _ = snnkern.{function}(x_seq, {learned}running_mean, running_var, training=True)",
        f">>> {neuron.output}.shape, v.shape",
        f"(torch.Size([{STEPS}, 2, 3]), torch.Size([2, 3]))",
        ">>> torch.allclose(running_mean, 0.1 * x_seq.mean((0, 1)))",
        "True",
    ]


def module_example(neuron: type[Neuron]) -> list[str]:
    amplitude, outputs = response(neuron)
    return [
        f">>> layer = snnkern.nn.{neuron.module}()",
        f">>> x_seq = torch.full(({STEPS}, 2), {amplitude!r})  # {STEPS} steps of 2 neurons",
        *_listed("layer(x_seq)[:, 0].tolist()", outputs),
        ">>> layer.v.shape  # where the next call goes on",
        "torch.Size([2])",
        ">>> layer.reset()",
    ]


def _listed(code: str, outputs: list[float]) -> list[str]:
    """A line that shows these outputs, and what it prints: rounded, if float32 does not hold them."""
    if all(struct.unpack("f", struct.pack("f", x)) == (x,) for x in outputs):
        return [f">>> {code}", repr(outputs)]
    return [f">>> [round(v, 3) for v in {code}]", repr([round(x, 3) for x in outputs])]


def surrogate_example(surrogate: type[Surrogate]) -> list[str]:
    arguments = ", ".join(f"{p.name}={_text(p)}" for p in surrogate.parameters)
    p = SimpleNamespace(**{q.name: int(q.number) if q.range.integer else lift(q.number) for q in surrogate.parameters})
    gradient = evaluate([lift(surrogate.gradient(lift(x), p)) for x in POINTS])
    return [
        f">>> {surrogate.name} = snnkern.surrogate.{surrogate.__name__}({arguments})",
        f">>> [round(g, 3) for g in {surrogate.name}.gradient(torch.tensor({list(POINTS)})).tolist()]",
        repr([round(g, 3) for g in gradient]),
        f">>> layer = snnkern.nn.LIF(surrogate={surrogate.name})",
    ]


def _text(p: Float) -> str:
    return repr(int(p.number)) if p.range.integer else repr(p.number)


def response(neuron: type[Neuron], weight: float = 0.0) -> tuple[float, list[float]]:
    """A constant input, and what a neuron with the default parameters and a weight to itself makes of it in each step."""
    for amplitude in AMPLITUDES:
        outputs = _outputs(neuron, amplitude, weight)
        if len(set(outputs)) > 1:
            return amplitude, outputs
    raise ValueError(
        f"{neuron.name}: the output is constant for each of the inputs {AMPLITUDES}: its example needs another"
    )


def _outputs(neuron: type[Neuron], amplitude: float, weight: float) -> list[float]:
    p = SimpleNamespace(v_reset=lift(0), **{c.name: c.default for c in CONVENTIONS})
    for q in neuron.all_parameters():
        if isinstance(q, Flag):
            setattr(p, q.name, q.default)
        else:
            setattr(p, q.symbol, lift(1 / q.number if q.inverse else q.number))
    for t in neuron.learned:
        setattr(p, t.name, lift(1 / t.argument.number))
    states = [lift(0) if s.start == "0" else getattr(p, s.start) for s in neuron.states]
    step = Step(spike, select, neuron.resets()[0])
    outputs: list[float] = []
    for _ in range(STEPS):
        back = weight * outputs[-1] if outputs else 0.0
        output, new = neuron.step(lift(amplitude + back), states, p, step)
        first, *values = evaluate([lift(output), *map(lift, new)])
        outputs.append(float(first))
        states = [lift(v) for v in values]
    return outputs
