"""python -m benchmarks.converted: networks of other libraries, before and after snnkern.convert, on the CPU.

Each network is written as its library's own tutorials write it, and has a training step and an inference timed in turn
before and after, A B A B, in one process; ratios are of the medians. The outputs are compared
first.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import snnkern

from . import neurons, peers, process

CLASSES = 10
WORKS = ("inference", "training step")
DIFFERENT_AT_MOST = 0.01  # of the mean output: rounding in another order turns a spike here and there


@dataclass
class Network:
    """A network, how it is called with images and returns a score for each class, and what resets it between batches."""

    net: nn.Module
    run: Callable[[nn.Module, Tensor], Tensor]
    reset: Callable[[nn.Module], None] = lambda net: None


def over_time(net: nn.Module, steps: int, images: Tensor) -> Tensor:
    """The mean output of single steps that all get the same images."""
    return torch.stack([net(images) for _ in range(steps)]).mean(0)


# ---- the networks ----------------------------------------------------------------------------------------------------


def spikingjelly_convolutions(mode: str, steps: int) -> Network:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def spiking() -> nn.Module:
        return neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True)

    net = nn.Sequential(
        layer.Conv2d(1, 32, 3, padding=1, bias=False), layer.BatchNorm2d(32), spiking(), layer.MaxPool2d(2, 2),
        layer.Conv2d(32, 32, 3, padding=1, bias=False), layer.BatchNorm2d(32), spiking(), layer.MaxPool2d(2, 2),
        layer.Flatten(), layer.Linear(32 * 7 * 7, CLASSES),
    )  # fmt: skip
    functional.set_step_mode(net, mode)

    def sequence(net: nn.Module, images: Tensor) -> Tensor:
        return net(images.expand(steps, *images.shape)).mean(0)

    run = sequence if mode == "m" else lambda net, images: over_time(net, steps, images)
    return Network(net, run, functional.reset_net)


class SnnTorchLoop(nn.Module):
    """Layers and neurons that return (spikes, membrane), called by turns in a loop over time."""

    def __init__(self, layers: list[nn.Module], neurons: list[nn.Module], steps: int) -> None:
        super().__init__()
        self.layers, self.neurons, self.steps = nn.ModuleList(layers), nn.ModuleList(neurons), steps

    def forward(self, images: Tensor) -> Tensor:
        states = [neuron.init_leaky() for neuron in self.neurons]
        recorded = []
        for _ in range(self.steps):
            x = images
            for i, (layer, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
                x, states[i] = neuron(layer(x), states[i])
            recorded.append(x)
        return torch.stack(recorded).mean(0)


def snntorch_leaky(images: bool, steps: int) -> Network:
    import snntorch
    from snntorch import surrogate

    layers: list[nn.Module]
    if images:
        layers = [
            nn.Sequential(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(12, 64, 5), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, CLASSES)),
        ]
    else:
        layers = [nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 1000)), nn.Linear(1000, CLASSES)]
    made = [snntorch.Leaky(beta=0.9, spike_grad=surrogate.atan()) for _ in layers]
    return Network(SnnTorchLoop(layers, made, steps), lambda net, x: net(x))


def norse_convolutions(steps: int) -> Network:
    """Cells, one step at a time, as SequentialState carries their states."""
    from norse.torch import LICell, LIFCell, SequentialState

    net = SequentialState(
        nn.Conv2d(1, 20, 5), LIFCell(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), LIFCell(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(50 * 4 * 4, CLASSES), LICell(),
    )  # fmt: skip

    def run(net: nn.Module, images: Tensor) -> Tensor:
        state, outputs = None, []
        for _ in range(steps):
            output, state = net(images, state)
            outputs.append(output)
        return torch.stack(outputs).mean(0)

    return Network(net, run)


def norse_sequences(steps: int) -> Network:
    from norse.torch import LIF, SequentialState

    net = SequentialState(nn.Flatten(2), nn.Linear(28 * 28, 500), LIF(), nn.Linear(500, CLASSES))
    return Network(net, lambda net, images: net(images.expand(steps, *images.shape))[0].mean(0))


def sinabs_convolutions(steps: int, leaky: bool) -> Network:
    """Batch and time in one dimension, as for a neuromorphic chip."""
    from sinabs import layers, reset_states

    def spiking() -> nn.Module:
        if leaky:
            return layers.LIFSqueeze(tau_mem=10.0, norm_input=False, num_timesteps=steps)
        return layers.IAFSqueeze(num_timesteps=steps)

    net = nn.Sequential(
        nn.Conv2d(1, 20, 5, bias=False), spiking(), nn.AvgPool2d(2), nn.Conv2d(20, 32, 5, bias=False), spiking(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, CLASSES),
    )  # fmt: skip

    def run(net: nn.Module, images: Tensor) -> Tensor:
        return net(images.repeat_interleave(steps, 0)).unflatten(0, (-1, steps)).mean(1)

    return Network(net, run, reset_states)


# library -> network, in words -> what builds it
NETWORKS: dict[str, dict[str, Callable[[], Network]]] = {
    "spikingjelly": {
        "convolutions, LIFNode, multi-step, T=4": lambda: spikingjelly_convolutions("m", 4),
        "convolutions, LIFNode, single steps, T=4": lambda: spikingjelly_convolutions("s", 4),
        "convolutions, LIFNode, multi-step, T=16": lambda: spikingjelly_convolutions("m", 16),
    },
    "snntorch": {
        "784-1000-10, Leaky, T=25": lambda: snntorch_leaky(False, 25),
        "convolutions, Leaky, T=25": lambda: snntorch_leaky(True, 25),
    },
    "norse": {
        "convolutions, LIFCell and LICell, T=32": lambda: norse_convolutions(32),
        "784-500-10, LIF over the sequence, T=32": lambda: norse_sequences(32),
    },
    "sinabs": {
        "convolutions, IAFSqueeze, T=16": lambda: sinabs_convolutions(16, False),
        "convolutions, LIFSqueeze, T=16": lambda: sinabs_convolutions(16, True),
    },
}


# ---- in a process of its own -----------------------------------------------------------------------------------------


def works(network: Network, images: Tensor, labels: Tensor) -> dict[str, neurons.Work]:
    optimizer = torch.optim.SGD(network.net.parameters(), lr=1e-3)

    def scores() -> Tensor:
        network.reset(network.net)
        return network.run(network.net, images)

    def inference() -> Tensor:
        with torch.no_grad():
            return scores()

    def training() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(scores(), labels).backward()
        optimizer.step()

    return dict(zip(WORKS, (inference, training), strict=True))


def measure(case: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    images = 2 * torch.rand(options["batch"], 1, 28, 28)
    labels = torch.randint(CLASSES, (options["batch"],))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            before = NETWORKS[case["peer"]][case["network"]]()
        except ImportError as error:
            raise peers.Unavailable(f"{case['peer']} is not installed ({error})") from error
        after = replace(before, net=snnkern.convert(before.net))
    timed = {"before": works(before, images, labels), "after": works(after, images, labels)}
    first, converted = (work["inference"]() for work in timed.values())
    difference = float((first - converted).abs().mean() / first.abs().mean())
    if not difference <= DIFFERENT_AT_MOST:  # also where nothing spikes
        raise peers.Unavailable(f"the mean difference of its outputs is {difference:.2%} of their mean")
    clock = neurons.Clock(torch.device("cpu"), options["repeats"])
    result: dict[str, Any] = {"difference": difference}
    for work in WORKS:
        times = clock.medians({when: timed[when][work] for when in timed}, options["budget"])
        ratio = times["before"]["ms"] / times["after"]["ms"]
        result[work] = {
            **{when: {k: v for k, v in t.items() if k != "host_us"} for when, t in times.items()},
            "ratio": ratio,
        }
    return result


# ---- in the main process ---------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as docs/migration/speed.md shows them."""
    heads = [f"{work}: {what}" for work in WORKS for what in ("before", "after", "ratio")]
    lines = ["| library | network | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["peer"], row["network"]]
        for work in WORKS:
            if work in row:
                cells += [f"{row[work][when]['ms']:.3g} ms" for when in ("before", "after")]
                cells += [f"{row[work]['ratio']:.1f}"]
        lines.append("| " + " | ".join([*cells, *([row["unavailable"]] if "unavailable" in row else [])]) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.converted", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--libraries", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds after which a network needs no more repeats"
    )
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args(argv)
    options.device = "cpu"
    tasks = [
        process.Task([{"peer": library, "network": network} for network in NETWORKS[library]])
        for library in options.libraries
    ]
    rows = process.collect("benchmarks.converted", tasks, argv, options)
    print(table(rows))
    return int(any("unavailable" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
