"""python -m benchmarks.recurrent: a recurrent layer, beside a loop over the steps and other libraries.

Milliseconds of a call, and of one with backward to x_seq and all weights, taken in turn in one process. `layer` has recurrent
weights alone. `with input` has input weights too, of as many inputs as neurons, since SpikingJelly's container and Norse's
layer multiply both at once; snnkern's stands behind a torch.nn.Linear there. Norse's neuron has a current of its own and so
does more; each library has its own start of the weights, and so its own firing rate, which a row says. `--rate` moves the
input until the layer fires so often. The libraries are beside LIF in float32; on a GPU the loop is also taken as a CUDA graph,
up to the steps that are captured in a reasonable time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import snnkern

from . import neurons, peers, process

Run = Callable[[Tensor], Tensor]
Built = tuple[Run, list[Tensor]]  # x_seq -> spikes, and the weights
WORKS = ("inference", "forward+backward")
GAIN = 3.0  # of x where there are input weights, so that such a layer fires about as often as the others
MOST_CAPTURED = 250  # steps
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Layer:
    """What is built: H neurons of a kind, with numbers of a dtype."""

    neuron: str
    T: int
    B: int
    H: int
    dtype: torch.dtype
    device: torch.device

    def weight(self) -> Tensor:
        return (torch.randn(self.H, self.H, device=self.device) / self.H**0.5).to(self.dtype).requires_grad_()


def _layer(layer: Layer) -> Built:
    weight, surrogate = layer.weight(), snnkern.surrogate.ATan()
    call = getattr(snnkern.functional, f"recurrent_{layer.neuron}")
    return lambda x: call(x, weight, surrogate=surrogate)[0], [weight]


# A step of the loop, as one writes it by hand: the input and the states, to the spikes and the new states.
Cell = Callable[..., tuple[Tensor, ...]]


def _lif(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    h = v + (x - v) * peers.DECAY
    s = peers.Spike.apply(h - 1.0)
    return s, (1 - s) * h


def _cuba(x: Tensor, v: Tensor, i: Tensor) -> tuple[Tensor, ...]:
    i = 0.9 * i + x
    h = 0.9 * v + i
    s = peers.Spike.apply(h - 1.0)
    return s, (1 - s) * h, i


def _alif(x: Tensor, v: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    h = v + (x - v) * peers.DECAY
    s = peers.Spike.apply(h - (1.0 + 1.8 * b))
    return s, (1 - s) * h, 0.95 * b + 0.05 * s


CELLS: dict[str, tuple[Cell, int]] = {"lif": (_lif, 1), "cuba": (_cuba, 2), "alif": (_alif, 2)}
"""With the number of their states."""


def _loop(layer: Layer) -> Built:
    weight, (cell, count) = layer.weight(), CELLS[layer.neuron]

    def run(x_seq: Tensor) -> Tensor:
        return _steps(x_seq, weight, cell, count)

    return run, [weight]


def _steps(x_seq: Tensor, weight: Tensor, cell: Cell, count: int) -> Tensor:
    s, states = torch.zeros_like(x_seq[0]), [torch.zeros_like(x_seq[0])] * count
    spikes = []
    for x in x_seq:
        s, *states = cell(x + s @ weight.t(), *states)
        spikes.append(s)
    return torch.stack(spikes)


def _graph(layer: Layer) -> Built:
    if layer.device.type != "cuda" or layer.T > MOST_CAPTURED:
        raise ImportError("no CUDA graph is captured")
    weight, (cell, count) = layer.weight(), CELLS[layer.neuron]
    x = torch.randn(layer.T, layer.B, layer.H, device=layer.device, dtype=layer.dtype).requires_grad_()
    graph = torch.cuda.make_graphed_callables(lambda x, weight: _steps(x, weight, cell, count), (x, weight))
    return lambda x: graph(x, weight), [weight]


def _snntorch(layer: Layer) -> Built:
    from snntorch import RLeaky

    leaky = RLeaky(beta=peers.DECAY, linear_features=layer.H, reset_mechanism="zero").to(layer.device, layer.dtype)

    def run(x_seq: Tensor) -> Tensor:
        spike, v = torch.zeros_like(x_seq[0]), torch.zeros_like(x_seq[0])
        spikes = []
        for x in x_seq:
            spike, v = leaky(x * peers.DECAY, spike, v)
            spikes.append(spike)
        return torch.stack(spikes)

    return run, list(leaky.parameters())


def _layer_with_input(layer: Layer) -> Built:
    linear = torch.nn.Linear(layer.H, layer.H).to(layer.device, layer.dtype)
    run, weights = _layer(layer)
    return lambda x: run(linear(GAIN * x)), [*linear.parameters(), *weights]


def _spikingjelly(layer: Layer) -> Built:
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based import layer as layers

    node = neuron.LIFNode(tau=peers.TAU, surrogate_function=surrogate.ATan())
    container = layers.LinearRecurrentContainer(node, layer.H, layer.H, step_mode="m").to(layer.device, layer.dtype)

    def run(x: Tensor) -> Tensor:
        functional.reset_net(container)
        return container(GAIN * x)

    return run, list(container.parameters())


def _norse(layer: Layer) -> Built:
    from norse.torch import LIFRecurrent

    module = LIFRecurrent(layer.H, layer.H).to(layer.device, layer.dtype)
    return lambda x: module(x)[0], list(module.parameters())


LAYERS: dict[str, Callable[[Layer], Built]] = {
    "snnkern, layer": _layer,
    "loop, layer": _loop,
    "loop as a CUDA graph, layer": _graph,
    "snntorch RLeaky, layer": _snntorch,
    "snnkern, with input": _layer_with_input,
    "spikingjelly LinearRecurrentContainer, with input": _spikingjelly,
    "norse LIFRecurrent, with input": _norse,
}
BESIDE = {name: f"snnkern, {name.rpartition(', ')[2]}" for name in LAYERS}
OF_ALL = ("snnkern, layer", "loop, layer", "loop as a CUDA graph, layer")


def aim(run: Run, x: Tensor, rate: float) -> float:
    """How much to add to x, so that this part of the neurons fires."""
    low, high = -4.0, 6.0
    with torch.no_grad():
        for _ in range(14):
            middle = (low + high) / 2
            low, high = (low, middle) if run(x + middle).float().mean().item() > rate else (middle, high)
    return (low + high) / 2


def measure(case: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    device = torch.device(options["device"])
    torch.manual_seed(0)
    layer = Layer(case["neuron"], *(case[k] for k in "TBH"), DTYPES[case["dtype"]], device)
    shape = (layer.T, layer.B, layer.H)
    noise, incoming = (torch.randn(shape, device=device).to(layer.dtype) for _ in range(2))
    noise = 1.2 * noise
    if options["rate"]:
        noise = noise + aim(_layer(layer)[0], noise, options["rate"])
    x = noise.requires_grad_()
    clock = neurons.Clock(device, options["repeats"])
    every: dict[str, neurons.Work] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name in LAYERS if (layer.neuron, case["dtype"]) == ("lif", "f32") else OF_ALL:
        try:
            run, weights = LAYERS[name](layer)
        except ImportError as error:
            layers[name] = {"unavailable": str(error)}
            continue
        with torch.no_grad():
            layers[name] = {"rate": run(x).float().mean().item()}

        def inference(run: Run = run) -> object:
            with torch.no_grad():
                return run(x)

        def training(run: Run = run, weights: list[Tensor] = weights) -> object:
            return torch.autograd.grad(run(x), [x, *weights], incoming)

        every |= {f"{name}: {work}": f for work, f in zip(WORKS, (inference, training), strict=True)}
    for key, result in clock.medians(every, options["budget"]).items():
        name, _, work = key.partition(": ")
        layers[name][work] = result
    return {"layers": layers}


def cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {"peer": "snnkern", **dict(zip("TBH", shape, strict=True)), "neuron": neuron, "dtype": dtype}
        for shape in options.shapes
        for neuron in options.neurons
        for dtype in options.dtypes
    ]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        what = f"{row['neuron']} {row['dtype']} T={row['T']} B={row['B']} H={row['H']}"
        yield f"{what}: rate, ms of {' and '.join(WORKS)}, and how many times snnkern's"
        if "unavailable" in row:
            yield f"  {row['unavailable']}"
            continue
        for name, result in row["layers"].items():
            if "unavailable" in result:
                yield f"  {name:50} {result['unavailable']}"
                continue
            ours = row["layers"][BESIDE[name]]
            times = [f"{result[w]['ms']:8.2f} ({result[w]['ms'] / ours[w]['ms']:4.1f}x)" for w in WORKS]
            yield f"  {name:50} {result['rate']:.2f} {' '.join(times)}"


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(n) for n in text.split("x"))
    if len(shape) != 3:
        raise argparse.ArgumentTypeError("a shape is TxBxH")
    return shape


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    shapes = ["100x64x128", "100x1x128", "100x64x256", "250x32x512", "100x16x1024"]
    parser.add_argument("--shapes", nargs="+", type=_shape, default=[_shape(s) for s in shapes], metavar="TxBxH")
    parser.add_argument("--neurons", nargs="+", choices=CELLS, default=["lif"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["f32"])
    parser.add_argument("--rate", type=float, help="the part of the neurons that fires")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds after which a case needs no more repeats")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    rows = process.collect("benchmarks.recurrent", [process.Task(cases(options))], argv, options)
    print("\n".join(table(rows)))
    return process.status(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
