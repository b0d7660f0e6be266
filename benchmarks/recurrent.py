"""python -m benchmarks.recurrent: a recurrent layer of leaky integrate-and-fire neurons, beside a loop and other libraries.

Milliseconds of a call, and of one with backward to x_seq and all weights, taken in turn in one process. `layer` has recurrent
weights alone. `with input` has input weights too, of as many inputs as neurons, since SpikingJelly's container and Norse's
layer multiply both at once; snnkern's stands behind a torch.nn.Linear there. Norse's neuron has a current of its own and so
does more; each library has its own start of the weights, and so its own firing rate, which a row says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
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


def _layer(H: int, device: torch.device) -> Built:
    weight = (torch.randn(H, H, device=device) / H**0.5).requires_grad_()
    surrogate = snnkern.surrogate.ATan()
    return lambda x: snnkern.functional.recurrent_lif(x, weight, surrogate=surrogate)[0], [weight]


def _loop(H: int, device: torch.device) -> Built:
    """The equations as one writes them by hand."""
    weight = (torch.randn(H, H, device=device) / H**0.5).requires_grad_()

    def run(x_seq: Tensor) -> Tensor:
        v = s = torch.zeros_like(x_seq[0])
        spikes = []
        for x in x_seq:
            h = v + (x + s @ weight.t() - v) * peers.DECAY
            s = peers.Spike.apply(h - 1.0)
            v = (1 - s) * h
            spikes.append(s)
        return torch.stack(spikes)

    return run, [weight]


def _snntorch(H: int, device: torch.device) -> Built:
    from snntorch import RLeaky

    leaky = RLeaky(beta=peers.DECAY, linear_features=H, reset_mechanism="zero").to(device)

    def run(x_seq: Tensor) -> Tensor:
        spike, v = torch.zeros_like(x_seq[0]), torch.zeros_like(x_seq[0])
        spikes = []
        for x in x_seq:
            spike, v = leaky(x * peers.DECAY, spike, v)
            spikes.append(spike)
        return torch.stack(spikes)

    return run, list(leaky.parameters())


def _layer_with_input(H: int, device: torch.device) -> Built:
    linear, (run, weights) = torch.nn.Linear(H, H).to(device), _layer(H, device)
    return lambda x: run(linear(GAIN * x)), [*linear.parameters(), *weights]


def _spikingjelly(H: int, device: torch.device) -> Built:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    node = neuron.LIFNode(tau=peers.TAU, surrogate_function=surrogate.ATan())
    container = layer.LinearRecurrentContainer(node, H, H, step_mode="m").to(device)

    def run(x: Tensor) -> Tensor:
        functional.reset_net(container)
        return container(GAIN * x)

    return run, list(container.parameters())


def _norse(H: int, device: torch.device) -> Built:
    from norse.torch import LIFRecurrent

    module = LIFRecurrent(H, H).to(device)
    return lambda x: module(x)[0], list(module.parameters())


LAYERS: dict[str, Callable[[int, torch.device], Built]] = {
    "snnkern, layer": _layer,
    "loop, layer": _loop,
    "snntorch RLeaky, layer": _snntorch,
    "snnkern, with input": _layer_with_input,
    "spikingjelly LinearRecurrentContainer, with input": _spikingjelly,
    "norse LIFRecurrent, with input": _norse,
}
BESIDE = {name: f"snnkern, {name.rpartition(', ')[2]}" for name in LAYERS}


def measure(case: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    device = torch.device(options["device"])
    torch.manual_seed(0)
    shape = (case["T"], case["B"], case["H"])
    x, incoming = (torch.randn(shape, device=device) for _ in range(2))
    x = (1.2 * x).requires_grad_()
    clock = neurons.Clock(device, options["repeats"])
    every: dict[str, neurons.Work] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, build in LAYERS.items():
        try:
            run, weights = build(case["H"], device)
        except ImportError as error:
            layers[name] = {"unavailable": str(error)}
            continue
        with torch.no_grad():
            layers[name] = {"rate": run(x).mean().item()}

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
    return [{"peer": "snnkern", **dict(zip("TBH", shape, strict=True))} for shape in options.shapes]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield f"T={row['T']} B={row['B']} H={row['H']}: rate, ms of {' and '.join(WORKS)}, and how many times snnkern's"
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
